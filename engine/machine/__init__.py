"""What this machine has: free memory, memory profiles that fit, compiled libraries."""
