"""What may be chosen: policies, and the spaces and targets that limit them."""
