"""Measure the embedded model on held-out drawn people: `python -m scripts.evaluate_tiny talk|quant|table`."""
