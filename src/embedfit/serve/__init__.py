"""Serves the searcher over HTTP: answers, feedback, and the page on which people pick."""
