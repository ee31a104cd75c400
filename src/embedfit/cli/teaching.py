"""Teach the live index: examples and documents that count from the next search on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import HERE, AsJson, OptionalConfigPath
from embedfit.cli.printing import print_rows

if TYPE_CHECKING:
    from embedfit.store.live import LiveIndex

live = typer.Typer(no_args_is_help=True, help="Teach the live index, or take back what it was taught.")
app.add_typer(live, name="live")

Model = Annotated[str | None, typer.Option("--model", help="Run that the index was made with, if it is no longer where it was.")]


@live.command()
def add(
    text: Annotated[str, typer.Argument(metavar="QUERY", help="Text of the example.")],
    document: Annotated[str, typer.Argument(metavar="DOCUMENT", help="Id of the document that answers it.")],
    config: OptionalConfigPath = HERE,
    key: Annotated[str, typer.Option(help="Key of the example; an example with this key is replaced. Default: a new one.")] = "",
    source: Annotated[str, typer.Option(help="Where the example came from.")] = "person",
    model: Model = None,
) -> None:
    """Add a labelled example. It counts from the next search on. Prints its key."""
    with _index(config, model) as index:
        console.echo(index.add(text, document, key=key, source=source))


@live.command("add-document")
def add_document(
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the document.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text of the document.")],
    config: OptionalConfigPath = HERE,
    title: Annotated[str, typer.Option(help="Title of the document.")] = "",
    field: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Metadata of the document; repeatable.")] = None,
    model: Model = None,
) -> None:
    """Add a document. It can be found from the next search on."""
    from embedfit.cli.options import pairs_of
    from embedfit.data.dataset import Document

    fields = pairs_of("--field", field or [])
    with _index(config, model) as index:
        index.add_document(Document(id, text, title, fields))


@live.command()
def remove(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of an example; with --document, id of a document that was added.")],
    config: OptionalConfigPath = HERE,
    document: Annotated[bool, typer.Option("--document", help="Take a document back.")] = False,
    model: Model = None,
) -> None:
    """Take an example back, or a document that was added."""
    with _index(config, model) as index:
        (index.remove_document if document else index.remove)(key)


@live.command("list")
def list_changes(config: OptionalConfigPath = HERE, as_json: AsJson = False) -> None:
    """List what was added and taken back since the version went live."""
    from textwrap import shorten

    from embedfit.config import read_config
    from embedfit.store.live import LiveIndex
    from embedfit.store.open import open_store

    with open_store(read_config(config).store) as store:
        changes = LiveIndex(store).taught()
    rows = [
        {
            "what": change.what,
            "key": change.key,
            "document": change.document,
            "source": change.source,
            "text": change.text,
            "taken_back": change.gone,
        }
        for change in changes
    ]
    if as_json:
        console.echo(json.dumps(rows, ensure_ascii=False))
    else:
        table = [[*map(str, list(row.values())[:4]), shorten(str(row["text"]), 80), "yes" if row["taken_back"] else ""] for row in rows]
        print_rows(["what", "key", "document", "source", "text", "taken back"], table)


@contextmanager
def _index(config: Path, model: str | None) -> Iterator[LiveIndex]:
    from embedfit.config import read_config
    from embedfit.pipeline import deploying, needs
    from embedfit.store.open import open_store

    settings = read_config(config)
    needs.check_installed(settings.model_copy(update={"engine": "local"}), stores=True, model=model)
    with open_store(settings.store) as store:
        yield deploying.live_index(store, settings, model)
