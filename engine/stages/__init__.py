"""The walk of a generation: one verb, one file, one function."""
