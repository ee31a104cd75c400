"""The choice of a base model."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import (
    HERE,
    AllowLeaks,
    AsJson,
    Documents,
    Folds,
    LabelColumn,
    Overrides,
    QueryColumn,
    SourcePath,
    data_options,
    settings_of,
)
from embedfit.cli.printing import print_conclusion, print_rows


@app.command()
def candidates(
    config: SourcePath = HERE,
    query: QueryColumn = None,
    label: LabelColumn = None,
    documents: Documents = None,
    model: Annotated[list[str] | None, typer.Option(help="Model to measure; repeatable. Default: model.candidates.")] = None,
    folds: Folds = None,
    allow_leaks: AllowLeaks = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure models before tuning, and choose one. It is the smallest within chance of the best."""
    from embedfit.metrics import metric_label
    from embedfit.pipeline.choosing import choose_model

    options: dict[str, dict[str, Any]] = {"data": data_options(query, label, documents)}
    choice = choose_model(settings_of(config, folds, allow_leaks, options, overrides), model or ())
    if as_json:
        console.echo(json.dumps({**choice.to_dict(), "folder": str(choice.folder)}))
        return
    label_of = metric_label(choice.metric)
    header = ["", "weights", "dimensions", f"{label_of} alone", "with examples", "to the chosen", "95% interval", "may be best"]
    best = {row.name: row for row in choice.candidates}[choice.chosen]
    rows = [
        [
            f"* {row.name}" if row.name == choice.chosen else f"  {row.name}",
            f"{row.parameters:,}" if row.parameters else "behind an API",
            f"{row.dimensions:,}",
            f"{row.alone:.3f}",
            f"{row.searched:.3f}",
            "" if row is best else f"{row.searched - best.searched:+.3f}",
            "" if row is best else f"{row.low:+.3f} to {row.high:+.3f}",
            "yes" if row.may_be_best else "no",
        ]
        for row in choice.candidates
    ]
    print_rows(header, rows)
    print_conclusion(f"Record: {choice.folder}", choice.sentence)
