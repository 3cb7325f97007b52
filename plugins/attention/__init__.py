"""Attention backends: which kernel computes the network's self-attention."""
