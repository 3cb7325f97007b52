"""A RunPod serverless endpoint on this machine: real verbs, real worker processes, no torch."""
