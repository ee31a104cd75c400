"""Values of one cell: an id, a text, a list, a grade."""

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
from typing import Any, cast

from embedfit.data.texts import Row
from embedfit.errors import DataError, did_you_mean, shown
from embedfit.files import json_bytes


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


def read_id(row: Row, where: str, column: str = "") -> str:
    """Return a row's id, or an empty text if it has none. By default it stands under ``id`` or ``_id``."""
    value = row.get(column) if column else row.get("id", row.get("_id"))
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
    """Return a value as JSON would have it: numpy scalars and arrays as Python values, tuples and sets as lists, pandas' NA as None."""
    if type(value).__name__ in {"NAType", "NaTType"}:
        return None
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


def read_title(row: Row, where: str, column: str = "title") -> str:
    """Return a row's title, or an empty text if it has none."""
    title = row.get(column)
    if title is None or title == "":
        return ""
    if id_of(title) is None and not isinstance(title, str):
        raise DataError(where, f"key {column!r} is {shown(title)}", expected="a text")
    return str(whole_number(title))


def read_grade(value: Any, *, negative: bool = False) -> int:
    """Return a grade from a number or its text.

    Args:
        value: Cell.
        negative: Whether a grade may be below 0. TREC's judges grade so what is not relevant, and it is read as 0.

    Raises:
        ValueError: The value is not a whole number of 0 or more.
    """
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+(\.0*)?\s*", value):
        value = int(value.partition(".")[0])
    value = whole_number(value)
    if not isinstance(value, int) or isinstance(value, bool) or not (-(2**31) if negative else 0) <= value < 2**31:
        raise ValueError
    return max(value, 0)


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


def listed(text: str) -> Any:
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


def without_point(id: str) -> str:
    """Return the whole number in a text such as ``1.0``, or an empty string for any other text."""
    match = re.fullmatch(r"(-?\d+)\.0+", id)
    return match[1] if match else ""
