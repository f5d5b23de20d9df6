"""How a driver keeps many workers busy: made-up candidates that only take time."""
