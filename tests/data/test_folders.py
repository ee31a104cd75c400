import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from embedfit.data.folders import Cutting, read_folder
from embedfit.data.load import load
from embedfit.data.markup import _markdown_lines, read_html, read_markdown
from embedfit.errors import ConfigError, DataError, EmbedfitError

LEAVE = """---
title: "Leave"
---

# Leave

Everybody has 28 days.

## Sick leave

Call before ten.

### At the weekend ###

Call the *duty* manager.

Part time
---------

```sh
# no heading
```
"""
PAGE = """<html><head><title>Pay</title><style>p {}</style></head><body><nav>Home</nav>
<main><h1>Pay &amp; pensions</h1><p>Paid on the <b>25th</b>.<br>Always.</p><script>x()</script>
<h2>Bonus</h2><ul><li>In March<li>In June</ul><table><tr><td>A<td>1</table><pre>a
  b</pre></main><footer>(c)</footer></body></html>"""


def words(texts):
    return [len(text.split()) + 1 for text in texts]


CUTTING = Cutting(words, 64, 8)


def written(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def handbook(tmp_path):
    return written(tmp_path / "handbook", leave_md=LEAVE, hr__pay_html=PAGE, notes_txt="Just a note.", hr__a_RST="Rules\n=====\n\nTwo.")


def read(folder, cutting=CUTTING):
    errors = []
    documents = read_folder(folder, cutting, errors).documents
    return documents, errors


def pdf_of(*pages):
    """Return a PDF with a line of text on each page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        kids.append(len(objects) + 1)
        page = (
            f"<< /Type /Page /Parent 2 0 R /Contents {len(objects)} 0 R /Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 612 792] >>"
        )
        objects.append(page.encode())
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] >>".encode()
    raw, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(raw))
        raw += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(raw))
    return raw + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (len(objects) + 1, table, end)


def test_files_become_passages_with_title_path_and_headings(handbook, capsys):
    documents, errors = read(handbook)
    assert not errors
    seen = {re.sub(r":\w{6}$", "", id): (document.title, document.text, dict(document.metadata)) for id, document in documents.items()}
    assert seen == {
        "hr/a.RST": ("a", "Rules\n=====\n\nTwo.", {"path": "hr/a.RST"}),
        "hr/pay.html": ("Pay & pensions", "Paid on the 25th.\nAlways.", {"path": "hr/pay.html"}),
        "hr/pay.html#bonus": (
            "Pay & pensions > Bonus",
            "- In March\n\n- In June\n\nA | 1 |\n\na\n  b",
            {"path": "hr/pay.html", "heading": "Bonus"},
        ),
        "leave.md": ("Leave", "Everybody has 28 days.", {"path": "leave.md"}),
        "leave.md#sick-leave": ("Leave > Sick leave", "Call before ten.", {"path": "leave.md", "heading": "Sick leave"}),
        "leave.md#sick-leave/at-the-weekend": (
            "Leave > Sick leave > At the weekend",
            "Call the *duty* manager.",
            {"path": "leave.md", "heading": "Sick leave > At the weekend"},
        ),
        "leave.md#part-time": ("Leave > Part time", "```sh\n# no heading\n```", {"path": "leave.md", "heading": "Part time"}),
        "notes.txt": ("notes", "Just a note.", {"path": "notes.txt"}),
    }
    assert "4 files are read as 8 passages of at most 64 tokens" in capsys.readouterr().err


def test_no_passage_is_longer_than_the_budget_and_no_word_is_lost(tmp_path):
    text = "# Long\n\n" + "".join(f"## Part {part}\n\n" + f"Sentence {part} says a thing or two. " * 40 + "\n\n" for part in range(5))
    documents, _ = read(written(tmp_path, long_md=text))
    assert len(documents) > 20
    assert all(words([f"{document.title} {document.text}"])[0] <= 64 for document in documents.values())
    assert sum(document.text.count("says a thing") for document in documents.values()) >= 200


def test_ids_outlast_edits_of_other_sections_and_of_other_files(handbook):
    before, _ = read(handbook)
    (handbook / "notes.txt").write_text("Another note.")
    (handbook / "a new file.md").write_text("# Leave\n\n## Sick leave\n\nCall before ten.")
    (handbook / "leave.md").write_text(LEAVE.replace("28 days", "30 days").replace("# Leave\n", "# Leave\n\n## News\n\nA section.\n"))
    after, _ = read(handbook)
    gone = before.keys() - after.keys()
    assert {re.sub(r":\w+$", "", id) for id in gone} == {"notes.txt", "leave.md"}
    assert read(handbook)[0] == after
    assert list(after) == list(read(handbook)[0])


def test_sections_with_the_same_heading_and_even_the_same_text_have_ids_of_their_own(tmp_path):
    documents, _ = read(written(tmp_path, a_md="# A\n## See also\nOne.\n## See also\nTwo.\n## See also\nTwo.\n"))
    assert [document.text for document in documents.values()] == ["One.", "Two.", "Two."]
    first, second, third = documents
    assert third == f"{second}-2"
    assert all(id.startswith("a.md#see-also:") for id in documents)
    assert first != second


def test_a_label_names_a_passage_a_section_or_a_file(handbook, capsys):
    documents, _ = read(handbook)
    [weekend] = [id for id in documents if "weekend" in id]
    rows = [
        {"id": "a", "query": "how many days off", "expected": "leave.md"},
        {"id": "b", "query": "I am ill", "expected": "leave.md#sick-leave"},
        {"id": "c", "query": "ill on Sunday", "expected": {"leave.md": 1, "leave.md#sick-leave": 2, weekend: 3}},
        {"id": "d", "query": "duty manager", "expected": weekend},
    ]
    queries = handbook.parent / "queries.jsonl"
    queries.write_text("\n".join(map(json.dumps, rows)))
    data = load(queries, handbook, cutting=CUTTING)
    assert list(data.corpus) == list(documents)
    assert "labels that name a file or a section, and stand for all of its passages: 4" in capsys.readouterr().err
    short = {
        query: {re.sub(r":\w+$", "", id).removeprefix("leave.md"): grade for id, grade in data.qrels[query].items()} for query in "abcd"
    }
    assert short["a"] == dict.fromkeys(("", "#sick-leave", "#sick-leave/at-the-weekend", "#part-time"), 1)
    assert short["b"] == {"#sick-leave": 1, "#sick-leave/at-the-weekend": 1}
    assert short["c"] == {"": 1, "#part-time": 1, "#sick-leave": 2, "#sick-leave/at-the-weekend": 3}
    assert short["d"] == {"#sick-leave/at-the-weekend": 1}
    queries.write_text(json.dumps({"query": "x", "expected": "leave.mdd"}))
    with pytest.raises(DataError, match=r"label 'leave\.mdd' is not among .*did you mean 'leave\.md'\?"):
        load(queries, handbook, cutting=CUTTING)


def test_the_id_of_a_passage_that_has_changed_is_an_error_that_says_what_outlasts_edits(handbook):
    [weekend] = [id for id in read(handbook)[0] if "weekend" in id]
    queries, qrels = handbook.parent / "queries.jsonl", handbook.parent / "qrels.tsv"
    queries.write_text(json.dumps({"id": "a", "query": "duty manager"}) + "\n" + json.dumps({"id": "b", "query": "days off"}))
    qrels.write_text(f"a\t{weekend}\t1\nb\tleave.md\t1\n")
    assert load(queries, handbook, qrels, cutting=CUTTING).qrels["a"] == {weekend: 1}
    (handbook / "leave.md").write_text(LEAVE.replace("*duty* manager", "*new* manager"))
    [now] = [id for id in read(handbook)[0] if "weekend" in id]
    expected = (
        f"qrels.tsv:1: document '{weekend}' is a passage whose text is not in leave.md any more; the nearest passage there is '{now}'; "
        "fix: name it, or name 'leave.md#sick-leave/at-the-weekend', which outlasts edits of the text"
    )
    with pytest.raises(DataError) as error:
        load(queries, handbook, qrels, cutting=CUTTING)
    assert expected in str(error.value)
    qrels.write_text("a\tleave.md#sick-leave\t1\nb\tleave.md\t1\n")
    data = load(queries, handbook, qrels, cutting=CUTTING)
    assert now in data.qrels["a"]
    assert now in data.qrels["b"]
    (handbook / "leave.md").write_text("# Leave\n\nAll is new.\n")
    queries.write_text(json.dumps({"query": "duty manager", "expected": weekend}))
    with pytest.raises(
        DataError, match=r"queries\.jsonl:1: label 'leave.* the nearest passage there is 'leave\.md:\w{6}'; .*name 'leave\.md', which"
    ):
        load(queries, handbook, cutting=CUTTING)


def test_what_is_not_read_is_said_in_one_line_with_counts(handbook, capsys):
    written(handbook, a_png="", b_png="", c_docx="", LICENSE="x", empty_md=" \n", heading_txt="")
    (handbook / ".git").mkdir()
    (handbook / ".hidden.md").write_text("# secret")
    (handbook / "loop").symlink_to(handbook, target_is_directory=True)
    (handbook / "passwd.txt").symlink_to("/etc/passwd")
    os.mkfifo(handbook / "pipe.md")
    documents, errors = read(handbook)
    assert not errors
    assert len(documents) == 8
    [line] = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    expected = "2 .png, 2 hidden, 2 links, 1 .docx, 1 .md, 1 without an ending, 2 without text (empty.md, heading.txt)"
    assert sorted(line.partition("not read: ")[2].split(", ")) == sorted(expected.split(", "))


def test_files_that_cannot_be_read_are_one_line_each(handbook, monkeypatch):
    monkeypatch.setattr("embedfit.data.folders._LARGEST", 1000)
    written(
        handbook,
        latin_md=b"# Caf\xe9\n",
        zero_txt=b"a\0b",
        large_txt="x" * 1001,
        broken_pdf=b"%PDF-1.4 nothing",
    )
    documents, errors = read(handbook)
    assert len(documents) == 8
    broken, large, latin, zero = map(str, errors)
    assert re.search(r"broken\.pdf: is a PDF that cannot be read \(.+\)$", broken)
    assert large.endswith("large.txt: has 0 MiB; expected at most 0; fix: divide it, or move it")
    assert "latin.md:1: is not UTF-8 (byte 0xe9 at column 6); expected UTF-8; fix: set encoding = " in latin
    assert "Café" in [document.title for document in read(handbook, replace(CUTTING, encoding="cp1252"))[0].values()]
    assert zero.endswith("zero.txt: has zero bytes; expected text")
    with pytest.raises(DataError, match=r"broken\.pdf: .* \(and 3 more; 'embedfit check' lists them\)"):
        load(write_queries(handbook), handbook, cutting=CUTTING)


def write_queries(folder):
    path = folder.parent / "queries.jsonl"
    path.write_text('{"query": "ill", "expected": "leave.md#sick-leave"}\n')
    return path


def test_a_byte_order_mark_line_ends_and_the_encoding_that_html_names_are_understood(tmp_path):
    written(
        tmp_path,
        a_md="# Ä\r\n\r\nOne.\r\n".encode("utf-8-sig"),
        b_md="# B\n\nÜber.".encode("utf-16"),
        c_html='<meta charset="iso-8859-1"><p>Caf\u00e9 \u20ac'.encode("cp1252"),
    )
    documents, errors = read(tmp_path)
    assert not errors
    assert [(document.title, document.text) for document in documents.values()] == [("Ä", "One."), ("B", "Über."), ("c", "Café €")]


def test_pdfs_are_read_with_their_pages(tmp_path):
    documents, errors = read(written(tmp_path, two_pdf=pdf_of("Leave is 28 days.", "Call before ten. " * 30)), Cutting(words, 48, 4))
    assert not errors
    pages = [document.metadata["page"] for document in documents.values()]
    assert pages[0] == 1
    assert pages[-1] == 2
    assert "28 days" in next(iter(documents.values())).text


def test_a_scan_has_no_text_and_pdfs_need_their_extra(tmp_path, capsys, monkeypatch):
    written(tmp_path, scan_pdf=pdf_of(""), a_txt="One.")
    assert len(read(tmp_path)[0]) == 1
    assert "1 without text (scan.pdf)" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    with pytest.raises(EmbedfitError, match=r"pypdf .*; fix: pip install 'embedfit\[pdf\]'"):
        read(tmp_path)


def test_a_folder_without_documents_and_an_overlap_without_room_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no documents; expected files that end in \.md, .*\.pdf"):
        read(tmp_path)
    with pytest.raises(ConfigError, match=r"passage_overlap is 200; expected at most half of passage_tokens, which is 256"):
        Cutting(words, 256, 200)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["# a", "## b ##", "#no", "c", "d", "===", "---", "", "```", "~~~", "- e", "> f", "    g", "####### h", " # i", "```x`", "1. j"]
        ),
        max_size=12,
    )
)
def test_headings_are_those_of_commonmark(lines):
    tokens = MarkdownIt().parse("\n".join(lines))
    theirs = [
        (int(token.tag[1]), tokens[place + 1].content)
        for place, token in enumerate(tokens)
        if token.type == "heading_open" and not token.level
    ]
    ours = [(level, " ".join(text.split())) for level, text in _markdown_lines("\n".join(lines)) if level]
    assert ours == [(level, " ".join(text.split())) for level, text in theirs]


def test_markup_of_headings_and_pages_without_structure():
    assert read_markdown("# `run` and [**see**](x.md) {#id}\n\ntext").title == "run and see"
    assert read_markdown("## Only this\n").sections[0].text == "Only this"
    assert read_markdown("---\nno front matter\n").sections[0].text == "---\nno front matter"
    assert [part.headings for part in read_markdown("# A\nx\n# B\ny\n## C\nz").sections] == [(), ("B",), ("B", "C")]
    assert read_html("just text").sections[0].text == "just text"
    assert read_html("<div>" * 20_000 + "deep").sections[0].text == "deep"
    assert read_html("").sections == []


def test_the_docs_of_this_repository_are_read():
    documents, errors = read(Path(__file__).parents[2] / "docs", Cutting())
    assert not errors
    assert len(documents) > 100
    assert any(document.title == "Fine-tuning" or document.title.startswith("Fine-tuning >") for document in documents.values())
