"""Shapes of labelled rows that other tools write."""
