"""Untrusted text: file names made from it, and base64."""
