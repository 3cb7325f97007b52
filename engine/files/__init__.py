"""Files that this engine writes: whole or not at all, temporary, waiting for delivery."""
