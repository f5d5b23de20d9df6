"""Carrying a policy out: sites, pruning, quantization, distillation and the files they end in."""
