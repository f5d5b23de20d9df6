"""What `benchmarks.search` is made of: recorded outcomes, searchers that replay them, and what their fronts measure."""
