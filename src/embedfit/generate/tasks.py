"""The two tasks for an LLM, with their checks: records for labels, and questions for passages.

A plan depends on the labels or passages, the seed and the counts alone, so that a continued run has the same plan. Prompts are Jinja
templates in ``templates/``. An undefined variable is an error.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from embedfit.data.dataset import Document, Row
from embedfit.data.records import RecordType
from embedfit.errors import ConfigError, shown
from embedfit.generate.ledger import digest
from embedfit.words import words_of

if TYPE_CHECKING:
    from jinja2 import Template

_EXAMPLES = 4
"""Number of real texts in a prompt."""
_QUOTED = 8
"""Number of consecutive words of the passage that make a question a quotation."""
_OPTIONS = 10
"""Number of passages among which the judge looks for the one that a question was written for."""
_OPTION_CHARACTERS = 600
STYLES = {
    "keywords": "a few keywords, no sentence",
    "question": "one full question",
    "situation": "one or two sentences that describe a situation or a problem, without a question",
}
PERSONAS = (
    "an expert in a hurry",
    "a beginner who lacks the right words",
    "somebody to whom this has just happened",
    "a careful person preparing a decision",
    "somebody who makes typing errors and writes no capitals",
    "somebody whose first language is another one",
)


@dataclass(frozen=True)
class Slot:
    """A place in the plan: one record or question to be written.

    Attributes:
        label: Label of the record, or id of the passage.
        number: Number among the places of the same label, starting at 1.
        key: JSON values that identify the place.
    """

    label: str
    number: int
    key: tuple[Any, ...]


class Rejected(Exception):
    """A reply cannot be used.

    Attributes:
        reason: Outcome for the statistics, such as ``invalid``.
        why: Error, in words for the model.
    """

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason, self.why = reason, why


class Task(Protocol):
    """The records or queries to write, and their checks."""

    @property
    def kind(self) -> str:
        """Kind of text to write: ``records`` or ``queries``."""

    @property
    def count(self) -> int:
        """Number of places in the plan."""

    def start(self) -> dict[str, Any]:
        """Return what all requests have in common, for the ledger."""

    def slot(self, position: int) -> Slot:
        """Return a place of the plan."""

    def prompt(self, slot: Slot, draw: int) -> str:
        """Return the prompt for a place. ``draw`` is a pseudo-random integer of the place."""

    def schema(self, label: str) -> dict[str, Any]:
        """Return the JSON Schema of an answer for a label."""

    def validate(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a validated row, or raise a ValueError that says what is wrong."""

    def check(self, slot: Slot, row: dict[str, Any]) -> str:
        """Return the text of a valid row, for comparison with other rows, or raise `Rejected`."""

    def output(self, slot: Slot, row: dict[str, Any]) -> Row:
        """Return the row as the main job reads it."""

    def shown(self, row: dict[str, Any]) -> str:
        """Return the text of a row that the judge sees."""

    def options(self, slot: Slot, draw: int) -> tuple[list[dict[str, str]], str]:
        """Return the judge's options, each with name and about, and the name of the right one."""


@dataclass(frozen=True)
class Records:
    """Records for labels, the same number for each.

    Attributes:
        labels: Id -> label as a document. Its title and text stand in the prompt.
        count: Number of records in all.
        record: Record type.
        template: Jinja source of the prompt.
        examples: Texts of real records, to imitate.
        seed: Seed of the order of labels and of the choice of examples.
    """

    labels: Mapping[str, Document]
    count: int
    record: RecordType
    template: str
    examples: Sequence[str] = ()
    seed: int = 0
    kind: str = "records"

    def start(self) -> dict[str, Any]:
        """Return what all requests have in common, for the ledger."""
        return {
            "prompt": digest([self.template, self.examples]),
            "schema": digest(self.record.schema()),
            "labels": digest(self._named),
            "seed": self.seed,
        }

    def slot(self, position: int) -> Slot:
        """Return a place of the plan: each label once, in an order drawn by the seed, then each once again, and so on."""
        turn, place = divmod(position, len(self._order))
        return Slot(self._order[place], turn + 1, (self._order[place], turn + 1))

    def prompt(self, slot: Slot, draw: int) -> str:
        """Return the prompt for a place."""
        return filled(
            self.template,
            label=slot.label,
            labels=self._named,
            number=slot.number,
            field=self.record.label,
            examples=_some(self.examples, draw),
            draw=draw,
        )

    def schema(self, label: str) -> dict[str, Any]:
        """Return the JSON Schema of a record with this label as its only value, for endpoints that enforce schemas."""
        schema = self.record.schema()
        if schema["properties"][self.record.label].get("type") == "string":
            schema["properties"][self.record.label]["enum"] = [label]
        return schema

    def validate(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a validated record, or raise a ValueError that says what is wrong."""
        return self.record.validate(row)

    def check(self, slot: Slot, row: dict[str, Any]) -> str:
        """Return the text of a record without its label, or raise `Rejected` where the text gives the label away."""
        given = row.get(self.record.label)
        if given not in (slot.label, [slot.label]):
            raise Rejected("wrong label", f"{self.record.label} is {shown(given)}, but it must be {slot.label!r}")
        values = [value for name, value in row.items() if name != self.record.label and value is not None]
        text = " ".join(", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)
        stems = {_stem(word) for word in words_of(_apart(text))}
        # The whole name gives a label away, and so does a word that no other label has.
        given_away = sorted(self._telling[slot.label] & stems)
        if not given_away and f" {' '.join(words_of(slot.label))} " in f" {' '.join(words_of(text))} ":
            given_away = [slot.label]
        if given_away:
            raise Rejected("label in text", f"the text names the {self.record.label}: {', '.join(given_away)}; say it in other words")
        return text

    def output(self, slot: Slot, row: dict[str, Any]) -> Row:
        """Return the record."""
        return row

    def shown(self, row: dict[str, Any]) -> str:
        """Return a record as the main job embeds it."""
        return self.record.text(row)

    def options(self, slot: Slot, draw: int) -> tuple[list[dict[str, str]], str]:
        """Return all labels in random order, and the right one."""
        return random.Random(draw).sample(self._named, len(self._named)), slot.label

    @functools.cached_property
    def _order(self) -> list[str]:
        order = sorted(self.labels)
        random.Random(self.seed).shuffle(order)
        return order

    @functools.cached_property
    def _named(self) -> list[dict[str, str]]:
        return [{"name": id, "about": _about(document)} for id, document in self.labels.items()]

    @functools.cached_property
    def _telling(self) -> dict[str, set[str]]:
        """Label -> stems of the words in its name that no other label's name has."""
        words = {id: {_stem(word) for word in words_of(_apart(id)) if len(word) > 3} for id in self.labels}
        holders = Counter(word for stems in words.values() for word in stems)
        return {id: {word for word in stems if holders[word] == 1} for id, stems in words.items()}


class Question(BaseModel):
    """A search query that a passage answers."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field(min_length=2, description="The search query.")
    evidence: str = Field(min_length=1, description="The part of the passage that answers it, word for word.")


@dataclass(frozen=True)
class Questions:
    """Questions for passages, the same number for each.

    Attributes:
        documents: Id -> passage.
        each: Number of questions for each passage.
        template: Jinja source of the prompt.
        styles: Name -> description of a style.
        personas: Descriptions of people who may ask.
        examples: Real queries, to imitate.
        seed: Seed of the order of passages, and of styles, personas and examples.
        query: Column of the query in the output.
        label: Column of the passage's id in the output.

    Raises:
        ConfigError: The two columns are the same, or a column is reserved for something else.
    """

    documents: Mapping[str, Document]
    each: int
    template: str
    styles: Mapping[str, str] = field(default_factory=lambda: STYLES)
    personas: Sequence[str] = PERSONAS
    examples: Sequence[str] = ()
    seed: int = 0
    query: str = "query"
    label: str = "expected"
    kind: str = "queries"

    def __post_init__(self) -> None:
        """Refuse columns that cannot be written, before anything is paid for."""
        reserved = ("id", "_id", "part", "generated", "style", "persona", "evidence")
        for name, column, taken in (("query", self.query, reserved), ("label", self.label, (*reserved, self.query))):
            if column in taken:
                raise ConfigError(f"data.{name} is {column!r}, a column that generated queries use for something else; fix: another name")

    @property
    def count(self) -> int:
        """Number of questions in all."""
        return self.each * len(self.documents)

    def start(self) -> dict[str, Any]:
        """Return what all requests have in common, for the ledger. Passages may be added and removed."""
        return {
            "prompt": digest([self.template, self.examples, list(self.styles.items()), list(self.personas)]),
            "schema": digest(Question.model_json_schema()),
            "seed": self.seed,
        }

    def slot(self, position: int) -> Slot:
        """Return a place of the plan: one question for each passage, then another one for each, and so on."""
        turn, place = divmod(position, len(self._order))
        id = self._order[place]
        return Slot(id, turn + 1, (id, digest(self._passage(id))[:16], turn + 1))

    def prompt(self, slot: Slot, draw: int) -> str:
        """Return the prompt for a place."""
        return filled(
            self.template,
            passage=self._passage(slot.label),
            style=self.styles[self._style(slot)],
            persona=self._persona(slot),
            number=slot.number,
            examples=_some(self.examples, draw),
            draw=draw,
        )

    def schema(self, label: str) -> dict[str, Any]:
        """Return the JSON Schema of a question."""
        return Question.model_json_schema()

    def validate(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a validated question, or raise a ValueError that says what is wrong."""
        return Question.model_validate(row).model_dump()

    def check(self, slot: Slot, row: dict[str, Any]) -> str:
        """Return the query, or raise `Rejected`. Its evidence has to stand in the passage, and the query must not quote it."""
        passage, asked = words_of(self._passage(slot.label)), words_of(row["query"])
        if not _within(words_of(row["evidence"]), passage):
            raise Rejected("not answered", "the evidence does not stand in the passage; copy the words that answer the query")
        runs = [asked[start : start + _QUOTED] for start in range(max(1, len(asked) - _QUOTED + 1))]
        if any(len(run) >= min(_QUOTED, 4) and _within(run, passage) for run in runs):
            raise Rejected("quoted", "the query quotes the passage; ask in other words")
        return str(row["query"])

    def output(self, slot: Slot, row: dict[str, Any]) -> Row:
        """Return the query with the id of its passage."""
        asked = {"style": self._style(slot), "persona": self._persona(slot), "evidence": row["evidence"]}
        return {self.query: row["query"], self.label: slot.label, **asked}

    def shown(self, row: dict[str, Any]) -> str:
        """Return the query."""
        return str(row["query"])

    def options(self, slot: Slot, draw: int) -> tuple[list[dict[str, str]], str]:
        """Return the passage among others drawn at random, and the number of the right one."""
        wrong = [id for id in random.Random(draw).sample(self._order, min(_OPTIONS, len(self._order))) if id != slot.label]
        ids = [*wrong[: _OPTIONS - 1], slot.label]
        random.Random(draw + 1).shuffle(ids)
        options = [{"name": str(number), "about": self._passage(id)[:_OPTION_CHARACTERS]} for number, id in enumerate(ids, 1)]
        return [*options, {"name": "none", "about": "none of them answers it"}], str(ids.index(slot.label) + 1)

    @functools.cached_property
    def _order(self) -> list[str]:
        order = sorted(self.documents)
        random.Random(self.seed).shuffle(order)
        return order

    def _passage(self, id: str) -> str:
        document = self.documents[id]
        return f"{document.title}\n\n{document.text}".strip()

    def _style(self, slot: Slot) -> str:
        # Which style comes first is drawn for each passage, so that one question each has all styles too.
        names = list(self.styles)
        return names[(drawn(self.seed, slot.label) + slot.number) % len(names)]

    def _persona(self, slot: Slot) -> str:
        return self.personas[drawn(self.seed, [slot.label, slot.number]) % len(self.personas)]


def prompt_template(name: str | None, default: str) -> str:
    """Return the source of a prompt template.

    Args:
        name: Path of a Jinja template; None for a bundled one.
        default: Name of the bundled template: ``transaction``, ``record``, ``question`` or ``judge``.

    Raises:
        ConfigError: The file cannot be read, or is not a Jinja template.
    """
    from importlib import resources

    import jinja2

    try:
        if name is None:
            return (resources.files("embedfit.generate") / "templates" / f"{default}.jinja").read_text(encoding="utf-8")
        source = Path(name).read_text(encoding="utf-8-sig")
        _jinja(source)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{name}:{error.lineno}: is not a Jinja template: {error.message}") from None
    return source


def read_examples(path: str | None) -> tuple[str, ...]:
    """Return the example texts in a file: JSONL with a key ``query`` (other rows are taken as records), or one text a line.

    Raises:
        ConfigError: The file cannot be read, or is empty.
    """
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if Path(path).suffix == ".jsonl":
            lines = [row["query"] if set(row) >= {"query"} else json.dumps(row, ensure_ascii=False) for row in map(json.loads, lines)]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not lines:
        raise ConfigError(f"{path}: is empty; expected a text on each line")
    return tuple(lines)


@functools.lru_cache(64)
def _jinja(source: str) -> Template:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Prompts are text, not HTML. The sandbox keeps a template of unknown origin out of Python.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return environment.from_string(source)


def filled(source: str, **values: Any) -> str:
    """Return a prompt from the source of its template.

    Raises:
        ConfigError: The template names an unknown variable, or fails.
    """
    import jinja2

    try:
        return _jinja(source).render(**values).strip()
    except jinja2.TemplateError as error:
        raise ConfigError(f"the prompt template cannot be filled: {error.message}; known: {', '.join(sorted(values))}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"the prompt template cannot be filled: {error}") from None


def drawn(*what: Any) -> int:
    """Return a pseudo-random integer below 2^48 that depends on some JSON values alone."""
    return int(digest(what)[:12], 16)


def _some(examples: Sequence[str], draw: int) -> list[str]:
    return random.Random(draw).sample(list(examples), min(_EXAMPLES, len(examples)))


def _about(document: Document) -> str:
    """Return a label's title and text without its id, shortened."""
    parts = [document.title, document.text if document.text != document.id else ""]
    return " ".join(part for part in parts if part and part != document.id)[:_OPTION_CHARACTERS]


def _apart(text: str) -> str:
    """Return a text with spaces in place of signs that join words, as in "food/drinks"."""
    return re.sub(r"[^\w\s]", " ", text)


def _stem(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 4 else word


def _within(words: Sequence[str], text: Sequence[str]) -> bool:
    return f" {' '.join(words)} " in f" {' '.join(text)} "
