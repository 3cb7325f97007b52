"""Measurements a user can repeat: `multitalk bench ...`."""
