"""Deployment: the index of documents or of a run's searcher, cheaper forms of a model, and what an endpoint serves."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from embedfit import console, processes
from embedfit.config import Config, DeployConfig
from embedfit.data.dataset import Dataset, Query
from embedfit.encode.encoder import Encoder, Kind, Vectors, WrappingEncoder, complete
from embedfit.encode.export import export_onnx
from embedfit.encode.local import LocalEncoder, local_of
from embedfit.encode.named import encoder_of
from embedfit.encode.onnx import FILES, OnnxEncoder, check_first_layer
from embedfit.encode.remote import RemoteEncoder, is_remote
from embedfit.encode.static import StaticEncoder, write_static
from embedfit.errors import ConfigError, EmbedfitError, ModelError
from embedfit.files import json_bytes, replace_folder, temporary_path, writing
from embedfit.hub import weights_of
from embedfit.pipeline.job import engine_of, locked
from embedfit.pipeline.needs import check_installed
from embedfit.pipeline.parts import read
from embedfit.pipeline.result import Result, check_there, check_unchanged, config_of, data_of, held_out_of, read_result
from embedfit.report.pages import with_deployables
from embedfit.searcher.forms import BASE_MODEL
from embedfit.store.base import Store
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.opening import searcher_folder
from embedfit.store.versions import Indexed, index_documents, index_searcher
from embedfit.studies.answers import Answers, compare_answers
from embedfit.studies.deployable import TOLERANCE, Deployable, measure_deployable
from embedfit.studies.serving import Served, compare_served

STATIC = "static"
"""Form of a mean of token vectors, and its folder."""


def index(config: Config, model: str | None = None) -> Indexed:
    """Index documents in the configured vector store; or, given a run, the documents and examples of its searcher.

    Args:
        config: Settings.
        model: Model in place of the configured one; or a run directory, or the folder of a searcher.

    Raises:
        EmbedfitError: Something is missing or wrong; the message is one line and names the fix. The live index is unchanged.
    """
    check_installed(config, stores=True, model=model)
    if model and searcher_folder(model):
        queries = held_out_of(read_result(model), config.evaluate.metric)[0] if (Path(model) / "manifest.json").exists() else None
        with open_store(config.store) as store:
            return index_searcher(store, model, queries, min_recall=config.store.min_recall)
    dataset, engine = read(config.data, model=config.model), engine_of(config.engine)
    with open_store(config.store) as store:
        encoder = engine.encoder(encoder_of(config.model, model))
        return index_documents(store, dataset, encoder, config.data.document_template, min_recall=config.store.min_recall)


def live_index(store: Store, config: Config, model: str | None = None) -> LiveIndex:
    """Return the live index of a store, which knows its model. An index of an earlier version of embedfit has the configured one.

    Args:
        store: Store that holds the index.
        config: Settings.
        model: Name or path of the model or run, if it is no longer where the index was made.
    """
    live = LiveIndex(store, model=model or "")
    return live if model or live.stamp().opens else LiveIndex(store, encoder_of(config.model))


def check_endpoint(
    folder: str | Path,
    endpoint: str,
    *,
    query_endpoint: str | None = None,
    prompts: Literal["client", "endpoint"] = "client",
    queries: int = 200,
    documents: int = 2000,
    tolerance: float = TOLERANCE,
) -> Served:
    """Compare an endpoint with the model of a finished run, on the run's held-out queries.

    Args:
        folder: Run directory.
        endpoint: Name of a remote encoder, such as ``openai:MODEL@http://localhost:8080/v1``.
        query_endpoint: Name of the one that encodes queries, if it is another.
        prompts: Who puts the model's prompts before texts: the client, or the endpoint, which is then sent bare texts.
        queries: Largest number of queries to send.
        documents: Largest number of documents to send, beyond those relevant to the queries.
        tolerance: Largest loss of the run's metric that passes; one query's worth is always allowed.

    Raises:
        EmbedfitError: The run is not finished, its model has changed, or the endpoint cannot be used.
    """
    for option, name in (("--endpoint", endpoint), ("--query-endpoint", query_endpoint)):
        if name is not None and not is_remote(name):
            raise ConfigError(f"{option} {name}: expected openai:MODEL@URL or hf-inference:URL")
    result = read_result(folder)
    check_there(result)
    if result.model.is_dir():
        check_unchanged(result)
    config, measured = config_of(result), result.encoder
    own = complete(measured).prompts if prompts == "client" else {"query": "", "document": ""}
    served: Encoder = RemoteEncoder(endpoint, query_prompt=own["query"], document_prompt=own["document"], unit=False)
    if query_endpoint:
        served = _ByKind(served, RemoteEncoder(query_endpoint, query_prompt=own["query"], unit=False))
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


class _ByKind(WrappingEncoder):
    """An encoder of documents, with another one for queries."""

    def __init__(self, documents: Encoder, queries: Encoder) -> None:
        super().__init__(documents)
        self._queries = queries

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        return (self._queries if kind == "query" else self.encoder).encode(texts, kind)


def _other_models(result: Result, measured: LocalEncoder | None) -> dict[str, LocalEncoder]:
    """Return name -> model that may be served by mistake: the base model, and the tuned one that was not merged with it."""
    if not measured:
        return {}
    others: dict[str, LocalEncoder] = {}
    prompts: dict[Kind, str] = measured.prompts
    try:
        base = local_of(encoder_of(config_of(result).model))
        if base and base.whole_identity != measured.whole_identity:
            others["the base model"] = base
        tuned = result.folder / "model"
        if tuned != result.model and tuned.is_dir():
            others["the tuned model before it was merged with the base"] = LocalEncoder(
                tuned, query_prompt=prompts["query"], document_prompt=prompts["document"], model_kwargs=measured.loading
            )
    except EmbedfitError:  # the base model is not on this machine any more
        pass
    return others


def export_form(folder: str | Path, form: str, *, tolerance: float | None = None) -> Deployable:
    """Export the model of a finished run, and keep the form if its loss on the run's held-out queries is within the tolerance.

    The run's searcher is asked too: with the form, its best answers and their probabilities must stay what they are. A form that passes is
    in ``deploy`` in the run directory, with its measurement in ``forms.json``, in the report, and on the card of a later publication. A
    form that fails is written nowhere.

    Args:
        folder: Run directory.
        form: ``onnx``, ``onnx-int8`` or ``static``.
        tolerance: Largest loss that passes, of the run's metric and of right answers; one query's worth is always allowed. By default
            the run's ``deploy.loss``.

    Raises:
        EmbedfitError: The run is not finished, its model or data has changed, or the model cannot be exported.
    """
    if form not in (*FILES, STATIC):
        raise ConfigError(f"--form {form}: expected one of {', '.join((*FILES, STATIC))}")
    result = read_result(folder)
    check_there(result)
    if not result.model.is_dir():
        raise ConfigError(
            f"{folder}: {result.model.name} is a map over {result.manifest['base']['name']}, not a model that can be exported"
        )
    check_unchanged(result)
    config, encoder = config_of(result), local_of(result.encoder)
    assert encoder
    tolerance = config.deploy.loss if tolerance is None else tolerance
    held_out, _ = held_out_of(result, config.evaluate.metric)
    whole = data_of(result)
    data = whole.select(held_out)
    with locked(result.folder), temporary_path(result.deploy) as temporary:
        made: Encoder
        if form == STATIC:
            made, files, data = _static(encoder, whole, data, config, temporary)
        else:
            path = export_onnx(encoder, temporary, form)
            files = [str(file.relative_to(temporary)) for file in sorted(path.parent.glob(f"{path.name}*"))]
            made = OnnxEncoder(temporary, form)
        measured = measure_deployable(
            form,
            encoder,
            made,
            temporary,
            files,
            sum(file.stat().st_size for file in weights_of(encoder.folder)),
            data,
            config.data.document_template,
            config.evaluate.metric,
            tolerance=tolerance,
            group_by=config.split.group_by,
            seed=config.split.seed,
        )
        measured = replace(measured, model=encoder.identity)
        if measured.passed and isinstance(made, OnnxEncoder) and (result.folder / "searcher").is_dir():
            measured = replace(measured, answers=_answers(result, made, temporary, data, form))
        if measured.passed:
            _keep(result, temporary, measured)
    return measured


def export_wanted(result: Result, wanted: DeployConfig) -> Result:
    """Export the forms that the settings ask for, once each. Those that lose too much are named in the report, with the reason.

    Args:
        result: Finished run.
        wanted: Forms, and the largest loss.
    """
    decided = {row.name for row in result.deployables} | set(result.rejected_forms)
    for form in wanted.forms:
        if form in decided or not processes.main():
            continue
        reason = ""
        try:
            measured = export_form(result.folder, form, tolerance=wanted.loss)
            console.note(measured.sentence)
            if not measured.passed:
                reason = f"{measured.reason}: {measured.sentence}"
        except (ConfigError, ModelError) as error:  # a map over an API, or a layer that cannot be exported
            reason = str(error)
        if reason:
            console.note(f"Warning: the form {form} is not exported: {reason}")
            with writing(result.folder / "rejected_forms.json") as file:
                file.write(json_bytes({**result.rejected_forms, form: reason}))
            _report(result)
    return result


def _static(encoder: LocalEncoder, whole: Dataset, held_out: Dataset, config: Config, folder: Path) -> tuple[Encoder, list[str], Dataset]:
    """Write a static model, and return it, its files, and the queries to measure it on, whose texts it was not trained on."""
    from embedfit.tune.distil import distil

    check_first_layer(encoder.folder)
    asked = list(held_out.judged)
    trained = [id for id in whole.queries if id not in held_out.queries]
    if not trained:  # every query was held out by some fold
        trained, asked = asked[::2], asked[1::2]
    texts: dict[Kind, list[str]] = {
        "query": whole.select(trained).query_texts(),
        "document": whole.document_texts(config.data.document_template),
    }
    rows, tokenizer = distil(encoder, texts, seed=config.split.seed)
    files = write_static(rows, tokenizer, folder / STATIC)
    return StaticEncoder(folder / STATIC), [f"{STATIC}/{file}" for file in files], held_out.select(asked)


def _answers(result: Result, made: OnnxEncoder, folder: Path, data: Dataset, form: str) -> Answers:
    """Return the answers of the run's searcher with a form, whose model before tuning is exported too where it is read."""
    searcher = result.searcher
    forms: dict[str, Encoder] = {"model": made}
    base = local_of(searcher.parts.base) if searcher.parts.base else None
    if base:
        export_onnx(base, folder / BASE_MODEL, form)
        prompts = base.prompts
        forms["base"] = OnnxEncoder(folder / BASE_MODEL, form, query_prompt=prompts["query"], document_prompt=prompts["document"])
    return compare_answers(searcher, forms, data, seed=config_of(result).split.seed)


def _keep(result: Result, made: Path, measured: Deployable) -> None:
    """Move a form into the run directory beside those that are there, and into the report."""
    before, all_rows = result.deploy, result.deployables
    rows = [row for row in all_rows if row.name != measured.name]
    replaced = {file for row in all_rows if row.name == measured.name for file in row.files}
    for path in [path for path in before.rglob("*") if path.is_file()]:
        name = path.relative_to(before)
        if str(name) not in replaced and not (made / name).exists():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, made / name)
    rows = sorted([*rows, measured], key=lambda row: [*FILES, STATIC].index(row.name))
    with writing(made / "forms.json") as file:
        file.write(json_bytes([row.to_dict() for row in rows]))
    replace_folder(made, before)
    rejected = {form: reason for form, reason in result.rejected_forms.items() if form != measured.name}
    if rejected != result.rejected_forms:
        with writing(result.folder / "rejected_forms.json") as file:
            file.write(json_bytes(rejected))
    _report(result)


def _report(result: Result) -> None:
    """Put the forms into the report."""
    report = result.report.read_text(encoding="utf-8") if result.report.exists() else ""
    changed = with_deployables(report, result.deployables, result.rejected_forms)
    if changed != report:
        with writing(result.report) as file:
            file.write(changed.encode())
