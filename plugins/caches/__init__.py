"""Step caches: they replace forward passes with results of earlier ones."""
