"""Traces to LangWatch and others."""
