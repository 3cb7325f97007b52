"""The worker: jobs of a queue, one at a time, through one engine that stays loaded."""
