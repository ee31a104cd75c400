"""Diagnosis of a finished run: the changes that can be tried without training, on its training queries."""

from __future__ import annotations

import json
import typing
from pathlib import Path

from embedfit.config import Config
from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.local import local_of
from embedfit.encode.named import encoder_of
from embedfit.encode.pooling import Pooling, settings_of
from embedfit.pipeline.job import Job
from embedfit.pipeline.result import config_of, data_of, read_result
from embedfit.studies.doctor import Change, Diagnosis, diagnose
from embedfit.studies.methods import richer_template


def diagnose_run(folder: str | Path, *, minutes: float = 10.0) -> Diagnosis:
    """Say what the verdict of a run may be due to, by changes that are measured on its training queries alone.

    Args:
        folder: Run directory.
        minutes: Time after which no further change is begun.

    Raises:
        EmbedfitError: The run is not finished, its data has changed, or its base model cannot be loaded.
    """
    result = read_result(folder)
    config = config_of(result)
    base = encoder_of(config.model)
    train = Job.of(config, data_of(result), base).parts[0][0]
    own = Change("as it is", base, config.data.document_template)
    changes = _changes(config, base, train) if not complete(base).remote else []
    return diagnose(
        result.alone,
        result.findings,
        train,
        own,
        changes,
        seconds=60 * minutes,
        group_by=config.split.group_by,
        seed=config.split.seed,
    )


def _changes(config: Config, base: Encoder, train: Dataset) -> list[Change]:
    """Return the changes to measure, cheapest first: of queries alone, then of documents."""
    template = config.data.document_template
    changes: list[Change] = []

    def add(**prompts: str) -> None:
        setting = " and ".join(f"model.{name} = {json.dumps(text, ensure_ascii=False)}" for name, text in prompts.items())
        changes.append(Change(setting, encoder_of(config.model.model_copy(update=prompts)), template))

    own = complete(base).prompts
    if own["query"]:
        add(query_prompt="")
    if own["document"]:
        add(document_prompt="")
    if own["query"] and own["document"]:
        add(query_prompt="", document_prompt="")
    local = local_of(base)
    named = settings_of(local.folder).get("prompts") or {} if local else {}
    for text in dict.fromkeys(text for text in named.values() if text and text not in own.values()):
        add(query_prompt=text)
    richer = richer_template(train, template)
    if richer:
        changes.append(Change(f"data.document_template = {json.dumps(richer, ensure_ascii=False)}", base, richer))
    for pooling in typing.get_args(Pooling) if local and local.pooling else ():
        if pooling not in ("auto", local.pooling if local else "") and pooling in ("mean", "cls", "lasttoken"):
            encoder = encoder_of(config.model.model_copy(update={"pooling": pooling}))
            changes.append(Change(f'model.pooling = "{pooling}"', encoder, template))
    return changes
