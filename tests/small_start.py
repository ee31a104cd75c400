"""A tiny data set of 20 support queries and 4 documents, and an embedfit.toml for it."""

from embedfit.samples import starting
from embedfit.samples.starting import toml_for

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


def write_start(folder):
    """Write embedfit.toml and the data set."""
    data = {"queries": "queries.jsonl", "documents": "documents.jsonl"}
    toml = toml_for("support", data).replace('"{title} {text}"', '"{title}. {text}"')
    paths = starting.write_start(folder, toml)
    (folder / "queries.jsonl").write_text(_QUERIES)
    (folder / "documents.jsonl").write_text(_DOCUMENTS)
    return [*paths, folder / "queries.jsonl", folder / "documents.jsonl"]
