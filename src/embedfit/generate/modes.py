"""How a model is asked for a JSON object, in each mode, and how it is asked again."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from embedfit.generate.answers import completion_of
from embedfit.generate.ledger import Line


def _mode(name: str) -> Any:
    import instructor

    return {"json_schema": instructor.Mode.JSON_SCHEMA, "tools": instructor.Mode.TOOLS, "json": instructor.Mode.JSON}[name]


def asking_for(model: type[BaseModel], mode: str, prompt: str) -> tuple[Any, dict[str, Any]]:
    """Return the model that checks a reply, and the part of a request body that asks for an object of its schema."""
    from instructor.processing.response import handle_response_model

    prepared: tuple[Any, dict[str, Any]] = handle_response_model(model, _mode(mode), messages=[{"role": "user", "content": prompt}])
    return prepared


def asking_again(messages: list[Any], mode: str, reply: Line, why: str) -> list[Any]:
    """Return the messages that show a model its reply and what is wrong with it."""
    from instructor.processing.response import handle_reask_kwargs

    asked: list[Any] = handle_reask_kwargs({"messages": messages}, _mode(mode), completion_of(reply), ValueError(why))["messages"]
    return asked
