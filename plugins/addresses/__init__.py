"""Plugins that bring what lies at an address to a local file."""
