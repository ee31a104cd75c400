"""Rows about reading comprehension and answers with sources: SQuAD, MS MARCO's questions, Ragas."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embedfit.data.cells import read_text
from embedfit.data.library import Library
from embedfit.data.shapes.shape import Shape, each_row, id_in, rest_of, texts_of
from embedfit.data.texts import Pair, Row
from embedfit.errors import DataError, shown


def _fits_squad(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"context", "question", "answers"} <= keys


def _squad(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read a question about a context. Where it has no answer, the context is judged and not right."""
    answers = row.get("answers")
    texts = answers.get("text") if isinstance(answers, Mapping) else answers
    impossible = row.get("is_impossible") is True or (isinstance(texts, list) and not texts)
    title = str(row.get("title") or "")
    document = library.add(read_text(row, "context", where), title=title, where=where)
    text = read_text(row, "question", where).strip()
    yield Pair(where, number, text, {document: 0 if impossible else 1}, id_in(row, "id"))


def _articles(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read an article of SQuAD's own JSON, with paragraphs and their questions."""
    for place, paragraph in enumerate(row["paragraphs"] if isinstance(row["paragraphs"], list) else [row["paragraphs"]]):
        inside = f"{where}.paragraphs[{place}]"
        if not isinstance(paragraph, Mapping) or not isinstance(paragraph.get("qas"), list):
            raise DataError(inside, f"is {shown(paragraph)}", expected="a context and a list of questions (qas)")
        for index, question in enumerate(paragraph["qas"]):
            at = f"{inside}.qas[{index}]"
            if not isinstance(question, Mapping):
                raise DataError(at, f"is {shown(question)}", expected="a question")
            flat = {**question, "context": paragraph.get("context"), "title": row.get("title")}
            yield from _squad(at, number * 10_000 + index, flat, library)


def _fits_marco(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"query", "passages"} <= keys and all(isinstance(row.get("passages"), (Mapping, list)) for row in rows)


def _marco(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read a question of MS MARCO with its passages, of which some were selected for the answer."""
    passages = row["passages"]
    if isinstance(passages, Mapping):
        columns = [passages.get(name) for name in ("passage_text", "is_selected")]
        if not all(isinstance(column, list) for column in columns) or len(columns[0] or ()) != len(columns[1] or ()):
            raise DataError(where, f"key 'passages' is {shown(passages)}", expected="lists passage_text and is_selected of one length")
        pairs: list[tuple[Any, Any]] = list(zip(*columns, strict=True))  # type: ignore[arg-type]
    else:
        pairs = [(passage.get("passage_text"), passage.get("is_selected")) for passage in passages if isinstance(passage, Mapping)]
    grades: dict[str, int] = {}
    for text, selected in pairs:
        if not isinstance(text, str) or not text.strip() or selected not in (0, 1):
            raise DataError(where, f"has the passage {shown(text)}, selected {shown(selected)}", expected="a text, and 0 or 1")
        document = library.add(text, where=where)
        grades[document] = max(int(selected), grades.get(document, 0))
    metadata = rest_of(row, "query", "query_id", "passages", "answers", "wellFormedAnswers")
    yield Pair(where, number, read_text(row, "query", where), grades or None, id_in(row, "query_id"), "", metadata)


_HOP = re.compile(r"\s*<\d+-hop>\s*")
"""Mark that Ragas sets before the contexts of a question that needs several."""


def _question(keys: Mapping[str, Any] | frozenset[str]) -> str:
    return "user_input" if "user_input" in keys else "question"


def _contexts(row: Row, where: str = "") -> list[str]:
    key = "reference_contexts" if "reference_contexts" in row else "contexts"
    return [_HOP.sub("", text) for text in texts_of(row, key, where)]


def _fits_ragas(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"user_input", "reference_contexts"} <= keys or (
        {"question", "contexts"} <= keys and bool(keys & {"ground_truth", "ground_truths", "evolution_type"})
    )


def _ragas(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read a question of a Ragas test set. Its reference contexts are documents, or lie in one."""
    grades = dict.fromkeys((library.add(text, where=where) for text in _contexts(row, where)), 1)
    yield Pair(where, number, read_text(row, _question(row), where), grades or None)


def _ragas_passages(row: Row) -> list[str]:
    try:
        return _contexts(row)
    except DataError:
        return []


SHAPES = (
    Shape("SQuAD, articles", lambda keys, rows: "paragraphs" in keys, each_row(_articles, "paragraphs")),
    Shape("SQuAD", _fits_squad, each_row(_squad)),
    Shape("MS MARCO, questions", _fits_marco, each_row(_marco, "passages")),
    Shape("Ragas", _fits_ragas, each_row(_ragas), passages=_ragas_passages),
)
