"""What comes after a run: index, search, publish, and results that are still to be delivered."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import HERE, AsJson, EngineName, OptionalConfigPath, pairs_of, with_engine
from embedfit.cli.printing import print_rows

if TYPE_CHECKING:
    from embedfit.config import Config
    from embedfit.searcher.searcher import SearchHit


@app.command()
def index(
    config: OptionalConfigPath = HERE,
    model: Annotated[
        str | None, typer.Option(help="Model to index with, or a run whose searcher is indexed. Default: the one in the configuration.")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Make the previous version live again. Nothing is written.")] = False,
    bridge: Annotated[
        bool,
        typer.Option(
            "--bridge", help="Let a new model search the old vectors, while documents are embedded again, unless it loses too much."
        ),
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Largest loss of the metric, against the old model, with which a bridge goes live.")
    ] = 0.01,
    engine: EngineName = None,
    as_json: AsJson = False,
) -> None:
    """Index documents, or a run's searcher, in the vector store. The index is checked against exact search before it goes live."""
    from embedfit.config import read_config
    from embedfit.errors import ConfigError
    from embedfit.pipeline import deploying
    from embedfit.store.open import open_store
    from embedfit.store.versions import roll_back

    if rollback and model:
        raise ConfigError("--rollback writes nothing, and so has no use for --model; fix: give one of them")
    if rollback and bridge:
        raise ConfigError("--rollback and --bridge exclude each other; fix: give one of them")
    settings = with_engine(read_config(config), engine)
    if bridge:
        _index_with_bridge(settings, model, tolerance, as_json)
        return
    if not rollback:
        report = deploying.index(settings, model)
        console.echo(json.dumps(report.to_dict()) if as_json else report.sentence)
        return
    with open_store(settings.store) as store:
        stamp = roll_back(store)
    examples = f" and {stamp.examples:,} examples" if stamp.examples else ""
    sentence = f"Live again: {stamp.documents:,} documents{examples} by {stamp.encoder} ({stamp.fingerprint[:12]})."
    console.echo(stamp.to_json() if as_json else sentence)


def _index_with_bridge(settings: Config, model: str | None, tolerance: float, as_json: bool) -> None:
    from embedfit.pipeline.bridging import bridge_index

    result = bridge_index(settings, model, tolerance=tolerance)
    if as_json:
        console.echo(json.dumps(result.to_dict()))
    elif result.indexed:
        console.echo(result.indexed.sentence)
    else:
        console.echo("The bridge loses too much and did not go live; fix: leave out --bridge, and search with the old model meanwhile.")
    if not result.indexed:
        raise typer.Exit(1)


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="QUERY", help="Text to search for.")],
    config: OptionalConfigPath = HERE,
    k: Annotated[int, typer.Option(min=1, help="Number of documents.")] = 10,
    where: Annotated[
        list[str] | None, typer.Option("--filter", metavar="KEY=VALUE", help="Metadata that a document must have; repeatable.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model or run that the index was made with, if it is no longer where it was.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search the live index of the vector store. It knows its model. Long texts are shortened, except in JSON."""
    from textwrap import shorten
    from time import monotonic

    from embedfit.config import read_config
    from embedfit.hub import public_name
    from embedfit.pipeline import deploying, needs
    from embedfit.store.open import open_store
    from embedfit.track.tracker import trace_search

    settings = read_config(config)
    filters = pairs_of("--filter", where or [])
    needs.check_installed(settings.model_copy(update={"engine": "local"}), stores=True, model=model)
    with open_store(settings.store) as store:
        version = deploying.live_index(store, settings, model).version()
        started = monotonic()
        hits = version.find(text, k, filters)
        seconds = monotonic() - started
    if as_json:
        console.echo(json.dumps([_as_json(hit, searcher=bool(version.stamp.searcher)) for hit in hits], ensure_ascii=False))
    else:
        rows = []
        for rank, hit in enumerate(hits, 1):
            metadata = ", ".join(f"{key}={value}" for key, value in hit.metadata.items())
            value = f"{hit.score:.3f}" if hit.probability is None else f"{hit.probability:.0%}"
            rows.append([rank, value, hit.id, shorten(hit.text, 200), shorten(metadata, 200)])
        is_sure = bool(hits) and hits[0].probability is not None
        print_rows(["", "probability" if is_sure else "score", "id", "text", "metadata"], rows)
    if settings.track.langwatch:
        trace_search(text, [(hit.id, hit.text, hit.score) for hit in hits], model=public_name(version.encoder.name), seconds=seconds)


def _as_json(hit: SearchHit, *, searcher: bool) -> dict[str, Any]:
    """Return a hit as JSON: without probability and reasons if the index has documents alone."""
    from dataclasses import asdict

    names = ("id", "score", "text", "metadata", *(("probability", "because") if searcher else ()))
    row = asdict(hit)
    return {name: row[name] for name in names}


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run directory.")],
    target: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub, a folder like ./name, or an archive like name.tar.")],
    dataset: Annotated[str | None, typer.Option(help="Also publish the labelled data, to this target.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make it public on the Hub. Default: private.")] = False,
    include_examples: Annotated[bool, typer.Option("--include-examples", help="Quote a few training queries in the model card.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Publish without asking.")] = False,
) -> None:
    """Publish a run's model with its evidence. The published copy is fetched and checked to give the same vectors and scores."""
    from embedfit.errors import ConfigError
    from embedfit.pipeline import publishing

    publications = publishing.prepare_publications(run, target, dataset=dataset, public=public, examples=include_examples)
    for publication in publications:
        for line in publication.describe().splitlines():
            console.echo(line, err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody is there to agree to this; fix: --yes")
        typer.confirm("Publish this?", abort=True, err=True)
    for publication in publications:
        parity = publishing.publish_run(run, publication)
        evidence = parity.sentence if parity else "Fetched again: it is the same."
        console.echo(f"Published the {publication.kind}: {publication.target.where}. {evidence}")


track = typer.Typer(no_args_is_help=True, help="Deliver results to LangWatch.")
app.add_typer(track, name="track")


@track.command()
def resend(run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or the folder that the warning named.")]) -> None:
    """Resend results that could not be delivered to LangWatch."""
    from embedfit.track.sender import resend as send_again

    delivery = send_again(run)
    console.echo(f"{delivery.delivered:,} results delivered" + (f": {delivery.address}" if delivery.address else ""))
