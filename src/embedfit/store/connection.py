"""Connection strings of PostgreSQL: what makes one ambiguous, and what in one is secret."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from embedfit.errors import ConfigError


def check_address(location: str, parameters: Mapping[str, Any]) -> None:
    """Check that the password of a URL is percent-encoded; otherwise libpq takes part of it for the host, port or database.

    Args:
        location: Connection string.
        parameters: Parameters that libpq reads from it.

    Raises:
        ConfigError: The URL has two ``@``, an ``@`` after the host, or a port that is not a number. The message does not show it.
    """
    inner = str(parameters.get("dbname") or "")
    if "://" in inner or "=" in inner:  # libpq accepts a whole connection string here
        from psycopg import Error
        from psycopg.conninfo import conninfo_to_dict

        with contextlib.suppress(Error):
            check_address(inner, conninfo_to_dict(inner))
    url = location if location.startswith(("postgresql://", "postgres://")) else ""
    user_and_host, slash, rest = url.partition("://")[2].partition("?")[0].partition("/")
    ports = str(parameters.get("port") or "").split(",")
    if user_and_host.count("@") > 1 or "@" in slash + rest or not all(port.isascii() and (port.isdigit() or not port) for port in ports):
        raise ConfigError(
            "store.location does not look like postgresql://user:password@host:5432/database; it is not shown; "
            "fix: percent-encode special characters in the password: @ as %40, / as %2F, : as %3A, ? as %3F"
        )


def secrets_of(location: str, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts of a connection string that must not appear in a message, longest first."""
    values = {str(parameters[name]) for name in ("password", "sslpassword") if parameters.get(name)}
    database = str(parameters.get("dbname") or "")
    if "=" in database or "://" in database:  # a whole connection string
        values.add(database)
    return tuple(sorted({location, *values} - {""}, key=len, reverse=True))
