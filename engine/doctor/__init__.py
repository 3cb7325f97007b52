"""Checks this machine for a config, and reports problems with their fixes."""
