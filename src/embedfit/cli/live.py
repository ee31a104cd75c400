"""The searcher in use: serve it, and read what people picked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import HERE, AsJson, SourcePath
from embedfit.cli.printing import print_rows

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from embedfit.serve.settings import Settings
    from embedfit.serve.summary import Summary

RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="Finished run directory, the live folder of 'refresh', or embedfit.toml for its live index.")
]

_LOCATION = "File of the feedback, or postgresql://..., or env:NAME. Default: feedback.db in the run directory."

Location = Annotated[str | None, typer.Option(help=_LOCATION)]

Host = Annotated[str, typer.Option(help="Address to listen at. Beyond this machine, a token is needed.")]

Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for a free one.")]

Answers = Annotated[int, typer.Option(min=1, max=9, help="Number of answers that the page shows at first. More are a key away.")]

TokenVariable = Annotated[str, typer.Option(help="Environment variable with the token that every request must show.")]


@app.command()
def serve(
    run: RunPath,
    form: Annotated[
        Literal["onnx", "onnx-int8"] | None, typer.Option(help="Form of the model to run, which 'embedfit export' made.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token_env: TokenVariable = "EMBEDFIT_TOKEN",  # noqa: S107
    feedback: Location = None,
    no_feedback: Annotated[bool, typer.Option("--no-feedback", help="Store no searches and no picks.")] = False,
    learn: Annotated[
        Literal["once", "twice", "second-person"],
        typer.Option(help="When a pick becomes an example: at once, when seen twice, or when a second person agrees."),
    ] = "once",
    answers: Answers = 5,
    explore: Annotated[float, typer.Option(min=0, max=1, help="Share of the searches whose hits are shown in random order.")] = 0.0,
    abstain: Annotated[float, typer.Option(min=0, max=1, help="Probability under which an answer is none.")] = 0.0,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Another run. The answers of both are interleaved, and picks say which is better.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes. Each holds the model.")] = 1,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="local: this machine. ray: a Ray Serve deployment.")] = "local",
    traces: Annotated[
        Literal["none", "ids", "texts"],
        typer.Option(help="What is sent to LangWatch or OpenTelemetry for each search: nothing, ids and scores, or texts too."),
    ] = "none",
    log: Annotated[bool, typer.Option("--log", help="Log method, route, status and time of each request; no texts.")] = False,
) -> None:
    """Serve a run over HTTP. It offers search, feedback, embeddings, and a page on which people pick."""
    from embedfit.errors import ConfigError
    from embedfit.serve.feedback import NAME
    from embedfit.serve.places import home
    from embedfit.serve.settings import Settings, token_from

    if no_feedback and feedback:
        raise ConfigError("--no-feedback has no use for --feedback; fix: give one of them")
    if against and (no_feedback or explore):
        raise ConfigError("--against needs the feedback, and shows its own order; fix: leave out --no-feedback and --explore")
    settings = Settings(
        folder=str(run),
        form=form or "",
        host=host,
        port=port,
        token=token_from(token_env, host),
        feedback="" if no_feedback else feedback or str(home(run) / NAME),
        agreement=learn,
        against=str(against or ""),
        suspects=_suspects_of(run),
        answers=answers,
        explore=explore,
        abstain=abstain,
        traces=traces,
        log=log,
    )
    _start(settings, workers, engine)


def _start(settings: Settings, workers: int, engine: str) -> None:
    """Serve on an engine."""
    if settings.traces != "none":
        from embedfit.errors import check_package
        from embedfit.serve.tracing import targets

        check_package("opentelemetry.exporter.otlp.proto.common", extra="langwatch")
        targets()
    if engine == "ray":
        from embedfit.serve.on_ray import serve as serve_on_ray

        serve_on_ray(settings, workers)
        return
    from embedfit.serve.running import serve as serve_here

    serve_here(settings, workers)


@app.command()
def label(
    items: Annotated[Path, typer.Argument(metavar="ITEMS", help="File of items without labels, in any format of queries.")],
    documents: Annotated[Path | None, typer.Option(help="File of the documents to choose from.")] = None,
    run: Annotated[Path | None, typer.Option(help="Finished run, whose documents and model are used.")] = None,
    model: Annotated[str, typer.Option(help="Model that suggests answers, without a run.")] = "all-MiniLM-L6-v2",
    template: Annotated[str, typer.Option(help="Template of a document's text, without a run.")] = "{title} {text}",
    column: Annotated[str | None, typer.Option(help="Column of the text. Default: query, text, or the only one.")] = None,
    output: Annotated[Path | None, typer.Option(help="File of the labels. Default: ITEMS with .labels.jsonl at its end.")] = None,
    people: Annotated[int, typer.Option(min=1, help="Number of people who label each item.")] = 1,
    answers: Answers = 5,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token_env: TokenVariable = "EMBEDFIT_TOKEN",  # noqa: S107
) -> None:
    """Label items in a page, most informative first. Every pick is saved, and suggests better answers for the next items."""
    from embedfit.errors import ConfigError
    from embedfit.serve.running import serve as start
    from embedfit.serve.settings import Settings, token_from

    if (run is None) == (documents is None):
        raise ConfigError("expected either --documents, the file of what to choose from, or --run, a finished run")
    output = output or items.with_name(f"{items.name}.labels.jsonl")
    settings = Settings(
        folder=str(items),
        host=host,
        port=port,
        token=token_from(token_env, host),
        feedback=str(output.with_suffix(".db")),
        agreement="once" if people == 1 else "second-person",
        answers=answers,
        suspects=_suspects_of(run) if run else "",
        keep_days=math.inf,
    )
    console.note(f"Labels go to {output}")

    def make_app() -> ASGIApp:
        from embedfit.serve.app import make_labelling_app
        from embedfit.serve.labelling import ItemSource

        return make_labelling_app(settings, ItemSource(items, run, documents, model, template, column), output, people)

    start(settings, app=make_app)


@app.command()
def feedback(
    run: RunPath,
    file: Location = None,
    output: Annotated[Path | None, typer.Option(help="Write the labels as JSONL that 'embedfit run' reads.")] = None,
    delete: Annotated[str | None, typer.Option(metavar="SEARCH_ID", help="Delete a search with its picks.")] = None,
    forget: Annotated[str | None, typer.Option(metavar="PERSON", help="Delete the searches and picks of a person.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what people picked. Counts, conflicts, agreement, and how use changes from week to week."""
    import json

    from embedfit.errors import ConfigError
    from embedfit.serve.drift import drift_of
    from embedfit.serve.feedback import Feedback, one_line
    from embedfit.serve.live import LiveFolder
    from embedfit.serve.places import existing, home
    from embedfit.serve.summary import summarise, write_labels

    run = home(run)
    location = existing(file, run)
    if sum(option is not None for option in (output, delete, forget)) > 1:
        raise ConfigError("--output, --delete and --forget are three things to do; fix: give one of them")
    store = Feedback(location)
    try:
        if delete is not None or forget is not None:
            count = store.delete(search=delete, person=None if forget is None else one_line(forget))
            console.echo(json.dumps({"deleted": count}) if as_json else f"Searches and picks deleted: {count:,}")
        elif output is not None:
            count = write_labels(store, output)
            console.echo(json.dumps({"labels": count}) if as_json else f"Labels written to {output}: {count:,}")
        else:
            summary = summarise(store, drift_of(store, LiveFolder(run).running()))
            console.echo(json.dumps(summary.to_dict(), ensure_ascii=False)) if as_json else _print(summary)
    finally:
        store.close()


@app.command()
def refresh(
    source: SourcePath = HERE,
    live: Annotated[Path | None, typer.Option(help="Live folder. Default: the name of the runs with -live, beside them.")] = None,
    feedback: Annotated[
        list[str] | None,
        typer.Option(help="Picks to train on; repeatable: a run, a file, or a database. Default: those of all runs of SOURCE."),
    ] = None,
    index: Annotated[bool, typer.Option("--index", help="Fill, check and switch the vector store of SOURCE too.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Make the previous version live again. Nothing is trained.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train on what people picked, and switch if that is better. Exit code 1 if the new version is not shown to be better."""
    import json

    from embedfit.cli.options import settings_of
    from embedfit.errors import ConfigError
    from embedfit.serve.live import LiveFolder
    from embedfit.serve.refreshing import refresh as start
    from embedfit.serve.refreshing import roll_back

    if rollback and feedback:
        raise ConfigError("--rollback trains nothing, and so has no use for --feedback; fix: give one of them")
    settings = settings_of(source, None, False, {})
    folder = LiveFolder(live or Path(settings.output) / f"{settings.name}-live")
    refreshed = roll_back(folder, settings if index else None) if rollback else start(settings, folder, feedback or (), index=index)
    console.echo(json.dumps(refreshed.to_dict()) if as_json else refreshed.sentence)
    if refreshed.outcome == "kept":
        raise typer.Exit(1)


@app.command()
def mcp(
    run: RunPath,
    file: Annotated[str | None, typer.Option("--feedback", help=_LOCATION)] = None,
    no_feedback: Annotated[bool, typer.Option("--no-feedback", help="Store no searches and no picks.")] = False,
) -> None:
    """Offer search and feedback to agents. They speak the Model Context Protocol on stdin and stdout."""
    from embedfit.errors import check_package
    from embedfit.serve.feedback import NAME

    for package in ("mcp", "prometheus_client"):
        check_package(package, extra="mcp")
    from embedfit.serve.live import load
    from embedfit.serve.mcp import make_server
    from embedfit.serve.places import home

    console.quiet = True
    make_server(load(run), None if no_feedback else file or str(home(run) / NAME), str(run)).run("stdio")


def _suspects_of(run: Path) -> str:
    path = run / "suspects.csv"
    return str(path) if path.is_file() else ""


def _print(summary: Summary) -> None:
    from textwrap import shorten

    for sentence in summary.sentences:
        console.echo(sentence)
    if summary.conflicts:
        rows = [
            [shorten(conflict.query, 80), ", ".join(f"{choice or 'none of these'} ({count})" for choice, count in conflict.choices.items())]
            for conflict in summary.conflicts
        ]
        print_rows(["conflict", "picks"], rows)
    if summary.drift:
        changes = [
            [shift.name, f"{shift.before:.3f}", f"{shift.after:.3f}", f"{shift.low:+.3f} to {shift.high:+.3f}", f"{shift.p:.2g}"]
            for shift in summary.drift
        ]
        print_rows(["drift", "before", "now", "95% interval", "p"], changes)
    names = ["week of", "searches", "no answer", "probability", "picks", "first", "none", "1 / place"]
    shares = [
        [week.start, f"{week.searches:,}", f"{week.abstained:.0%}", _shown(week.probability), f"{week.picks:,}"]
        + [_shown(value) for value in (week.first, week.none, week.rank)]
        for week in summary.weeks
    ]
    if shares:
        print_rows(names, shares)


def _shown(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.2f}"
