"""Train the embedded model from scratch: its data, its trainings in order, its evaluation."""
