"""Templates that render the fields of a query or document as a text."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any

from embedfit.errors import ConfigError, did_you_mean, shown

DOCUMENT_TEMPLATE = "{title} {text}"


class Template:
    """A text with named fields in braces.

    Args:
        text: Template text, such as ``"{title} {text}"``. ``{{`` and ``}}`` are literal braces.
        missing: Text for a field that is absent, None, or an empty list or text.

    Raises:
        ConfigError: The braces do not match, or a field is not a plain name.
    """

    def __init__(self, text: str, *, missing: str = "") -> None:
        self.text, self.missing = text, missing
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(f"template {shown(text)}: {error}; write {{{{ or }}}} for a brace itself") from None
        self._parts: list[tuple[str, str | None]] = []
        for literal, name, spec, conversion in parsed:
            if name is not None and (not name.isidentifier() or spec or conversion):
                raise ConfigError(f"template {shown(text)}: {{{name}}} is not a plain field name")
            self._parts.append((literal, name))
        self.fields = tuple(dict.fromkeys(name for _, name in self._parts if name))
        if not self.fields:
            raise ConfigError(f"template {shown(text)} names no field; expected something like '{{text}}'")

    def render(self, fields: Mapping[str, Any]) -> str:
        """Return the text with its fields filled in. Lists are joined with commas, and outer white space is removed."""
        return "".join(literal + (self._value(fields.get(name)) if name else "") for literal, name in self._parts).strip()

    def check(self, known: Iterable[str]) -> None:
        """Check that every field is known.

        Raises:
            ConfigError: A field is unknown. The message has the nearest known field.
        """
        known = sorted(set(known))
        for name in self.fields:
            if name not in known:
                hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
                raise ConfigError(f"template {shown(self.text)}: no field {name!r}{hint}")

    def _value(self, value: Any) -> str:
        if isinstance(value, (list, tuple)):
            value = ", ".join(str(item) for item in value if item is not None)
        return self.missing if value is None or value == "" else str(value)
