"""Quantisations: made while the weights are loaded."""
