"""The neural network. It knows tensors, but no files and no requests."""
