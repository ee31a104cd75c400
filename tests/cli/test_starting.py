"""First steps on the user's own data: ``init --from``, commands without an embedfit.toml, and a folder of documents."""

import csv
import json
import re
import subprocess
import sys

import pytest
from openai_server import Server

from embedfit.config import read_config
from embedfit.pipeline import parts

TOPICS = {
    "Access": "cannot sign in to {}",
    "Billing": "the invoice for {} is wrong",
    "Network": "{} drops the connection",
}
THINGS = ("the café portal", "our wiki", "my mailbox", "the shop", "the printer", "the new laptop", "the intranet", "the phone system")


@pytest.fixture
def tickets(tmp_path, monkeypatch):
    """Write 24 tickets as a spreadsheet program does, with columns of other names."""
    monkeypatch.chdir(tmp_path)

    def call(encoding="utf-8-sig", delimiter=";", names=("No", "Subject", "Category"), name="tickets 2025.csv"):
        with open(name, "w", newline="", encoding=encoding) as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(names)
            rows = [(text.format(thing), label) for label, text in TOPICS.items() for thing in THINGS]
            writer.writerows((f"T-{number}", *row) for number, row in enumerate(rows))
        return tmp_path / name

    return call


@pytest.mark.parametrize(
    ("encoding", "delimiter", "names"),
    [
        ("utf-8-sig", ";", ("No", "Subject", "Category")),
        ("utf-16", "\t", ("No", "Question", "Intent")),
        ("cp1252", ",", ("No", "Text", "Label")),
    ],
)
def test_init_shows_what_it_takes_and_writes_a_configuration_that_reads_it(encoding, delimiter, names, tickets, said):
    path = tickets(encoding, delimiter, names)
    code, out, _ = said("init", "project", "--from", path)
    assert code == 0
    assert f"Taken: query = column '{names[1]}', label = column '{names[2]}'" in out
    assert sum("T-" in line for line in out.splitlines()) == 3
    assert "cannot sign in to the café portal" in out
    config = read_config("project/embedfit.toml")
    assert config.name == "tickets-2025"
    assert (config.data.query, config.data.label) == names[1:]
    data = parts.read(config.data)
    assert (len(data.judged), list(data.corpus)) == (24, list(TOPICS))
    assert "../tickets 2025.csv" in (path.parent / "project" / "embedfit.toml").read_text()


def test_columns_that_are_not_known_are_asked_for(tickets, said):
    path = tickets(names=("Nr", "Betreff", "Warteschlange"))
    code, _, err = said("init", "--from", path)
    assert code == 2
    assert "no column is known to hold the query; its columns: Nr, Betreff, Warteschlange; fix: --query and --label" in err
    assert said("init", "--from", path, "--query", "Betreff", "--label", "Warteschlange")[0] == 0
    assert len(parts.read(read_config("embedfit.toml").data).judged) == 24
    code, _, err = said("init", "other", "--query", "Betreff")
    assert (code, "--query need --from, a file of labelled queries" in err) == (2, True)
    code, _, err = said("init", "other", "--from", "missing.csv")
    assert code == 2
    assert "missing.csv: does not exist" in err


def test_a_file_of_queries_is_run_without_a_configuration_and_again_for_nothing(tickets, tiny_model, said):
    path = tickets(names=("Nr", "Betreff", "Kategorie"))
    options = ("--query", "Betreff", "--label", "Kategorie", "--model", tiny_model)
    code, out, _ = said("check", path, *options)
    assert code == 0
    assert "24 labelled queries, 3 documents" in out
    code, out, _ = said("--quiet", "run", path, *options, "--folds", 2)
    assert code == 0
    [folder] = (path.parent / "runs").iterdir()
    assert folder.name.startswith("tickets-2025-")
    code, out, _ = said("--quiet", "run", path.name, *options, "--folds", 2)
    assert "nothing had changed" in out
    assert [*(path.parent / "runs").iterdir()] == [folder]
    code, out, _ = said("--quiet", "evaluate", path, *options, "--json")
    assert code == 0
    assert json.loads(out)
    assert said("init", "project", "--from", path, "--query", "Betreff", "--label", "Kategorie", "--model", tiny_model)[0] == 0
    code, out, _ = said("--quiet", "check", "project")  # a folder with an embedfit.toml
    assert code == 0


def test_a_folder_of_documents_becomes_queries_and_then_a_run(tmp_path, monkeypatch, tiny_model, said):
    monkeypatch.chdir(tmp_path)
    handbook = tmp_path / "handbook"
    handbook.mkdir()
    for number, thing in enumerate(THINGS):
        (handbook / f"{number}.md").write_text(
            f"# About {thing}\n\nAsk Ann about {thing}, on any day of the week.\n\n## Costs\n\n{thing} is free.\n"
        )
    with Server() as server:
        options = ("--documents", "handbook", "--each", 2, "--encoder", tiny_model, "--base-url", server.url)
        code, out, _ = said("generate", "queries", *options)
    assert code == 0
    assert "32 of 32 queries in" in out
    following = re.search(r"Next: embedfit (.*)", out)[1].split()
    assert following == ["run", "handbook-queries.jsonl", "--documents", "handbook", "--model", str(tiny_model)]
    code, out, _ = said("check", *following[1:])
    assert code == 0
    assert "32 labelled queries, 16 documents, 32 relevant pairs" in out
    assert "Read from " in out
    code, out, _ = said("init", "project", "--from", "handbook", "--model", tiny_model)
    assert code == 0
    assert "handbook: 8 .md" in out
    settings = read_config("project/embedfit.toml")
    assert (settings.generate.questions, settings.data.documents) == (3, "project/../handbook")


def test_check_says_what_was_read_in_five_lines_and_shows_two_examples(tmp_path, said):
    rows = [{"query": f"{word} {number}", "expected": {word: 1, "other": 0}} for word in ("one", "two") for number in range(6)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"query": "none", "expected": []}])))
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"id": id, "text": f"the {id}"}) for id in ("one", "two", "other")))
    (tmp_path / "embedfit.toml").write_text(
        '[data]\nqueries = "q.jsonl"\ndocuments = "d.jsonl"\ndocument_template = "About {text}"\n'
        '[model]\nname = "all-MiniLM-L6-v2"\nquery_prompt = "ask: "\n'
    )
    code, out, _ = said("check", tmp_path)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "12 labelled queries, 3 documents, 12 relevant pairs"
    assert lines[1] == "2 documents are asked for: from 6 times (two) to 6 (one)"
    assert lines[2] == f"Read from {tmp_path / 'q.jsonl'}, documents from {tmp_path / 'd.jsonl'}"
    assert lines[3].startswith("12 pairs judged not relevant")
    assert lines[4] == "5 to 6 tokens a query (median 6); 5 to 5 tokens a document (median 5); all-MiniLM-L6-v2 reads 256"
    assert lines[5] == "Example 1: 'ask: one 0' finds 'About the one'"
    assert lines[6] == "Example 2: 'ask: two 0' finds 'About the two'"


def test_check_counts_findings_of_a_kind_and_shows_three_of_them_or_all(tmp_path, said):
    documents = [{"id": f"{number}{copy}", "text": f"text number {word}"} for number, word in enumerate("abcdefg") for copy in "xy"]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, documents)))
    rows = [{"query": f"where is {word * 4} today", "expected": f"{number % 7}x"} for number, word in enumerate("abcdefghijklmn")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("check", tmp_path / "q.jsonl", "--documents", tmp_path / "d.jsonl")
    _, out, _ = said(*options)
    assert out.count("say the same: ") == 3
    assert "... and 4 more of the kind 'copy'; --all shows them" in out
    assert said(*options, "--all")[1].count("say the same: ") == 7
    assert sum(finding["kind"] == "copy" for finding in json.loads(said(*options, "--json")[1])["findings"]) == 7


def test_check_and_a_folder_of_documents_import_no_model_library(tmp_path):
    (tmp_path / "handbook").mkdir()
    (tmp_path / "handbook" / "a.md").write_text("# A\n\nOne.\n\n# B\n\nTwo.\n")
    (tmp_path / "q.jsonl").write_text('{"query": "first", "expected": "a.md"}\n{"query": "second", "expected": "a.md#b"}\n')
    program = (
        "import sys; from embedfit.pipeline.checking import check\n"
        "data = {'queries': 'q.jsonl', 'documents': 'handbook'}\n"
        "from embedfit.config import make_config\n"
        "checked = check(make_config({'data': data, 'model': {'name': 'all-MiniLM-L6-v2'}}))\n"
        "assert not checked.skipped and len(checked.summary) == 4, checked\n"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
