"""The searcher in use: serve it, and read what people picked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from embedfit.cli.app import app

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Finished run directory.")]


@app.command()
def serve(
    run: RunPath,
    host: Annotated[str, typer.Option(help="Address to listen at. Beyond this machine, a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for a free one.")] = 8000,
    token_env: Annotated[str, typer.Option(help="Environment variable with the token that every request must show.")] = "EMBEDFIT_TOKEN",  # noqa: S107
    feedback: Annotated[Path | None, typer.Option(help="File of the feedback. Default: feedback.db in the run directory.")] = None,
    no_feedback: Annotated[bool, typer.Option("--no-feedback", help="Store no searches and no picks.")] = False,
    learn: Annotated[
        Literal["once", "twice", "second-person"],
        typer.Option(help="When a pick becomes an example: at once, when seen twice, or when a second person agrees."),
    ] = "once",
    explore: Annotated[float, typer.Option(min=0, max=1, help="Share of the searches whose hits are shown in random order.")] = 0.0,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes. Each holds the model.")] = 1,
    log: Annotated[bool, typer.Option("--log", help="Log method, route, status and time of each request; no texts.")] = False,
) -> None:
    """Serve a run over HTTP: search, feedback, embeddings, and a page on which people pick."""
    from embedfit.errors import ConfigError
    from embedfit.serve.feedback import NAME
    from embedfit.serve.running import serve as start
    from embedfit.serve.settings import Settings, token_from

    if no_feedback and feedback:
        raise ConfigError("--no-feedback has no use for --feedback; fix: give one of them")
    settings = Settings(
        folder=str(run),
        host=host,
        port=port,
        token=token_from(token_env, host),
        feedback="" if no_feedback else str(feedback or run / NAME),
        agreement=learn,
        explore=explore,
        log=log,
    )
    start(settings, workers)
