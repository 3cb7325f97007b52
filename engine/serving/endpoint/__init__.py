"""A RunPod serverless endpoint on this machine: the real HTTP API, real worker processes, no torch."""
