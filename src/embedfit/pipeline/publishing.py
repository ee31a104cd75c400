"""Publication of a finished run, and the check of what was published."""

from __future__ import annotations

import itertools
from pathlib import Path

from embedfit.data.dataset import Dataset, Query
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ConfigError, EmbedfitError
from embedfit.pipeline.result import check_unchanged, config_of, data_of, held_out_of, is_reranker, read_result
from embedfit.publish.parity import PairParity, Parity, check_dataset_parity, check_pair_parity, check_parity
from embedfit.publish.publication import Publication, dataset_publication, model_publication
from embedfit.publish.target import EXAMPLES, Target
from embedfit.retrieve.rerank import LocalReranker

_QUERIES = 64
"""Queries whose pairs a fetched reranker scores again."""


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
    check_unchanged(result)
    places = [Target.of(place) for place in (target, dataset) if place]
    if len(places) > 1:
        _check_apart(*places)
    for place in places:
        if place.kind != "hub" and place.path.is_relative_to(result.folder.resolve()):
            raise ConfigError(f"{place.where} is inside the run directory, which embedfit manages; fix: give a place outside {folder}")
        place.check_free()
    data = data_of(result) if dataset or examples else None
    shown: list[tuple[str, list[str]]] = []
    if examples and data:
        held_out = set(result.comparison.base.query_ids)  # with folds, every query: the model to use was trained on all
        trained = [id for id in data.judged if id not in held_out] or data.judged
        shown = [(data.queries[id].text, list(data.relevant(id))) for id in trained[:EXAMPLES]]
    model = model_publication(
        places[0],
        result.model,
        result.manifest,
        result.alone,
        public=public,
        examples=shown,
        forms=result.deployables,
        forms_folder=result.deploy,
        rejected=result.rejected_forms,
    )
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


def _pairs(data: Dataset, template: str) -> list[tuple[str, str]]:
    """Return pairs to score: each query with a right document and a wrong one; without documents, with another query."""
    texts = dict(zip(data.corpus, data.document_texts(template), strict=True)) if data.corpus else {}
    queries = data.query_texts()[:_QUERIES]
    if not texts:
        return list(zip(queries, queries[1:] + queries[:1], strict=True))
    others = itertools.cycle(texts.values())
    ids = list(data.queries)[:_QUERIES]
    right = [(query, texts[document]) for query, id in zip(queries, ids, strict=True) for document in list(data.relevant(id))[:1]]
    return [*right, *((query, next(others)) for query in queries)]


def publish_run(folder: str | Path, publication: Publication) -> Parity | PairParity | None:
    """Publish the model or the data set of a finished run, fetch it back, and check that it is the same.

    A fetched model must reproduce the vectors of the run's model, and each query's score in queries.parquet; a fetched reranker the scores
    of pairs.

    Returns:
        Agreement of the fetched model with the run's model; None for a data set, which must be identical.

    Raises:
        EmbedfitError: The upload failed, or the fetched copy differs.
    """
    result = read_result(folder)
    config = config_of(result)
    with publication.fetched(publication.send()) as fetched:
        if publication.kind == "dataset":
            check_dataset_parity(fetched, result.manifest["data"]["digest"])
            return None
        queries, scores = held_out_of(result, config.evaluate.metric)
        try:
            data = data_of(result).select(queries)
        except EmbedfitError:  # the data is gone or has changed
            data, scores = Dataset({id: Query(id, text) for id, text in queries.items()}, {}, {}), {}
        if is_reranker(result):
            fetched_model = LocalReranker(fetched, precision=config.model.precision)
            return check_pair_parity(result.reranker, fetched_model, _pairs(data, config.data.document_template))
        measured, published = (
            LocalEncoder(model, precision=config.model.precision, model_kwargs=config.model.loading) for model in (result.model, fetched)
        )
        return check_parity(measured, published, data, config.data.document_template, config.evaluate.metric, scores)
