"""First steps: the demo, a first configuration, a look at the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import (
    HERE,
    AsJson,
    Documents,
    LabelColumn,
    ModelName,
    Overrides,
    QueryColumn,
    SourcePath,
    check_folder,
    data_options,
    settings_of,
)
from embedfit.cli.printing import print_check, print_result, print_rows


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of run directories.")] = Path("runs"),
    model: Annotated[str, typer.Option(help="Base model.")] = "all-MiniLM-L6-v2",
    as_json: AsJson = False,
) -> None:
    """Run the whole experiment offline, on bundled data."""
    from embedfit.pipeline import experiment
    from embedfit.samples import demo_config

    check_folder("--output", output)
    print_result(experiment.run(demo_config(output, model)), as_json)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")] = Path(),
    source: Annotated[
        Path | None, typer.Option("--from", help="Your data: a file of labelled queries, or a folder of documents without labels.")
    ] = None,
    query: QueryColumn = None,
    label: LabelColumn = None,
    documents: Documents = None,
    model: ModelName = None,
) -> None:
    """Write a configuration for your data, or for a sample. The embedfit.toml has comments and a JSON Schema."""
    from embedfit.errors import ConfigError
    from embedfit.pipeline.starting import start_for
    from embedfit.samples.starting import write_start

    check_folder("FOLDER", folder)
    given = {"--query": query, "--label": label, "--documents": documents, "--model": model}
    if source is None and any(given.values()):
        names = ", ".join(name for name, value in given.items() if value)
        raise ConfigError(f"{names} need --from, a file of labelled queries or a folder of documents")
    start = start_for(source, folder, query=query, label=label, documents=documents, model=model) if source else None
    if start:
        for line in start.lines:
            console.echo(line)
        if start.rows:
            print_rows(start.columns, start.rows)
    for path in write_start(folder, start.toml if start else None):
        console.echo(path)
    console.echo(f"Next: embedfit {start.next if start else 'check'} {folder / 'embedfit.toml'}")


@app.command()
def check(
    config: SourcePath = HERE,
    query: QueryColumn = None,
    label: LabelColumn = None,
    documents: Documents = None,
    model: ModelName = None,
    whole: Annotated[bool, typer.Option("--all", help="Print every finding. Default: three of each kind.")] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check the data. Reports label counts, conflicts, bad rows, leaks, and texts that are too long for the model."""
    from embedfit.pipeline import checking

    checked = checking.check(
        settings_of(config, None, False, {"data": data_options(query, label, documents), "model": {"name": model}}, overrides)
    )
    if as_json:
        console.echo(json.dumps(checked.to_dict()))
    else:
        print_check(checked, whole=whole)
    if not checked.ok:
        raise typer.Exit(2)
