"""What the tests of publishing share."""

import json

TOKEN = "hf_very_secret_0123456789"


def texts_of(project):
    """Return every query text of the data."""
    return [json.loads(line)["query"] for line in (project / "queries.jsonl").read_text().splitlines()]


TEXTS = ["where is my receipt", "stop charging me", "a long one " * 200]
