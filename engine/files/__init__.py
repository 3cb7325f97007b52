"""Writing files: atomic writes, temporary folders, and videos that wait for delivery."""
