"""The files that ``embedfit init`` writes: embedfit.toml with comments, its schema, and a small sample."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedfit.config import json_schema
from embedfit.errors import StorageError
from embedfit.files import writing
from embedfit.hub import MINILM
from embedfit.samples import TRANSACTIONS


def write_start(folder: Path, toml: str | None = None) -> list[Path]:
    """Write embedfit.toml and its schema. Existing files are never overwritten.

    Args:
        folder: Folder to write to.
        toml: Text of the embedfit.toml. By default that of a small sample, which is written too.

    Raises:
        StorageError: A file already exists, or the folder is not writable.
    """
    sample = {} if toml else {"queries.jsonl": sample_queries(), "documents.jsonl": sample_documents()}
    files = {"embedfit.toml": toml or sample_toml(), "embedfit.schema.json": json_schema() + "\n", **sample}
    for name in files:
        if (folder / name).exists():
            raise StorageError(f"{folder / name} already exists; fix: give another folder, or move the file")
    for name, text in files.items():
        with writing(folder / name) as file:
            file.write(text.encode())
    return [folder / name for name in files]


def sample_queries() -> str:
    """Return the queries of the sample: bundled transactions as one text, a few of each category."""
    by_category: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in (TRANSACTIONS / "transactions.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        by_category[record["expense_category"]].append(record)
    rows = [
        {"query": ", ".join(str(record[name]) for name in _FIELDS if record[name]), "expected": category}
        for category in sorted(by_category)[:_CATEGORIES]
        for record in by_category[category][:_EACH]
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sample_documents() -> str:
    """Return the documents of the sample: the categories, by name."""
    categories = json.loads((TRANSACTIONS / "categories.json").read_text(encoding="utf-8"))
    names = sorted(category["category"] for category in categories)[:_CATEGORIES]
    return "".join(json.dumps({"id": name, "text": name}, ensure_ascii=False) + "\n" for name in names)


_FIELDS = ("merchant_name", "memo", "department", "spend_program_name", "trip_name", "location", "amount")
_CATEGORIES, _EACH = 12, 10


def sample_toml() -> str:
    """Return the embedfit.toml of the sample."""
    return toml_for("expenses", {"queries": "queries.jsonl", "documents": "documents.jsonl"}, split="test = 0.4")


def toml_for(name: str, data: Mapping[str, str], *, split: str = "# test = 0.2", model: str = MINILM) -> str:
    """Return an embedfit.toml with comments.

    Args:
        name: First part of a run directory's name.
        data: Keys and values of [data].
        split: First line of [split].
        model: Name of the base model.
    """
    lines = [(f"{key} = {_quoted(value)}", _ABOUT.get(key, "")) for key, value in data.items()]
    return _TOML.format(
        name=_quoted(name),
        data="\n".join(f"{line:<35} # {about}" if about else line for line, about in lines),
        split=f"{split:<35} # ",
        model=_quoted(model),
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_ABOUT = {
    "queries": "JSONL, JSON, CSV, TSV, Excel, Parquet ..., a BEIR folder, or hub:owner/name",
    "documents": 'rows with "id", "text", optional "title" and more, or a folder; without it, each label is a document',
    "query": "column of the query text",
    "label": "column of the right documents",
}
_TOML = """\
#:schema ./embedfit.schema.json
# What embedfit reads, measures and trains. Every key but data.queries has a default; these are the most useful.
name = {name}
output = "runs"                     # where run directories are made

[data]
{data}
document_template = "{{title}} {{text}}"  # text of a document; this alone can change recall a lot

[split]
{split}held out for the comparison, never used for any choice; by default with 1,000 queries or more
# dev = 0.1                         # of the rest, for choosing the epoch; by default only with 1,000 queries or more
# folds = 5                         # hold out every query once: better figures from few queries; by default under 1,000

[model]
name = {model}           # all-MiniLM-L6-v2 is small and works offline; with a network try BAAI/bge-base-en-v1.5

[evaluate]
k = [1, 3, 5, 10]
metric = "mrr@10"                   # metric of the verdict

[tune]
# epochs = 4                        # maximum; by default 4 for labels, 2 for passages; a dev part chooses
"""
