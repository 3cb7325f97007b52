"""Weight files -> a model in memory: layouts, readers, quantisation, placement."""
