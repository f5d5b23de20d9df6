"""What a policy is worth: workloads, accuracy, bytes, MACs and latency."""
