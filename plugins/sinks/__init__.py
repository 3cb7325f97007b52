"""Plugins that keep finished videos."""
