"""Readers: how weights get from their files to the device."""
