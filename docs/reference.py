"""Writes what the docs take from the code: the pages of the Python reference, and the tree in CONTRIBUTING.md.

    python docs/reference.py

`make docs` runs it first. A test fails where its output is out of date.
"""

from __future__ import annotations

import ast
from pathlib import Path

import embedfit

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

FLOORS = ("", "data", "generate", "encode", "retrieve", "evaluation", "tune", "studies", "store", "track", "report", "publish")
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


def tree() -> str:
    """Return every file of the package with the first line of its docstring, as a Markdown code block."""
    wings = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    lines = [line for wing in [*FLOORS, *sorted(wings - set(FLOORS))] for line in wing_lines(wing) if wing == "" or wing in wings]
    return "\n".join(["```text", "src/embedfit/", *lines, "```"])


def wing_lines(wing: str) -> list[str]:
    """Return the tree's lines for one folder."""
    indent = "  " if wing == "" else "    "
    heading = [] if wing == "" else [f"  {f'{wing}/':20}{caption(PACKAGE / wing / '__init__.py')}"]
    files = sorted(path for path in (PACKAGE / wing).glob("*.py") if not path.name.startswith("__"))
    return heading + [f"{f'{indent}{path.name}':22}{caption(path)}" for path in files]


def caption(path: Path) -> str:
    """Return the first line of a file's docstring, without the full stop."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0].removesuffix(".")


def written() -> dict[Path, str]:
    """Return every file that is written here, with its content."""
    guide = ROOT / "CONTRIBUTING.md"
    before, _, rest = guide.read_text().partition("<!-- tree -->\n")
    return {**reference(), guide: f"{before}<!-- tree -->\n{tree()}\n<!-- /tree -->{rest.partition('<!-- /tree -->')[2]}"}


if __name__ == "__main__":
    for path, text in written().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
