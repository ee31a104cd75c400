import csv
import io
import json
import os
import random
import re
import signal
import sys
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table

from embedfit import console, progress
from embedfit.cli.app import main
from embedfit.data.load import load
from embedfit.files import neutral
from embedfit.studies.suspects import relabelled

HOSTILE = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202egnp.exe\u2066 \r\n:100: [red]x[/] [link=http://x]y[/link] \x7f"
HARMLESS = "\\u001b[31mred\\u001b]0;title\\u0007 \\u009b2J \\u202egnp.exe\\u2066 \\r\\n:100: [red]x[/] [link=http://x]y[/link] \\u007f"


def obeyed(text):
    """Return what of a text a terminal would obey instead of showing it."""
    bidi = [*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u2028\u2029"]
    return [sign for sign in text if (unicodedata.category(sign) in ("Cc", "Cs") and sign != "\n") or sign in bidi]


@pytest.fixture
def shown(capsys):
    """Run a command; return its exit code and all that it wrote."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return caught.value.code or 0, out + err

    return call


def project(folder, *rows, name="queries.jsonl", model="./none"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "embedfit.toml").write_text(f"[data]\nqueries = {json.dumps(name)}\n[model]\nname = {json.dumps(model)}\n")
    return folder / "embedfit.toml"


def test_controls_are_made_visible_and_all_else_stays():
    assert console.printable(HOSTILE) == HARMLESS
    assert console.printable("Größe 日本語 👩‍👩‍👧 café\u0301 \\n") == "Größe 日本語 👩‍👩‍👧 café\u0301 \\n"


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_nothing_is_obeyed_and_json_stays_the_same_json(text):
    assert obeyed(console.printable(text)) == []
    assert "\n" not in console.printable(text)
    surrogates = any(unicodedata.category(sign) == "Cs" for sign in text)
    assert surrogates or json.loads(console.printable(json.dumps(text, ensure_ascii=False))) == text


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=20), st.sampled_from(["[red]", "[/]", ":100:", "[link=x]", "\\[", ":smile:", "\x1b[2J", ""]))
def test_strings_are_data_for_rich_in_lines_and_in_tables(text, code):
    terminal, said = console.terminal(), f"{code}{text}"
    terminal.file = io.StringIO()
    terminal.print(said, soft_wrap=True)
    assert console.printable(said) == terminal.file.getvalue().removesuffix("\n")
    table = Table("plain", said, box=None)
    table.add_row("x", said)
    terminal.file = io.StringIO()
    terminal.print(table)
    assert obeyed(terminal.file.getvalue()) == []
    if code and code.isprintable():
        assert terminal.file.getvalue().count(code) == 2


def test_check_shows_labels_and_file_names_as_they_are(shown, tmp_path):
    rows = [{"query": f"a {number}", "expected": HOSTILE} for number in range(3)] + [
        {"query": "b", "expected": "b :100:"},
        {"query": HOSTILE},
    ]
    code, text = shown("check", project(tmp_path, *rows, name="a:100:[red].jsonl"))
    assert code == 2
    assert obeyed(text) == []
    assert "(b :100:)" in text
    assert HARMLESS in text
    assert "a:100:[red].jsonl:5" in text


def test_errors_and_notes_show_what_they_quote_without_its_controls(shown, tmp_path, capsys):
    code, text = shown("check", project(tmp_path, {"query": "a", "expected": "b"}, name="x.jsonl").rename(tmp_path / "\x1b[31m.toml"))
    assert code in (0, 2)
    assert obeyed(text) == []
    code, text = shown("check", tmp_path / "no\x1b[31m\u202e:100:.toml")
    assert code == 2
    assert "no\\u001b[31m\\u202e:100:.toml" in text
    console.note(HOSTILE)
    assert capsys.readouterr().err == f"{HARMLESS}\n"


def test_a_progress_bar_takes_nothing_for_markup(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(progress, "patience", 0)
    with progress.bar("\x1b]0;title\x07 [red]a :100:", 3) as advance:
        advance(1, said="\x1b]0;title\x07 [red]b :100:")
    text = stderr.getvalue()
    assert "\x1b]" not in text
    for letter in "ab":
        assert f"\\u001b]0;title\\u0007 [red]{letter} :100:" in text


# Spreadsheets


def test_cells_of_evaluate_begin_no_formula_and_numbers_stay_numbers(shown, tmp_path):
    rows = [{"query": "lunch", "expected": "food"}, {"query": "train", "expected": "travel"}]
    toml = project(tmp_path, *rows, model="all-MiniLM-L6-v2")
    template = "=HYPERLINK(1) {text}"
    code, text = shown("evaluate", toml, "--retrieval", "bm25", "--document", template, "--csv", tmp_path / "out.csv")
    assert code == 0, text
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert {row["document"] for row in rows} == {f"'{template}"}
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert not [cell for row in rows for cell in row.values() if cell[:1] in tuple("=+-@\t\r")]


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", " =", "\t=", "a,=", "'="])
def test_a_cell_that_a_spreadsheet_would_obey_has_an_apostrophe_first(sign):
    assert re.match(r"[\s']*(a,)?\s*'", neutral(f"{sign}1+1"))
    assert neutral("a = b + c") == "a = b + c"


ids = st.text(st.sampled_from("=+-@'\t\r\n ,;|a1"), min_size=1, max_size=5).filter(str.strip)


@settings(max_examples=100, deadline=None)
@given(st.lists(ids, min_size=2, max_size=4, unique_by=str.strip), st.data())
def test_what_is_neutralised_for_a_spreadsheet_is_known_again(tmp_path_factory, names, data):
    import pandas as pd

    from embedfit.data.dataset import Dataset, Document, Query
    from embedfit.studies.suspects import COLUMNS, write_suspects

    if len({neutral(name).strip() for name in names} | {name.strip() for name in names}) < len({*names, *map(neutral, names)}):
        return  # two ids that cannot be told apart in a spreadsheet
    right, suggested = names[:2]
    dataset = Dataset({"q": Query("q", "=text")}, {name: Document(name, "x") for name in names}, {"q": {right: 1}})
    frame = pd.DataFrame(
        [("q", "=text", [right], suggested, "mislabel", 0.9)],
        columns=list(COLUMNS),
    )
    path = write_suspects(frame, tmp_path_factory.mktemp("suspects") / "suspects.csv")
    path.write_bytes(path.read_bytes().replace(b'"0.900",""', b'"0.900","replace"'))
    corrected, counts = relabelled(dataset, path)
    assert counts["replace"] == 1
    assert corrected.relevant("q") == {suggested: 1}


def test_relabel_does_not_write_over_the_data_that_it_corrects(shown, tmp_path):
    rows = [{"id": "q", "query": "lunch", "expected": "food"}, {"id": "r", "query": "train", "expected": "travel"}]
    toml = project(tmp_path, *rows)
    (tmp_path / "suspects.csv").write_text("query_id,suggested,decision\nq,travel,replace\n")
    before = (tmp_path / "queries.jsonl").read_bytes()
    code, text = shown("relabel", toml, tmp_path / "suspects.csv", "--output", tmp_path)
    assert code == 2
    assert "holds the data set that is to be corrected, which would be lost; fix: give another --output" in text
    assert (tmp_path / "queries.jsonl").read_bytes() == before
    code, _ = shown("relabel", toml, tmp_path / "suspects.csv", "--output", tmp_path / "corrected")
    assert code == 0
    corrected = load(tmp_path / "corrected" / "queries.jsonl", tmp_path / "corrected" / "documents.jsonl")
    assert corrected.relevant("q") == {"travel": 1}


def test_killed_at_any_moment_relabel_loses_nothing_and_leaves_nothing_over(shown, tmp_path):
    rows = [{"id": f"q{number}", "query": f"lunch {number} " * 50, "expected": "food"} for number in range(500)]
    toml = project(tmp_path, *rows, {"id": "r", "query": "train", "expected": "travel"})
    (tmp_path / "suspects.csv").write_text("query_id,suggested,decision\nq1,travel,replace\n")
    sources = {name: (tmp_path / name).read_bytes() for name in ("queries.jsonl", "suspects.csv", "embedfit.toml")}
    arguments = ["relabel", str(toml), str(tmp_path / "suspects.csv"), "--output", str(tmp_path / "out")]
    for moment in range(10):
        child = os.fork()
        if child == 0:
            try:
                main(arguments)
            finally:
                os._exit(0)
        time.sleep(random.Random(moment).uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path in (tmp_path / "out").glob("*.jsonl"):
            assert path.read_text().endswith("}\n")
            [json.loads(line) for line in path.read_text().splitlines()]
    assert shown(*arguments)[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["documents.jsonl", "queries.jsonl"]
    assert {name: (tmp_path / name).read_bytes() for name in sources} == sources
    corrected = load(tmp_path / "out" / "queries.jsonl", tmp_path / "out" / "documents.jsonl")
    assert len(corrected.queries) == 501
    assert corrected.relevant("q1") == {"travel": 1}
