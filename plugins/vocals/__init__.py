"""Voice filters: what the network hears of a voice with music or noise."""
