"""Quality measures of a finished video: mouths, sharpness, likeness, colours."""
