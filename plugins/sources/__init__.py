"""Sources: where weights come from."""
