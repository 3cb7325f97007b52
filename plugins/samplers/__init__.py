"""Samplers: they turn noise into latents."""
