"""The cost model: memory, time and price of a video, calculated from configs, without weights or torch."""
