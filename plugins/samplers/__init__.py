"""Samplers: how noise becomes latents."""
