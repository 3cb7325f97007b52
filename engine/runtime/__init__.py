"""State of the running process: device, memory, progress, process group."""
