"""Which weights of a site become zero."""
