"""Training data written by an LLM."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedfit import console
from embedfit.cli.app import app
from embedfit.cli.options import AsJson, absolute
from embedfit.cli.printing import print_rows

if TYPE_CHECKING:
    pass


generate_app = typer.Typer(no_args_is_help=True, help="Let an LLM write the training data; what was paid for is never lost.")
app.add_typer(generate_app, name="generate")

LlmWritten = Annotated[Path | None, typer.Option(metavar="CONFIG", help="An embedfit.toml, whose [generate] and [data] say the rest.")]

LlmModel = Annotated[str | None, typer.Option(help="The LLM, by the name that its endpoint knows. Default: gpt-4.1-mini.")]

LlmBaseUrl = Annotated[str | None, typer.Option(help="Any OpenAI-compatible endpoint, with /v1. Default: OpenAI's own.")]

LlmPrompt = Annotated[Path | None, typer.Option(help="A Jinja template in place of the bundled prompt.")]

LlmExamples = Annotated[Path | None, typer.Option(help="Real texts to imitate: JSONL with 'query', or one per line.")]

LlmBudget = Annotated[float | None, typer.Option(help="Stop before more than this is spent, in US dollars (or the currency of --price).")]

LlmMaxTokensTotal = Annotated[int | None, typer.Option(help="Stop before more tokens than this are used.")]

LlmPrice = Annotated[
    tuple[float, float] | None, typer.Option(help="Of a million prompt tokens and completion tokens, in US dollars or your currency.")
]

LlmConcurrency = Annotated[int | None, typer.Option(min=1, help="Requests at a time, at most. Default: 32.")]

LlmJudge = Annotated[str | None, typer.Option(help="An LLM that finds the label of every record without knowing it.")]

LlmDryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and send nothing.")]


@generate_app.command("records")
def generate_records(
    output: Annotated[Path | None, typer.Option(help="The .jsonl file to write. Default: [data] queries.")] = None,
    labels: Annotated[Path | None, typer.Option(help="A file of labels, such as categories.json. Default: [data] documents.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many records, shared evenly among the labels.")] = None,
    record: Annotated[str | None, typer.Option(help="transaction, module:Class, or a JSON Schema file. Default: transaction.")] = None,
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
    """Let an LLM write records for labels, evenly."""
    data = {"queries": absolute(output), "documents": absolute(labels), "record": record}
    what = {"records": count, "questions": 0, "prompt": absolute(prompt), "examples": absolute(examples)}
    who = {"model": model, "base_url": base_url, "judge": judge, "price": price, "concurrency": concurrency}
    limits = {"budget": budget, "max_tokens_total": max_tokens_total}
    _generate(config, data, {**what, **who, **limits}, dry_run, as_json)


@generate_app.command("queries")
def generate_queries(
    output: Annotated[Path | None, typer.Option(help="The .jsonl file to write. Default: [data] queries.")] = None,
    documents: Annotated[Path | None, typer.Option(help="A file of passages. Default: [data] documents.")] = None,
    each: Annotated[int | None, typer.Option(min=1, help="How many questions for each passage.")] = None,
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
    """Let an LLM write questions that passages answer."""
    data = {"queries": absolute(output), "documents": absolute(documents)}
    what = {"questions": each, "records": 0, "prompt": absolute(prompt), "examples": absolute(examples)}
    who = {"model": model, "base_url": base_url, "judge": judge, "price": price, "concurrency": concurrency}
    limits = {"budget": budget, "max_tokens_total": max_tokens_total}
    _generate(config, data, {**what, **who, **limits}, dry_run, as_json)


def _generate(path: Path | None, data: dict[str, Any], said: dict[str, Any], dry_run: bool, as_json: bool) -> None:
    from embedfit.config import make_config, read_config
    from embedfit.generate.endpoint import endpoint_of
    from embedfit.pipeline import generating

    given = {name: {key: value for key, value in some.items() if value is not None} for name, some in (("data", data), ("generate", said))}
    if path is None:
        if "queries" not in given["data"]:
            raise typer.BadParameter("give --output, or --config", param_hint="--output")
        if said["questions"] == 0:
            given["data"].setdefault("record", "transaction")
        settings = make_config(given, where="the command line")
    else:
        settings = read_config(path, given)
    if dry_run:
        found = generating.estimate_generate(settings)
        console.echo(json.dumps(vars(found)) if as_json else found.sentence)
        return
    asked = _asked if sys.stdin.isatty() else None
    written = generating.run_generate(settings, lambda: endpoint_of(settings.generate, asked))
    if as_json:
        console.echo(json.dumps(written.to_dict()))
        return
    print_rows(["outcome", "replies"], [[outcome, f"{count:,}"] for outcome, count in written.outcomes.items()])
    terminal = console.terminal()
    terminal.print(f"Ledger: {written.ledger}", highlight=False, soft_wrap=True)
    terminal.print(f"Report: {written.output.with_suffix('.html')}", highlight=False, soft_wrap=True)
    terminal.print(written.sentence, highlight=False, style="bold", soft_wrap=True)


def _asked(question: str) -> str:
    """Ask for a key, without showing it."""
    import getpass

    return getpass.getpass(console.printable(question))
