"""The bundled transactions, the general set, and the files that ``embedfit init`` writes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from embedfit.config import Config, DataConfig, ModelConfig, SplitConfig, json_schema
from embedfit.errors import StorageError
from embedfit.files import writing

TRANSACTIONS = Path(str(resources.files(__name__) / "transactions"))
GENERAL = Path(str(resources.files(__name__) / "general"))
"""Questions and passages from many fields, to measure what tuning forgot; a BEIR folder, written for embedfit."""


def demo_config(output: Path, model: str) -> Config:
    """Return the configuration of a run on the bundled transactions."""
    return Config(
        name="transactions",
        output=str(output),
        data=DataConfig(
            queries=str(TRANSACTIONS / "transactions.jsonl"), documents=str(TRANSACTIONS / "categories.json"), record="transaction"
        ),
        split=SplitConfig(folds=0),  # one split, to be quick; `run --folds 5` holds out every query once
        model=ModelConfig(name=model),
    )


def write_start(folder: Path) -> list[Path]:
    """Write embedfit.toml, its schema and a tiny data set. Existing files are never overwritten.

    Raises:
        StorageError: A file already exists, or the folder is not writable.
    """
    files = {
        "embedfit.toml": _TOML,
        "embedfit.schema.json": json_schema() + "\n",
        "queries.jsonl": _QUERIES,
        "documents.jsonl": _DOCUMENTS,
    }
    for name in files:
        if (folder / name).exists():
            raise StorageError(f"{folder / name} already exists; fix: give another folder, or move the file")
    for name, text in files.items():
        with writing(folder / name) as file:
            file.write(text.encode())
    return [folder / name for name in files]


_TOML = """\
#:schema ./embedfit.schema.json
# What embedfit reads, measures and trains. Every key but data.queries has a default; these are the most useful.
name = "support"                    # first part of the run directory's name
output = "runs"                     # where run directories are made

[data]
queries = "queries.jsonl"           # {"query": "...", "expected": "document id" or a list}; also CSV, TSV, Parquet,
                                    # a BEIR folder, or hub:owner/name
documents = "documents.jsonl"       # {"id", "text", optional "title" and more}; without it, each label is a document
document_template = "{title}. {text}"  # text of a document; this alone can change recall a lot

[split]
# test = 0.2                        # held out for the comparison, never used for any choice; by default with 1,000 queries or more
# dev = 0.1                         # of the rest, for choosing the epoch; by default only with 1,000 queries or more
# folds = 5                         # hold out every query once: better figures from few queries; by default under 1,000

[model]
name = "all-MiniLM-L6-v2"           # small, works offline; with a network try BAAI/bge-base-en-v1.5

[evaluate]
k = [1, 3, 5, 10]
metric = "mrr@10"                   # metric of the verdict

[tune]
# epochs = 4                        # maximum; by default 4 for labels, 2 for passages; a dev part chooses
"""

_TOPICS = {
    "password": (
        "Reset a password",
        "Choose 'Forgot password' and follow the link in the mail.",
        (
            "I can't log in any more",
            "forgot my login",
            "locked out of my account",
            "the link to sign in has expired",
            "it says wrong credentials",
        ),
    ),
    "invoice": (
        "Download invoices",
        "Invoices of past months are under Billing.",
        (
            "where is my receipt",
            "need the bill for March",
            "our accountant wants a PDF",
            "proof of payment please",
            "tax document for last year",
        ),
    ),
    "cancel": (
        "End a subscription",
        "A plan can be ended on any day; it runs until the end of the month.",
        (
            "stop charging me",
            "I don't want this any longer",
            "how do I quit the plan",
            "close everything at the end of the month",
            "not renewing",
        ),
    ),
    "export": (
        "Export data",
        "All projects can be saved as CSV or JSON.",
        (
            "get my stuff out",
            "download everything as a spreadsheet",
            "back up all projects",
            "move to another tool",
            "can I have a copy of my data",
        ),
    ),
}

_DOCUMENTS = "".join(f'{{"id": "{id}", "title": "{title}", "text": "{text}"}}\n' for id, (title, text, _) in _TOPICS.items())
_QUERIES = "".join(f'{{"query": "{query}", "expected": "{id}"}}\n' for id, (_, _, queries) in _TOPICS.items() for query in queries)
