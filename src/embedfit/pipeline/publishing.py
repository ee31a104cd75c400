"""Publication of a finished run, and the check of what was published."""

from __future__ import annotations

from pathlib import Path

from embedfit.config import Config
from embedfit.data.dataset import Dataset, Query
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ConfigError, DataError, EmbedfitError, ModelError
from embedfit.pipeline.parts import read
from embedfit.pipeline.result import Result, read_result
from embedfit.publish.parity import Parity, check_dataset_parity, check_parity
from embedfit.publish.publication import Publication, dataset_publication, model_publication
from embedfit.publish.target import EXAMPLES, Target


def prepare_publications(
    folder: str | Path, target: str, *, dataset: str | None = None, public: bool = False, examples: bool = False
) -> list[Publication]:
    """Return the publications of a finished run: the model, and its data set if a target for it is given.

    Args:
        folder: Run directory.
        target: Destination of the model: ``owner/name`` on the Hub, ``./folder`` or ``name.tar``.
        dataset: Destination of the data set, in the same three forms; None to publish the model alone.
        public: Whether the repositories on the Hub are public.
        examples: Whether the model's card quotes some training queries.

    Raises:
        EmbedfitError: The run is not finished, its model cannot be published or has changed since it was measured, a destination
            already exists, or the data is needed and has changed.
    """
    result = read_result(folder)
    if not result.model.is_dir():
        raise ConfigError(
            f"{folder}: {result.model.name} is a map over {result.manifest['base']['name']}, not a model that can be published"
        )
    identity = result.manifest.get("identity")
    if identity and LocalEncoder(result.model).identity != identity:
        raise ModelError(f"{result.model}: is not the model that was measured: a file in it has changed; fix: restore it, or run again")
    places = [Target.of(place) for place in (target, dataset) if place]
    if len(places) > 1:
        _check_apart(*places)
    for place in places:
        if place.kind != "hub" and place.path.is_relative_to(result.folder.resolve()):
            raise ConfigError(f"{place.where} is inside the run directory, which embedfit manages; fix: give a place outside {folder}")
        place.check_free()
    data = _data_of(result) if dataset or examples else None
    shown: list[tuple[str, list[str]]] = []
    if examples and data:
        held_out = set(result.comparison.base.query_ids)  # with folds, every query: the model to use was trained on all
        trained = [id for id in data.judged if id not in held_out] or data.judged
        shown = [(data.queries[id].text, list(data.relevant(id))) for id in trained[:EXAMPLES]]
    model = model_publication(places[0], result.model, result.manifest, result.alone, public=public, examples=shown)
    if not (dataset and data):
        return [model]
    return [model, dataset_publication(places[1], data, result.manifest["config"]["name"], public=public)]


def _check_apart(model: Target, dataset: Target) -> None:
    """Check that neither of two destinations is inside the other.

    Raises:
        ConfigError: A destination is inside the other, or they are the same.
    """
    if model.kind == "hub" or dataset.kind == "hub":  # on the Hub, models and data sets have separate namespaces
        return
    if model.path.is_relative_to(dataset.path) or dataset.path.is_relative_to(model.path):
        raise ConfigError(f"one of {dataset.where} and {model.where} is inside the other; fix: give the data set a place of its own")


def publish_run(folder: str | Path, publication: Publication) -> Parity | None:
    """Publish the model or the data set of a finished run, fetch it back, and check that it is the same.

    A fetched model must reproduce the vectors of the run's model, and each query's score in queries.parquet.

    Returns:
        Agreement of the fetched model with the run's model; None for a data set, which must be identical.

    Raises:
        EmbedfitError: The upload failed, or the fetched copy differs.
    """
    result = read_result(folder)
    config = _config_of(result)
    with publication.fetched(publication.send()) as fetched:
        if publication.kind == "dataset":
            check_dataset_parity(fetched, result.manifest["data"]["digest"])
            return None
        queries, scores = _measured(result, config.evaluate.metric)
        try:
            data = _data_of(result).select(queries)
        except EmbedfitError:  # the data is gone or has changed
            data, scores = Dataset({id: Query(id, text) for id, text in queries.items()}, {}, {}), {}
        precision = config.model.precision
        measured, published = LocalEncoder(result.model, precision=precision), LocalEncoder(fetched, precision=precision)
        return check_parity(measured, published, data, config.data.document_template, config.evaluate.metric, scores)


def _config_of(result: Result) -> Config:
    return Config.model_validate(result.manifest["config"])


def _data_of(result: Result) -> Dataset:
    """Return the data of a run, if it has not changed.

    Raises:
        DataError: The data is gone or has changed, or the run is too old to have recorded its digest.
    """
    config = _config_of(result).data
    recorded = result.manifest.get("data")
    if not recorded:
        raise DataError(str(result.folder), "was made before runs kept a digest of their data", fix="run again to publish any of it")
    data = read(config)
    if data.digest() != recorded["digest"]:
        raise DataError(
            config.queries,
            "has changed since the run (or its documents have)",
            expected=f"{recorded['queries']:,} labelled queries and {recorded['documents']:,} documents as they were",
            fix="restore it, run again, or publish the model alone",
        )
    return data


def _measured(result: Result, metric: str) -> tuple[dict[str, str], dict[str, float]]:
    """Return (held-out query id -> text, query id -> score of the run's model); the scores are empty if the run did not keep them."""
    import pandas as pd

    frame = pd.read_parquet(result.folder / "queries.parquet")
    texts = dict(zip(frame.query_id, frame["query"], strict=True))
    column = next((name for name in (f"published_{metric}", f"tuned_{metric}") if name in frame), None)
    if column is None or (column.startswith("tuned_") and len(result.manifest["split"]) > 1):
        return texts, {}
    return texts, dict(zip(frame.query_id, map(float, frame[column]), strict=True))
