import re
from pathlib import Path

import pytest
from written import CLASS_ROWS, DOCUMENTS, FORMATS, QRELS, QUERIES

from embedfit.data.dataset import Dataset, Query
from embedfit.data.load import load
from embedfit.data.write import write_jsonl

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
RIGHT = {id: {document: 1 for document, grade in grades.items() if grade} for id, grades in QRELS.items()}
BY_PLACE = dict(zip(QUERIES, ("q1", "q2"), strict=True))


def renamed(qrels, queries=lambda id: id, documents=lambda id: id):
    return {queries(id): {documents(document): grade for document, grade in grades.items()} for id, grades in qrels.items()}


def expected(holds):
    """Return the data set that a format must give, after what it can hold."""
    if holds.startswith("classes"):
        ids = [f"q{place}" if "no ids" in holds else str(place) for place in (1, 2, 3)]
        qrels = {id: {row["label"]: 1} for id, row in zip(ids, CLASS_ROWS, strict=True)}
        return {id: row["text"] for id, row in zip(ids, CLASS_ROWS, strict=True)}, {"cards": "cards", "pins": "pins"}, qrels
    qrels = RIGHT if "right" in holds else QRELS
    by_place = "texts" in holds or "no query ids" in holds
    qrels = renamed(qrels, BY_PLACE.get if by_place else str, DOCUMENTS.get if "texts" in holds else str)
    judged = {document for grades in qrels.values() for document in grades}
    corpus = {text: text for text in DOCUMENTS.values() if text in judged} if "texts" in holds else DOCUMENTS
    return {BY_PLACE[id] if by_place else id: text for id, text in QUERIES.items()}, corpus, qrels


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_gives_the_same_data_set_as_every_other_that_can_hold_it(tmp_path, name):
    holds, write = FORMATS[name]
    data = load(*write(tmp_path))
    queries, corpus, qrels = expected(holds)
    if "ids" not in holds or "no" in holds:  # then the ids of queries are the tool's own, or the numbers of rows
        ids = dict(zip(queries, data.queries, strict=True))
        queries, qrels = {ids[id]: text for id, text in queries.items()}, renamed(qrels, ids.get)
    kept = {id: Query(id, text, data.queries[id].metadata if name in WITH_METADATA else {}) for id, text in queries.items()}
    assert data == Dataset(kept, corpus, qrels)
    assert data.digest() == Dataset(kept, corpus, qrels).digest()
    write_jsonl(data, tmp_path / "again")
    assert load(tmp_path / "again" / "queries.jsonl", tmp_path / "again" / "documents.jsonl").digest() == data.digest()


WITH_METADATA = ("DPR", "MS MARCO, questions")
"""Formats whose rows have further keys."""


def test_the_table_of_the_docs_has_a_row_for_each_format():
    rows = re.findall(r"^\| ([^|]+) \| [^|]* \| .* \| [^|]* \|$", DOCS.read_text().partition("## Formats")[2].partition("\n## ")[0], re.M)
    names = [row.strip() for row in rows if row.strip() not in ("format", "---")]
    assert [name for name in names if name not in RANKINGS] == list(FORMATS)
    assert set(RANKINGS) <= set(names)


RANKINGS = ("TREC run",)
"""Formats that hold no judgements; tests/retrieve/test_retrievers.py reads them."""
