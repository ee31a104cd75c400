"""Values of one cell: an id, a text, labels, grades."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from embedfit.data.texts import Document, Row
from embedfit.errors import DataError, did_you_mean, shown
from embedfit.files import json_bytes

GRADE_COLUMNS = (
    *("grade", "relevance", "relevance_grade", "relevance_score", "relevance_label", "relevance_judgement", "relevance_judgment"),
    *(
        "graded_relevance",
        "relevant",
        "is_relevant",
        "relevancy",
        "relevancy_score",
        "rel",
        "qrel",
        "qrels",
        "judgement",
        "judgment",
        "score",
    ),
)
"""Names of a grade column. If several are present, the first in this list is used."""
PERHAPS_GRADES = (
    *("rating", "gold", "gold_score", "gold_label", "label", "target", "correct", "is_correct", "match", "is_match"),
    *("positive", "is_positive", "is_duplicate", "duplicate", "is_answer"),
)
"""Names of a column that is a grade column if its values are grades. ``label`` and ``target`` may also hold class numbers."""
GRADE_OF_WORD = {"true": 1, "false": 0, "relevant": 1, "irrelevant": 0, "nonrelevant": 0, "notrelevant": 0}
SEPARATORS = (";", "|", "\n", "\t", "\uff1b", "\uff5c", "\u3001", "\uff0c", ",")
"""Separators of several labels in one cell, also in Chinese and Japanese. A comma is part of many names, so it comes last."""
_SIGNS = ("/", "+", "&", ">", "\u2022", "\u00b7", " - ", " \u2013 ", " \u2014 ", " and ")
"""Separators that are usually part of a name. They count only if the labels beside them are known."""
_ANY_SEPARATOR = re.compile("|".join(map(re.escape, (*SEPARATORS, *_SIGNS))))


def spelling(name: Any) -> str:
    """Return a column name for comparison: in lower case, without white space, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", str(name)).casefold()


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; a ValueError if it repeats a key or holds half a character."""
    value = json.loads(text, object_pairs_hook=_with_distinct_keys)
    if "\\u" in text:  # a lone surrogate, which no tokenizer and no file accepts, is a ValueError
        json_bytes(value)
    return value


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"key {name!r} stands twice in an object")
    return row


def read_id(row: Row, where: str) -> str:
    """Return a row's id, or an empty text if it has none."""
    value = row.get("id", row.get("_id"))
    if value is None:
        return ""
    id = id_of(value)
    if id is None:
        raise DataError(where, f"id is {shown(value)}", expected="a text or a whole number")
    return id


def id_of(value: Any) -> str | None:
    """Return an id as text, or None if the value cannot be an id. 1.0 is the id "1", since pandas turns whole numbers into floats."""
    value = whole_number(value)
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip() else None


def whole_number(value: Any) -> Any:
    """Return a whole float as an int, and any other value unchanged. Beyond 2^53 a float may stand for several whole numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value


def plain(value: Any) -> Any:
    """Return a value as JSON would have it: numpy scalars and arrays as Python values, tuples and sets as lists."""
    if hasattr(value, "tolist"):  # numpy, pandas, torch
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=str)
    return value


def read_text(row: Row, key: str, where: str) -> str:
    """Return a row's text under a key; a DataError if the key is missing or the text empty."""
    if key not in row:
        hint = did_you_mean(key, row)
        raise DataError(where, f"key {key!r} is missing (keys: {', '.join(map(str, row))}){hint}")
    if not isinstance(row[key], str) or not row[key].strip():
        raise DataError(where, f"key {key!r} is {shown(row[key])}", expected="a text that is not empty")
    return str(row[key])


def read_title(row: Row, where: str) -> str:
    """Return a row's title, or an empty text if it has none."""
    title = row.get("title")
    if title is None or title == "":
        return ""
    if id_of(title) is None and not isinstance(title, str):
        raise DataError(where, f"key 'title' is {shown(title)}", expected="a text")
    return str(whole_number(title))


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that hold queries, labels and grades.

    Attributes:
        query: Column of the query text.
        label: Column of the labels.
        grade: Column of the grades. None to look for one by its name, an empty string for none.
        separator: Separator of several labels in one cell, or None.
        by_name: Whether the grade column was chosen by its name.
        in_memory: Whether rows come from Python objects and not from a file, so that messages name arguments and not settings.
    """

    query: str
    label: str
    grade: str | None = None
    separator: str | None = None
    by_name: bool = False
    in_memory: bool = False

    def setting(self, name: str, value: str) -> str:
        """Return the advice to give an option a value: as an argument, or in embedfit.toml."""
        text = json.dumps(value, ensure_ascii=False)
        return f"pass {name}={text}" if self.in_memory else f"set {name} = {text} in [data]"


def read_labels(row: Row, columns: Columns, corpus: Mapping[str, Document], where: str) -> tuple[list[Any] | dict[Any, Any], str]:
    """Return the labels of a row as a list or as {label: grade}, and the cell's text if it is a single label."""
    label, separator = columns.label, columns.separator
    if label not in row:
        raise DataError(where, f"key {label!r} is missing (keys: {', '.join(map(str, row))}){did_you_mean(label, row)}")
    value = row[label]
    if isinstance(value, str) and value not in corpus:
        try:
            value = _listed(value)
        except ValueError:
            fix = 'write a JSON list, like ["a", "b"]'
            raise DataError(where, f"key {label!r} is {shown(value)}, which looks like a list but is none", fix=fix) from None
    if isinstance(value, (list, dict)):
        return value, ""
    if not isinstance(value, str):
        return [value], ""
    if separator is None or (value in corpus and not all(part in corpus for part in _parts(value, separator))):
        return [value], value.strip()
    return list(_parts(value, separator)), ""


def read_grades(
    row: Row, labels: list[Any] | dict[Any, Any], columns: Columns, corpus: Mapping[str, Document], where: str
) -> dict[str, int]:
    """Return {document id: grade} for the labels of a row.

    Args:
        row: Row of named cells.
        labels: Labels of the row, as a list or as {label: grade}.
        columns: Names of the columns, with the grade column resolved.
        corpus: Documents by id. Empty if the labels become documents.
        where: Place of the row, for messages.
    """
    label, column = columns.label, columns.grade
    grade: Any = 1
    if column and not isinstance(labels, dict):
        if column not in row:
            raise DataError(where, f"key {column!r} is missing (keys: {', '.join(map(str, row))})", expected="a grade in each row")
        grade = row[column]
    elif column in row and not columns.by_name:
        raise DataError(where, f"has grades in both {label!r} and {column!r}", fix="leave one of them out")
    grades: dict[str, int] = {}
    for document, own in labels.items() if isinstance(labels, dict) else ((document, grade) for document in labels):
        id = id_of(document)
        if id is None:
            raise DataError(where, f"key {label!r} is {shown(row[label])}", expected="a document id, a list of them, or {id: grade}")
        id = id if id in corpus else id.strip()
        try:
            if isinstance(labels, dict) and isinstance(own, str):
                raise ValueError
            value = read_grade(own if isinstance(labels, dict) else GRADE_OF_WORD.get(spelling(own), own))
        except ValueError:
            guessed = column and columns.by_name and not isinstance(labels, dict)
            fix = f"{columns.setting('grade', '')} if {column!r} holds no grades, else write 1 for right and 0 for wrong" if guessed else ""
            raise DataError(where, f"grade {shown(own)}", expected="a whole number, 0 or more", fix=fix) from None
        if grades.setdefault(id, value) != value:
            raise DataError(where, f"grade of {shown(id)} is {grades[id]} and {value}", expected="one grade for each document")
    if not grades and not isinstance(labels, dict):
        raise DataError(where, f"key {label!r} is {shown(row[label])}", expected="a document id, a list of them, or {id: grade}")
    return grades


def read_grade(value: Any) -> int:
    """Return a grade from a number or its text.

    Raises:
        ValueError: The value is not a whole number of 0 or more.
    """
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.0*)?\s*", value):
        value = int(value.partition(".")[0])
    value = whole_number(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError
    return value


_CONTAINERS = ("array", "list", "set", "frozenset", "tuple", "deque", "dict", "OrderedDict", "Counter", "Index", "Series")
_SCALARS = ("str_", "int64", "int32", "float64", "float32")
_CONSTRUCTED = re.compile(rf"""(?:\w+\.)?(?:{"|".join(_CONTAINERS)}|defaultdict)\(\s*([\[{{("'<)]?)""")


class _Literals(ast.NodeTransformer):
    """Replaces a constructor call by its argument, as in ``array(['a'], dtype=object)``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in (*_CONTAINERS, *_SCALARS) and len(node.args) == 1 and all(keyword.arg == "dtype" for keyword in node.keywords):
            return cast(ast.AST, self.visit(node.args[0]))
        return node


def _listed(text: str) -> Any:
    """Return the list or dict that a text holds in JSON or in Python, as pandas writes it, else the text.

    Raises:
        ValueError: The text looks like a list, but cannot be parsed.
    """
    cell = text.strip()
    constructed = _CONSTRUCTED.match(cell)
    if cell[:1] not in ("[", "{", "(") and not constructed:
        return text
    for parse in (parse_json, _python_list):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
            value = parse(cell)
            if isinstance(value, (list, dict)):
                return value
    if constructed and constructed[1]:
        raise ValueError(cell)
    items = re.split(r"[\s,;]+", cell[1:-1].strip())
    numbers = all(re.fullmatch(r"[-+]?\d[\d.eE+-]*|nan|none|null|nat|<na>|true|false", item.casefold()) for item in items)
    if re.search(r"""^[\[{]\s*(\w+\.\w+\()?["']|["']\s*[\]}]$""", cell) or (numbers and cell[-1] in "]}"):
        raise ValueError(cell)
    return text


def _python_list(text: str) -> Any:
    """Return a literal of Python, with sets and tuples as lists.

    Raises:
        ValueError: Two strings are adjacent, as in ``['a' 'b']``, which numpy writes and Python joins; or a key occurs twice.
        SyntaxError: The text is not a literal.
    """
    with warnings.catch_warnings(action="ignore"):
        tree = _Literals().visit(ast.parse(text, mode="eval").body)
    value = ast.literal_eval(tree)
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.NL]
    if (tokenize.STRING, tokenize.STRING) in itertools.pairwise(kinds) or (isinstance(tree, ast.Dict) and len(tree.keys) != len(value)):
        raise ValueError(text)
    if isinstance(value, set):
        return sorted(value, key=str)
    return list(value) if isinstance(value, tuple) else value


def _parts(cell: str, separator: str) -> list[str]:
    """Return the parts of a cell between its separators, without the brackets of an unquoted list."""
    inside = cell.strip()
    if inside[:1] == "[" and inside[-1:] == "]":
        inside = inside[1:-1]
    return [part.strip() for part in inside.split(separator) if part.strip()]


def joined_by(cell: str, known: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the separator of a cell and its labels, if more than half of them are known; else no labels.

    The separator is an empty string if the labels have different separators.
    """
    splits = [(separator, _parts(cell, separator)) for separator in (*SEPARATORS, *_SIGNS) if separator in cell]
    splits.append(("", _parts(_ANY_SEPARATOR.sub(";", cell), ";")))
    likely = []
    for separator, parts in splits:
        if separator not in SEPARATORS:  # a path may repeat a name: Travel / Travel
            parts = list(dict.fromkeys(parts))
        share = sum(part in known for part in parts)
        if len(parts) > 1 and 2 * share > len(parts):
            likely.append(((share == len(parts), share), separator, parts))
    _, separator, parts = max(likely, key=lambda split: split[0], default=(None, "", []))
    return separator, parts


def without_point(id: str) -> str:
    """Return the whole number in a text such as ``1.0``, or an empty string for any other text."""
    match = re.fullmatch(r"(-?\d+)\.0+", id)
    return match[1] if match else ""
