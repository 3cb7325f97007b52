"""Benchmarks that users can run: `multitalk bench ...`."""
