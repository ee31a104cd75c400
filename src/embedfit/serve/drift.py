"""Drift: whether today's queries are like those that the model was trained on, and whether it answers them as well as before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from embedfit.data.duplicates import near_duplicates
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Vectors, complete
from embedfit.encode.named import encoder_of
from embedfit.evaluation.shift import Shift, shift, shifts
from embedfit.pipeline.result import config_of, read_result
from embedfit.searcher.searcher import Searcher
from embedfit.serve.feedback import Asked, Feedback
from embedfit.serve.summary import as_ranked

FEWEST = 20
"""Number of distinct queries on each side below which nothing is compared."""
_MOST = 2000
"""Number of queries on each side that are compared at most, the newest ones."""
LIKENESS = "like a training query"
"""Name of the likeness of queries to the nearest training query."""


def drift_of(feedback: Feedback, run: Path | None) -> tuple[Shift, ...]:
    """Return how today's queries differ from the held-out ones, and the newer half of the searches from the older half.

    Each text counts once, and so do its near copies, since repeated queries are no independent evidence. The halves are those of the
    searches that the newest version answered.

    Args:
        feedback: Searches and picks.
        run: Run directory of the model; None to leave out how far queries are like those of the training.
    """
    asked = feedback.asked()
    several = _over_time([search for search in asked if search.model == asked[-1].model], _ranks(feedback)) if asked else []
    if run is not None and asked and (run / "manifest.json").exists():
        likeness = _likeness(run, list(dict.fromkeys(search.query for search in reversed(asked))))
        several = [*likeness, *several]
    return shifts(several)


def likeness(vectors: Vectors, known: Vectors, excluded: Sequence[Sequence[int]] | None = None) -> list[float]:
    """Return the cosine similarity of each query to the nearest known one.

    Args:
        vectors: Unit vectors of the queries; shape (n, dimensions).
        known: Unit vectors of the known queries; shape (m, dimensions).
        excluded: Positions of the known queries that do not count for each query; by default all count.
    """
    similar = vectors @ known.T
    for row, places in enumerate(excluded or ()):
        similar[row, list(places)] = -1.0
    return [float(value) for value in similar.max(axis=1)]


def _likeness(run: Path, texts: list[str]) -> list[Shift]:
    """Return the shift of the likeness between held-out and today's queries, by the model before it was tuned.

    Neither was shown to that model, so they are alike by chance alone if they come from one source. The tuned model brings its own
    training queries together.
    """
    import pandas as pd

    result = read_result(run)
    encoder: Encoder = encoder_of(config_of(result).model)
    examples = Searcher.load(run / "searcher").parts.examples
    if complete(encoder).remote or not any(examples.texts):  # each query has a price, or the texts are not kept
        return []
    frame = pd.read_parquet(run / "queries.parquet").drop_duplicates("group")
    group_of = dict(zip(*(pd.read_parquet(run / "queries.parquet")[name] for name in ("query_id", "group")), strict=True))
    members: dict[int, list[int]] = {}
    for place, id in enumerate(examples.query_ids):
        members.setdefault(group_of.get(id, -1), []).append(place)
    today = _new(list(examples.texts), texts)[:_MOST]
    if min(len(today), len(frame)) < FEWEST:
        return []
    cached = CachedEncoder(encoder)
    known = cached.encode(list(examples.texts), "query")
    held_out = likeness(cached.encode(list(frame["query"]), "query"), known, [members.get(group, []) for group in frame["group"]])
    return [shift(LIKENESS, held_out[:_MOST], likeness(cached.encode(today, "query"), known))]


def _new(known: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Return texts that are no copies or near copies of known ones, and one of those that are near copies of each other."""
    _, firsts = np.unique(near_duplicates([*known, *texts]).chain_of, return_index=True)  # first text of each chain
    return [texts[place - len(known)] for place in sorted(firsts.tolist()) if place >= len(known)]


def _over_time(asked: Sequence[Asked], ranks: Mapping[str, float]) -> list[Shift]:
    """Return the shifts from the older half of the searches to the newer half."""
    first: dict[str, Asked] = {}
    for search in asked:
        first.setdefault(search.key, search)
    values: dict[str, list[float]] = {
        "no answer": [float(search.abstained) for search in first.values()],
        "probability": [search.probability for search in first.values() if search.probability is not None],
        "1 / place": [ranks[key] for key in first if key in ranks],
    }
    several = []
    for name, sample in values.items():
        half = len(sample) // 2
        if half >= FEWEST:
            several.append(shift(name, sample[:half][-_MOST:], sample[half:][-_MOST:]))
    return several


def _ranks(feedback: Feedback) -> dict[str, float]:
    """Return 1 / place of the first pick of each text, 0 if it was not shown; without orders that chance made."""
    ranks: dict[str, float] = {}
    for row in feedback.rows():
        if row["kind"] == "pick" and as_ranked(row):
            ranks.setdefault(row["key"], 1 / row["place"] if row["place"] else 0.0)
    return ranks
