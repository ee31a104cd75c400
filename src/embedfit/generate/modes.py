"""Requests for a JSON object in each mode, and the repeated request after a rejected reply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from embedfit.generate.answers import text_of


def request_parts(mode: str, name: str, schema: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """Return the part of a chat completion's body that asks for an object.

    Args:
        mode: ``json_schema`` (structured output), ``tools`` (a forced tool call) or ``json`` (JSON mode, with the schema in the prompt).
        name: Name of the schema or the tool: letters, digits and underscores.
        schema: JSON Schema of the object.
        prompt: Text of the request.
    """
    messages = [{"role": "user", "content": prompt}]
    schema = {"title": name, **schema}
    if mode == "json_schema":
        return {"messages": messages, "response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}}
    if mode == "tools":
        about = {"description": schema["description"]} if schema.get("description") else {}
        parameters = {key: value for key, value in schema.items() if key not in ("title", "description")}
        function = {"name": name, **about, "parameters": {**parameters, "required": sorted(schema.get("required", []))}}
        choice = {"type": "function", "function": {"name": name}}
        return {"messages": messages, "tools": [{"type": "function", "function": function}], "tool_choice": choice}
    system = f"Answer with one JSON object that is valid against this JSON Schema, and do not repeat the schema:\n\n{_dumped(schema)}"
    return {"messages": [{"role": "system", "content": system}, *messages], "response_format": {"type": "json_object"}}


def correction(mode: str, message: Mapping[str, Any], why: str) -> list[dict[str, Any]]:
    """Return the messages that show a model its reply and what is wrong with it.

    Args:
        mode: Mode of the request, as in `request_parts`.
        message: The reply. Tool calls of the usual form are shown; of any other reply the text alone.
        why: Error in the reply.
    """
    problem = f"Correct your JSON ONLY RESPONSE, based on the following errors:\n{why}"
    if mode == "tools":
        problem = f"Validation Error found:\n{why}\nRecall the function correctly, fix the errors"
    content = text_of(message.get("content"))
    reply: dict[str, Any] = {"role": "assistant", "content": content if isinstance(content, str) else _dumped(content)}
    calls = message.get("tool_calls")
    if not (isinstance(calls, list) and calls and all(map(_is_call, calls))):
        return [reply, {"role": "user", "content": problem}]
    # A tool call has to be answered by a message of its own, whatever the mode.
    answers = [{"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": problem} for call in calls]
    return [{**reply, "tool_calls": [{**call, "type": "function"} for call in calls]}, *answers]


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return isinstance(function, dict) and all(
        isinstance(text, str) for text in (call.get("id"), function.get("name"), function.get("arguments"))
    )


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
