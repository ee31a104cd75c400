"""What people picked, as training data without leaks, and the newest picks as a test of today's traffic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from embedfit import console
from embedfit.config import Config
from embedfit.data.check import check_leaks
from embedfit.data.dataset import Dataset, Query, normalised, unchecked
from embedfit.data.records import record_type
from embedfit.data.split import Split, answers_seen, query_groups
from embedfit.data.texts import Contents
from embedfit.errors import DataError

_NEWEST, _MOST, _FEWEST = 0.2, 500, 10
"""Share of the picks that may be held out as the newest, their maximum number, and the number below which none is held out."""
PREFIX = "feedback/"
"""Begins the ids of queries that are picks."""


@dataclass(frozen=True)
class Pick:
    """A label that people gave while they used a searcher.

    Attributes:
        id: Id of the search.
        text: Text of the query, as it was searched.
        document: Id of the document that was picked.
        time: Time of the pick, in seconds since 1970.
        record: Fields of the query; None if it was a text.
    """

    id: str
    text: str
    document: str
    time: float
    record: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Picked:
    """A data set with picks.

    Attributes:
        labelled: Data set without the picks. Its split is the split of a run without picks.
        everything: Data set with all picks that can be used.
        dataset: Data set with the picks to train on.
        ids: Ids of these picks.
        today: Newest picks, which nothing is trained on, and which repeat nothing that is.
        left_out: Why picks are not used -> number of picks.
    """

    labelled: Dataset
    everything: Dataset
    dataset: Dataset
    ids: tuple[str, ...]
    today: Dataset
    left_out: Mapping[str, int]

    @classmethod
    def of(cls, dataset: Dataset, picks: Iterable[Pick], config: Config) -> Picked:
        """Add picks to a data set.

        Picks of unknown documents, picks that contradict each other, and picks that say word for word what a labelled query says
        are left out. A fifth of the others is the newest. Those among the newest that are no copies or near copies of anything
        older are held out, if there are enough.

        Args:
            dataset: Labelled data set.
            picks: Picks.
            config: All settings, of which [data] and [split] are used.
        """
        queries, times, left_out = _usable(dataset, picks, config)
        qrels = {id: {document: 1} for id, (_, document) in queries.items()}
        texts = {id: query for id, (query, _) in queries.items()}
        everything = unchecked(Contents({**dataset.queries, **texts}, dataset.corpus, {**dataset.qrels, **qrels}))
        newest_first = sorted(queries, key=lambda id: (times[id], id), reverse=True)
        window = set(newest_first[: min(_MOST, round(_NEWEST * len(queries)))])
        groups = query_groups(everything, (*dataset.judged, *queries), config.split.group_by) if len(window) >= _FEWEST else []
        today = [id for group in groups if window.issuperset(group) for id in group]
        if len(today) < _FEWEST:
            today = []
        ids = tuple(id for id in queries if id not in set(today))
        whole = unchecked(
            Contents(
                {**dataset.queries, **{id: texts[id] for id in ids}},
                dataset.corpus,
                {**dataset.qrels, **{id: qrels[id] for id in ids}},
                dataset.parts,
                dataset.merged,
            )
        )
        return cls(dataset, everything, whole, ids, everything.select(today), left_out)

    def joined(self, split: Split, config: Config) -> Split:
        """Return a split with the picks in its train part that have nothing to do with what it holds out.

        Left out are copies and near copies of held-out queries, picks that share the field ``split.group_by`` with one and, in a split
        by documents, picks of a held-out answer.

        Args:
            split: Split of the labelled data set.
            config: All settings, of which [split] is used.
        """
        held_out = (*split.dev, *split.test)
        leaks = check_leaks(self.dataset, {"train": self.ids, "test": held_out})
        leaking = {id for leak in leaks for id in leak.ids[1:]}
        if config.split.group_by:
            for group in query_groups(self.dataset, (*held_out, *self.ids), config.split.group_by):
                leaking.update(group if not set(held_out).isdisjoint(group) else ())
        if config.split.by == "documents":
            leaking |= {id for id, seen in zip(self.ids, answers_seen(self.dataset, held_out, self.ids), strict=True) if seen}
        return replace(split, train=(*split.train, *(id for id in self.ids if id not in leaking)))

    def describe(self) -> str:
        """Return what became of the picks, in a sentence."""
        parts = [f"{len(self.ids):,} picks to train on", f"{len(self.today.queries):,} newest held out"]
        parts += [f"{count:,} left out ({why})" for why, count in self.left_out.items() if count]
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {"picks": len(self.ids), "today": len(self.today.queries), "left_out": dict(self.left_out)}


def with_picks(dataset: Dataset, picks: Sequence[Pick], config: Config) -> Picked | None:
    """Return a data set with picks; None if none of them can be used.

    Raises:
        DataError: There are no picks.
    """
    if not picks:
        raise DataError("feedback", "has no labels yet", fix="pick in the page of 'embedfit serve', or send /feedback")
    picked = Picked.of(dataset, picks, config)
    console.note(f"Feedback: {picked.describe()}")
    return picked if picked.ids or picked.today.queries else None


def _usable(
    dataset: Dataset, picks: Iterable[Pick], config: Config
) -> tuple[dict[str, tuple[Query, str]], dict[str, float], dict[str, int]]:
    """Return (id -> (query, document id), id -> time, reason -> number of picks left out)."""
    record = record_type(config.data.record, template=config.data.query_template, label=config.data.label) if config.data.record else None
    labelled = {normalised(dataset.queries[id].text) for id in dataset.judged}
    left_out = {"of an unknown document": 0, "labelled already": 0, "repeated": 0, "in conflict": 0}
    by_text: defaultdict[str, list[tuple[Pick, str]]] = defaultdict(list)
    for pick in sorted(picks, key=lambda pick: (pick.time, pick.id)):
        text = record.template.render(pick.record) if record and pick.record else pick.text
        if pick.document not in dataset.corpus:
            left_out["of an unknown document"] += 1
        elif not text.strip() or normalised(text) in labelled:
            left_out["labelled already"] += 1
        else:
            by_text[normalised(text)].append((pick, text))
    queries: dict[str, tuple[Query, str]] = {}
    times: dict[str, float] = {}
    for same in by_text.values():
        if len({pick.document for pick, _ in same}) > 1:
            left_out["in conflict"] += len(same)
            continue
        [(first, text), *repeated] = same
        left_out["repeated"] += len(repeated)
        id = f"{PREFIX}{first.id}"
        queries[id] = Query(id, text, dict(first.record or {})), first.document
        times[id] = first.time
    return queries, times, left_out
