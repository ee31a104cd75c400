"""Deployment of a finished run: whether an endpoint serves what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from embedfit.data.dataset import Dataset, Query
from embedfit.encode.encoder import Kind, complete
from embedfit.encode.local import LocalEncoder, local_of
from embedfit.encode.named import encoder_of
from embedfit.encode.remote import RemoteEncoder, is_remote
from embedfit.errors import ConfigError, EmbedfitError
from embedfit.pipeline.result import Result, check_unchanged, config_of, data_of, held_out_of, read_result
from embedfit.studies.serving import TOLERANCE, Served, compare_served


def check_endpoint(
    folder: str | Path,
    endpoint: str,
    *,
    prompts: Literal["client", "endpoint"] = "client",
    queries: int = 200,
    documents: int = 2000,
    tolerance: float = TOLERANCE,
) -> Served:
    """Compare an endpoint with the model of a finished run, on the run's held-out queries.

    Args:
        folder: Run directory.
        endpoint: Name of a remote encoder, such as ``openai:MODEL@http://localhost:8080/v1``.
        prompts: Who puts the model's prompts before texts: the client, or the endpoint, which is then sent bare texts.
        queries: Largest number of queries to send.
        documents: Largest number of documents to send, beyond those relevant to the queries.
        tolerance: Largest loss of the run's metric that passes; one query's worth is always allowed.

    Raises:
        EmbedfitError: The run is not finished, its model has changed, or the endpoint cannot be used.
    """
    if not is_remote(endpoint):
        raise ConfigError(f"--endpoint {endpoint}: expected openai:MODEL@URL or hf-inference:URL")
    result = read_result(folder)
    if result.model.is_dir():
        check_unchanged(result)
    config, measured = config_of(result), result.encoder
    own = complete(measured).prompts if prompts == "client" else {"query": "", "document": ""}
    served = RemoteEncoder(endpoint, query_prompt=own["query"], document_prompt=own["document"], unit=False)
    held_out, _ = held_out_of(result, config.evaluate.metric)
    try:
        data = data_of(result).select(held_out)
    except EmbedfitError:  # the data is gone or has changed
        data = Dataset({id: Query(id, text) for id, text in held_out.items()}, {}, {})
    return compare_served(
        measured,
        served,
        data,
        config.data.document_template,
        config.evaluate.metric,
        others=_other_models(result, local_of(measured)),
        queries=queries,
        documents=documents,
        tolerance=tolerance,
        group_by=config.split.group_by,
        seed=config.split.seed,
    )


def _other_models(result: Result, measured: LocalEncoder | None) -> dict[str, LocalEncoder]:
    """Return name -> model that may be served by mistake: the base model, and the tuned one that was not merged with it."""
    if not measured:
        return {}
    others: dict[str, LocalEncoder] = {}
    prompts: dict[Kind, str] = measured.prompts
    try:
        base = local_of(encoder_of(config_of(result).model))
        if base and base.identity != measured.identity:
            others["the base model"] = base
        tuned = result.folder / "model"
        if tuned != result.model and tuned.is_dir():
            others["the tuned model before it was merged with the base"] = LocalEncoder(
                tuned, query_prompt=prompts["query"], document_prompt=prompts["document"]
            )
    except EmbedfitError:  # the base model is not on this machine any more
        pass
    return others
