"""Getting the published weights: which files there are, downloading, verifying, listing and pruning them.

Runs with Python and huggingface-hub alone: nothing here may import torch, Hydra or another room of the engine than
`engine.errors`. `scripts/download_models.py` and `multitalk models` are two doors to it.
"""
