"""Secrets in settings: they are refused, and never shown or written."""

from __future__ import annotations

import os
import re
from typing import Any

from pydantic_core import PydanticCustomError

from embedfit.errors import ConfigError

SECRET_KEYS = ("generate.key", "generate.headers", "store.location", "store.api_key", "generate.base_url")
"""Settings whose value is never shown, as it may be a misplaced secret."""


def refuse_secrets(store: Any, where: str) -> None:
    """Refuse a secret in the configuration file, which is copied into every run directory.

    Args:
        store: Value of the table ``[store]``.
        where: Name of the file, for the error message.

    Raises:
        ConfigError: A setting may hold a secret. The value is not shown.
    """
    settings = store if isinstance(store, dict) else {}
    location, key = str(settings.get("location", "")), settings.get("api_key")
    if not location.startswith(FROM_ENVIRONMENT) and _may_hold_secret(location, settings.get("kind") == "pgvector"):
        raise ConfigError(
            f"{where}: key 'store.location' holds a password, or something else that may be secret and is not shown; "
            'fix: location = "env:NAME", and set that variable'
        )
    for name, value in (("location", location), ("api_key", key)):
        is_checked = value is None or (name == "location" and not location.startswith(FROM_ENVIRONMENT))
        if not is_checked and not (str(value).startswith(FROM_ENVIRONMENT) and is_variable(str(value).removeprefix(FROM_ENVIRONMENT))):
            raise ConfigError(f"{where}: key 'store.{name}' is not env:NAME; fix: {name} = \"env:NAME\", and set that variable")


_PASSWORD = re.compile(r"://[^/@]*:[^@]*@|^https?://[^/]*@|(?:password|passwd|pwd|api[_-]?key|token|secret|signature|[?&]key)\s*=", re.I)
"""A password in a URL or in a connection string of PostgreSQL."""
_SERVER = re.compile(r"https?://(?:[^\s/@?#:\[\]\\]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?/*", re.I)
_PARAMETER = re.compile(
    r"host|hostaddr|port|dbname|user|ssl(mode|rootcert|cert|crl)|connect_timeout|application_name|client_encoding|gssencmode|"
    r"channel_binding|target_session_attrs|load_balance_hosts|keepalives(_idle|_interval|_count)?",
    re.I,
)
"""Parameters of a PostgreSQL connection without a secret."""
_URL_WITH_MORE = re.compile(r"://\S*[@#]|://\S*\?(?!api-version=[A-Za-z0-9.-]+$)|^[^\s/@:]+:[^\s/@]+@(?!https?:)[^\s/@]+/")
"""A URL with a user, a fragment or a query, each of which may be secret. Azure's API version is not."""
NO_SECRETS_IN = ("model", "data", "mix", "general", "evaluate", "tune", "output")
_FREE_TEXTS = ("query_template", "document_template", "query_prompt", "document_prompt", "separator")


def is_server(location: str) -> bool:
    """Return whether a location is the bare URL of a server, without a user, path, query or fragment, and with a valid port.

    >>> is_server("https://host:6333"), is_server("https://host/?jwt=x"), is_server("http://host:secret")
    (True, False, False)
    """
    server = _SERVER.fullmatch(location)
    return server is not None and 0 < int(server[1] or 1) < 65_536


def _may_hold_secret(location: str, postgres: bool) -> bool:
    """Return whether a store's location may hold more than an address."""
    if not postgres and "://" in location:
        return not is_server(location)
    if _PASSWORD.search(location) or re.match(r"[^\s/@:\\]+:(?!//)[^\s@]*@", location):
        return True
    if not postgres:
        return bool(re.search(r"\?\w+=", location))
    if "://" not in location:
        return not all(map(_PARAMETER.fullmatch, re.findall(r"(\w+)\s*=", location)))
    before, _, query = location.partition("?")
    names = [part.partition("=")[0] for part in query.split("&") if part]
    return before.count("@") > 1 or "#" in location or not all(map(_PARAMETER.fullmatch, names))


def refuse_urls_with_secrets(value: Any, key: str, where: str) -> None:
    """Refuse a URL with a user, a query or a fragment in a setting that names a model or a file, as every run keeps its settings.

    Raises:
        ConfigError: There is such a URL. It is not shown.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in _FREE_TEXTS:
                refuse_urls_with_secrets(inner, f"{key}.{name}", where)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            refuse_urls_with_secrets(inner, key, where)
    elif isinstance(value, str) and _URL_WITH_MORE.search(value):
        raise ConfigError(
            f"{where}: key {key!r} has a user, a password, a query or a fragment in its URL, which is not shown; "
            "fix: leave it out; keys come from environment variables"
        )


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_VARIABLE = re.compile(r"_?[A-Z][A-Z0-9]{0,15}(_[A-Z0-9]{1,15})*")
"""The usual form of a variable's name. Keys such as hf_..., gsk_... and AKIA... are longer, or have lower-case letters."""


def is_variable(value: Any) -> bool:
    """Return whether a setting is the name of an environment variable rather than a secret.

    Many keys are valid names. So the variable has to be set, or its name has to have the usual form.

    >>> is_variable("MY_KEY"), is_variable("sk-0123456789"), is_variable("hf_" + 30 * "aB")
    (True, False, False)
    """
    if not isinstance(value, str) or not _VARIABLE.fullmatch(value):
        return False
    return value in os.environ or bool(_PLAIN_VARIABLE.fullmatch(value))


def no_variable(example: str) -> PydanticCustomError:
    """Return the error for a setting that does not name an environment variable.

    Args:
        example: Right value of the setting, for the message.
    """
    problem = (
        "expected the name of an environment variable, which is set or in capitals like MY_KEY; "
        f"what stands there is not shown, as it may be a secret; fix: {example}, and set that variable"
    )
    return PydanticCustomError("variable", "{problem}", {"problem": problem})


FROM_ENVIRONMENT = "env:"


def from_environment(setting: str, key: str) -> str:
    """Return a setting, or the value of the environment variable that it names as env:NAME.

    Args:
        setting: Value of the setting.
        key: Name of the setting, for the error message.

    Raises:
        ConfigError: The variable is not set.
    """
    if not setting.startswith(FROM_ENVIRONMENT):
        return setting
    name = setting.removeprefix(FROM_ENVIRONMENT)
    if not os.environ.get(name):
        shown_name = name if is_variable(name) else "that it names"
        raise ConfigError(f"key {key!r}: the environment variable {shown_name} is not set")
    return os.environ[name]
