"""The network: knows tensors, not requests."""
