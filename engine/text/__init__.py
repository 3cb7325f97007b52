"""Texts that strangers wrote: names that become paths, base64, sizes, and what HTML pages show of them."""
