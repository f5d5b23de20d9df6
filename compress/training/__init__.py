"""Training a compressed student: what it learns from, how its masks and grids move, one technique a file."""
