"""Diagnosis: why a run's verdict is what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import AsJson
from embedfit.cli.printing import print_conclusion


@app.command()
def doctor(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run directory.")],
    minutes: Annotated[float, typer.Option(min=0, help="Time after which no further change is tried.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Say which settings of a run are worth changing. Looks at training queries alone."""
    from embedfit.pipeline.doctoring import diagnose_run

    diagnosis = diagnose_run(run, minutes=minutes)
    if as_json:
        console.echo(json.dumps(diagnosis.to_dict(), ensure_ascii=False))
    else:
        print_conclusion(*diagnosis.lines, diagnosis.sentence)
