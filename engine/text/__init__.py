"""Texts that strangers wrote: names that become paths, and base64."""
