"""What is removed from a model: which weights of a site become zero, which channels and blocks go."""
