"""Facts about this machine: free memory, memory profiles that fit, compiled libraries."""
