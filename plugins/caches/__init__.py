"""Step caches: forwards that are replaced by what earlier ones gave."""
