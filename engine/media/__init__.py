"""Decodes and encodes audio, pictures and video."""
