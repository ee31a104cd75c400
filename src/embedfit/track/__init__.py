"""Sends results and searches to LangWatch."""
