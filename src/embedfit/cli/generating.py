"""Training data written by an LLM."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import AsJson, absolute
from embedfit.cli.printing import print_conclusion, print_rows
from embedfit.hub import MINILM

generate_app = typer.Typer(no_args_is_help=True, help="Generate training data with an LLM.")
app.add_typer(generate_app, name="generate")

LlmWritten = Annotated[
    Path | None, typer.Option(metavar="CONFIG", help="Configuration file; its [generate] and [data] hold all other settings.")
]

LlmModel = Annotated[str | None, typer.Option(help="Name of the LLM at its endpoint. Default: gpt-4.1-mini.")]

LlmBaseUrl = Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible endpoint, with /v1. Default: OpenAI.")]

LlmPrompt = Annotated[Path | None, typer.Option(help="Jinja template in place of the bundled prompt.")]

LlmExamples = Annotated[Path | None, typer.Option(help="Real texts to imitate: JSONL with 'query', or one per line.")]

LlmBudget = Annotated[float | None, typer.Option(help="Most to spend, in US dollars or the currency of --price.")]

LlmMaxTokensTotal = Annotated[int | None, typer.Option(help="Most tokens to use.")]

LlmPrice = Annotated[
    tuple[float, float] | None, typer.Option(help="Prices per million prompt tokens and completion tokens, in US dollars or your currency.")
]

LlmConcurrency = Annotated[int | None, typer.Option(min=1, help="Most requests at a time. Default: 32.")]

LlmJudge = Annotated[str | None, typer.Option(help="LLM that labels every record blindly, as a check.")]

LlmDryRun = Annotated[bool, typer.Option("--dry-run", help="Estimate the cost and send nothing.")]


@generate_app.command("records")
def generate_records(
    output: Annotated[Path | None, typer.Option(help="The .jsonl file to write. Default: queries in [data].")] = None,
    labels: Annotated[Path | None, typer.Option(help="File of labels, such as categories.json. Default: documents in [data].")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Number of records, spread evenly over the labels.")] = None,
    record: Annotated[
        str | None, typer.Option(help="Record type: transaction, module:Class, or a JSON Schema file. Default: transaction.")
    ] = None,
    model: LlmModel = None,
    base_url: LlmBaseUrl = None,
    prompt: LlmPrompt = None,
    examples: LlmExamples = None,
    judge: LlmJudge = None,
    budget: LlmBudget = None,
    max_tokens_total: LlmMaxTokensTotal = None,
    price: LlmPrice = None,
    concurrency: LlmConcurrency = None,
    config: LlmWritten = None,
    dry_run: LlmDryRun = False,
    as_json: AsJson = False,
) -> None:
    """Generate records with an LLM, spread evenly over the labels."""
    data = {"queries": absolute(output), "documents": absolute(labels), "record": record}
    what = {"records": count, "questions": 0, "prompt": absolute(prompt), "examples": absolute(examples)}
    who = {"model": model, "base_url": base_url, "judge": judge, "price": price, "concurrency": concurrency}
    limits = {"budget": budget, "max_tokens_total": max_tokens_total}
    _generate(config, data, {**what, **who, **limits}, dry_run, as_json)


@generate_app.command("queries")
def generate_queries(
    output: Annotated[
        Path | None, typer.Option(help="The .jsonl file to write. Default: queries in [data], or the documents' name with -queries.")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option(help="File of passages, or folder of Markdown, HTML, text and PDF files. Default: documents in [data].")
    ] = None,
    each: Annotated[int | None, typer.Option(min=1, help="Number of questions per passage. Default without --config: 3.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Model to tune, whose tokens limit the passages of a folder. Default: name in [model].")
    ] = None,
    model: LlmModel = None,
    base_url: LlmBaseUrl = None,
    prompt: LlmPrompt = None,
    examples: LlmExamples = None,
    judge: LlmJudge = None,
    budget: LlmBudget = None,
    max_tokens_total: LlmMaxTokensTotal = None,
    price: LlmPrice = None,
    concurrency: LlmConcurrency = None,
    config: LlmWritten = None,
    dry_run: LlmDryRun = False,
    as_json: AsJson = False,
) -> None:
    """Generate questions with an LLM, each answered by a passage."""
    if config is None:
        output = output or (Path(f"{documents.resolve().stem}-queries.jsonl") if documents else None)
        each, encoder = each or _EACH, encoder or MINILM
    data = {"queries": absolute(output), "documents": absolute(documents)}
    what = {"questions": each, "records": 0, "prompt": absolute(prompt), "examples": absolute(examples)}
    who = {"model": model, "base_url": base_url, "judge": judge, "price": price, "concurrency": concurrency}
    limits = {"budget": budget, "max_tokens_total": max_tokens_total}
    _generate(config, data, {**what, **who, **limits}, dry_run, as_json, encoder)
    if config is None and not (dry_run or as_json):
        model = "" if encoder == MINILM else f" --model {encoder}"
        console.echo(f"Next: embedfit run {output} --documents {documents}{model}")


_EACH = 3


def _generate(
    path: Path | None, data: dict[str, Any], options: dict[str, Any], dry_run: bool, as_json: bool, encoder: str | None = None
) -> None:
    from embedfit.config import make_config, read_config
    from embedfit.generate.endpoint import endpoint_of
    from embedfit.pipeline import generating

    sections = {"data": data, "generate": options, "model": {"name": encoder}}
    given = {name: {key: value for key, value in values.items() if value is not None} for name, values in sections.items()}
    if path is None:
        if "queries" not in given["data"]:
            raise typer.BadParameter("give --output, or --config", param_hint="--output")
        if options["questions"] == 0:
            given["data"].setdefault("record", "transaction")
        settings = make_config(given, where="the command line")
    else:
        settings = read_config(path, given)
    if dry_run:
        estimate = generating.estimate_generate(settings)
        console.echo(json.dumps(vars(estimate)) if as_json else estimate.sentence)
        return
    asked = _asked if sys.stdin.isatty() else None
    written = generating.run_generate(settings, lambda: endpoint_of(settings.generate, asked))
    if as_json:
        console.echo(json.dumps(written.to_dict()))
        return
    print_rows(["outcome", "replies"], [[outcome, f"{count:,}"] for outcome, count in written.outcomes.items()])
    print_conclusion(f"Ledger: {written.ledger}", f"Report: {written.output.with_suffix('.html')}", written.sentence)


def _asked(question: str) -> str:
    import getpass

    return getpass.getpass(console.printable(question))
