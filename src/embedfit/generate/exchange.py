"""The request for a place of the plan, and the record in its reply."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from embedfit.config import GenerateConfig
from embedfit.errors import shown
from embedfit.generate.answers import CUT_OFF, REFUSALS, answer_of, choice_schema, chosen, refusal_of
from embedfit.generate.endpoint import Request
from embedfit.generate.ledger import Line, digest
from embedfit.generate.modes import correction, request_parts
from embedfit.generate.plan import Turn
from embedfit.generate.tasks import Records, Rejected, Slot, Task, drawn

_PLACEHOLDER = "\0prompt\0"


@dataclass(frozen=True)
class _Form:
    """The part of a request's body, with a placeholder for the prompt, and the check of an answer."""

    name: str
    parts: dict[str, Any]
    validate: Callable[[Mapping[str, Any]], dict[str, Any]]


def start_of(task: Task, config: GenerateConfig) -> dict[str, Any]:
    """Return what all requests have in common, by which a ledger is known."""
    return {
        "kind": task.kind,
        **task.start(),
        "model": config.model,
        "mode": config.mode,
        "parameters": {"temperature": config.temperature, "max_tokens": config.max_tokens},
    }


class Exchange:
    """Makes requests and reads replies.

    Args:
        task: Writing task.
        config: Model, mode and parameters.
    """

    def __init__(self, task: Task, config: GenerateConfig) -> None:
        self.task, self.config = task, config
        self._identity = digest(start_of(task, config))
        self._form = functools.lru_cache(256)(self._new_form)

    def id(self, slot: Slot, attempt: int) -> str:
        """Return the id of a request, which depends on what is asked alone."""
        return digest([self._identity, slot.key, attempt])[:16]

    def request(self, slot: Slot, turn: Turn, id: str) -> Request:
        """Return the request for a place: the prompt, and after a rejected reply what was wrong with it."""
        prompt = self.task.prompt(slot, drawn(self._identity, slot.key))
        body = self._body(self.config.model, self._shape(slot.label), (), prompt, id, turn.room)
        if turn.reply and turn.why:
            body["messages"] += correction(self.config.mode, turn.reply["reply"]["choices"][0]["message"], turn.why)
        facts = {"kind": self.task.kind, "for": slot.label, "number": slot.number, "attempt": turn.attempt}
        return Request(id, body, facts)

    def choice_request(self, model: str, options: tuple[str, ...], prompt: str, id: str, facts: dict[str, Any]) -> Request:
        """Return a request for a choice among options."""
        return Request(id, self._body(model, None, options, prompt, id), facts)

    def record(self, reply: Line, slot: Slot) -> dict[str, Any]:
        """Return the record in a reply, checked against the schema.

        Raises:
            Rejected: The reply holds no valid record.
        """
        return self._parsed(reply, self._shape(slot.label), ())

    def choice(self, reply: Line, options: tuple[str, ...]) -> str:
        """Return the option that a reply chooses.

        Raises:
            Rejected: The reply chooses none.
        """
        return str(self._parsed(reply, None, options)["choice"])

    def _shape(self, label: str) -> str | None:
        """Return the label if the schema depends on it."""
        return label if isinstance(self.task, Records) else None

    def _body(self, model: str, label: str | None, options: tuple[str, ...], prompt: str, id: str, room: int = 1) -> dict[str, Any]:
        parts = self._form(label, options).parts
        prompt = prompt.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent
        messages = [{**message, "content": message["content"].replace(_PLACEHOLDER, prompt)} for message in parts["messages"]]
        body = {**parts, "model": model, "messages": messages, "max_tokens": self.config.max_tokens * room, "seed": drawn(id) % 2**31}
        if self.config.temperature is not None:
            body["temperature"] = self.config.temperature
        return body

    def _new_form(self, label: str | None, options: tuple[str, ...]) -> _Form:
        schema, validate = (choice_schema(options), chosen(options)) if options else (self.task.schema(label or ""), self.task.validate)
        name = re.sub(r"\W+", "_", str(schema.get("title") or "Record"))
        return _Form(name, request_parts(self.config.mode, name, schema, _PLACEHOLDER), validate)

    def _parsed(self, reply: Line, label: str | None, options: tuple[str, ...]) -> dict[str, Any]:
        choice = reply["reply"]["choices"][0]
        message, finish = choice["message"], str(choice.get("finish_reason") or "").lower()
        refusal = refusal_of(message)
        if refusal or finish in REFUSALS:
            raise Rejected("refused", shown(refusal or "content filter", 200))
        if finish in CUT_OFF:
            raise Rejected("cut off", f"after {reply['completion_tokens']} tokens")
        form = self._form(label, options)
        try:
            return form.validate(answer_of(message, form.name))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            text = first["msg"].removeprefix("Value error, ")
            raise Rejected("invalid", f"{where}: {text}" if where else text) from None
        except ValueError as error:
            raise Rejected("invalid", str(error)) from None
        except (AssertionError, TypeError, KeyError, AttributeError) as error:
            raise Rejected("invalid", shown(str(error), 200)) from None
