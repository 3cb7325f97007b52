"""Loads weight files into a model in memory: layouts, readers, quantisation, placement on devices."""
