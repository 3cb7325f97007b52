"""What a running process has: device, memory, progress, other processes."""
