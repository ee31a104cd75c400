"""An answer as JSON."""

from __future__ import annotations

from typing import Any

from embedfit.serve.service import Answer


def content_of(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON values."""
    hits = [
        {
            "id": hit.id,
            "text": hit.text,
            "score": hit.score,
            "probability": hit.probability,
            "because": [{"kind": reason.kind, "text": reason.text, "score": reason.score} for reason in hit.because],
        }
        for hit in answer.hits
    ]
    return {
        "hits": hits,
        "abstained": answer.abstained,
        "needs_person": answer.needs_person,
        "model": answer.model,
        "search_id": answer.search_id,
    }
