"""How the weights of a site are written with fewer bits."""
