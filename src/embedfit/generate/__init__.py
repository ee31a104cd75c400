"""Labelled queries written by an LLM."""
