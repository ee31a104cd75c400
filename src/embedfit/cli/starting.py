"""First steps: the demo, a first configuration, a look at the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import HERE, AsJson, OptionalConfigPath, check_folder
from embedfit.cli.printing import print_check, print_result

if TYPE_CHECKING:
    pass


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the run directory is made.")] = Path("runs"),
    model: Annotated[str, typer.Option(help="The model to start from.")] = "all-MiniLM-L6-v2",
    as_json: AsJson = False,
) -> None:
    """Run the main job on the bundled card transactions, offline."""
    from embedfit.pipeline import experiment
    from embedfit.samples import demo_config

    check_folder("--output", output)
    print_result(experiment.run(demo_config(output, model)), as_json)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="Where to put the files.")] = Path()) -> None:
    """Write an embedfit.toml with comments, its JSON Schema, and a tiny data set to begin with."""
    from embedfit.samples import write_start

    check_folder("FOLDER", folder)
    for path in write_start(folder):
        console.echo(path)
    console.echo(f"Next: embedfit check {folder / 'embedfit.toml'}")


@app.command()
def check(config: OptionalConfigPath = HERE, as_json: AsJson = False) -> None:
    """Look at the data: rows, labels, conflicts, bad rows, and texts that are too long for the model."""
    from dataclasses import asdict

    from embedfit.config import read_config
    from embedfit.data.check import Finding, check_dataset
    from embedfit.errors import ConfigError, DataError, ModelError
    from embedfit.pipeline import job, needs, parts
    from embedfit.pipeline.checking import check_truncation

    settings = read_config(config)
    bad: list[DataError] = []
    dataset = parts.read(settings.data, bad)
    findings = check_dataset(dataset) if dataset.judged else []
    skipped = ""
    # What goes wrong from here on is one more finding: it must not hide the bad rows.
    try:
        findings += parts.leaks(settings, dataset) if dataset.judged else []
    except (ConfigError, DataError) as error:
        findings.append(Finding("problem", "parts", str(error)))
    try:
        if not dataset.corpus:
            raise ModelError("there are no documents")
        findings += check_truncation(dataset, needs.local(job.encoder(settings.model)).loaded, settings.data.document_template)
    except ModelError as error:
        skipped = f"truncation was not looked at: {error}"
    except (ConfigError, DataError) as error:
        findings.append(Finding("problem", "texts", str(error)))
    if as_json:
        counts = {"queries": len(dataset.judged), "documents": len(dataset.corpus), "bad_rows": [str(row) for row in bad]}
        console.echo(json.dumps({**counts, "findings": [asdict(finding) for finding in findings], "skipped": skipped}))
    else:
        print_check(dataset, bad, findings, skipped)
    if bad or any(finding.level == "problem" for finding in findings):
        raise typer.Exit(2)
