"""Rankings into a verdict."""
