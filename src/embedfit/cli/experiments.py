"""Experiments: run, ladder, curve, relabel, evaluate, tune, compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import (
    HERE,
    AllowLeaks,
    AsJson,
    ConfigPath,
    Documents,
    EngineName,
    Folds,
    LabelColumn,
    ModelName,
    Overrides,
    Price,
    QueryColumn,
    SourcePath,
    check_folder,
    data_options,
    settings_of,
    with_engine,
)
from embedfit.cli.printing import print_conclusion, print_findings, print_grid, print_result, print_rows, warn_of_seen

if TYPE_CHECKING:
    from pandas import DataFrame

    from embedfit.config import Config
    from embedfit.data.dataset import Dataset


@app.command()
def run(
    config: SourcePath = HERE,
    query: QueryColumn = None,
    label: LabelColumn = None,
    documents: Documents = None,
    model: ModelName = None,
    folds: Folds = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of training seeds; the report shows how much results vary.")] = None,
    keep: Annotated[float | None, typer.Option(help="Share of the base model's score on general queries to keep, such as 0.98.")] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(help="Picks to train on too; repeatable: a run, a file of feedback, or 'feedback' for that of all runs of SOURCE."),
    ] = None,
    allow_leaks: AllowLeaks = False,
    price: Price = None,
    engine: EngineName = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Tune a model and prove whether retrieval got better. Base and tuned are measured on the same held-out queries."""
    from embedfit.pipeline import experiment

    options: dict[str, dict[str, Any]] = {"evaluate": {"seeds": seeds}, "general": {"keep": keep}, "model": {"name": model, "price": price}}
    settings = settings_of(config, folds, allow_leaks, {"data": data_options(query, label, documents), **options}, overrides)
    settings = with_engine(settings, engine)
    picks = None
    if add:
        from embedfit.serve.places import read_picks

        picks = read_picks(add, settings)
    print_result(experiment.run(settings, picks=picks), as_json)


@app.command()
def ladder(
    config: SourcePath = HERE,
    query: QueryColumn = None,
    label: LabelColumn = None,
    documents: Documents = None,
    model: ModelName = None,
    rung: Annotated[list[str] | None, typer.Option(help="Method to measure; repeatable. Default: all.")] = None,
    save: Annotated[Path | None, typer.Option(help="Folder for the recommended method as a searcher, to search and serve.")] = None,
    folds: Folds = None,
    allow_leaks: AllowLeaks = False,
    price: Price = None,
    engine: EngineName = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare every method and recommend the simplest good one. All are measured on the same held-out queries, cheapest first."""
    from embedfit.pipeline import experiment
    from embedfit.report.tables import ladder_table

    options: dict[str, dict[str, Any]] = {"ladder": {"rungs": tuple(rung) if rung else None}, "model": {"name": model, "price": price}}
    settings = settings_of(config, folds, allow_leaks, {"data": data_options(query, label, documents), **options}, overrides)
    if save:
        check_folder("--save", save)
    result = experiment.ladder(with_engine(settings, engine), save=save)
    if as_json:
        console.echo(json.dumps({**result.to_dict(), "folder": str(result.folder)}))
        return
    terminal = console.terminal()
    terminal.print(ladder_table(result))
    for name, why in result.skipped.items():
        terminal.print(f"Left out: {name}, as {why}.", highlight=False, soft_wrap=True)
    saved = [f"Searcher: {save}, of {result[result.recommended].name}"] if save else []
    print_conclusion(f"Report: {result.report}", *saved, result.sentence)


@app.command()
def curve(
    config: SourcePath = HERE,
    query: QueryColumn = None,
    label: LabelColumn = None,
    documents: Documents = None,
    model: ModelName = None,
    points: Annotated[int, typer.Option(min=2, help="Number of training-set sizes, each half of the next.")] = 4,
    folds: Folds = None,
    allow_leaks: AllowLeaks = False,
    price: Price = None,
    engine: EngineName = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Forecast what more training data would bring. Models are trained on less, and measured."""
    from embedfit.pipeline import experiment

    options = {"data": data_options(query, label, documents), "model": {"name": model, "price": price}}
    settings = settings_of(config, folds, allow_leaks, options, overrides)
    result = experiment.curve(with_engine(settings, engine), points)
    if as_json:
        console.echo(json.dumps({**result.to_dict(), "folder": str(result.folder)}))
        return
    frame = result.to_frame()
    print_rows(list(frame.columns), [[f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row] for row in frame.to_numpy()])
    print_conclusion(f"Report: {result.report}", result.sentence)


@app.command()
def relabel(
    config: ConfigPath,
    suspects: Annotated[Path, typer.Argument(help="suspects.csv of a run directory, with its 'decision' column filled in.")],
    output: Annotated[Path, typer.Option(help="Folder for the corrected data set.")],
) -> None:
    """Apply the decisions in a run's suspects.csv to the labels. The corrected data set is written to another folder."""
    from embedfit.config import read_config
    from embedfit.data.write import write_jsonl
    from embedfit.errors import ConfigError
    from embedfit.pipeline import parts
    from embedfit.studies.suspects import relabelled

    check_folder("--output", output)
    settings = read_config(config)
    corrected, counts = relabelled(parts.read(settings.data, model=settings.model), suspects)
    sources = {Path(path).resolve() for path in (settings.data.queries, settings.data.documents) if path}
    if sources & {path.resolve() for path in (output, output / "queries.jsonl", output / "documents.jsonl")}:
        raise ConfigError(f"{output} holds the data set that is to be corrected, which would be lost; fix: give another --output")
    write_jsonl(corrected, output)
    console.echo(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    console.echo(f'In [data], set queries = "{output / "queries.jsonl"}" and documents = "{output / "documents.jsonl"}".')
    unused = [name for name in parts.OF_THE_FILE if getattr(settings.data, name) is not None]
    if unused:
        console.echo(f"Leave out {' and '.join(unused)} there: the texts are written out, under the usual names.")
    if not sum(count for name, count in counts.items() if name != "undecided"):
        console.echo("Nothing was decided: fill the column 'decision' with keep, replace, add, or document ids.", err=True)


@app.command()
def evaluate(
    config: SourcePath = HERE,
    query: QueryColumn = None,
    label: LabelColumn = None,
    documents: Documents = None,
    model: Annotated[list[str] | None, typer.Option(help="Model to measure; repeatable. Default: the one in the configuration.")] = None,
    document: Annotated[list[str] | None, typer.Option(help="Document template to measure; repeatable.")] = None,
    k: Annotated[list[int] | None, typer.Option(help="Rank to cut at; repeatable.")] = None,
    part: Annotated[str, typer.Option(help="Queries to use: all, train, dev or test.")] = "all",
    store: Annotated[bool, typer.Option("--store", help="Also measure the live index of the vector store.")] = False,
    retrieval: Annotated[
        list[str] | None, typer.Option(help="Retrieval method: dense, bm25 or hybrid; repeatable. Default: dense.")
    ] = None,
    rerank: Annotated[list[str] | None, typer.Option(help="Cross-encoder that reranks the top documents; repeatable.")] = None,
    rerank_top: Annotated[int | None, typer.Option(min=1, help="Number of documents to rerank per query. Default: 50.")] = None,
    engine: EngineName = None,
    csv: Annotated[Path | None, typer.Option(help="File for the table, one row per result.")] = None,
    price: Price = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure models without tuning them. Covers every combination of model, document template, retrieval method and reranker."""
    from embedfit.errors import ConfigError
    from embedfit.files import neutral, writing

    if csv and csv.is_dir():
        raise ConfigError(f"--csv {csv}: is a folder; expected a file to write, such as grid.csv")
    grid = {"retrieval": retrieval or None, "rerankers": rerank or None, "rerank_top": rerank_top}
    options = {"data": data_options(query, label, documents), "evaluate": grid, "model": {"price": price}}
    settings = with_engine(settings_of(config, None, False, options, overrides), engine)
    if rerank_top and not settings.evaluate.rerankers:
        raise ConfigError(f"--rerank-top {rerank_top} is for rerankers, and there is none; fix: --rerank, a cross-encoder")
    if model and set(settings.evaluate.retrieval) == {"bm25"} and not store:
        raise ConfigError("--model is not used by bm25, which reads words; fix: --retrieval dense or hybrid, or no --model")
    models = list(dict.fromkeys(model or [settings.model.name]))
    frame = _measured(settings, models, document or [settings.data.document_template], k or settings.evaluate.k, part, store)
    if csv:
        with writing(csv) as file:
            frame.map(lambda cell: neutral(cell) if isinstance(cell, str) else cell).to_csv(file, index=False)
    if as_json:
        console.echo(frame.to_json(orient="records"))
        return
    print_grid(frame, settings.evaluate.metric)


def _measured(settings: Config, models: Sequence[str], templates: Sequence[str], ks: Sequence[int], part: str, store: bool) -> DataFrame:
    """Measure every combination of the grid on one part of the data."""
    from contextlib import nullcontext

    from embedfit.encode.named import encoder_of
    from embedfit.pipeline import job, measuring, needs, parts
    from embedfit.retrieve.rerank import LocalReranker
    from embedfit.store.open import open_store
    from embedfit.track.tracker import tracking

    for name in models:
        needs.check_installed(settings, stores=store, model=name)
    needs.note_unused(settings, "evaluate")
    dataset = parts.read(settings.data, model=settings.model)
    encoders = [encoder_of(settings.model, name) for name in models]
    dataset = dataset.select(_part(settings, dataset, part))
    warn_of_seen(encoders, dataset)
    with (
        open_store(settings.store) if store else nullcontext() as opened,
        tracking(f"{settings.name}-evaluate", wanted=settings.track.langwatch) as tracker,
    ):
        return measuring.evaluate(
            dataset,
            encoders,
            templates=templates,
            ks=ks,
            retrieval=settings.evaluate.retrieval,
            rerankers=[LocalReranker(name, precision=settings.model.precision) for name in settings.evaluate.rerankers],
            rerank_top=settings.evaluate.rerank_top,
            engine=job.engine_of(settings.engine),
            store=opened,
            group_by=settings.split.group_by,
            seed=settings.split.seed,
            tracker=tracker,
        )


@app.command()
def tune(
    config: SourcePath = HERE,
    *,
    query: QueryColumn = None,
    label: LabelColumn = None,
    documents: Documents = None,
    model: ModelName = None,
    output: Annotated[Path, typer.Option(help="Folder for the model.")],
    allow_leaks: AllowLeaks = False,
    price: Price = None,
    engine: EngineName = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Tune a model without measuring it. Trains on the train part of one split, and picks the best epoch on dev."""
    from embedfit.pipeline import training
    from embedfit.pipeline.choosing import config_with_choice

    check_folder("--output", output)
    options = {"data": data_options(query, label, documents), "model": {"name": model, "price": price}}
    settings = with_engine(settings_of(config, None, allow_leaks, options, overrides), engine)
    tuned, findings = training.run_tune(config_with_choice(settings), output)
    if as_json:
        console.echo(json.dumps(tuned.to_dict()))
        return
    print_findings(findings)
    if tuned.epoch is None:
        console.echo(f"Fitted in {tuned.seconds:.0f} s: {tuned.model}")
        return
    print_rows(
        ["epoch", "loss", "dev MRR@10"],
        [[f"{row['epoch']}", f"{row['loss']:.3f}", f"{row.get('mrr@10', float('nan')):.3f}"] for row in tuned.history],
    )
    console.echo(f"Kept epoch {tuned.epoch} after {tuned.seconds:.0f} s: {tuned.model}")


@app.command()
def compare(
    config: ConfigPath,
    first: Annotated[str, typer.Argument(help="Model: a folder or a name. Or a TREC run file.")],
    second: Annotated[str, typer.Argument(help="Second model, or TREC run file.")],
    part: Annotated[str, typer.Option(help="Queries to use: all, train, dev or test.")] = "test",
    price: Price = None,
    engine: EngineName = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare two models, or TREC run files, on the same queries."""
    from embedfit.encode.named import encoder_of
    from embedfit.evaluation.compare import compare_scores
    from embedfit.pipeline import job, measuring, needs, parts
    from embedfit.track.tracker import tracking

    settings = with_engine(settings_of(config, None, False, {"model": {"price": price}}, overrides), engine)
    needs.note_unused(settings, "compare")
    models = [name for name in (first, second) if not Path(name).is_file() or name.endswith(".safetensors")]
    for model in models:
        needs.check_installed(settings, model=model)
    using = job.engine_of(settings.engine)
    dataset = parts.read(settings.data, model=settings.model)
    dataset = dataset.select(_part(settings, dataset, part))
    ks, template, group_by = settings.evaluate.k, settings.data.document_template, settings.split.group_by
    encoders = {name: encoder_of(settings.model, name) for name in models}
    warn_of_seen(list(encoders.values()), dataset)
    with tracking(f"{settings.name}-compare", wanted=settings.track.langwatch) as tracker:
        base, tuned = [
            measuring.measure(encoders[name], dataset, template=template, ks=ks, group_by=group_by, engine=using, tracker=tracker)
            if name in encoders
            else measuring.measure_run(name, dataset, ks=ks, group_by=group_by)
            for name in (first, second)
        ]
    seen = measuring.answers_seen_in_training(list(encoders.values()), dataset, template)
    comparison = compare_scores(base, tuned, metric=settings.evaluate.metric, seed=settings.split.seed, seen=seen)
    if as_json:
        console.echo(json.dumps(comparison.to_dict()))
        return
    from embedfit.report.tables import terminal_table

    terminal = console.terminal()
    terminal.print(terminal_table(comparison))
    terminal.print(comparison.sentence, soft_wrap=True)


def _part(settings: Config, dataset: Dataset, part: str) -> tuple[str, ...]:
    from embedfit.errors import ConfigError
    from embedfit.pipeline import parts

    if part == "all":
        return tuple(dataset.judged)
    if part not in ("train", "dev", "test"):
        raise ConfigError(f"part {part!r} is unknown; expected all, train, dev or test")
    ids: tuple[str, ...] = getattr(parts.one_split(settings, dataset), part)
    return ids
