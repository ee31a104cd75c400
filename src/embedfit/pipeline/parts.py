"""Train, dev and test parts without leaks between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from embedfit import console
from embedfit.config import Config, DataConfig
from embedfit.data.check import Finding, check_groups, check_leaks
from embedfit.data.dataset import Dataset
from embedfit.data.duplicates import copies_among
from embedfit.data.load import load
from embedfit.data.records import record_type
from embedfit.data.split import Split, split_dataset, split_folds, without_leaks
from embedfit.errors import ConfigError, DataError

_FOLDS, _FEW_QUERIES = 5, 1000
"""Under so many judged queries, each is held out once by default, in so many folds."""
LISTED = 20
"""Leaks that an error or an alert lists."""


def read(config: DataConfig, problems: list[DataError] | None = None) -> Dataset:
    """Read the data set that a configuration names; see `load`."""
    if config.query_template and not config.record:
        raise ConfigError("data.query_template needs data.record: it is filled from a record's fields")
    if Path(config.queries).is_dir():
        unused = [f"data.{name}" for name in ("documents", "record", "label", "grade", "separator") if getattr(config, name) is not None]
        unused += ["data.query"] if config.query != "query" else []
        if unused:
            raise ConfigError(
                f"data.queries is the folder {config.queries}, which has its own documents, judgements and columns; "
                f"fix: drop {' and '.join(unused)}"
            )
    record = record_type(config.record, template=config.query_template, label=config.label) if config.record else None
    return load(
        config.queries,
        config.documents,
        query=config.query,
        label=config.label,
        grade=config.grade,
        separator=config.separator,
        record=record,
        problems=problems,
    )


def splits_of(config: Config, dataset: Dataset) -> list[Split]:
    """Return the splits that a configuration describes: one, or as many as there are folds.

    Where nothing is said, data sets of under 1,000 judged queries are scored out of fold, unless they come with a test part.
    """
    said, folds = config.split, folds_of(config, dataset)
    if folds:
        return split_folds(dataset, folds, dev=said.dev, seed=said.seed, group_by=said.group_by, by=said.by)
    return [one_split(config, dataset)]


def folds_of(config: Config, dataset: Dataset) -> int:
    """Return the number of folds; 0 for one split. Where neither folds nor a share for the test part is said, few queries have folds."""
    said = config.split
    if said.folds is not None:
        return said.folds
    few = len(dataset.judged) < _FEW_QUERIES and not dataset.parts.get("test")
    return _FOLDS if few and "test" not in said.model_fields_set else 0


def one_split(config: Config, dataset: Dataset) -> Split:
    """Return the train, dev and test parts that a configuration describes.

    Raises:
        ConfigError: It says a share for a part that the data set comes with.
    """
    said, judged = config.split, set(dataset.judged)
    for part in ("test", "dev"):
        official = len(judged.intersection(dataset.parts.get(part, ())))
        # A dev part of 0 is none, whatever the data set comes with.
        if official and part in said.model_fields_set and getattr(said, part):
            raise ConfigError(
                f"split.{part} is {getattr(said, part):g}, and the data comes with a {part} part of {official:,} queries, which is used; "
                f"fix: leave split.{part} out"
            )
    return split_dataset(dataset, test=said.test, dev=said.dev, seed=said.seed, group_by=said.group_by, by=said.by)


def leaks(config: Config, dataset: Dataset) -> list[Finding]:
    """Return the leaks between the parts that a configuration describes; folds have none, as what is near stays together.

    Fields by which queries might be grouped are among them, if they are not grouped yet.
    """
    parts = vars(one_split(config, dataset))
    return [*check_leaks(dataset, parts), *([] if config.split.group_by else check_groups(dataset, parts))]


def gated(config: Config, dataset: Dataset, splits: Sequence[Split]) -> tuple[list[Split], list[Finding]]:
    """Return the splits as they may be used, and the leaks that are left in them.

    Raises:
        DataError: A held-out query says what another part says, and ``split.leaks`` is ``fail``.
    """
    policy = config.split.leaks
    clean, left = [], []
    for split in splits:
        found = check_leaks(dataset, vars(split))
        if found and policy == "fail":
            for leak in found[:LISTED]:
                console.note(leak.message)
            more = " ('embedfit check' lists them all)" if len(found) > LISTED else ""
            raise DataError(
                config.data.queries,
                f"{len(found):,} held-out queries say what is trained on{more}, such as: {found[0].message}",
                fix='leaks = "drop" in [split] trains without these; --allow-leaks goes on, and the report says so in red',
            )
        clean.append(without_leaks(split, found) if policy == "drop" else split)
        left += found if policy == "allow" else []
    return clean, left


def without_held_out(config: Config, said: DataConfig, other: Dataset, test: Dataset) -> tuple[Dataset, list[Finding]]:
    """Return the judged queries of a further data set as they may be trained on, and the leaks that are left in them.

    Raises:
        DataError: A held-out query says what one of them says, and ``split.leaks`` is ``fail``; or there are none.
    """
    train = {f"{said.queries} {id}": replace(other.queries[id], id=f"{said.queries} {id}") for id in other.judged}
    both = Dataset({**train, **{id: query for id, query in test.queries.items() if id not in train}}, {}, {})
    found = check_leaks(both, {"train": list(train), "test": [id for id in test.queries if id not in train]})
    if found and config.split.leaks == "fail":
        raise DataError(
            said.queries,
            f"{len(found):,} held-out queries say what its queries say, such as: {found[0].message}",
            fix='leaks = "drop" in [split] trains without these',
        )
    leaking = {id for finding in found for id in finding.ids[1:]} if config.split.leaks == "drop" else set()
    answers = _held_out_answers(config, said, other, test) if config.split.by == "documents" else set()
    kept = other.select(id for id in other.judged if f"{said.queries} {id}" not in leaking and answers.isdisjoint(other.relevant(id)))
    if not kept.queries:
        raise DataError(said.queries, "has no query that may be trained on", fix="leave it out of [[mix.data]]")
    return kept, found if config.split.leaks == "allow" else []


def _held_out_answers(config: Config, said: DataConfig, other: Dataset, test: Dataset) -> set[str]:
    """Return the documents of a further data set that say what a right answer of a held-out query says, or nearly."""
    held_out = asked(test, config.data.document_template)
    theirs = asked(other, said.document_template)
    return {id for id, copies in copies_among(held_out, theirs).items() if copies}


def asked(dataset: Dataset, template: str) -> dict[str, str]:
    """Return the ids and texts of the documents that are right for some query."""
    asked = {document for id in dataset.judged for document in dataset.relevant(id)}
    return {id: text for id, text in zip(dataset.corpus, dataset.document_texts(template), strict=True) if id in asked}
