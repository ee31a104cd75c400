"""Columns of labelled rows and of documents: which one holds what, by settings or by common names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from embedfit.data.cells import spelling, whole_number
from embedfit.data.likeness import likeness
from embedfit.data.texts import Row
from embedfit.errors import shown

GRADE_COLUMNS = (
    *("grade", "relevance", "relevance_grade", "relevance_score", "relevance_label", "relevance_judgement", "relevance_judgment"),
    *("graded_relevance", "relevant", "is_relevant", "relevancy", "relevancy_score", "rel", "qrel", "qrels", "esci_label"),
    *("judgement", "judgment", "score"),
)
"""Names of a grade column. If several are present, the first in this list is used."""
PERHAPS_GRADES = (
    *("rating", "gold", "gold_score", "gold_label", "label", "target", "correct", "is_correct", "match", "is_match"),
    *("positive", "is_positive", "is_duplicate", "duplicate", "is_answer", "clicked"),
)
"""Names of a column that is a grade column if its values are grades. ``label`` and ``target`` may also hold class numbers."""
GRADE_OF_WORD = {
    "true": 1,
    "false": 0,
    "relevant": 1,
    "irrelevant": 0,
    "nonrelevant": 0,
    "notrelevant": 0,
    "exact": 3,
    "substitute": 2,
    "complement": 1,
    "partial": 1,
}
"""Grade in words, as `spelling` spells it; the second line has those of ESCI and WANDS."""
GRADE_OF_LETTER = {"e": 3, "s": 2, "c": 1, "i": 0}
"""Grade in the letters of ESCI, in a column ``esci_label``."""
_OTHER_JUDGEMENTS = ("0", "1", "-1", "yes", "no", "positive", "negative", "correct", "incorrect", "match", "nomatch")
"""Values that may judge a document, but not always the label. As grades they are refused rather than interpreted."""

_SEARCHES = ("query", "question", "search_query", "query_text", "search_term", "search_text", "user_query", "user_question", "anchor")
_TEXTS = (
    *("text", "utterance", "sentence", "user_input", "instruction", "input", "input_text"),
    *("user_message", "message", "prompt", "request"),
    *("ticket_text", "ticket", "body", "description", "complaint", "comment", "review", "content", "subject", "title"),
)
_SPELT_SEARCHES = {spelling(name) for name in _SEARCHES}
QUERY_COLUMNS = (*_SEARCHES, *_TEXTS)
"""Names of a column of query texts, the likeliest first."""
_CLASSES = (
    *("label", "labels", "label_text", "label_name", "category", "categories", "category_name", "intent", "intents", "intent_name"),
    *("class", "class_name", "class_label", "topic", "topics", "tag", "tags", "department", "queue", "target"),
)
_DOCUMENT_IDS = (
    *("document_id", "documentid", "doc_id", "corpus_id", "passage_id", "pid", "docno", "article_id", "product_id", "answer_id", "faq_id"),
    *("relevant_docs", "relevant_documents", "relevant_ids", "relevant_doc_ids", "expected_ids", "expected_doc_ids", "gold_doc_ids"),
    *("document_ids", "doc_ids", "passage_ids", "positive_id", "positive_ids", "positive_doc_ids", "answer_ids", "gold_ids"),
)
_PASSAGES = (
    *(
        "positive",
        "positives",
        "relevant_passage",
        "relevant_passages",
        "document",
        "doc",
        "passage",
        "context",
        "contexts",
        "positive_passage",
        "corpus",
    ),
    *("document_text", "doc_text", "passage_text", "article", "answer", "answers", "reference", "response", "reply", "solution"),
    *("completion", "output"),
)
LABEL_COLUMNS = ("expected", *_CLASSES, *_DOCUMENT_IDS, *_PASSAGES)
"""Names of a column of labels. Ids and texts of documents come before classes where the query column is one of searches."""
ID_COLUMNS = ("id", "_id", "query_id", "qid", "question_id", "topic_id", "ticket_id", "record_id", "example_id", "uid", "uuid")
PART_COLUMNS = ("part", "split", "partition", "subset", "set")
PART_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "development", "validation", "valid", "val"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Name of a part, in lower case -> part of a data set."""
DOCUMENT_ID_COLUMNS = (
    *("id", "_id", "document_id", "doc_id", "corpus_id", "passage_id", "pid", "docno", "article_id", "product_id", "answer_id", "faq_id"),
    *("uid", "uuid", "key", "path", "file", "url"),
)
DOCUMENT_TEXT_COLUMNS = (
    *("text", "contents", "content", "body", "passage", "document", "page_content", "document_text", "doc_text", "passage_text", "segment"),
    *("answer", "description", "definition", "context", "article", "abstract"),
)
DOCUMENT_TITLE_COLUMNS = ("title", "headline", "heading", "document_title", "doc_title", "name")
_TEXTS_BESIDE_IDS = (
    *("document_text", "doc_text", "passage_text", "passage", "document", "context", "contents", "content", "page_content", "text"),
    *("positive", "answer"),
)
SURE_GRADES = {spelling(name) for name in GRADE_COLUMNS}
"""Names that only a column of grades has, as `spelling` spells them."""
KNOWN = {
    spelling(name)
    for names in (GRADE_COLUMNS, PERHAPS_GRADES, QUERY_COLUMNS, LABEL_COLUMNS, ID_COLUMNS, DOCUMENT_ID_COLUMNS, DOCUMENT_TEXT_COLUMNS)
    for name in names
}
"""Every name by which a column is known, as `spelling` spells it."""


_OPTIONS = ("query", "label")
"""Columns that have an option on the command line."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns.

    An empty name stands for one that is looked for among common names; None, for a column that is not used.

    Attributes:
        query: Column of the query text.
        label: Column of the labels.
        grade: Column of the grades. None to look for one by its name, an empty string for none.
        separator: Separator of several labels in one cell, or None.
        by_name: Whether the grade column was chosen by its name.
        in_memory: Whether rows come from Python objects and not from a file, so that messages name arguments and not settings.
        id: Column of the query's id.
        part: Column of the part.
        document_id: Column of a document's id.
        document_title: Column of a document's title.
        document_text: Column of a document's text.
        why: Reason for a choice that the names alone do not explain; empty for none.
    """

    query: str = ""
    label: str = ""
    grade: str | None = None
    separator: str | None = None
    by_name: bool = False
    in_memory: bool = False
    id: str = ""
    part: str = ""
    document_id: str = ""
    document_title: str = ""
    document_text: str = ""
    why: str = ""

    def setting(self, name: str, value: str) -> str:
        """Return the advice to give an option a value: as an argument, or in embedfit.toml or on the command line."""
        text = json.dumps(value, ensure_ascii=False)
        if self.in_memory:
            return f"pass {name}={text}"
        return f"set {name} = {text} in [data]" + (f" or pass --{name}" if name in _OPTIONS else "")

    def named(self, names: Mapping[str, str | None]) -> Columns:
        """Return the columns with names in place of those that are looked for. None leaves a column to be looked for."""
        changes: dict[str, Any] = {role: name for role, name in names.items() if name}
        return replace(self, **changes)

    @property
    def given(self) -> tuple[str, ...]:
        """The names that are not looked for."""
        names = (self.query, self.label, self.grade or "", self.id, self.part, self.document_id, self.document_title, self.document_text)
        return tuple(name for name in names if name)

    def read_as(self, before: Columns) -> str:
        """Return what was taken for what, where these columns were looked for and have not the names of the documentation."""
        default = {"query": ("query",), "label": ("expected",), "id": ("id", "_id"), "part": ("part",)}
        roles = ("query", "label", "id", "part", "document_id", "document_title", "document_text")
        taken = {role: getattr(self, role) for role in roles if getattr(self, role) and not getattr(before, role)}
        if not self.why and all(name in default.get(role, ()) for role, name in taken.items()):
            return ""
        return ", ".join(f"{role} = column {name!r}" for role, name in taken.items()) + (f"; {self.why}" if self.why else "")


ANY_COLUMNS = Columns()
"""Columns that are all looked for."""


class FurtherColumns(TypedDict, total=False):
    """Columns that the constructors of a data set take beside those of queries, labels and grades: the names of `Columns`."""

    id: str
    part: str
    document_id: str
    document_title: str
    document_text: str


def labelled_columns(rows: Sequence[Row], columns: Columns, *, with_documents: bool) -> Columns:
    """Return the columns of labelled rows, with those that are to be looked for.

    A column is looked for by its name. Of several that may hold the query, one of codes or of names that repeat comes after one of
    sentences.

    Args:
        rows: Rows, or the first of them.
        columns: Columns that are given.
        with_documents: Whether the documents stand apart, so that no column holds their texts.
    """
    names = dict.fromkeys(str(name) for row in rows for name in row)
    taken = set(columns.given)
    query, passed_over, why = (columns.query, "", "") if columns.query else _query_of(rows, names, taken)
    columns = replace(columns, why=why)
    taken.add(query)
    if not columns.id:
        guess = _first(names, ID_COLUMNS, taken)
        columns = replace(columns, id=guess if guess in ("id", "_id") or _is_id(rows, guess, query) else "")
        if not columns.id and passed_over and _is_id(rows, passed_over, query) and likeness(rows, passed_over).is_code:
            columns = replace(columns, id=passed_over)
        taken.add(columns.id)
    searches = spelling(query) in _SPELT_SEARCHES
    order = ("expected", *_DOCUMENT_IDS, *_PASSAGES, *_CLASSES) if searches else LABEL_COLUMNS
    label = columns.label or _label_of(rows, names, order, taken) or "expected"
    taken.add(label)
    part = columns.part or _first(names, PART_COLUMNS[:1], taken) or _part_of(rows, _first(names, PART_COLUMNS, taken))
    columns = replace(columns, query=query, label=label, part=part)
    beside_ids = label in names and spelling(label) in {spelling(name) for name in _DOCUMENT_IDS}
    if with_documents or not (beside_ids or columns.document_text):
        return columns
    taken |= {part, *([column] if (column := grade_column(rows, (query, label))) else [])}
    text = columns.document_text or _first(names, _TEXTS_BESIDE_IDS, taken)
    if not text:
        return columns
    title = columns.document_title or _first(names, DOCUMENT_TITLE_COLUMNS, {*taken, text})
    return replace(columns, document_id=columns.document_id or (label if label != text else ""), document_text=text, document_title=title)


def document_columns(rows: Sequence[Row], columns: Columns) -> Columns:
    """Return the columns of rows of documents, with those that are to be looked for."""
    names = dict.fromkeys(str(name) for row in rows for name in row)
    if tuple(names) in _NAMELESS and not columns.given:
        id, title, text = _NAMELESS[tuple(names)]
        return replace(columns, document_id=id, document_title=title, document_text=text)
    taken = {columns.document_id, columns.document_text, columns.document_title} - {""}
    id = columns.document_id or _first(names, DOCUMENT_ID_COLUMNS, taken) or "id"
    title = columns.document_title or _first(names, DOCUMENT_TITLE_COLUMNS[:1], {*taken, id})
    text = columns.document_text or _first(names, DOCUMENT_TEXT_COLUMNS, {*taken, id, title}) or "text"
    title = title or _first(names, DOCUMENT_TITLE_COLUMNS, {*taken, id, text})
    return replace(columns, document_id=id, document_text=text, document_title=title)


def names_passages(name: str) -> bool:
    """Return whether a name is common for a field with the text of a document that is judged."""
    return spelling(name) in {spelling(known) for known in (*_PASSAGES, "content", "contents", "page_content", "candidate")}


def names_document_ids(name: str) -> bool:
    """Return whether a name is common for a field with the id of a document."""
    return spelling(name) in {spelling(known) for known in (*_DOCUMENT_IDS, "docid")}


_NAMELESS = {("1", "2"): ("1", "", "2"), ("1", "2", "3"): ("1", "2", "3"), ("1", "2", "3", "4"): ("1", "3", "4")}
"""Columns of documents without a header -> those of id, title and text. MS MARCO has id and text, or id, URL, title and text."""


def _first(names: Iterable[str], wanted: Sequence[str], taken: Iterable[str]) -> str:
    """Return the column with the likeliest name, or an empty text."""
    spelt = {spelling(name): name for name in names if name not in taken}
    return next((spelt[spelling(name)] for name in wanted if spelling(name) in spelt), "")


def _query_of(rows: Sequence[Row], names: Iterable[str], taken: Iterable[str]) -> tuple[str, str, str]:
    """Return the query's column, a likelier name that was passed over for its values, and the reason; empty texts for none of these."""
    first = _first(names, QUERY_COLUMNS, taken)
    if not first:
        return "query", "", ""
    own, others, sure = likeness(rows, first), {*taken, first}, spelling(first) in _SPELT_SEARCHES
    if not (own.is_code or (own.is_name and not sure)):
        return first, "", ""
    why = f"column {first!r} holds {'codes' if own.is_code else 'names that repeat'}"
    while other := _first(names, _SEARCHES if sure else QUERY_COLUMNS, others):
        look = likeness(rows, other)
        if look.is_sentence or (own.is_code and look.is_text):
            return other, first, why
        others.add(other)
    sentences = [] if sure else [name for name in names if name not in taken and likeness(rows, name).is_sentence]
    unknown = [name for name in sentences if spelling(name) not in KNOWN]
    return (unknown[0], first, why) if own.is_code and unknown == sentences and len(unknown) == 1 else (first, "", "")


def _label_of(rows: Sequence[Row], names: Iterable[str], order: Sequence[str], taken: set[str]) -> str:
    """Return the label's column. Judgements, and class numbers beside their names, are not the label if another column may be."""
    first = _first(names, order, taken)
    other = _first(names, order, {*taken, first})
    values = [row[first] for row in rows if row.get(first) is not None]
    if not other or spelling(first) not in ("label", "target", "class", "positive", "labels"):
        return first
    numbers = bool(values) and all(re.fullmatch(r"-?\d+", str(whole_number(value))) for value in values)
    judged = spelling(first) in ("label", "target", "positive") and is_judgement(rows, first, numbers=False)
    named = spelling(other) in _CLASS_NAMES
    return other if judged or (numbers and named) else first


_CLASS_NAMES = ("labeltext", "labelname", "classname", "category", "intent", "categoryname", "intentname")
"""Columns that hold the names of classes, beside which a column ``label`` holds their numbers."""


def _is_id(rows: Sequence[Row], column: str, query: str) -> bool:
    """Return whether every value of a column belongs to a single query text."""
    texts: dict[str, Any] = {}
    for row in rows:
        if row.get(column) is not None and texts.setdefault(str(row[column]), row.get(query)) != row.get(query):
            return False
    return bool(texts)


def _part_of(rows: Sequence[Row], column: str) -> str:
    """Return a column if all its values name parts, else an empty text."""
    values = {str(row[column]).strip().casefold() for row in rows if row.get(column) is not None}
    return column if values and values <= PART_OF_WORD.keys() else ""


def other_parts(rows: Sequence[Row]) -> str:
    """Return the note on a column that names parts in some rows and something else in others, so that it was not read as the part."""
    for column in dict.fromkeys(str(name) for row in rows[:1] for name in row if spelling(name) in PART_COLUMNS):
        values = dict.fromkeys(str(row[column]) for row in rows if row.get(column) is not None)
        others = [value for value in values if value.strip().casefold() not in PART_OF_WORD]
        if others and len(others) < len(values) <= len(PART_OF_WORD):
            return f"column {column!r} is not read as the part, as {shown(others[0])} is none; expected train, dev or test"
    return ""


def grade_column(rows: Sequence[Row], taken: Sequence[str]) -> str:
    """Return the name of the column of grades, or an empty text if there is none."""
    names = dict.fromkeys(name for row in rows for name in row if name not in taken)
    spelt = {spelling(name): name for name in names}
    if not {spelling(name) for name in taken}.isdisjoint(_CLASS_NAMES):
        spelt = {name: column for name, column in spelt.items() if name not in ("label", "target")}
    for column in (spelt[spelling(name)] for name in GRADE_COLUMNS if spelling(name) in spelt):
        return str(column)
    for name in PERHAPS_GRADES:
        if spelling(name) in spelt:
            column = spelt[spelling(name)]
            if is_judgement(rows, column, numbers=name not in ("label", "target")):
                return str(column)
    return ""


def is_judgement(rows: Sequence[Row], column: str, *, numbers: bool) -> bool:
    """Return whether all values of a column are judgements, or, where ``numbers`` is set, numbers."""
    values = {_judgement(row[column]) for row in rows if row.get(column) is not None}
    judged = all(value in GRADE_OF_WORD or value in _OTHER_JUDGEMENTS for value in values)
    return bool(values) and (judged or (numbers and all(re.fullmatch(r"[-+]?\d+(\.\d*)?", value) for value in values)))


def _judgement(value: Any) -> str:
    """Return a cell as text, for comparison with the known judgements."""
    word = str(whole_number(value)).strip()
    return re.sub(r"(?<=\d)\.0*$", "", word) if re.match(r"[-+]?\d", word) else spelling(word)


def part_of(value: Any) -> str:
    """Return the part that a cell names; empty for an empty cell.

    Raises:
        ValueError: The cell names no part.
    """
    word = str(value).strip().casefold() if value is not None else ""
    if word and word not in PART_OF_WORD:
        raise ValueError(shown(value))
    return PART_OF_WORD.get(word, "")


def part_name(name: str) -> str:
    """Return the part that a file or a split is named after, such as ``dev`` for ``validation-00000-of-00002``; empty for none."""
    word = re.match(r"[a-z]*", name.casefold())
    return PART_OF_WORD.get(word[0], "") if word and re.fullmatch(r"[a-z]+([-_.\d].*)?", name.casefold()) else ""
