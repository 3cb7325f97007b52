"""The published weights: the list of files, download, verify, prune.

Needs only Python and huggingface-hub: no module here may import torch or Hydra. `scripts/download_models.py` and
`multitalk models` both use it.
"""
