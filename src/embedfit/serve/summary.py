"""What the feedback says: counts, conflicts, agreement, drift, and a data set to train on."""

from __future__ import annotations

import datetime
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from embedfit.errors import DataError
from embedfit.evaluation.shift import Shift
from embedfit.files import json_bytes, writing
from embedfit.pipeline.picked import Pick
from embedfit.serve.feedback import Asked, Feedback
from embedfit.serve.interleaving import Preference, preferences

_DRAWS = 10_000
_HITS = 4
"""Number of hits of which one in 24 random orders, or fewer, is the model's own."""


@dataclass(frozen=True)
class Week:
    """A week of use.

    Attributes:
        start: The Monday, as YYYY-MM-DD in UTC.
        searches: Number of searches.
        abstained: Share of the searches without an answer, from 0 to 1.
        probability: Mean probability of the best answer; None without a calibration.
        picks: Number of picks.
        first: Share of the picks that chose the best answer; None without picks.
        none: Share of the picks that chose none of the answers; None without picks.
        rank: Mean of 1 / place of the pick, 0 if it was not shown; None without picks.
    """

    start: str
    searches: int
    abstained: float
    probability: float | None
    picks: int
    first: float | None
    none: float | None
    rank: float | None


@dataclass(frozen=True)
class Explored:
    """Picks from answers in random order, where the place says nothing about the answer.

    Attributes:
        picks: Number of picks.
        first: Share of them at the first place.
        expected: Share that would be there if the place made no difference.
        p: p-value of so large a share by chance.
    """

    picks: int
    first: float
    expected: float
    p: float


@dataclass(frozen=True)
class Conflict:
    """A text for which people picked different documents. It is no example, and not in the data set.

    Attributes:
        query: The text.
        choices: Document id -> number of picks. An empty id stands for none of these.
        searches: Ids of the searches, for ``--delete``.
    """

    query: str
    choices: dict[str, int]
    searches: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What the feedback says.

    Attributes:
        searches: Number of searches.
        picks: Number of picks; clicks are not among them.
        clicks: Number of clicks, which are no labels.
        none: Number of picks of none of the documents.
        people: Number of people who picked.
        labels: Number of texts in the data set.
        examples: Number of texts that the searcher has learned.
        documents: Document id -> number of texts labelled with it.
        twice: Number of pairs of picks, by different people, for the same text.
        agreement: Share of these pairs with the same document; None without pairs.
        conflicts: Texts with different picks.
        weeks: Weeks with a search, oldest first.
        explored: Picks from answers in random order; None without any.
        drift: Differences between today's queries and earlier ones.
        preferences: Blind comparisons of two searchers.
    """

    searches: int
    picks: int
    clicks: int
    none: int
    people: int
    labels: int
    examples: int
    documents: dict[str, int]
    twice: int
    agreement: float | None
    conflicts: tuple[Conflict, ...]
    weeks: tuple[Week, ...]
    explored: Explored | None = None
    drift: tuple[Shift, ...] = ()
    preferences: tuple[Preference, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {
            **asdict(self),
            "drift": [{**asdict(one), "shown": one.shown} for one in self.drift],
            "preferences": [{**asdict(one), "winner": one.winner} for one in self.preferences],
        }

    @property
    def sentences(self) -> list[str]:
        """The summary in words, one sentence each."""
        lines = [f"Searches: {self.searches:,}. Picks: {self.picks:,}. People: {self.people:,}. Labelled texts: {self.labels:,}."]
        if self.none:
            lines.append(f"Picks of none of the documents: {self.none:,}.")
        if self.agreement is not None:
            lines.append(f"Where two people picked for the same text, they agree in {self.agreement:.0%} of {self.twice:,} pairs.")
        if self.conflicts:
            lines.append(f"Texts held back because their picks conflict: {len(self.conflicts):,}.")
        if self.explored:
            lines.append(
                f"Of {self.explored.picks:,} picks from answers in random order, {self.explored.first:.0%} were at the first place; "
                f"{self.explored.expected:.0%} would be there if places made no difference (p = {self.explored.p:.2g})."
            )
        lines += [one.sentence for one in self.preferences]
        shown = [one for one in self.drift if one.shown]
        lines += [f"Drift is shown: '{one.name}' was {one.before:.2f} and is {one.after:.2f} (p = {one.p:.2g})." for one in shown]
        if self.drift and not shown:
            lines.append("No drift is shown.")
        return lines


def summarise(feedback: Feedback, drift: tuple[Shift, ...] = ()) -> Summary:
    """Return what the feedback says.

    Args:
        feedback: Searches and picks.
        drift: Differences between today's queries and earlier ones, from `drift_of`.
    """
    rows = list(feedback.rows())
    picks = [row for row in rows if row["kind"] == "pick"]
    labels, conflicts = _labels(picks)
    same, pairs = _agreement(picks)
    _, changes = feedback.examples()
    searches = feedback.asked()
    return Summary(
        searches=len(searches),
        picks=len(picks),
        clicks=len(rows) - len(picks),
        none=sum(row["choice"] is None for row in picks),
        people=len({row["person"] for row in picks}),
        labels=len(labels),
        examples=sum(document is not None for *_, document in changes),
        documents=dict(Counter(row["choice"] for row in labels).most_common()),
        twice=pairs,
        agreement=same / pairs if pairs else None,
        conflicts=tuple(conflicts),
        weeks=tuple(_weeks(searches, picks)),
        explored=_explored(picks),
        drift=drift,
        preferences=preferences(picks),
    )


def write_labels(feedback: Feedback, path: Path) -> int:
    """Write a data set: one row for each text with picks that agree on a document. `run` reads it.

    A row has ``id``, ``query`` and ``expected``, and when and by which model the label was made. Clicks, conflicts and picks of none
    of the documents are left out.

    Returns:
        Number of rows.

    Raises:
        DataError: There is no label yet.
        StorageError: The file cannot be written.
    """
    labels, _ = _labels([row for row in feedback.rows() if row["kind"] == "pick"])
    if not labels:
        raise DataError(feedback.name, "has no labels yet", fix="pick in the page of 'embedfit serve', or send /feedback")
    with writing(path) as file:
        for row in labels:
            when = datetime.datetime.fromtimestamp(row["time"], datetime.UTC).isoformat(timespec="seconds")
            content = {"id": row["search"], "query": row["query"], "expected": row["choice"], "time": when, "model": row["model"]}
            file.write(json_bytes(content) + b"\n")
    return len(labels)


def picks_of(stores: Iterable[Feedback]) -> list[Pick]:
    """Return the labels of several feedbacks: the first pick of each text whose picks agree on a document."""
    rows = {(row["search"], row["person"]): row for feedback in stores for row in feedback.rows() if row["kind"] == "pick"}
    labels, _ = _labels(sorted(rows.values(), key=lambda row: row["time"]))
    records = [None if row["record"] is None else json.loads(row["record"]) for row in labels]
    return [Pick(row["search"], row["query"], row["choice"], row["time"], record) for row, record in zip(labels, records, strict=True)]


def _labels(picks: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Conflict]]:
    """Return the first pick of each text whose picks agree on a document, and the conflicts."""
    by_key: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in picks:
        by_key[row["key"]].append(row)
    labels, conflicts = [], []
    for rows in by_key.values():
        choices = Counter(row["choice"] or "" for row in rows)
        if len(choices) > 1:
            conflicts.append(Conflict(rows[0]["query"], dict(choices), tuple(dict.fromkeys(row["search"] for row in rows))))
        elif rows[0]["choice"] is not None:
            labels.append(rows[0])
    return labels, conflicts


def _agreement(picks: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Return the number of pairs of picks by two people for one text that agree, and of all such pairs."""
    latest: defaultdict[str, dict[str, str | None]] = defaultdict(dict)
    for row in picks:
        latest[row["key"]][row["person"]] = row["choice"]
    pairs = [(one, other) for choices in latest.values() for one, other in combinations(choices.values(), 2)]
    return sum(one == other for one, other in pairs), len(pairs)


def _explored(picks: Sequence[dict[str, Any]]) -> Explored | None:
    """Return how many picks of answers in random order were at the first place.

    Answers of few hits are left out: a random order that happens to be the model's own cannot be told from it.
    """
    interleaved = '"teams"'
    unordered = [row for row in picks if row["place"] and not as_ranked(row) and interleaved not in row["shown"]]
    random_ones = [(row, len(json.loads(row["shown"]))) for row in unordered]
    rows = [row for row, hits in random_ones if hits >= _HITS]
    if not rows:
        return None
    chances = np.array([1 / hits for _, hits in random_ones if hits >= _HITS])
    first = sum(row["place"] == 1 for row in rows)
    drawn = (np.random.default_rng(0).random((_DRAWS, len(rows))) < chances).sum(axis=1)
    return Explored(len(rows), first / len(rows), float(chances.mean()), (1 + int((drawn >= first).sum())) / (1 + _DRAWS))


def as_ranked(row: Mapping[str, Any]) -> bool:
    """Return whether a search was shown in the model's own order, and not in one that chance made.

    Of the orders of one answer, the model's own is the likeliest, with more than one half while ``explore`` is under one half.
    """
    return bool(row["order_probability"] > 0.5)


def _weeks(searches: Sequence[Asked], picks: Sequence[dict[str, Any]]) -> list[Week]:
    asked: defaultdict[str, list[Asked]] = defaultdict(list)
    picked: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for search in searches:
        asked[_monday(search.time)].append(search)
    for row in picks:
        picked[_monday(row["asked"])].append(row)
    weeks = []
    for start, those in sorted(asked.items()):
        rows = picked[start]
        probabilities = [search.probability for search in those if search.probability is not None]
        # A place that chance gave says nothing about the model.
        ranked = [row for row in rows if as_ranked(row)]
        weeks.append(
            Week(
                start,
                len(those),
                _mean([search.abstained for search in those]) or 0.0,
                _mean(probabilities),
                len(rows),
                _mean([row["place"] == 1 for row in ranked]),
                _mean([row["choice"] is None for row in rows]),
                _mean([1 / row["place"] if row["place"] else 0.0 for row in ranked]),
            )
        )
    return weeks


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _monday(seconds: float) -> str:
    day = datetime.datetime.fromtimestamp(seconds, datetime.UTC).date()
    return (day - datetime.timedelta(days=day.weekday())).isoformat()
