"""The command line. It joins stages, prints, and turns errors into one line; work is done elsewhere.

Nothing heavy is imported here, so that help and completion are instant.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from embedfit.config import Config
    from embedfit.data.check import Finding
    from embedfit.data.dataset import Dataset
    from embedfit.encode.encoder import Encoder
    from embedfit.errors import EmbedfitError
    from embedfit.pipeline.experiment import Result

app = typer.Typer(
    name="embedfit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune a text-embedding model on your own labelled pairs, and prove on held-out queries whether retrieval got better.",
)

_INTERRUPTED = 130  # the exit code by which shells know Ctrl-C
_FIRST_SPEAKS_SECONDS = 10

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="embedfit.toml")]
HERE = Path("embedfit.toml")
OptionalConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="embedfit.toml, by default the one here.")]
Folds = Annotated[int | None, typer.Option(help="Hold out every query once, in this many folds, in place of split.test; 0 for one split.")]
AllowLeaks = Annotated[bool, typer.Option("--allow-leaks", help="Go on where held-out queries were trained on; the report says so in red.")]
Price = Annotated[float | None, typer.Option(min=0, help="US dollars for a million tokens of a remote encoder. Default: OpenAI's list.")]
EngineName = Annotated[
    Literal["local", "ray"] | None, typer.Option(help="Where texts are encoded and searched: local, or ray, a cluster. Default: local.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, to stdout.")]


def _print_version(wanted: bool) -> None:
    from importlib.metadata import version

    if wanted:
        typer.echo(f"embedfit {version('embedfit')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no notes.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and nothing else.")
    ] = False,
) -> None:
    """Set what holds for every command."""
    from embedfit import console, processes
    from embedfit.errors import ConfigError

    console.quiet = quiet
    _State.debug = debug
    if processes.count() > 1 and context.invoked_subcommand not in ("run", "tune"):
        raise ConfigError(f"'{context.invoked_subcommand}' runs in one process; fix: without torchrun, which is for 'run' and 'tune'")
    if not processes.main():
        console.quiet, sys.stdout = True, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


class _State:
    debug = False


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the run directory is made.")] = Path("runs"),
    model: Annotated[str, typer.Option(help="The model to start from.")] = "all-MiniLM-L6-v2",
    as_json: AsJson = False,
) -> None:
    """Run the main job on the bundled card transactions, offline."""
    from embedfit.samples import demo_config

    _check_folder("--output", output)
    _show(_run(demo_config(output, model)), as_json)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="Where to put the files.")] = Path()) -> None:
    """Write an embedfit.toml with comments, its JSON Schema, and a tiny data set to begin with."""
    from embedfit.samples import write_start

    _check_folder("FOLDER", folder)
    for path in write_start(folder):
        _echo(path)
    _echo(f"Next: embedfit check {folder / 'embedfit.toml'}")


@app.command()
def check(config: OptionalConfigPath = HERE, as_json: AsJson = False) -> None:
    """Look at the data: rows, labels, conflicts, bad rows, and texts that are too long for the model."""
    from dataclasses import asdict

    from embedfit.config import read_config
    from embedfit.data.check import Finding, check_dataset, check_truncation
    from embedfit.errors import ConfigError, DataError, ModelError
    from embedfit.pipeline import job

    settings = read_config(config)
    bad: list[DataError] = []
    dataset = job.read(settings.data, bad)
    findings = check_dataset(dataset) if dataset.judged else []
    skipped = ""
    # What goes wrong from here on is one more finding: it must not hide the bad rows.
    try:
        findings += job.leaks(settings, dataset) if dataset.judged else []
    except (ConfigError, DataError) as error:
        findings.append(Finding("problem", "parts", str(error)))
    try:
        if not dataset.corpus:
            raise ModelError("there are no documents")
        findings += check_truncation(dataset, job.local(job.encoder(settings.model)).loaded, settings.data.document_template)
    except ModelError as error:
        skipped = f"truncation was not looked at: {error}"
    except (ConfigError, DataError) as error:
        findings.append(Finding("problem", "texts", str(error)))
    if as_json:
        counts = {"queries": len(dataset.judged), "documents": len(dataset.corpus), "bad_rows": [str(row) for row in bad]}
        _echo(json.dumps({**counts, "findings": [asdict(finding) for finding in findings], "skipped": skipped}))
    else:
        _print_check(dataset, bad, findings, skipped)
    if bad or any(finding.level == "problem" for finding in findings):
        raise typer.Exit(2)


@app.command()
def run(
    config: OptionalConfigPath = HERE,
    folds: Folds = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repeat the training with this many seeds, and show what they change.")] = None,
    keep: Annotated[float | None, typer.Option(help="Share of the base's score on general queries to keep, such as 0.98.")] = None,
    allow_leaks: AllowLeaks = False,
    price: Price = None,
    engine: EngineName = None,
    as_json: AsJson = False,
) -> None:
    """Measure, tune, measure again on the same held-out queries, and say whether it got better."""
    settings = _changed(config, folds, allow_leaks, {"evaluate": {"seeds": seeds}, "general": {"keep": keep}, "model": {"price": price}})
    _show(_run(_with_engine(settings, engine)), as_json)


@app.command()
def ladder(
    config: OptionalConfigPath = HERE,
    rung: Annotated[list[str] | None, typer.Option(help="A method to measure; may be given again. Default: all.")] = None,
    folds: Folds = None,
    allow_leaks: AllowLeaks = False,
    price: Price = None,
    engine: EngineName = None,
    as_json: AsJson = False,
) -> None:
    """Measure every method on the same held-out queries, cheapest first, and recommend the simplest good one."""
    from embedfit.pipeline import experiment
    from embedfit.report.tables import ladder_table

    settings = _changed(config, folds, allow_leaks, {"ladder": {"rungs": tuple(rung) if rung else None}, "model": {"price": price}})
    folder, found = experiment.run_ladder(_with_engine(settings, engine))
    if as_json:
        _echo(json.dumps({**found.to_dict(), "folder": str(folder)}))
        return
    console = _stdout()
    console.print(ladder_table(found))
    for name, why in found.skipped.items():
        console.print(f"Left out: {name}, as {why}.", highlight=False, soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(found.sentence, highlight=False, style="bold", soft_wrap=True)


@app.command()
def curve(
    config: OptionalConfigPath = HERE,
    points: Annotated[int, typer.Option(min=2, help="How many sizes of the train part to try, each half of the next.")] = 4,
    folds: Folds = None,
    allow_leaks: AllowLeaks = False,
    price: Price = None,
    engine: EngineName = None,
    as_json: AsJson = False,
) -> None:
    """Measure with less training data, and estimate what more would bring."""
    from embedfit.pipeline import experiment

    settings = _changed(config, folds, allow_leaks, {"model": {"price": price}})
    folder, found = experiment.run_curve(_with_engine(settings, engine), points)
    if as_json:
        _echo(json.dumps({**found.to_dict(), "folder": str(folder)}))
        return
    frame = found.to_frame()
    _print_rows(list(frame.columns), [[f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row] for row in frame.to_numpy()])
    console = _stdout()
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(found.sentence, highlight=False, style="bold", soft_wrap=True)


@app.command()
def relabel(
    config: ConfigPath,
    suspects: Annotated[Path, typer.Argument(help="suspects.csv of a run directory, with its 'decision' column filled in.")],
    output: Annotated[Path, typer.Option(help="The folder where the corrected data set goes.")],
) -> None:
    """Correct the labels as decided in a run's suspects.csv, and write the data set anew."""
    from embedfit.config import read_config
    from embedfit.data.write import write_jsonl
    from embedfit.errors import ConfigError
    from embedfit.pipeline import job
    from embedfit.studies.suspects import relabelled

    _check_folder("--output", output)
    settings = read_config(config)
    corrected, counts = relabelled(job.read(settings.data), suspects)
    sources = {Path(path).resolve() for path in (settings.data.queries, settings.data.documents) if path}
    if sources & {path.resolve() for path in (output, output / "queries.jsonl", output / "documents.jsonl")}:
        raise ConfigError(f"{output} holds the data set that is to be corrected, which would be lost; fix: give another --output")
    write_jsonl(corrected, output)
    _echo(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    _echo(f'In [data], set queries = "{output / "queries.jsonl"}" and documents = "{output / "documents.jsonl"}".')
    _echo("Leave out record, query_template, query and label there: the texts are written out.")
    if not sum(count for name, count in counts.items() if name != "undecided"):
        _echo("Nothing was decided: fill the column 'decision' with keep, replace, add, or document ids.", err=True)


@app.command()
def evaluate(
    config: OptionalConfigPath = HERE,
    model: Annotated[list[str] | None, typer.Option(help="A model to measure; may be given again. Default: the configuration's.")] = None,
    document: Annotated[list[str] | None, typer.Option(help="A document template to measure; may be given again.")] = None,
    k: Annotated[list[int] | None, typer.Option(help="Where to cut the rankings; may be given again.")] = None,
    part: Annotated[str, typer.Option(help="Which queries: all, train, dev or test.")] = "all",
    store: Annotated[bool, typer.Option("--store", help="Measure the live index of the vector store too.")] = False,
    retrieval: Annotated[list[str] | None, typer.Option(help="dense, bm25 or hybrid; may be given again. Default: dense.")] = None,
    rerank: Annotated[list[str] | None, typer.Option(help="A cross-encoder to read the top again with; may be given again.")] = None,
    rerank_top: Annotated[int | None, typer.Option(min=1, help="Documents of each query that it reads. Default: 50.")] = None,
    engine: EngineName = None,
    csv: Annotated[Path | None, typer.Option(help="Write the tidy table to this file.")] = None,
    price: Price = None,
    as_json: AsJson = False,
) -> None:
    """Measure a grid of models, document templates, ways of retrieval and rerankers, without tuning anything."""
    from contextlib import nullcontext

    from embedfit.errors import ConfigError
    from embedfit.files import neutral, writing
    from embedfit.metrics import metric_label
    from embedfit.pipeline import job, measuring
    from embedfit.retrieve.rerank import LocalReranker
    from embedfit.store.open import open_store
    from embedfit.track.tracker import tracking

    said = {"retrieval": retrieval or None, "rerankers": rerank or None, "rerank_top": rerank_top}
    if csv and csv.is_dir():
        raise ConfigError(f"--csv {csv}: is a folder; expected a file to write, such as grid.csv")
    settings = _with_engine(_changed(config, None, False, {"evaluate": said, "model": {"price": price}}), engine)
    grid = settings.evaluate
    if rerank_top and not grid.rerankers:
        raise ConfigError(f"--rerank-top {rerank_top} is for rerankers, and there is none; fix: --rerank, a cross-encoder")
    if model and set(grid.retrieval) == {"bm25"} and not store:
        raise ConfigError("--model is not used by bm25, which reads words; fix: --retrieval dense or hybrid, or no --model")
    names = list(dict.fromkeys(model or [settings.model.name]))
    for name in names:
        job.check_installed(settings, stores=store, model=name)
    job.note_unused(settings, "evaluate")
    dataset = job.read(settings.data)
    encoders = [job.encoder(settings.model, name) for name in names]
    dataset = dataset.select(_part(settings, dataset, part))
    _warn_of_seen(encoders, dataset)
    with (
        open_store(settings.store) if store else nullcontext() as opened,
        tracking(f"{settings.name}-evaluate", wanted=settings.track.langwatch) as tracker,
    ):
        frame = measuring.evaluate(
            dataset,
            encoders,
            templates=document or [settings.data.document_template],
            ks=k or settings.evaluate.k,
            retrieval=settings.evaluate.retrieval,
            rerankers=[LocalReranker(name, precision=settings.model.precision) for name in settings.evaluate.rerankers],
            rerank_top=settings.evaluate.rerank_top,
            engine=job.engine_of(settings.engine),
            store=opened,
            group_by=settings.split.group_by,
            seed=settings.split.seed,
            tracker=tracker,
        )
    if csv:
        with writing(csv) as file:
            frame.map(lambda cell: neutral(cell) if isinstance(cell, str) else cell).to_csv(file, index=False)
    if as_json:
        _echo(frame.to_json(orient="records"))
        return
    index = ["model", "document", "retrieval", *(["reranker"] if settings.evaluate.rerankers else []), "seconds"]
    shares = frame[frame.metric == "recall_of_exact"]
    frame = frame.drop(shares.index)
    frame = frame.assign(name=frame.metric + "@" + frame.k.astype(str))
    names = [f"{metric}@{cut}" for metric in ("recall", "mrr", "ndcg") for cut in sorted(set(frame.k))]
    main = settings.evaluate.metric if settings.evaluate.metric in set(frame.name) else f"mrr@{max(frame.k)}"
    rows: list[list[str]] = []
    for _, group in frame.groupby(index, sort=False):
        metrics = group.set_index("name")
        change = metrics.loc[main]
        interval = f"{change['difference']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})" if rows else ""
        cells = [*(str(change[column]) for column in index[:-1]), *(f"{metrics['value'][name]:.3f}" for name in names)]
        rows.append([*cells, interval, f"{change['seconds'] * 1000:.2f}"])
    _print_rows([*index[:-1], *names, f"{metric_label(main)} against the first", "ms a query"], rows)
    if len(rows) > 1:
        _echo(
            f"A winner picked from these {len(rows)} rows must be confirmed on other queries: each interval holds for its row alone, "
            "not for the best of them."
        )
    for row in shares.to_dict("records"):
        _echo(f"{row['model']}: {row['value']:.4f} of what exact search has in the first {row['k']}")


@app.command()
def tune(
    config: OptionalConfigPath = HERE,
    *,
    output: Annotated[Path, typer.Option(help="The folder where the model goes.")],
    allow_leaks: AllowLeaks = False,
    price: Price = None,
    engine: EngineName = None,
    as_json: AsJson = False,
) -> None:
    """Tune the model on the train part of one split, choosing on dev, without measuring anything."""
    from embedfit.pipeline import training

    _check_folder("--output", output)
    settings = _with_engine(_changed(config, None, allow_leaks, {"model": {"price": price}}), engine)
    tuned, findings = training.run_tune(settings, output)
    if as_json:
        _echo(json.dumps(tuned.to_dict()))
        return
    _print_findings(findings)
    if tuned.epoch is None:
        _echo(f"Fitted in {tuned.seconds:.0f} s: {tuned.model}")
        return
    _print_rows(
        ["epoch", "loss", "dev MRR@10"],
        [[f"{row['epoch']}", f"{row['loss']:.3f}", f"{row.get('mrr@10', float('nan')):.3f}"] for row in tuned.history],
    )
    _echo(f"Kept epoch {tuned.epoch} after {tuned.seconds:.0f} s: {tuned.model}")


@app.command()
def compare(
    config: ConfigPath,
    first: Annotated[str, typer.Argument(help="A model: a folder or a name.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    part: Annotated[str, typer.Option(help="Which queries: all, train, dev or test.")] = "test",
    price: Price = None,
    engine: EngineName = None,
    as_json: AsJson = False,
) -> None:
    """Compare two models on the same queries."""
    from embedfit.evaluation.compare import compare_scores
    from embedfit.pipeline import job, measuring
    from embedfit.track.tracker import tracking

    settings = _with_engine(_changed(config, None, False, {"model": {"price": price}}), engine)
    job.note_unused(settings, "compare")
    for model in (first, second):
        job.check_installed(settings, model=model)
    using = job.engine_of(settings.engine)
    dataset = job.read(settings.data)
    dataset = dataset.select(_part(settings, dataset, part))
    ks, template = settings.evaluate.k, settings.data.document_template
    encoders = [job.encoder(settings.model, name) for name in (first, second)]
    _warn_of_seen(encoders, dataset)
    with tracking(f"{settings.name}-compare", wanted=settings.track.langwatch) as tracker:
        base, tuned = [
            measuring.measure(encoder, dataset, template=template, ks=ks, group_by=settings.split.group_by, engine=using, tracker=tracker)
            for encoder in encoders
        ]
    seen = measuring.answers_seen_in_training(encoders, dataset, template)
    comparison = compare_scores(base, tuned, metric=settings.evaluate.metric, seed=settings.split.seed, seen=seen)
    if as_json:
        _echo(json.dumps(comparison.to_dict()))
        return
    from embedfit.report.tables import terminal_table

    console = _stdout()
    console.print(terminal_table(comparison))
    console.print(comparison.sentence, soft_wrap=True)


generate_app = typer.Typer(no_args_is_help=True, help="Let an LLM write the training data; what was paid for is never lost.")
app.add_typer(generate_app, name="generate")

LlmWritten = Annotated[Path | None, typer.Option(metavar="CONFIG", help="An embedfit.toml, whose [generate] and [data] say the rest.")]
LlmModel = Annotated[str | None, typer.Option(help="The LLM, by the name that its endpoint knows. Default: gpt-4.1-mini.")]
LlmBaseUrl = Annotated[str | None, typer.Option(help="Any OpenAI-compatible endpoint, with /v1. Default: OpenAI's own.")]
LlmPrompt = Annotated[Path | None, typer.Option(help="A Jinja template in place of the bundled prompt.")]
LlmExamples = Annotated[Path | None, typer.Option(help="Real texts to imitate: JSONL with 'query', or one per line.")]
LlmBudget = Annotated[float | None, typer.Option(help="Stop before more than this is spent, in US dollars (or the currency of --price).")]
LlmMaxTokensTotal = Annotated[int | None, typer.Option(help="Stop before more tokens than this are used.")]
LlmPrice = Annotated[
    tuple[float, float] | None, typer.Option(help="Of a million prompt tokens and completion tokens, in US dollars or your currency.")
]
LlmConcurrency = Annotated[int | None, typer.Option(min=1, help="Requests at a time, at most. Default: 32.")]
LlmJudge = Annotated[str | None, typer.Option(help="An LLM that finds the label of every record without knowing it.")]
LlmDryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and send nothing.")]


@generate_app.command("records")
def generate_records(
    output: Annotated[Path | None, typer.Option(help="The .jsonl file to write. Default: [data] queries.")] = None,
    labels: Annotated[Path | None, typer.Option(help="A file of labels, such as categories.json. Default: [data] documents.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many records, shared evenly among the labels.")] = None,
    record: Annotated[str | None, typer.Option(help="transaction, module:Class, or a JSON Schema file. Default: transaction.")] = None,
    model: LlmModel = None,
    base_url: LlmBaseUrl = None,
    prompt: LlmPrompt = None,
    examples: LlmExamples = None,
    judge: LlmJudge = None,
    budget: LlmBudget = None,
    max_tokens_total: LlmMaxTokensTotal = None,
    price: LlmPrice = None,
    concurrency: LlmConcurrency = None,
    config: LlmWritten = None,
    dry_run: LlmDryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let an LLM write records for labels, evenly."""
    data = {"queries": _whole(output), "documents": _whole(labels), "record": record}
    what = {"records": count, "questions": 0, "prompt": _whole(prompt), "examples": _whole(examples)}
    who = {"model": model, "base_url": base_url, "judge": judge, "price": price, "concurrency": concurrency}
    limits = {"budget": budget, "max_tokens_total": max_tokens_total}
    _generate(config, data, {**what, **who, **limits}, dry_run, as_json)


@generate_app.command("queries")
def generate_queries(
    output: Annotated[Path | None, typer.Option(help="The .jsonl file to write. Default: [data] queries.")] = None,
    documents: Annotated[Path | None, typer.Option(help="A file of passages. Default: [data] documents.")] = None,
    each: Annotated[int | None, typer.Option(min=1, help="How many questions for each passage.")] = None,
    model: LlmModel = None,
    base_url: LlmBaseUrl = None,
    prompt: LlmPrompt = None,
    examples: LlmExamples = None,
    judge: LlmJudge = None,
    budget: LlmBudget = None,
    max_tokens_total: LlmMaxTokensTotal = None,
    price: LlmPrice = None,
    concurrency: LlmConcurrency = None,
    config: LlmWritten = None,
    dry_run: LlmDryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let an LLM write questions that passages answer."""
    data = {"queries": _whole(output), "documents": _whole(documents)}
    what = {"questions": each, "records": 0, "prompt": _whole(prompt), "examples": _whole(examples)}
    who = {"model": model, "base_url": base_url, "judge": judge, "price": price, "concurrency": concurrency}
    limits = {"budget": budget, "max_tokens_total": max_tokens_total}
    _generate(config, data, {**what, **who, **limits}, dry_run, as_json)


@app.command()
def index(
    config: OptionalConfigPath = HERE,
    model: Annotated[str | None, typer.Option(help="The model to index with. Default: the configuration's.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Let the version before answer again; nothing is written.")] = False,
    engine: EngineName = None,
    as_json: AsJson = False,
) -> None:
    """Put documents and vectors into the vector store, check them against exact search, and go live."""
    from embedfit.config import read_config
    from embedfit.errors import ConfigError
    from embedfit.pipeline import measuring
    from embedfit.store.open import open_store
    from embedfit.store.versions import roll_back

    if rollback and model:
        raise ConfigError("--rollback writes nothing, and so has no use for --model; fix: give one of them")
    settings = _with_engine(read_config(config), engine)
    if not rollback:
        found = measuring.index(settings, model)
        _echo(json.dumps(found.to_dict()) if as_json else found.sentence)
        return
    with open_store(settings.store) as store:
        stamp = roll_back(store)
    said = f"Live again: {stamp.documents:,} documents by {stamp.encoder} ({stamp.fingerprint[:12]})."
    _echo(stamp.to_json() if as_json else said)


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="QUERY", help="What to search for.")],
    config: OptionalConfigPath = HERE,
    k: Annotated[int, typer.Option(min=1, help="How many documents.")] = 10,
    where: Annotated[
        list[str] | None, typer.Option("--filter", metavar="KEY=VALUE", help="Metadata a document must have; may be given again.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model that the index was made with. Default: the configuration's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search the live index of the vector store; long texts are cut short, but not in JSON."""
    from dataclasses import asdict
    from textwrap import shorten
    from time import monotonic

    from embedfit.config import read_config
    from embedfit.hub import public_name
    from embedfit.pipeline import job
    from embedfit.store.open import open_store
    from embedfit.store.versions import LiveIndex
    from embedfit.track.tracker import trace_search

    settings = read_config(config)
    filters = _filters(where or [])
    job.check_installed(settings.model_copy(update={"engine": "local"}), stores=True, model=model)
    encoder = job.encoder(settings.model, model)
    with open_store(settings.store) as store:
        started = monotonic()
        hits = LiveIndex(store, encoder).find(text, k, filters)
        seconds = monotonic() - started
    if as_json:
        _echo(json.dumps([asdict(hit) for hit in hits], ensure_ascii=False))
    else:
        rows = []
        for rank, hit in enumerate(hits, 1):
            metadata = ", ".join(f"{key}={value}" for key, value in hit.metadata.items())
            rows.append([rank, f"{hit.score:.3f}", hit.id, shorten(hit.text, 200), shorten(metadata, 200)])
        _print_rows(["", "score", "id", "text", "metadata"], rows)
    if settings.track.langwatch:
        trace_search(text, [(hit.id, hit.text, hit.score) for hit in hits], model=public_name(encoder.name), seconds=seconds)


def _filters(given: Sequence[str]) -> dict[str, str]:
    from embedfit.errors import ConfigError, shown

    found = dict(one.partition("=")[::2] for one in given)
    for one in given:
        if "=" not in one or one.startswith("="):
            raise ConfigError(f"--filter {shown(one)}; expected KEY=VALUE")
    if len(found) < len(given):
        raise ConfigError("--filter names a key twice; expected each once, as a document must have all of them")
    return found


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run directory.")],
    target: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub, a folder like ./name, or an archive like name.tar.")],
    dataset: Annotated[str | None, typer.Option(help="Publish the labelled data too: where to, likewise.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Let anybody see it on the Hub. Default: private.")] = False,
    include_examples: Annotated[bool, typer.Option("--include-examples", help="Quote a few training queries in the model card.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Publish a run's model with its evidence, fetch it again, and check that it gives the same vectors and scores."""
    from embedfit.errors import ConfigError
    from embedfit.pipeline import publishing

    publications = publishing.prepare_publications(run, target, dataset=dataset, public=public, examples=include_examples)
    for publication in publications:
        for line in publication.describe().splitlines():
            _echo(line, err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody is there to agree to this; fix: --yes")
        typer.confirm("Publish this?", abort=True, err=True)
    for publication in publications:
        parity = publishing.publish_run(run, publication)
        said = parity.sentence if parity else "Fetched again: it is the same."
        _echo(f"Published the {publication.kind}: {publication.target.where}. {said}")


track = typer.Typer(no_args_is_help=True, help="What was sent to LangWatch, and what was not.")
app.add_typer(track, name="track")


@track.command()
def resend(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or the folder that the note named.")]) -> None:
    """Send again what could not be delivered to LangWatch."""
    from embedfit.track.sender import resend as send_again

    found = send_again(run)
    _echo(f"{found.delivered:,} results delivered" + (f": {found.address}" if found.address else ""))


@app.command()
def cache(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A model as the table names it. Default: all.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove what is kept of the model, or of all.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how much is kept of each model's vectors, so that nothing is encoded twice, or remove it."""
    from datetime import datetime

    from embedfit.encode.cache import cached_models, clear_cache
    from embedfit.errors import ConfigError, StorageError, did_you_mean
    from embedfit.files import cache_folder, cache_limit, in_bytes

    folder, limit, models = cache_folder(), cache_limit(), cached_models()
    if model is not None:
        known = {one.model for one in models}
        models = [one for one in models if model in (one.model, one.path.stem)]
        if not models:
            raise ConfigError(f"{folder}: nothing is kept of a model {model!r}{did_you_mean(model, known)}")
    kept = clear_cache(models) if clear else []
    if as_json:
        rows = [{**vars(one), "path": str(one.path), "cleared": clear and one not in kept} for one in models]
        _echo(json.dumps({"folder": str(folder), "limit": limit, "models": rows}))
    elif clear:
        gone = [one for one in models if one not in kept]
        _echo(f"Removed: {sum(one.vectors for one in gone):,} vectors of {len(gone):,} models, {in_bytes(sum(one.bytes for one in gone))}")
    else:
        when = [f"{datetime.fromtimestamp(one.used):%Y-%m-%d %H:%M}" for one in models]
        cells = [[one.model, f"{one.vectors:,}", in_bytes(one.bytes), used] for one, used in zip(models, when, strict=True)]
        if cells:
            _print_rows(["model", "vectors", "size", "used"], cells)
        _echo(
            f"{in_bytes(sum(one.bytes for one in models))} of at most {in_bytes(limit)} (EMBEDFIT_CACHE_LIMIT) in {folder} (EMBEDFIT_CACHE)"
        )
        for path in sorted(folder.glob("*.damaged*")):
            _echo(f"Could not be read, and was moved aside: {path}")
    if kept:
        raise StorageError(f"{folder}: another process uses {', '.join(one.model for one in kept)}; fix: wait for it")


@app.command()
def schema() -> None:
    """Print the JSON Schema of embedfit.toml, for editors."""
    from embedfit.config import json_schema

    print(json_schema())  # on many lines, and none of it is data


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 2 for anything the user can mend, 130 when interrupted."""
    from embedfit import processes
    from embedfit.errors import EmbedfitError

    try:
        app(args=arguments, prog_name="embedfit", standalone_mode=True)
    except EmbedfitError as error:
        if _State.debug:
            raise
        if not processes.main():
            # Processes that train together meet the same errors. The first says so, and the launcher then ends the others: it
            # would end the first, before it has spoken, if another went sooner.
            time.sleep(_FIRST_SPEAKS_SECONDS)
        _echo(f"embedfit: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        storage = _full_disk(error)
        if _State.debug or storage is None:
            raise
        _echo(f"embedfit: {storage}", err=True)
        sys.exit(2)
    except SystemExit as stopped:
        if stopped.code == _INTERRUPTED:
            print("embedfit: interrupted; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        sys.excepthook = _print_traceback  # Typer has set one of its own


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what Python would, with the controls made visible that a label or a file name in it may hold."""
    import traceback

    for line in "".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"):
        _echo(line, err=True)


def _full_disk(error: OSError) -> EmbedfitError | None:
    import errno

    from embedfit.errors import StorageError

    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS):
        return None
    return StorageError(f"{error.filename or 'a file'}: {error.strerror}; nothing that was finished is lost")


def _changed(path: Path, folds: int | None, allow_leaks: bool, options: dict[str, dict[str, Any]]) -> Config:
    """Return the configuration of a file with what was said on the command line in place of what the file says."""
    from embedfit.config import read_config

    options = {**options, "split": {"folds": folds, "leaks": "allow" if allow_leaks else None}}
    given = {section: {key: value for key, value in said.items() if value is not None} for section, said in options.items()}
    return read_config(path, given)


def _with_engine(settings: Config, engine: str | None) -> Config:
    return settings.model_copy(update={"engine": engine}) if engine else settings


def _check_folder(option: str, folder: Path) -> None:
    """Refuse the name of a file where a folder will be made.

    Raises:
        ConfigError: It is a file, or ends like one.
    """
    from embedfit.errors import ConfigError

    is_file = folder.exists() and not folder.is_dir()
    if is_file or (folder.suffix.lower() in _FILES and not folder.exists()):
        raise ConfigError(f"{option} {folder}: expected a folder{', and it is a file' if is_file else ''}; fix: such as {folder.stem}")


_FILES = {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".toml", ".safetensors", ".html", ".tar", ".zip", ".gz", ".txt", ".md", ".xlsx"}


def _generate(path: Path | None, data: dict[str, Any], said: dict[str, Any], dry_run: bool, as_json: bool) -> None:
    from embedfit.config import make_config, read_config
    from embedfit.generate.writer import endpoint_of
    from embedfit.pipeline import generating

    given = {name: {key: value for key, value in some.items() if value is not None} for name, some in (("data", data), ("generate", said))}
    if path is None:
        if "queries" not in given["data"]:
            raise typer.BadParameter("give --output, or --config", param_hint="--output")
        if said["questions"] == 0:
            given["data"].setdefault("record", "transaction")
        settings = make_config(given, where="the command line")
    else:
        settings = read_config(path, given)
    if dry_run:
        found = generating.estimate_generate(settings)
        _echo(json.dumps(vars(found)) if as_json else found.sentence)
        return
    asked = _asked if sys.stdin.isatty() else None
    written = generating.run_generate(settings, lambda: endpoint_of(settings.generate, asked))
    if as_json:
        _echo(json.dumps(written.to_dict()))
        return
    _print_rows(["outcome", "replies"], [[outcome, f"{count:,}"] for outcome, count in written.outcomes.items()])
    console = _stdout()
    console.print(f"Ledger: {written.ledger}", highlight=False, soft_wrap=True)
    console.print(f"Report: {written.output.with_suffix('.html')}", highlight=False, soft_wrap=True)
    console.print(written.sentence, highlight=False, style="bold", soft_wrap=True)


def _asked(question: str) -> str:
    """Ask for a key, without showing it."""
    import getpass

    from embedfit import console

    return getpass.getpass(console.printable(question))


def _whole(path: Path | None) -> str | None:
    """Return a path that means the same from anywhere, as those in a configuration are relative to its file."""
    return str(path.resolve()) if path else None


def _run(settings: Config) -> Result:
    from embedfit.pipeline import experiment

    return experiment.run(settings)


def _part(settings: Config, dataset: Dataset, part: str) -> tuple[str, ...]:
    from embedfit.errors import ConfigError
    from embedfit.pipeline import job

    if part == "all":
        return tuple(dataset.judged)
    if part not in ("train", "dev", "test"):
        raise ConfigError(f"part {part!r} is unknown; expected all, train, dev or test")
    ids: tuple[str, ...] = getattr(job.one_split(settings, dataset), part)
    return ids


def _warn_of_seen(encoders: Sequence[Encoder], dataset: Dataset) -> None:
    from embedfit import console
    from embedfit.pipeline import measuring

    for encoder in encoders:
        seen = measuring.seen_in_training(encoder, dataset)
        if seen:
            total = len(dataset.queries)
            console.note(f"Warning: {encoder.name} was trained on {seen:,} of these {total:,} queries; its figures here are too good")


def _show(result: Result, as_json: bool) -> None:
    if as_json:
        _echo(json.dumps({**result.comparison.to_dict(), "folder": str(result.folder), "reused": result.reused}))
        return
    from embedfit.report.tables import terminal_table

    console = _stdout()
    _print_findings(result.findings)
    console.print()
    console.print(terminal_table(result.comparison, result.others))
    console.print()
    again = " (nothing had changed, so nothing was done)" if result.reused else f" ({result.manifest['seconds']:.0f} s)"
    console.print(f"Model:  {result.model}{again}", highlight=False, soft_wrap=True)
    console.print(f"Report: {result.report}", highlight=False, soft_wrap=True)
    console.print(result.comparison.sentence, highlight=False, style="bold", soft_wrap=True)


def _print_findings(findings: Sequence[Finding]) -> None:
    """Print what must not be missed of the data: leaks that were allowed, and warnings."""
    from rich.text import Text

    from embedfit.data.check import warnings
    from embedfit.pipeline.experiment import alerts

    console = _stdout()
    for alert in alerts(findings):
        console.print(alert, style="bold red", soft_wrap=True)
    for warning in warnings(findings):
        console.print(Text("Warning:", style="yellow"), warning, soft_wrap=True)


def _print_check(dataset: Any, bad: Sequence[Exception], findings: Sequence[Any], skipped: str) -> None:
    from collections import Counter

    from rich.text import Text

    console = _stdout()
    labels = Counter(label for id in dataset.judged for label in dataset.relevant(id))
    pairs = sum(labels.values())
    console.print(f"{len(dataset.judged):,} labelled queries, {len(dataset.corpus):,} documents, {pairs:,} relevant pairs", highlight=False)
    if labels:
        most, least = labels.most_common(1)[0], labels.most_common()[-1]
        console.print(
            f"{len(labels):,} documents are asked for: from {least[1]:,} times ({least[0]}) to {most[1]:,} ({most[0]})",
            highlight=False,
        )
    for row in bad:
        console.print(Text("bad row", style="red"), str(row), soft_wrap=True)
    colours = {"problem": "red", "warning": "yellow", "note": "default"}
    for finding in findings:
        console.print(Text(finding.level, style=colours[finding.level]), finding.message, soft_wrap=True)
    if skipped:
        console.print(f"note {skipped}", highlight=False, soft_wrap=True)
    if not bad and not findings:
        console.print("Nothing odd was found.")


def _print_rows(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, justify="right" if "@" in name or name in ("epoch", "loss", "ms a query") else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    _stdout().print(table)


def _stdout() -> Console:
    from embedfit import console

    return console.terminal()


def _echo(message: object, *, err: bool = False) -> None:
    from embedfit import console

    console.echo(message, err=err)
