"""Parts of a data set for training, for choosing a checkpoint, and for the final test.

Copies and near copies of queries (and queries that share a named field) form a group, and a group is never divided, not even a
large one that only a chain of near copies connects (`check_dataset` warns of those). Groups are shuffled, sorted by label and
dealt out evenly. This stratifies by label if labels repeat, and is a plain random split if they do not (systematic sampling:
W. G. Cochran, Sampling Techniques, 3rd ed., chapter 8).

A split by documents also keeps queries with a common answer together, so that training never sees an answer of a held-out query.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from embedfit.data.check import Finding
from embedfit.data.dataset import Dataset
from embedfit.data.duplicates import connected, members, near_duplicates, numbered
from embedfit.errors import ConfigError, DataError, did_you_mean

By: TypeAlias = Literal["queries", "documents"]
_DEV, _DEV_AT_LEAST, _DEV_AT_MOST = 0.1, 100, 500
"""Default dev part: this share of the queries outside test, at most 500, and none if that is under 100."""


@dataclass(frozen=True)
class Split:
    """Ids of the queries for training, for choosing a checkpoint, and for the final test."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]

    def datasets(self, dataset: Dataset) -> tuple[Dataset, Dataset | None, Dataset]:
        """Return the train, dev (None if it is empty) and test data of a data set."""
        return dataset.select(self.train), dataset.select(self.dev) if self.dev else None, dataset.select(self.test)


def split_dataset(
    dataset: Dataset,
    *,
    test: float = 0.2,
    dev: float | None = None,
    seed: int = 0,
    group_by: str | None = None,
    by: By = "queries",
) -> Split:
    """Split the judged queries of a data set into train, dev and test.

    Official parts are kept, and missing parts are drawn from the other queries. A query in several official parts belongs to test
    before dev, and to dev before train.

    Args:
        dataset: Data set with at least one judged query for each part.
        test: Share of all queries for the test part, between 0 and 1.
        dev: Share of the queries outside test for the dev part, which is at most 500 queries; 0 for none. By default a tenth, and
            none if that is under 100 queries: so few cannot tell two epochs apart, and training needs them.
        seed: Seed of the split.
        group_by: A metadata field. Queries with the same value stay in one part. With official parts, train queries that share a
            value with dev or test are left out, and dev queries that share one with test.
        by: ``documents`` holds out answers: no relevant document of a test query, and no copy or near copy of one, is relevant to
            a dev or train query, and none of dev to train. With official parts, train and dev queries that share such an answer are
            left out. Shares count queries, and are met as closely as undivided groups allow.

    Raises:
        DataError: A part would be empty, or shared answers connect too many queries.
        ConfigError: No query has the field ``group_by``.
    """
    judged = set(dataset.judged)
    assigned: set[str] = set()
    official: dict[str, tuple[str, ...]] = {}
    for part in ("test", "dev", "train"):  # a query in two parts is held out
        official[part] = tuple(id for id in dataset.parts.get(part, ()) if id in judged and id not in assigned)
        assigned.update(official[part])
    # Queries without a part are for training, with or without an official train part.
    rest = official["train"] + tuple(id for id in dataset.judged if id not in assigned)
    test_ids, rest = _official_or_dealt(official["test"], dataset, rest, test, seed, group_by, by)
    if by == "documents":
        rest = _with_new_answers(dataset, rest, test_ids)
    rest = _with_new_values(dataset, rest, test_ids, group_by)
    if dev == 0:
        return _whole(Split(rest, (), test_ids), dev, by)
    dev_ids, train_ids = _official_or_dealt(official["dev"], dataset, rest, _dev_share(dev, len(rest)), seed + 1, group_by, by, least=dev)
    if by == "documents":
        dev_ids = _with_new_answers(dataset, dev_ids, test_ids)
        train_ids = _with_new_answers(dataset, train_ids, dev_ids)
    dev_ids = _with_new_values(dataset, dev_ids, test_ids, group_by)
    train_ids = _with_new_values(dataset, train_ids, dev_ids, group_by)
    return _whole(Split(train_ids, dev_ids, test_ids), dev, by)


def split_folds(
    dataset: Dataset, k: int, *, dev: float | None = None, seed: int = 0, group_by: str | None = None, by: By = "queries"
) -> list[Split]:
    """Return k splits whose test parts together hold every judged query once.

    Args:
        dataset: Data set with judged queries.
        k: Number of folds, at least 2.
        dev: Share of the queries outside test for the dev part of each fold; 0 for none. The default is that of `split_dataset`.
        seed: Seed of the folds.
        group_by: A metadata field. Queries with the same value stay in one part.
        by: ``documents`` holds out answers in each fold: no relevant document of a test query is relevant to a dev or train query.

    Raises:
        DataError: There are fewer groups of queries than folds, or shared answers connect more than half of the queries.
        ConfigError: ``k`` is under 2, or no query has the field ``group_by``.
    """
    if k < 2:
        raise ConfigError(f"folds is {k}; expected 2 or more (or 0 for one split)")
    groups = _stratified(dataset, dataset.judged, seed, group_by, by)
    if len(groups) < k:
        what = "distinct queries" if by == "queries" else "groups of queries without a common answer"
        raise DataError("data", f"has {len(groups)} {what} for {k} folds", fix="use fewer folds, or add queries")
    if by == "documents" and max(map(len, groups)) > len(dataset.judged) / 2:
        raise _hang_together(groups, "fewer than half of them can be trained on when they are held out")
    fold_of = _folds_by_size(groups, k) if by == "documents" else [position % k for position in range(len(groups))]
    splits = []
    for fold in range(k):
        test = tuple(id for group, number in zip(groups, fold_of, strict=True) if number == fold for id in group)
        rest = tuple(id for group, number in zip(groups, fold_of, strict=True) if number != fold for id in group)
        dev_ids, train = _official_or_dealt((), dataset, rest, _dev_share(dev, len(rest)), seed + 1, group_by, by, least=dev)
        splits.append(_whole(Split(train, dev_ids, test), dev, by))
    return splits


def without_leaks(split: Split, findings: Iterable[Finding]) -> Split:
    """Return a split without the train and dev queries that leak. The test part stays as it is.

    Args:
        split: Split, such as one of official parts.
        findings: Findings of `check_leaks` in the split.

    Raises:
        DataError: No training query is left.
    """
    leaking = {id for finding in findings if finding.kind == "leak" for id in finding.ids[1:]}
    train, dev = (tuple(id for id in part if id not in leaking) for part in (split.train, split.dev))
    return _whole(Split(train, dev, split.test), dev=None)


def answers_of(dataset: Dataset) -> dict[str, int]:
    """Return {document id: answer number}. Documents that copies and near copies connect have the same number."""
    ids = list(dataset.corpus)
    texts = [f"{document.title} {document.text}".strip() for document in dataset.corpus.values()]  # as in `check_dataset`, for its cache
    return dict(zip(ids, near_duplicates(texts).chain_of.tolist(), strict=True))


def answers_seen(dataset: Dataset, trained: Iterable[str], held_out: Iterable[str], *, more: Iterable[str] = ()) -> tuple[bool, ...]:
    """Return, for each held-out query, whether one of its relevant documents was relevant to a training query.

    A document that was only a negative in training does not count as seen.

    Args:
        dataset: Data set with the judgements and the documents.
        trained: Ids of the queries used for training or for choosing a checkpoint.
        held_out: Ids of the held-out queries.
        more: Ids of additional documents that were relevant in training, such as copies in another data set.
    """
    answer = answers_of(dataset)
    seen = {answer[document] for id in trained for document in dataset.relevant(id)} | {answer[document] for document in more}
    return tuple(any(answer[document] in seen for document in dataset.relevant(id)) for id in held_out)


def _dev_share(share: float | None, queries: int) -> float:
    """Return the share for the dev part. Choosing an epoch needs a few hundred queries; training gains from the rest."""
    if share is None:
        share = _DEV if _DEV * queries >= _DEV_AT_LEAST else 0.0
    return min(share, _DEV_AT_MOST / max(1, queries))


def _official_or_dealt(
    official: tuple[str, ...],
    dataset: Dataset,
    ids: tuple[str, ...],
    share: float,
    seed: int,
    group_by: str | None,
    by: By,
    least: float | None = 1.0,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (the part, the rest). A part by documents that is too small is an error, or is empty if ``least`` is None."""
    if official:
        return official, ids
    groups = _stratified(dataset, ids, seed, group_by, by)
    if by == "queries":
        return _dealt(groups, share)
    taken, rest = _dealt_by_size(groups, share)
    if len(taken) >= int(share * len(ids)) / 2:
        return taken, rest
    if least is None:
        return (), ids
    raise _hang_together(groups, f"{len(taken):,} of {len(ids):,} can be held out, where {share:.0%} are wanted")


def _hang_together(groups: Sequence[tuple[str, ...]], problem: str) -> DataError:
    largest = max(groups, key=len)
    return DataError(
        "data",
        f"{len(largest):,} of {sum(map(len, groups)):,} queries, such as {largest[0]!r}, hang together through common answers: {problem}",
        fix='split.by = "queries", which reports seen and new answers apart',
    )


def _with_new_answers(dataset: Dataset, ids: tuple[str, ...], held_out: tuple[str, ...]) -> tuple[str, ...]:
    """Return the queries that share no answer with a held-out query."""
    return tuple(id for id, seen in zip(ids, answers_seen(dataset, held_out, ids), strict=True) if not seen)


def _with_new_values(dataset: Dataset, ids: tuple[str, ...], held_out: tuple[str, ...], group_by: str | None) -> tuple[str, ...]:
    """Return the queries that share no value of ``group_by`` with a held-out query."""
    if not group_by:
        return ids
    known = {_value(dataset, id, group_by) for id in held_out} - {None}
    return tuple(id for id in ids if _value(dataset, id, group_by) not in known)


def _value(dataset: Dataset, id: str, group_by: str) -> str | None:
    """Return the value of a query's field as text, or None if it is missing, empty or NaN."""
    value = dataset.queries[id].metadata.get(group_by)
    if isinstance(value, float):
        value = None if value != value else int(value) if value.is_integer() else value
    return None if value is None else str(value).strip() or None


def _dealt(groups: Sequence[tuple[str, ...]], share: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (every (1/share)-th group, the rest), as query ids."""
    taken: list[str] = []
    rest: list[str] = []
    for position, group in enumerate(groups):
        # Position p is taken when the running total p * share passes a half: evenly spaced, and rounded instead of truncated.
        hit = int((position + 1) * share + 0.5) > int(position * share + 0.5)
        (taken if hit else rest).extend(group)
    return tuple(taken), tuple(rest)


def _dealt_by_size(groups: Sequence[tuple[str, ...]], share: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (a share of the queries, the rest), with groups of any size undivided.

    Large groups come first. A group is taken if at least half of it is due, and small groups fill the gap. A group larger than
    twice the share of all queries is never taken, and the rest keeps at least half of its own share.
    """
    most = sum(map(len, groups)) * (1 + share) / 2
    taken: list[str] = []
    rest: list[str] = []
    for group in sorted(groups, key=len, reverse=True):
        due = share * (len(taken) + len(rest) + len(group)) - len(taken)
        (taken if due >= len(group) / 2 and len(taken) + len(group) <= most else rest).extend(group)
    return tuple(taken), tuple(rest)


def _folds_by_size(groups: Sequence[tuple[str, ...]], k: int) -> list[int]:
    """Return a fold for each group: the largest group first, each to the fold with the fewest queries so far."""
    sizes, fold_of = [0] * k, [0] * len(groups)
    for number in sorted(range(len(groups)), key=lambda number: -len(groups[number])):
        fold_of[number] = sizes.index(min(sizes))
        sizes[fold_of[number]] += len(groups[number])
    return fold_of


def _stratified(dataset: Dataset, ids: Sequence[str], seed: int, group_by: str | None, by: By) -> list[tuple[str, ...]]:
    """Return the groups of queries, sorted by label, with labels and the groups of a label in random order."""
    rng = random.Random(seed)
    groups = query_groups(dataset, ids, group_by)
    if by == "documents":
        groups = _with_common_answers(dataset, groups)
    rng.shuffle(groups)
    answers = [_first_answer(dataset, group[0]) for group in groups]
    # Labels are shuffled too. Otherwise a label with few groups would be in the same part for every seed.
    labels = sorted(set(answers))
    rng.shuffle(labels)
    place = {name: index for index, name in enumerate(labels)}
    places = [place[answer] for answer in answers]
    return [groups[number] for number in sorted(range(len(groups)), key=places.__getitem__)]


def _first_answer(dataset: Dataset, id: str) -> str:
    """Return the first of a query's relevant documents, by name."""
    grades = dataset.qrels[id]
    return next(iter(grades)) if len(grades) == 1 else min(dataset.relevant(id))


def _with_common_answers(dataset: Dataset, groups: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Join the groups of queries that common answers connect."""
    answer = answers_of(dataset)
    first: dict[int, int] = {}
    pairs = []
    for number, group in enumerate(groups):
        for key in {answer[document] for id in group for document in dataset.relevant(id)}:
            pairs.append((number, first.setdefault(key, number)))
    return [tuple(id for number in joined for id in groups[number]) for joined in connected(len(groups), pairs)]


def query_groups(dataset: Dataset, ids: Sequence[str], group_by: str | None = None) -> list[tuple[str, ...]]:
    """Return the groups of queries that must stay in one part.

    Copies, near copies, and the same value of ``group_by`` connect two queries, and a group holds all queries that are connected.
    Each id is in one group. Groups and ids keep the order of ``ids``.

    Args:
        dataset: Data set with the queries.
        ids: Ids of the queries to group.
        group_by: A metadata field. Queries without a value (None, empty or NaN) are not connected by it.

    Raises:
        ConfigError: No query has the field ``group_by``.
    """
    if group_by:
        known = {name for query in dataset.queries.values() for name in query.metadata}
        if group_by not in known:
            hint = did_you_mean(group_by, known) or f"; known: {', '.join(sorted(known)) or 'none'}"
            raise ConfigError(f"group_by: no query has the field {group_by!r}{hint}")
    # All queries are searched, so that the cached result serves every part.
    chain_of = near_duplicates(dataset.query_texts()).chain_of
    if len(ids) < len(dataset.queries) or any(map(operator.ne, ids, dataset.queries)):
        place_of = dict(zip(dataset.queries, range(len(dataset.queries)), strict=True))
        chain_of = numbered(chain_of[[place_of[id] for id in ids]])
    groups = list(members(chain_of))
    if not group_by:
        return [tuple(ids[place] for place in group) for group in groups]
    first: dict[str, int] = {}
    pairs = [(group[0], place) for group in groups for place in group]
    for place, id in enumerate(ids):
        value = _value(dataset, id, group_by)
        if value is not None:
            pairs.append((place, first.setdefault(value, place)))
    return [tuple(ids[place] for place in group) for group in connected(len(ids), pairs)]


def group_numbers(dataset: Dataset, group_by: str | None = None) -> dict[str, int]:
    """Return {query id: group number} for every query, with the groups of `query_groups`.

    Raises:
        ConfigError: No query has the field ``group_by``.
    """
    groups = query_groups(dataset, list(dataset.queries), group_by)
    return {id: number for number, group in enumerate(groups) for id in group}


def _whole(split: Split, dev: float | None, by: By = "queries") -> Split:
    for part in ("train", "dev", "test"):
        if not getattr(split, part) and (part != "dev" or dev):
            total = len(split.train) + len(split.dev) + len(split.test)
            fix = "add labelled queries" if by == "queries" else 'add labelled queries with other answers, or split.by = "queries"'
            raise DataError("data", f"is too small: no query is left for {part} out of {total}", fix=fix)
    return split
