"""Serves jobs: the RunPod worker, batches, and the local endpoint."""
