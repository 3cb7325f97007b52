"""Guidance: how far prompt and voices steer the video."""
