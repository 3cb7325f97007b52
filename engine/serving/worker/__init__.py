"""The worker: takes jobs from a queue and makes them one at a time with one engine that stays loaded."""
