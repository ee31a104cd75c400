"""Queries, documents and judgements: reading, checking, splitting and writing them."""
