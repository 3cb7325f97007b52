"""Documentation of the config's keys: meaning, allowed values, and the origin of each value."""
