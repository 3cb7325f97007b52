"""Plugins that open addresses: each makes the content at an address available as a local file."""
