"""From vectors and words to rankings."""
