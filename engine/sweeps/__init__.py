"""Runs sweeps, and writes a page that compares their results."""
