"""Access to a remote service: URL, key, headers, client settings, and the retry policy after an error."""

from __future__ import annotations

import contextlib
import email.utils
import math
import os
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlsplit

from embedfit.errors import ConfigError, EmbedfitError
from embedfit.replies import Complaint, one_line

_Client = TypeVar("_Client")
OPENAI = "https://api.openai.com/v1"


# Addresses


def checked_address(url: str) -> SplitResult:
    """Return the parts of a service's URL. Azure's ``?api-version=`` is the only query allowed.

    Raises:
        ConfigError: The URL is not http or https, or it holds a password, a fragment or another query. The secret is not shown.
    """
    host = ""
    try:
        parts = urlsplit(url.strip())
        if parts.scheme in ("http", "https") and parts.hostname:
            host = f" {parts.scheme}://{parts.hostname}"
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        valid = bool(host) and (parts.port is None or parts.port > 0) and "@" not in parts.netloc and not parts.fragment
        valid = valid and url.strip().isprintable() and " " not in url.strip()
    except ValueError:  # a malformed port, IPv6 address or query
        query, valid = [], False
    if not valid or [name for name, _ in query] not in ([], ["api-version"]) or not all(map(_API_VERSION.fullmatch, dict(query).values())):
        no_scheme = re.match(r"[A-Za-z0-9.-]+:\d{1,5}(?=/|$)", url)  # the usual slip
        seen = host or (f" {no_scheme[0]}" if no_scheme else "")
        raise ConfigError(f"base URL{seen}: expected http(s)://host/v1, without a password and without a query but Azure's api-version")
    return parts


_API_VERSION = re.compile(r"[A-Za-z0-9.-]{1,40}")


def host_of(url: str) -> str:
    """Return the host and port of a URL, without a password or a query."""
    with contextlib.suppress(ValueError):
        return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
    return "the host"


def split_query(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL without its query, so that paths can be appended, and the query."""
    parts = checked_address(url)
    return urllib.parse.urlunsplit(parts._replace(query="")).rstrip("/"), dict(urllib.parse.parse_qsl(parts.query))


def redirect_target(headers: Mapping[str, str], unknown: str = "another address") -> str:
    """Return the host that a redirect names, or ``unknown`` if it names none."""
    return one_line(host_of(headers.get("location", ""))) or unknown


def openai_url() -> str:
    """Return the base URL in ``OPENAI_BASE_URL``, or OpenAI's."""
    return os.environ.get("OPENAI_BASE_URL") or OPENAI


# Keys and headers


def header_value(value: str, source: str) -> str:
    """Return a key, or another secret, without surrounding white space, such as the line break at the end of a file.

    Args:
        value: The secret, from an environment variable or typed.
        source: Name of the variable, for the error message.

    Raises:
        ConfigError: The value cannot be sent in a header (RFC 9110, 5.5). The message names the source, never the value.
    """
    value = value.strip()
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(
            f"{source} holds a character that cannot be sent in a header, such as a line break or a letter outside ASCII; fix: set it again"
        )
    return value


_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,60}")


def is_header_name(value: Any) -> bool:
    """Return whether a value can be the name of an HTTP header (RFC 9110, 5.6.2)."""
    return isinstance(value, str) and bool(_HEADER_NAME.fullmatch(value))


def openais(url: str) -> bool:
    """Return whether ``OPENAI_API_KEY`` belongs to this host: the host of ``OPENAI_BASE_URL``, or OpenAI's if that is not set."""
    return host_of(url) == host_of(openai_url())


def key_variable(url: str) -> str:
    """Return the environment variable that holds the key for a host. Each host has its own, so that no key goes to another host.

    >>> key_variable("https://vllm.example.com:8000/v1")
    'EMBEDFIT_KEY_VLLM_EXAMPLE_COM_8000'
    """
    if openais(url):
        return "OPENAI_API_KEY"
    return "EMBEDFIT_KEY_" + re.sub(r"[^A-Z0-9]+", "_", host_of(url).upper()).strip("_")


def key_in(variable: str) -> str:
    """Return the key in an environment variable, empty if the variable is not set.

    Raises:
        ConfigError: The key cannot be sent in a header.
    """
    return header_value(os.environ.get(variable, ""), variable)


# Clients


def connected(make: Callable[[], _Client]) -> _Client:
    """Return an HTTP client. It reads proxies and certificates from the environment when it is made.

    Raises:
        ConfigError: The proxies or certificates cannot be used. Their values are not shown, as a proxy's URL may hold a password.
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
        raise ConfigError(f"{seen} cannot be used ({type(error).__name__}); fix: correct it, or unset it") from None


@dataclass(frozen=True)
class OpenAIHost:
    """Settings of OpenAI's SDK for one OpenAI-compatible host.

    Attributes:
        url: Base URL without its query.
        client: Arguments of ``openai.OpenAI`` and ``openai.AsyncOpenAI``.
        headers: Headers of each request, for ``extra_headers``.
    """

    url: str
    client: dict[str, Any]
    headers: dict[str, Any]


def openai_host(url: str, key: str | None, headers: Mapping[str, str] | None = None) -> OpenAIHost:
    """Return the SDK's settings for a host.

    The SDK sends what it reads from ``OPENAI_ORG_ID``, ``OPENAI_PROJECT_ID`` and ``OPENAI_CUSTOM_HEADERS`` to any host; those headers
    are omitted for hosts that are not OpenAI's. It would also retry a spent quota without a word, so its retries are off.

    Azure's older URLs, those with ``?api-version=``, take a key in the header ``api-key`` alone. Tokens of Entra ID go there as Bearer.

    Args:
        url: Base URL, with Azure's ``?api-version=`` if the host needs it.
        key: Key or token; None to send none.
        headers: More headers, such as those of a gateway.
    """
    import openai

    base_url, query = split_query(url)
    omitted: dict[str, Any] = {}
    if not openais(url):
        lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
        custom = [line.partition(":")[0].strip() for line in lines if ":" in line]
        omitted = {name: openai.Omit() for name in ("OpenAI-Organization", "OpenAI-Project", *custom)}
    keys: dict[str, Any] = {}
    if key is None:
        keys = {"Authorization": openai.Omit()}
    elif "api-version" in query and not (key.startswith("eyJ") and key.count(".") == 2):
        keys = {"Authorization": openai.Omit(), "api-key": key}
    client = {"base_url": base_url, "api_key": key or "none", "default_query": query, "max_retries": 0}
    return OpenAIHost(base_url, {**client, "default_headers": {**omitted, **(headers or {})}}, keys)


# Errors and retries


@dataclass(frozen=True)
class Retries:
    """The retry policy: how often a request is sent again after an error that may pass, and how long to wait before that.

    Attributes:
        tries: Failures in a row after which a request is given up.
        tries_unreachable: The limit for a host that has never answered and cannot be reached.
        first_wait: Longest wait after the first failure, in seconds. It doubles with each further failure.
        longest_wait: Upper bound of that wait, in seconds.
        patience: Longest wait that a host may ask for, in seconds.
    """

    tries: int = 8
    tries_unreachable: int = 3
    first_wait: float = 1.0
    longest_wait: float = 30.0
    patience: float = 600.0

    def limit(self, *, unreachable: bool) -> int:
        """Return the number of failures in a row after which a request is given up.

        Args:
            unreachable: Whether there was no connection, and the host has never answered.
        """
        return self.tries_unreachable if unreachable else self.tries

    def wait(self, failures: int) -> float:
        """Return the seconds to wait after a number of failures in a row, drawn between 0 and a bound that doubles.

        Clients that failed together come back at different times (full jitter: M. Brooker, Exponential backoff and jitter, 2015).
        """
        return random.uniform(0, min(self.longest_wait, self.first_wait * 2 ** min(failures - 1, 10)))

    def is_too_long(self, wait: float | None) -> bool:
        """Return whether a host asks for a longer wait than there is patience for."""
        return wait is not None and wait > self.patience


KEY_REFUSED = (401, 403)
"""HTTP statuses of a missing, wrong or insufficient key."""
_PASSING = (408, 409, 424, 425, 429)
"""Statuses below 500 after which the same request may succeed. Inference servers answer 424 when a batch ran out of memory."""


def error_status(status: int, complaint: Complaint) -> int:
    """Return the status of an error, which some hosts give in the body under HTTP 200."""
    return complaint.status or status if status < 300 else status


def may_pass(status: int) -> bool:
    """Return whether the same request may succeed later, provided that there is quota left."""
    return status in _PASSING or status >= 500


def quota_spent(status: int, complaint: Complaint) -> bool:
    """Return whether the account can buy no more. Waiting does not help."""
    return status == 402 or complaint.quota


def too_large(status: int, complaint: Complaint) -> bool:
    """Return whether a request, or one text in it, is longer than the host or the model takes."""
    return status == 413 or (complaint.too_long and status not in (*KEY_REFUSED, 429))


_LONGEST_RETRY_AFTER = 86_400.0
"""Upper bound of what is read from Retry-After, in seconds."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait that a host asks for, at most a day; None if it asks for none.

    Read are OpenAI's ``retry-after-ms`` and ``retry-after`` as a number or a date (RFC 9110, 10.2.3).
    """
    date = headers.get("retry-after") or ""
    for text, unit in ((headers.get("retry-after-ms"), 1000.0), (date, 1.0)):
        with contextlib.suppress(TypeError, ValueError):
            seconds = float(text or "") / unit
            return min(max(0.0, seconds), _LONGEST_RETRY_AFTER) if math.isfinite(seconds) else None
    with contextlib.suppress(ValueError, TypeError, OverflowError, IndexError):
        return min(max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time()), _LONGEST_RETRY_AFTER)
    return None
