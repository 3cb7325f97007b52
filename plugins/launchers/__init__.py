"""Launchers: start the workers of a batch on machines and devices."""
