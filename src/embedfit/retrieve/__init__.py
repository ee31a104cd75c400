"""Vectors and words into rankings."""
