"""Speech: how the lines of a script are spoken."""
