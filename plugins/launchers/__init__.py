"""Machines and devices for the workers of a batch."""
