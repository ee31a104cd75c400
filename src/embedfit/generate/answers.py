"""From a model's reply to a checked object."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from embedfit.errors import shown
from embedfit.generate.tasks import Rejected


def choice_schema(options: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON Schema of a choice among options."""
    return {
        "title": "Choice",
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(options)}},
        "required": ["choice"],
        "additionalProperties": False,
    }


def chosen(options: tuple[str, ...]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return a function that checks a choice. It raises a ValueError for anything but one of the options."""

    def validate(row: Mapping[str, Any]) -> dict[str, Any]:
        if row.get("choice") not in options:
            raise ValueError(f"choice is {shown(row.get('choice'))}, which is none of the options")
        return {"choice": row["choice"]}

    return validate


def answer_of(message: Mapping[str, Any], tool: str = "") -> dict[str, Any]:
    """Return the JSON object in a message: in a tool call or in the text, whatever the model puts around it.

    Args:
        message: Message of a completion.
        tool: Name of the tool that the model was given. Some models write a call of it as text.

    Raises:
        Rejected: The message holds no object, or different ones.
    """
    texts = [text for text in (*_arguments(message), text_of(message.get("content"))) if text]
    problem = Rejected("invalid", "Invalid JSON: the reply is empty")
    if not texts:
        texts = [text for key in _THOUGHTS if _is_object(text := message.get(key))][:1]
    for text in texts:
        if isinstance(text, dict):
            return _called(text, tool)
        try:
            return _called(_strict(text), tool)
        except ValueError as error:
            problem = Rejected("invalid", f"Invalid JSON: {error}")
    for text in texts:
        objects = _objects(str(text))
        if len(objects) > 1:  # some repeat the schema before they answer
            objects = [row for row in objects if not _is_schema(row)] or objects
        try:
            objects = _distinct(_called(row, tool, marked=bool(_WRITTEN_CALL.search(str(text)))) for row in objects)
        except ValueError as error:
            raise Rejected("invalid", f"Invalid JSON: {error}") from None
        if len(objects) > 1:
            raise Rejected("invalid", "Invalid JSON: there are two different objects; answer with one")
        if objects:
            return objects[0]
    raise problem


_THOUGHTS = ("reasoning_content", "reasoning")
"""Fields in which some servers put a whole answer while the content is empty."""


def _is_object(text: Any) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(text, str) and bool(_strict(text))
    return False


def _distinct(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    distinct: list[dict[str, Any]] = []
    for row in rows:
        if row not in distinct:
            distinct.append(row)
    return distinct


def _is_schema(row: Any) -> bool:
    """Return whether an object is a JSON Schema rather than an instance of one."""
    return isinstance(row.get("properties"), dict) and (row.get("type") == "object" or "$schema" in row or "$defs" in row)


_WRITTEN_CALL = re.compile(r"<\|?(?:tool|function)_?calls?\b[^>]*>|\[TOOL_CALLS?\]|<function[=>]", re.IGNORECASE)
"""Marks before a tool call that a model writes as text and its server does not parse."""


def _called(row: dict[str, Any], tool: str, *, marked: bool = False) -> dict[str, Any]:
    """Return the arguments of a tool call that is written as an object; any other object unchanged.

    Raises:
        ValueError: The arguments are not an object.
    """
    arguments = row.get("arguments", row.get("parameters"))
    if not (marked or (tool and row.get("name") == tool)) or not row.keys() <= {"name", "type", "id", "arguments", "parameters"}:
        return row
    if isinstance(arguments, str):
        return _strict(arguments)
    return arguments if isinstance(arguments, dict) else row


def _arguments(message: Mapping[str, Any]) -> list[Any]:
    """Return the arguments of a message's tool calls: JSON, or the object itself."""
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    functions = functions or [message.get("function_call")]
    distinct: list[Any] = []
    for function in functions:
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, (str, dict)) and arguments not in distinct:
            distinct.append(arguments)
    if len(distinct) > 1:
        raise Rejected("invalid", "Invalid JSON: there are two different tool calls; answer with one")
    return distinct


def text_of(content: Any) -> Any:
    """Return the text of a message's content: a string, or the text parts of a list. An object in its place is returned as it is."""
    if isinstance(content, dict) and "text" not in content:
        return content
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, dict) and str(part.get("type") or "text") in ("text", "output_text"):
            part = part.get("text")
            part = part.get("value") if isinstance(part, dict) else part
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts).strip().removeprefix("\ufeff")


def refusal_of(message: Mapping[str, Any]) -> str:
    """Return the words with which a model refuses to answer; empty if it does not refuse."""
    content = message.get("content")
    parts = [message, *(part for part in content if isinstance(part, dict))] if isinstance(content, list) else [message]
    return next((part["refusal"] for part in parts if isinstance(part.get("refusal"), str) and part["refusal"]), "")


REFUSALS = ("content_filter", "content_filtered", "safety", "prohibited_content", "blocklist", "recitation", "spii", "refusal")
CUT_OFF = ("length", "max_tokens", "model_length", "max_output_tokens")
"""Finish reasons of OpenAI and of other services with the same API."""
_TAG = r"(?:\w+:)?(?:ant)?(?:think|thinking|thoughts?|reasoning|analysis|reflection|scratchpad)"
_LANDMARK = re.compile(
    rf"(?P<end></{_TAG}>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>|<\|channel\|>\s*final\b.*?<\|message\|>)"
    rf"|(?P<start><{_TAG}>|◁think▷|\[THINK\]|<\|begin_of_thought\|>|<\|channel\|>)|\{{",
    re.IGNORECASE | re.DOTALL,
)
"""Start and end of a model's thoughts, in the marks of several models, and the start of an object."""

_OPENINGS = re.compile(r"(?:[\[{]\s*(?:\"[^\"]*\"\s*:\s*)?)*+")
"""Objects and lists that begin in each other."""


def _strict(text: str) -> dict[str, Any]:
    """Return the object that a whole text is.

    Raises:
        ValueError: The text is not exactly one JSON object.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_object)
        if isinstance(value, str):  # some servers encode twice
            value = json.loads(value, parse_constant=_no_constant, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, seen {shown(value)}")
    return value


def _objects(text: str) -> list[dict[str, Any]]:
    """Return the distinct objects in a text, outside of the model's thoughts; none if one of them is broken."""
    decoder = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_object, strict=False)
    objects: list[Any] = []
    before: list[Any] | None = None  # the objects before the thoughts, while in them
    place = 0
    while landmark := _LANDMARK.search(text, place):
        place = landmark.end()
        if landmark["end"]:  # some templates swallow the start
            objects, before = before or [], None
        elif landmark["start"]:
            before = list(objects) if before is None else before
        else:
            try:
                value, place = decoder.raw_decode(text, landmark.start())
            except (ValueError, RecursionError) as error:
                if re.match(r"\s*[\"'{}]", text[place : place + 200]):  # a broken object: its parts are no answer
                    objects.append(None)
                if isinstance(error, RecursionError):  # what is nested too deep is not read again from each of its levels
                    place = max(place, _OPENINGS.match(text, landmark.start()).end())  # type: ignore[union-attr]
            else:
                if value not in objects:
                    objects.append(value)
    objects = objects if before is None else before
    return [] if None in objects else objects


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in pairs:
        if name in row and row[name] != value:
            raise ValueError(f"the key {shown(name)} stands there twice")
        row[name] = value
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
