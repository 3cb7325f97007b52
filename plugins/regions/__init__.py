"""Regions: who is where in the picture."""
