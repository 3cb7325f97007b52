"""Train the embedded model from nothing: its data, its trainings in order, its evaluation."""
