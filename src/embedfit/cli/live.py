"""The searcher in use: serve it, and read what people picked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import AsJson, FormName
from embedfit.cli.printing import print_rows

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from embedfit.serve.summary import Summary

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Finished run directory.")]

Host = Annotated[str, typer.Option(help="Address to listen at. Beyond this machine, a token is needed.")]

Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for a free one.")]

TokenVariable = Annotated[str, typer.Option(help="Environment variable with the token that every request must show.")]


@app.command()
def serve(
    run: RunPath,
    form: Annotated[FormName | None, typer.Option(help="Form of the model to run, which 'embedfit export' made.")] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token_env: TokenVariable = "EMBEDFIT_TOKEN",  # noqa: S107
    feedback: Annotated[Path | None, typer.Option(help="File of the feedback. Default: feedback.db in the run directory.")] = None,
    no_feedback: Annotated[bool, typer.Option("--no-feedback", help="Store no searches and no picks.")] = False,
    learn: Annotated[
        Literal["once", "twice", "second-person"],
        typer.Option(help="When a pick becomes an example: at once, when seen twice, or when a second person agrees."),
    ] = "once",
    explore: Annotated[float, typer.Option(min=0, max=1, help="Share of the searches whose hits are shown in random order.")] = 0.0,
    abstain: Annotated[float, typer.Option(min=0, max=1, help="Probability under which an answer is none.")] = 0.0,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes. Each holds the model.")] = 1,
    log: Annotated[bool, typer.Option("--log", help="Log method, route, status and time of each request; no texts.")] = False,
) -> None:
    """Serve a run over HTTP. It offers search, feedback, embeddings, and a page on which people pick."""
    from embedfit.errors import ConfigError
    from embedfit.serve.feedback import NAME
    from embedfit.serve.running import serve as start
    from embedfit.serve.settings import Settings, token_from

    if no_feedback and feedback:
        raise ConfigError("--no-feedback has no use for --feedback; fix: give one of them")
    settings = Settings(
        folder=str(run),
        form=form or "",
        host=host,
        port=port,
        token=token_from(token_env, host),
        feedback="" if no_feedback else str(feedback or run / NAME),
        agreement=learn,
        explore=explore,
        abstain=abstain,
        log=log,
    )
    start(settings, workers)


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
    file: Annotated[Path | None, typer.Option(help="File of the feedback. Default: feedback.db in the run directory.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the labels as JSONL that 'embedfit run' reads.")] = None,
    delete: Annotated[str | None, typer.Option(metavar="SEARCH_ID", help="Delete a search with its picks.")] = None,
    forget: Annotated[str | None, typer.Option(metavar="PERSON", help="Delete the searches and picks of a person.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what people picked. Counts, conflicts, agreement, and how use changes from week to week."""
    import json

    from embedfit.errors import ConfigError, DataError
    from embedfit.serve.feedback import NAME, Feedback
    from embedfit.serve.summary import summarise, write_labels

    path = file or run / NAME
    if not path.is_file():
        raise DataError(str(path), "does not exist", expected="the feedback that 'embedfit serve' keeps")
    if sum(option is not None for option in (output, delete, forget)) > 1:
        raise ConfigError("--output, --delete and --forget are three things to do; fix: give one of them")
    store = Feedback(path)
    try:
        if delete is not None or forget is not None:
            count = store.delete(search=delete, person=forget)
            console.echo(json.dumps({"deleted": count}) if as_json else f"Searches and picks deleted: {count:,}")
        elif output is not None:
            count = write_labels(store, output)
            console.echo(json.dumps({"labels": count}) if as_json else f"Labels written to {output}: {count:,}")
        elif as_json:
            console.echo(json.dumps(summarise(store).to_dict(), ensure_ascii=False))
        else:
            _print(summarise(store))
    finally:
        store.close()


@app.command()
def mcp(
    run: RunPath,
    file: Annotated[
        Path | None, typer.Option("--feedback", help="File of the feedback. Default: feedback.db in the run directory.")
    ] = None,
    no_feedback: Annotated[bool, typer.Option("--no-feedback", help="Store no searches and no picks.")] = False,
) -> None:
    """Offer search and feedback to agents. They speak the Model Context Protocol on stdin and stdout."""
    from embedfit.errors import check_package
    from embedfit.serve.feedback import NAME

    for package in ("mcp", "prometheus_client"):
        check_package(package, extra="mcp")
    from embedfit.serve.mcp import make_server
    from embedfit.serve.searching import Served

    console.quiet = True
    make_server(Served.load(run), None if no_feedback else file or run / NAME).run("stdio")


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
