"""What services are asked with: names of keys, headers, addresses, and how long to wait before the next try."""

from __future__ import annotations

import contextlib
import email.utils
import math
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlsplit

from embedfit.errors import ConfigError, EmbedfitError

_Client = TypeVar("_Client")


def header_value(value: str, source: str) -> str:
    """Return a key, or another secret, as it goes into a header: without white space around it, such as a file's last line break.

    Args:
        value: Of an environment variable, or typed.
        source: Name of the variable, for the error.

    Raises:
        ConfigError: It cannot stand in a header (RFC 9110, 5.5). The error names the source, never the value.
    """
    value = value.strip()
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(
            f"{source} holds a character that cannot be sent in a header, such as a line break or a letter outside ASCII; fix: set it anew"
        )
    return value


def connected(make: Callable[[], _Client]) -> _Client:
    """Return an HTTP client, which reads proxies and certificates from the environment when it is made.

    Raises:
        ConfigError: They cannot be used; what they are is not shown, as a proxy's address may hold a password.
    """
    try:
        return make()
    except EmbedfitError:
        raise
    except Exception as error:
        variables = ("SSL_CERT_FILE", "SSL_CERT_DIR") if isinstance(error, OSError) else ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
        names = [name for name in variables if os.environ.get(name) or os.environ.get(name.lower())]
        if isinstance(error, ImportError) and "socks" in str(error).lower():
            raise ConfigError(
                f"{' or '.join(names) or 'the system proxy'} is a SOCKS proxy; fix: pip install socksio, or unset it"
            ) from None
        seen = " or ".join(names) or "the address, or a proxy of the system,"
        raise ConfigError(f"{seen} cannot be used ({type(error).__name__}); fix: set it right, or unset it") from None


_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,60}")


def is_header_name(value: Any) -> bool:
    """Return whether this is the name of an HTTP header (RFC 9110, 5.6.2)."""
    return isinstance(value, str) and bool(_HEADER_NAME.fullmatch(value))


def checked_address(url: str) -> SplitResult:
    """Return the parts of a service's address, which holds no secret. Azure's ``?api-version=`` is the one query that it may have.

    Raises:
        ConfigError: It is not http or https, or has a password, a fragment or another query in it, which is not shown.
    """
    host = ""
    try:
        parts = urlsplit(url.strip())
        if parts.scheme in ("http", "https") and parts.hostname:
            host = f" {parts.scheme}://{parts.hostname}"
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        right = bool(host) and (parts.port is None or parts.port > 0) and "@" not in parts.netloc and not parts.fragment
        right = right and url.strip().isprintable() and " " not in url.strip()
    except ValueError:  # of a port, an IPv6 address or a query
        query, right = [], False
    if not right or [name for name, _ in query] not in ([], ["api-version"]) or not all(map(_API_VERSION.fullmatch, dict(query).values())):
        without = re.match(r"[A-Za-z0-9.-]+:\d{1,5}(?=/|$)", url)  # the usual slip
        seen = host or (f" {without[0]}" if without else "")
        raise ConfigError(f"base URL{seen}: expected http(s)://host/v1, without a password and without a query but Azure's api-version")
    return parts


_API_VERSION = re.compile(r"[A-Za-z0-9.-]{1,40}")
OPENAI = "https://api.openai.com/v1"
_LONGEST_RETRY_AFTER = 86_400.0
"""A host that asks for more seconds than these is taken to ask for a day."""


def openai_headers() -> list[str]:
    """Return the headers that OpenAI's SDK takes from the environment and would send to any host, though they are for OpenAI's."""
    custom = [line.partition(":")[0].strip() for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n") if ":" in line]
    return ["OpenAI-Organization", "OpenAI-Project", *custom]


def openais(url: str) -> bool:
    """Return whether this is the host that ``OPENAI_API_KEY`` is for: that of ``OPENAI_BASE_URL``, or else OpenAI's."""
    return host_of(url) == host_of(os.environ.get("OPENAI_BASE_URL") or OPENAI)


def key_variable(url: str) -> str:
    """Return the environment variable that holds the key for a host. Each has its own, so that no key goes to another's.

    >>> key_variable("https://vllm.example.com:8000/v1")
    'EMBEDFIT_KEY_VLLM_EXAMPLE_COM_8000'
    """
    if openais(url):
        return "OPENAI_API_KEY"
    return "EMBEDFIT_KEY_" + re.sub(r"[^A-Z0-9]+", "_", host_of(url).upper()).strip("_")


def host_of(url: str) -> str:
    """Return the host and port of an address, without a password or a query."""
    with contextlib.suppress(ValueError):
        return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
    return "the host"


def split_query(url: str) -> tuple[str, dict[str, str]]:
    """Return an address without its query, to which paths can be added, and the query."""
    parts = checked_address(url)
    return urllib.parse.urlunsplit(parts._replace(query="")).rstrip("/"), dict(urllib.parse.parse_qsl(parts.query))


def authorization(key: str, query: Mapping[str, str], omitted: Any) -> dict[str, Any]:
    """Return the headers in which a host looks for its key, beside OpenAI's ``Authorization: Bearer``.

    Azure's older addresses, those with ``?api-version=``, take a key as ``api-key`` alone; tokens of Entra ID go as Bearer there too.

    Args:
        key: The key or token.
        query: Of the address.
        omitted: What makes the SDK leave a header out.
    """
    if "api-version" not in query or (key.startswith("eyJ") and key.count(".") == 2):
        return {}
    return {"Authorization": omitted, "api-key": key}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a host asks to be left alone, a day at most: a number, a date (RFC 9110, 10.2.3), OpenAI's header."""
    date = headers.get("retry-after") or ""
    for text, unit in ((headers.get("retry-after-ms"), 1000.0), (date, 1.0)):
        with contextlib.suppress(TypeError, ValueError):
            seconds = float(text or "") / unit
            return min(max(0.0, seconds), _LONGEST_RETRY_AFTER) if math.isfinite(seconds) else None
    with contextlib.suppress(ValueError, TypeError, OverflowError, IndexError):
        return min(max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time()), _LONGEST_RETRY_AFTER)
    return None
