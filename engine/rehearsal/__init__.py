"""Runs the real code at full size on a simulated card: fake tensors, no GPU, no weights."""
