"""Untrusted text: file names made from it, base64, sizes, similar names, and HTML pages."""
