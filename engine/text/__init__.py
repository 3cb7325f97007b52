"""Untrusted text: file names made from it, base64, sizes, and what HTML pages show of it."""
