"""A finished run, published and fetched again."""

from __future__ import annotations

from pathlib import Path

from embedfit.config import Config
from embedfit.data import Dataset, Query
from embedfit.encode import LocalEncoder
from embedfit.errors import ConfigError, DataError
from embedfit.pipeline.experiment import Result, read_result
from embedfit.pipeline.job import read
from embedfit.publish import (
    EXAMPLES,
    Parity,
    Publication,
    Target,
    check_dataset_parity,
    check_parity,
    dataset_publication,
    model_publication,
)


def prepare_publications(
    folder: str | Path, target: str, *, dataset: str | None = None, public: bool = False, examples: bool = False
) -> list[Publication]:
    """Return what is to be published of a finished run: the model, and its data set if that is asked for.

    Args:
        folder: The run directory.
        target: Where the model goes: ``owner/name`` on the Hub, ``./folder`` or ``name.tar``.
        dataset: Where the data set goes, likewise; None to keep it.
        public: Whether anybody may see them on the Hub.
        examples: Whether the model's card quotes some training queries.

    Raises:
        EmbedfitError: It is not finished, has no model of its own, or its data is needed and not there.
    """
    result = read_result(folder)
    if not result.model.is_dir():
        raise ConfigError(
            f"{folder}: {result.model.name} is a map over {result.manifest['base']['name']}, and no model that can be published"
        )
    data: Dataset | None = None
    try:
        data = read(_config_of(result).data)
    except DataError:
        if dataset or examples:
            raise
    shown: list[tuple[str, list[str]]] = []
    if examples and data:
        held_out = set(result.comparison.base.query_ids)  # with folds all of them, and the model was trained on all in the end
        trained = [id for id in data.judged if id not in held_out] or data.judged
        shown = [(data.queries[id].text, list(data.relevant(id))) for id in trained[:EXAMPLES]]
    model = model_publication(Target.of(target), result.model, result.manifest, result.comparison, data, public=public, examples=shown)
    if not (dataset and data):
        return [model]
    return [model, dataset_publication(Target.of(dataset), data, result.manifest["config"]["name"], public=public)]


def publish_run(folder: str | Path, publication: Publication) -> Parity | None:
    """Publish the model or the data set of a finished run, fetch it again, and make sure that it is the same.

    Returns:
        How near the fetched model comes; None for a data set, which is the same or refused.

    Raises:
        EmbedfitError: It cannot be sent, or what was fetched is something else.
    """
    result = read_result(folder)
    config = _config_of(result)
    with publication.fetched(publication.send()) as fetched:
        if publication.kind == "dataset":
            check_dataset_parity(fetched, read(config.data))
            return None
        try:
            data = read(config.data)
            data = data.select(result.comparison.base.query_ids)
        except (DataError, KeyError):  # gone or changed since; the run directory keeps the queries' texts
            import pandas as pd

            frame = pd.read_parquet(result.folder / "queries.parquet", columns=["query_id", "query"])
            data = Dataset({id: Query(id, text) for id, text in zip(frame.query_id, frame["query"], strict=True)}, {}, {})
        precision = config.model.precision
        measured, published = LocalEncoder(result.model, precision=precision), LocalEncoder(fetched, precision=precision)
        return check_parity(measured, published, data, config.data.document_template, config.evaluate.metric)


def _config_of(result: Result) -> Config:
    return Config.model_validate(result.manifest["config"])
