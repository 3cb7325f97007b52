"""Places to take weights from."""
