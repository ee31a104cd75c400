"""A finished run, published and fetched again."""

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
    """Return what is to be published of a finished run: the model, and its data set if that is asked for.

    Args:
        folder: The run directory.
        target: Where the model goes: ``owner/name`` on the Hub, ``./folder`` or ``name.tar``.
        dataset: Where the data set goes, likewise; None to keep it.
        public: Whether anybody may see them on the Hub.
        examples: Whether the model's card quotes some training queries.

    Raises:
        EmbedfitError: It is not finished, has no model of its own, or another than was measured; something is in the way; or its data is
            needed, and not there as it was.
    """
    result = read_result(folder)
    if not result.model.is_dir():
        raise ConfigError(
            f"{folder}: {result.model.name} is a map over {result.manifest['base']['name']}, and no model that can be published"
        )
    known = result.manifest.get("identity")
    if known and LocalEncoder(result.model).identity != known:
        raise ModelError(f"{result.model}: is not the model that was measured: a file in it has changed; fix: restore it, or run again")
    places = [Target.of(place) for place in (target, dataset) if place]
    if len(places) > 1:
        _check_apart(*places)
    for place in places:
        if place.kind != "hub" and place.path.is_relative_to(result.folder.resolve()):
            raise ConfigError(f"{place.where} lies in the run directory, which is embedfit's own; fix: give a place outside {folder}")
        place.check_free()
    data = _data_of(result) if dataset or examples else None
    shown: list[tuple[str, list[str]]] = []
    if examples and data:
        held_out = set(result.comparison.base.query_ids)  # with folds all of them, and the model was trained on all in the end
        trained = [id for id in data.judged if id not in held_out] or data.judged
        shown = [(data.queries[id].text, list(data.relevant(id))) for id in trained[:EXAMPLES]]
    model = model_publication(places[0], result.model, result.manifest, result.comparison, public=public, examples=shown)
    if not (dataset and data):
        return [model]
    return [model, dataset_publication(places[1], data, result.manifest["config"]["name"], public=public)]


def _check_apart(model: Target, dataset: Target) -> None:
    """Refuse a model and a data set of which one would lie in the other.

    Raises:
        ConfigError: They would.
    """
    if model.kind == "hub" or dataset.kind == "hub":  # on the Hub, models and data sets have places of their own
        return
    if model.path.is_relative_to(dataset.path) or dataset.path.is_relative_to(model.path):
        raise ConfigError(f"{dataset.where} and {model.where} lie in each other; fix: give the data set a place of its own")


def publish_run(folder: str | Path, publication: Publication) -> Parity | None:
    """Publish the model or the data set of a finished run, fetch it again, and make sure that it is the same.

    What the model gave in the run is what counts: its vectors, and each query's score as queries.parquet holds it.

    Returns:
        How near the fetched model comes; None for a data set, which is the same or refused.

    Raises:
        EmbedfitError: It cannot be sent, or what was fetched is something else.
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
        except EmbedfitError:  # gone or changed since
            data, scores = Dataset({id: Query(id, text) for id, text in queries.items()}, {}, {}), {}
        precision = config.model.precision
        measured, published = LocalEncoder(result.model, precision=precision), LocalEncoder(fetched, precision=precision)
        return check_parity(measured, published, data, config.data.document_template, config.evaluate.metric, scores)


def _config_of(result: Result) -> Config:
    return Config.model_validate(result.manifest["config"])


def _data_of(result: Result) -> Dataset:
    """Return the data of a run, if it is still the same.

    Raises:
        DataError: It is gone or has changed, or the run is too old to tell.
    """
    config = _config_of(result).data
    known = result.manifest.get("data")
    if not known:
        raise DataError(str(result.folder), "was made before runs kept a digest of their data", fix="run again to publish any of it")
    data = read(config)
    if data.digest() != known["digest"]:
        raise DataError(
            config.queries,
            "has changed since the run (or its documents have)",
            expected=f"{known['queries']:,} labelled queries and {known['documents']:,} documents as they were",
            fix="restore it, run again, or publish the model alone",
        )
    return data


def _measured(result: Result, metric: str) -> tuple[dict[str, str], dict[str, float]]:
    """Return the held-out queries' texts, and the scores of the run's own model on them; empty if the run did not keep them."""
    import pandas as pd

    frame = pd.read_parquet(result.folder / "queries.parquet")
    texts = dict(zip(frame.query_id, frame["query"], strict=True))
    column = next((name for name in (f"published_{metric}", f"tuned_{metric}") if name in frame), None)
    if column is None or (column.startswith("tuned_") and len(result.manifest["split"]) > 1):
        return texts, {}
    return texts, dict(zip(frame.query_id, map(float, frame[column]), strict=True))
