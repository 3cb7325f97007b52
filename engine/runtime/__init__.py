"""The running process: its device, memory, progress and parallel processes."""
