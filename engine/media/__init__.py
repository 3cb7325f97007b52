"""Sounds, pictures and videos: what files hold, decoded and encoded."""
