"""Typed records, and the templates that turn them into query texts.

A template is a text with field names in braces, ``"{category}: {sample_transactions}"``. Only plain names are
allowed, so a template from a file cannot access attributes or run code.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from embedfit.errors import ConfigError, DataError, did_you_mean, shown
from embedfit.template import Template

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Transaction(BaseModel):
    """A card transaction, to be filed under one of the expense categories."""

    model_config = ConfigDict(extra="forbid")

    merchant_name: _Text
    merchant_category: list[_Text] = Field(min_length=1, description="Merchant category code (MCC) names.")
    department: _Text
    location: _Text
    amount: float = Field(description="In the currency of the card, not rounded.")
    memo: str | None = None
    spend_program_name: _Text
    trip_name: str | None = None
    expense_category: _Text = Field(description="The label.")


TRANSACTION_TEMPLATE = """\
Name: {merchant_name}
Category: {merchant_category}
Department: {department}
Location: {location}
Amount: {amount}
Memo: {memo}
Card: {spend_program_name}
Trip: {trip_name}"""


@dataclass(frozen=True)
class RecordType:
    """A type of rows: its fields, its label, and the template of its query text.

    Attributes:
        name: Name of the type.
        label: Field of the label.
        fields: Names of all fields.
        template: Template of the query text.
        validate: Returns the checked fields of a row; raises a ValueError if it is not of this type.
        schema: Returns the JSON Schema of a row, label included.
    """

    name: str
    label: str
    fields: tuple[str, ...]
    template: Template
    validate: Callable[[Mapping[str, Any]], dict[str, Any]]
    schema: Callable[[], dict[str, Any]] = dict

    def __post_init__(self) -> None:
        if self.label in self.template.fields:
            raise ConfigError(f"the query template of {self.name} contains its label {{{self.label}}}: every query would hold its answer")

    def text(self, row: Mapping[str, Any], where: str = "record") -> str:
        """Return a row's query text.

        Raises:
            DataError: The row is not of this record type.
        """
        try:
            return self.template.render(self.validate(row))
        except ValueError as error:
            raise DataError(where, str(error), expected=f"a {self.name} record") from None


def record_type(name: str | type[BaseModel], *, template: str | None = None, label: str | None = None) -> RecordType:
    """Return a record type by name.

    Args:
        name: ``transaction``; ``module:Class`` of a Pydantic model, which is imported, also from the working directory; the path of a
            JSON Schema file; or a Pydantic class.
        template: Query text with field names in braces. By default one ``field: value`` line for each field.
        label: Field of the label. By default ``expense_category`` for transactions, else ``expected``.

    Raises:
        ConfigError: There is no such type, or the template names the label or an unknown field.
    """
    if not isinstance(name, str):
        fields, validate, schema = _by_pydantic(_checked_class(name, shown(name)))
        name = name.__name__
    elif name == "transaction":
        fields, validate, schema = _by_pydantic(Transaction)
        template, label = template or TRANSACTION_TEMPLATE, label or "expense_category"
    elif name.endswith(".json"):
        fields, validate, schema = _by_json_schema(Path(name))
    elif ":" in name:
        fields, validate, schema = _by_pydantic(_imported(name))
    else:
        raise ConfigError(f"record type {name!r} is unknown; expected 'transaction', 'module:Class' or the path of a JSON Schema file")
    label = label or "expected"
    template = template or "\n".join(f"{field.replace('_', ' ').capitalize()}: {{{field}}}" for field in fields if field != label)
    parsed = Template(template, missing="unknown")
    parsed.check(fields)
    if label not in fields:
        raise ConfigError(f"record type {name!r} has no field {label!r} for the label{did_you_mean(label, fields)}")
    return RecordType(name, label, fields, parsed, validate, schema)


def _imported(name: str) -> type[BaseModel]:
    module_name, _, class_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        imported = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"record type {name!r} cannot be imported: {error}") from None
    finally:
        sys.path.pop(0)
    return _checked_class(imported, repr(name))


def _checked_class(value: Any, name: str) -> type[BaseModel]:
    if not (isinstance(value, type) and issubclass(value, BaseModel)):
        raise ConfigError(f"record type {name} is {shown(value)}; expected a Pydantic model class")
    return value


_Described: TypeAlias = tuple[tuple[str, ...], Callable[[Mapping[str, Any]], dict[str, Any]], Callable[[], dict[str, Any]]]
"""(names of the fields, function that checks a row, function that returns the JSON Schema)."""


def _by_pydantic(model: type[BaseModel]) -> _Described:
    def validate(row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return model.model_validate(dict(row)).model_dump(mode="json")
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            if first["type"] == "missing" and len(first["loc"]) == 1:
                raise ValueError(f"key {key!r}: {first['msg']} (keys: {', '.join(map(str, row))}){did_you_mean(key, row)}") from None
            raise ValueError(f"key {key!r}: {first['msg']}, seen {shown(first.get('input'))}") from None

    return tuple(model.model_fields), validate, model.model_json_schema


def _by_json_schema(path: Path) -> _Described:
    import jsonschema
    import referencing

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
        fields = tuple(schema["properties"])
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a JSON Schema file") from None
    except (ValueError, KeyError, TypeError, jsonschema.SchemaError) as error:
        raise ConfigError(f"{path}: not a JSON Schema of an object with properties: {error}".splitlines()[0]) from None
    # An empty registry refuses a $ref to a web address instead of downloading it.
    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())

    def validate(row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            error = jsonschema.exceptions.best_match(validator.iter_errors(dict(row)))
        except referencing.exceptions.Unresolvable as unresolved:
            raise ConfigError(f"{path}: $ref {unresolved.ref!r} cannot be resolved; fix: only refer to parts of the same file") from None
        if error is not None:
            key = ".".join(str(part) for part in error.absolute_path)
            raise ValueError(f"key {key!r}: {error.message}" if key else error.message)
        return dict(row)

    return fields, validate, lambda: copy.deepcopy(schema)
