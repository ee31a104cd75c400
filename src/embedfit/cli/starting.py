"""First steps: the demo, a first configuration, a look at the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import HERE, AsJson, OptionalConfigPath, check_folder
from embedfit.cli.printing import print_check, print_result


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of run directories.")] = Path("runs"),
    model: Annotated[str, typer.Option(help="Base model.")] = "all-MiniLM-L6-v2",
    as_json: AsJson = False,
) -> None:
    """Run the whole experiment on bundled card transactions, offline."""
    from embedfit.pipeline import experiment
    from embedfit.samples import demo_config

    check_folder("--output", output)
    print_result(experiment.run(demo_config(output, model)), as_json)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="Folder to write to.")] = Path()) -> None:
    """Write a starter configuration and a tiny data set. The embedfit.toml has comments and a JSON Schema."""
    from embedfit.samples import write_start

    check_folder("FOLDER", folder)
    for path in write_start(folder):
        console.echo(path)
    console.echo(f"Next: embedfit check {folder / 'embedfit.toml'}")


@app.command()
def check(config: OptionalConfigPath = HERE, as_json: AsJson = False) -> None:
    """Check the data. Reports label counts, conflicts, bad rows, leaks, and texts that are too long for the model."""
    from embedfit.pipeline import checking

    checked = checking.check(config)
    if as_json:
        console.echo(json.dumps(checked.to_dict()))
    else:
        print_check(checked)
    if not checked.ok:
        raise typer.Exit(2)
