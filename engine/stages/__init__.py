"""The stages of a generation: one verb, one file, one function each."""
