"""Writes what the docs take from the code: the Python reference, the page on the command line, and the tree in CONTRIBUTING.md.

    python docs/reference.py

`make docs` runs it first. A test fails where its output is out of date.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

import embedfit
from embedfit.cli import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "embedfit"

WINGS = {
    "pipeline": ("Whole experiments", "One call measures, tunes, compares and reports. These functions do what the commands do."),
    "data": ("Data", "Queries, documents and judgements: the types, readers and writers, checks, and splits."),
    "generate": ("Generate", "What an LLM wrote, and what it cost. `embedfit.run_generate` starts it."),
    "encode": ("Encode", "Texts to vectors: local models, remote services, adapters, and the cache."),
    "retrieve": ("Retrieve", "Vectors and words to rankings."),
    "evaluation": ("Evaluation", "Rankings to scores, and scores to a verdict."),
    "tune": ("Tune", "Labelled pairs to a better model."),
    "searcher": ("Searcher", "What is deployed: a model, documents, labelled examples, and probabilities."),
    "studies": ("Studies", "Questions that take several trainings or measurements."),
    "store": ("Store", "Vector stores: fill, check, switch, roll back, search."),
    "track": ("Track", "Results and searches to LangWatch."),
    "report": ("Report", "Tables, charts and HTML pages."),
    "publish": ("Publish", "A model with its evidence to the Hub, a folder or an archive."),
    "serve": ("Serve", "The searcher behind an address."),
    "cli": ("Command line", "What the command line is made of."),
    "": ("Settings and errors", "The settings of embedfit.toml as objects, and the errors that calls raise."),
}
"""Wing -> title and sentence of its page, in the order of the reference. The empty name stands for the files beside the wings."""

FLOORS = ("", "data", "generate", "encode", "retrieve", "evaluation", "tune", "searcher", "studies", "store", "track", "report", "publish")
"""The order of the tree: the ground, then the way of the data; any other wing follows."""

INDEX = """\
# Python

Every public name is importable from `embedfit`. Names are loaded on first use, so `import embedfit` is quick and never loads torch.

| part | names |
| --- | --- |
"""


def reference() -> dict[Path, str]:
    """Return the pages of the reference: a directive for each public name, by wing, and an index."""
    names: dict[str, list[str]] = {wing: [] for wing in WINGS}
    for name in embedfit.__all__:
        first, *rest = getattr(embedfit, name).__module__.split(".")[1:] or [""]
        names[first if rest or first in WINGS else ""].append(name)
    pages, rows = {}, []
    for wing, (title, about) in WINGS.items():
        file = f"{wing or 'settings'}.md"
        if names[wing]:
            directives = "".join(f"\n::: embedfit.{name}\n" for name in names[wing])
            pages[ROOT / "docs" / "api" / file] = f"# {title}\n\n{about}\n{directives}"
            rows.append(f"| [{title}]({file}) | {', '.join(f'[`{name}`][embedfit.{name}]' for name in names[wing])} |\n")
    return {**pages, ROOT / "docs" / "api" / "index.md": INDEX + "".join(rows)}


COMMANDS = """\
# Command line

Every command exits with 0 when it did what it was asked for, with 2 when something needs fixing (one line on stderr says what), and with
130 when it was interrupted; the same command then continues where it stopped. Results go to stdout, progress and notes to stderr.

Options of `embedfit` itself stand before the command: `--quiet` (no progress bars, no notes), `--debug` (show where an error comes from),
`--version`. `embedfit --install-completion` sets up completion for your shell. CONFIG is an embedfit.toml; in brackets, it defaults to
the one in the current folder.

Characters that a terminal would obey are printed as in JSON: `\\u001b` for an escape, `\\u202e` for a change of direction.
"""

NOTES = {
    "check": "[What it reports](data.md#leaks).",
    "run": "[First steps](start.md), [the verdict](verdict.md), [the report](report.md).",
    "ladder": "[Which method](ladder.md).",
    "curve": "[Would more labels help](ladder.md#would-more-labels-help).",
    "relabel": "The output may not be the folder of the data: the old labels would be lost. [Labels in doubt](report.md#labels-in-doubt).",
    "evaluate": "In the file of `--csv`, a text that a spreadsheet would take for a formula has an apostrophe before it.",
    "tune": "[Fine-tuning](tuning.md).",
    "compare": "Where a model's folder tells what it was trained on, queries whose answer it had seen are compared"
    " [apart](verdict.md#answers-seen-in-training) too.",
    "index": "[Vector stores](stores.md).",
    "publish": "[Publishing](publish.md).",
    "serve": "[Serving](serve.md).",
    "label": "[From zero labels](serve.md#from-zero-labels).",
    "feedback": "[What counts as a label](serve.md#what-counts-as-a-label).",
    "refresh": "[A new version, live](serve.md#a-new-version-live).",
    "mcp": "[Agents](serve.md#agents).",
    "generate records": "Nothing that was paid for is lost; the same command continues. [Generating](generate.md).",
    "generate queries": "[Generating](generate.md).",
    "track resend": "RUN is a run directory, or the folder that the note named. [Monitoring](monitoring.md).",
    "cache": "MODEL is a name from the table. Only embedfit's own files are removed. [The cache](scale.md#the-embedding-cache).",
}
"""Command -> what its help does not say."""

FIRST = ("demo", "init", "check", "run", "ladder", "curve", "relabel", "evaluate", "tune", "compare", "index", "search", "publish")
"""The order of the page; any other command follows."""


def command_line() -> str:
    """Return the page on the command line: for each command its help, its usage and its options."""
    commands = dict(flat(typer.main.get_command(app)))
    ordered = [*FIRST, *(name for name in commands if name not in FIRST)]
    return "\n".join([COMMANDS, *(line for name in ordered if name in commands for line in command_lines(name, commands[name]))])


def flat(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from flat(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def command_lines(name: str, command: Any) -> list[str]:
    """Return the section on one command."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    places = [param.name.upper() if param.required else f"[{param.name.upper()}]" for param in arguments]
    usage = " ".join(["embedfit", name, *places, *(["[OPTIONS]"] if options else [])])
    about = " ".join((command.help or "").split())
    lines = [f"## embedfit {name}", "", f"{about} {NOTES.get(name, '')}".strip(), "", "```text", usage, "```", ""]
    if command.params:
        rows = [f"| `{param.name.upper()}` | {meaning(param)} |" for param in arguments]
        rows += [f"| `{', '.join(param.opts)}` | {meaning(param)} |" for param in options]
        lines += ["| argument or option | meaning |", "| --- | --- |", *rows, ""]
    return lines


def meaning(param: Any) -> str:
    """Return a parameter's help, with its default if it has one that the help does not name."""
    text = " ".join((param.help or "").split()).replace("|", "\\|")
    hidden = param.default in (None, False, ()) or param.required or "efault" in text
    return text if hidden else f"{text} Default: `{param.default}`."


def tree() -> str:
    """Return every file of the package with the first line of its docstring, as a Markdown code block."""
    wings = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    lines = [line for wing in [*FLOORS, *sorted(wings - set(FLOORS))] for line in wing_lines(wing) if wing == "" or wing in wings]
    return "\n".join(["```text", "src/embedfit/", *lines, "```"])


def wing_lines(wing: str) -> list[str]:
    """Return the tree's lines for one folder."""
    indent = "  " if wing == "" else "    "
    heading = [] if wing == "" else [f"  {f'{wing}/':20}{caption(PACKAGE / wing / '__init__.py')}"]
    lines = heading
    for path in sorted((PACKAGE / wing).iterdir()):
        if path.suffix == ".py" and not path.name.startswith("__"):
            lines.append(f"{f'{indent}{path.name}':22}{caption(path)}")
        elif wing and (path / "__init__.py").exists():  # a room within a wing
            lines.append(f"{f'{indent}{path.name}/':22}{caption(path / '__init__.py')}")
            files = sorted(file for file in path.glob("*.py") if not file.name.startswith("__"))
            lines += [f"{f'{indent}  {file.name}':22}{caption(file)}" for file in files]
    return lines


def caption(path: Path) -> str:
    """Return the first line of a file's docstring, without the full stop."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0].removesuffix(".")


def written() -> dict[Path, str]:
    """Return every file that is written here, with its content."""
    guide = ROOT / "CONTRIBUTING.md"
    before, _, rest = guide.read_text().partition("<!-- tree -->\n")
    after = rest.partition("<!-- /tree -->")[2]
    return {
        **reference(),
        ROOT / "docs" / "cli.md": command_line(),
        guide: f"{before}<!-- tree -->\n{tree()}\n<!-- /tree -->{after}",
    }


if __name__ == "__main__":
    for path, text in written().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
