"""Train, dev and test parts without leaks between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from embedfit import console
from embedfit.config import Config, DataConfig, ModelConfig
from embedfit.data.check import Finding, check_groups, check_leaks
from embedfit.data.dataset import Dataset
from embedfit.data.duplicates import copies_among
from embedfit.data.layouts import stands_apart
from embedfit.data.load import load
from embedfit.data.records import record_type
from embedfit.data.split import Split, split_dataset, split_folds, without_leaks
from embedfit.errors import ConfigError, DataError
from embedfit.pipeline.passages import cutting_of

_FOLDS, _FEW_QUERIES = 5, 1000
"""Default number of folds, and the number of judged queries below which folds are the default."""
_COLUMNS = ("query", "label", "id", "grade", "part", "separator", "document_id", "document_title", "document_text", "delimiter", "sheet")
"""Settings that say how the rows of a file are read."""
OF_THE_FILE = ("record", "query_template", "qrels", "encoding", *_COLUMNS)
"""Settings of [data] that describe the files as they are, and not the data."""
LISTED = 20
"""Maximum number of leaks that an error or an alert lists."""


def read(config: DataConfig, problems: list[DataError] | None = None, *, model: ModelConfig | None = None) -> Dataset:
    """Read the data set that a configuration names; see `load`. A folder of documents is cut into passages that the model can read."""
    if config.query_template and not config.record:
        raise ConfigError("data.query_template needs data.record: the fields of a record fill it")
    if Path(config.queries).is_dir() and stands_apart(Path(config.queries)):
        names = ("documents", "qrels", "record", *_COLUMNS)
        unused = [f"data.{name}" for name in names if getattr(config, name) is not None]
        if unused:
            raise ConfigError(
                f"data.queries is the folder {config.queries}, which has its own documents, judgements and columns; "
                f"fix: drop {' and '.join(unused)}"
            )
    record = record_type(config.record, template=config.query_template, label=config.label) if config.record else None
    return load(
        config.queries,
        config.documents,
        config.qrels,
        query=config.query,
        label=config.label,
        grade=config.grade,
        separator=config.separator,
        id=config.id,
        part=config.part,
        document_id=config.document_id,
        document_title=config.document_title,
        document_text=config.document_text,
        encoding=config.encoding,
        delimiter=config.delimiter,
        sheet=config.sheet,
        record=record,
        cutting=cutting_of(config, model),
        problems=problems,
    )


def load_data(config: Config) -> Dataset:
    """Read the data set that a configuration names. A folder of documents is cut into passages that its model can read.

    Args:
        config: All settings, of which [data] and [model] are used.

    Raises:
        EmbedfitError: A row, a file or a setting cannot be used; or there is a folder of documents, and the model is missing.
    """
    return read(config.data, model=config.model)


def splits_of(config: Config, dataset: Dataset) -> list[Split]:
    """Return the splits that a configuration describes: one per fold, or a single one without folds.

    By default, data sets of fewer than 1,000 judged queries have folds, unless they come with a test part.
    """
    settings, folds = config.split, folds_of(config, dataset)
    if folds:
        return split_folds(dataset, folds, dev=settings.dev, seed=settings.seed, group_by=settings.group_by, by=settings.by)
    return [one_split(config, dataset)]


def folds_of(config: Config, dataset: Dataset) -> int:
    """Return the number of folds; 0 for one split. By default, small data sets have folds if no test share is set either."""
    settings = config.split
    if settings.folds is not None:
        return settings.folds
    few = len(dataset.judged) < _FEW_QUERIES and not dataset.parts.get("test")
    return _FOLDS if few and "test" not in settings.model_fields_set else 0


def one_split(config: Config, dataset: Dataset) -> Split:
    """Return the train, dev and test parts that a configuration describes.

    Raises:
        ConfigError: A share is set for a part that the data set comes with.
    """
    settings, judged = config.split, set(dataset.judged)
    for part in ("test", "dev"):
        official = len(judged.intersection(dataset.parts.get(part, ())))
        # dev = 0 means no dev part, even if the data set comes with one.
        if official and part in settings.model_fields_set and getattr(settings, part):
            raise ConfigError(
                f"split.{part} is {getattr(settings, part):g}, and the data comes with a {part} part of {official:,} queries, "
                f"which is used; fix: leave split.{part} out"
            )
    return split_dataset(dataset, test=settings.test, dev=settings.dev, seed=settings.seed, group_by=settings.group_by, by=settings.by)


def leaks(config: Config, dataset: Dataset) -> list[Finding]:
    """Return the leaks between the parts that a configuration describes. Folds have none, since near copies share a fold.

    Without ``split.group_by``, the findings include the fields by which queries could be grouped.
    """
    parts = vars(one_split(config, dataset))
    return [*check_leaks(dataset, parts), *([] if config.split.group_by else check_groups(dataset, parts))]


def gated(config: Config, dataset: Dataset, splits: Sequence[Split]) -> tuple[list[Split], list[Finding]]:
    """Return the splits after the policy of ``split.leaks``, and the leaks that remain in them.

    Raises:
        DataError: A held-out query repeats a query of another part, and ``split.leaks`` is ``fail``.
    """
    policy = config.split.leaks
    clean, left = [], []
    for split in splits:
        findings = check_leaks(dataset, vars(split))
        if findings and policy == "fail":
            for leak in findings[:LISTED]:
                console.note(leak.message)
            more = " ('embedfit check' lists them all)" if len(findings) > LISTED else ""
            raise DataError(
                config.data.queries,
                f"{len(findings):,} held-out queries repeat queries used for training{more}, such as: {findings[0].message}",
                fix='leaks = "drop" in [split] trains without these; --allow-leaks continues, and the report says so in red',
            )
        clean.append(without_leaks(split, findings) if policy == "drop" else split)
        left += findings if policy == "allow" else []
    return clean, left


def without_held_out(config: Config, source: DataConfig, further: Dataset, test: Dataset) -> tuple[Dataset, list[Finding]]:
    """Return the judged queries of a further data set that may be trained on, and the leaks that remain in them.

    Raises:
        DataError: A held-out query repeats one of the queries, and ``split.leaks`` is ``fail``; or no query may be trained on.
    """
    train = {f"{source.queries} {id}": replace(further.queries[id], id=f"{source.queries} {id}") for id in further.judged}
    both = Dataset({**train, **{id: query for id, query in test.queries.items() if id not in train}}, {}, {})
    findings = check_leaks(both, {"train": list(train), "test": [id for id in test.queries if id not in train]})
    if findings and config.split.leaks == "fail":
        raise DataError(
            source.queries,
            f"{len(findings):,} held-out queries repeat its queries, such as: {findings[0].message}",
            fix='leaks = "drop" in [split] trains without these',
        )
    leaking = {id for leak in findings for id in leak.ids[1:]} if config.split.leaks == "drop" else set()
    answers = _held_out_answers(config, source, further, test) if config.split.by == "documents" else set()
    kept = further.select(
        id for id in further.judged if f"{source.queries} {id}" not in leaking and answers.isdisjoint(further.relevant(id))
    )
    if not kept.queries:
        raise DataError(source.queries, "has no query left to train on", fix="leave it out of [[mix.data]]")
    return kept, findings if config.split.leaks == "allow" else []


def _held_out_answers(config: Config, source: DataConfig, further: Dataset, test: Dataset) -> set[str]:
    """Return ids of documents in a further data set that are copies or near copies of right answers to held-out queries."""
    held_out = answer_texts(test, config.data.document_template)
    answers = answer_texts(further, source.document_template)
    return {id for id, copies in copies_among(held_out, answers).items() if copies}


def answer_texts(dataset: Dataset, template: str) -> dict[str, str]:
    """Return document id -> text of the documents that are right for some query."""
    relevant = {document for id in dataset.judged for document in dataset.relevant(id)}
    return {id: text for id, text in zip(dataset.corpus, dataset.document_texts(template), strict=True) if id in relevant}
