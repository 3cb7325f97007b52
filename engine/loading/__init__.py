"""Files of weights -> a model in memory: layouts, readers, quantisation, placement."""
