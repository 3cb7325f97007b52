"""A studio in the browser: a form for people, on one engine or worker, with a history (docs/studio.md)."""
