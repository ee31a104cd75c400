"""Deployment: export a cheaper form, check what an endpoint serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import AsJson, FormName
from embedfit.cli.printing import print_conclusion

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Finished run directory.")]


@app.command()
def export(
    run: RunFolder,
    form: Annotated[FormName, typer.Option(help="Form to export: ONNX in fp32, ONNX with 8-bit weights, or a mean of token vectors.")],
    tolerance: Annotated[
        float | None, typer.Option(min=0, max=1, help="Largest loss of the metric that passes. Default: the run's deploy.loss.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a run's model in a form that is cheaper to run. If quality is lost, nothing is written and the exit code is 1."""
    from embedfit.pipeline import deploying

    measured = deploying.export_form(run, form, tolerance=tolerance)
    if as_json:
        console.echo(json.dumps(measured.to_dict()))
    else:
        place = f"Exported: {run / 'deploy'}" if measured.passed else f"Not exported: {measured.reason}."
        print_conclusion(measured.sentence, place)
    if not measured.passed:
        raise typer.Exit(1)


@app.command()
def parity(
    run: RunFolder,
    endpoint: Annotated[str, typer.Option(help="Endpoint to check: openai:MODEL@URL, or hf-inference:URL.")],
    query_endpoint: Annotated[str | None, typer.Option(help="Endpoint of queries, if it is another: openai:MODEL:query@URL.")] = None,
    prompts: Annotated[
        Literal["client", "endpoint"],
        typer.Option(
            help="Who puts the model's prompts before texts. The default sends texts with prompts; 'endpoint' sends them without."
        ),
    ] = "client",
    queries: Annotated[int, typer.Option(min=1, help="Largest number of held-out queries to send.")] = 200,
    documents: Annotated[int, typer.Option(min=1, help="Largest number of documents to send.")] = 2000,
    tolerance: Annotated[float, typer.Option(min=0, max=1, help="Largest loss of the metric that passes.")] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Check whether an endpoint serves what a run measured. Where it does not, the cause is named. Exit code 1 if quality is lost."""
    from embedfit.pipeline import deploying

    served = deploying.check_endpoint(
        run, endpoint, query_endpoint=query_endpoint, prompts=prompts, queries=queries, documents=documents, tolerance=tolerance
    )
    if as_json:
        console.echo(json.dumps(served.to_dict()))
    else:
        print_conclusion(*served.lines, served.sentence)
    if served.lost:
        raise typer.Exit(1)
