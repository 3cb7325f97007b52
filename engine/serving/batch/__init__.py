"""Many jobs from a file: read them, hand them to workers, keep what came of each."""
