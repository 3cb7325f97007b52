"""Entrypoints: the ways in which requests arrive."""
