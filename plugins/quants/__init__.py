"""Quantisations that are made while the weights are loaded."""
