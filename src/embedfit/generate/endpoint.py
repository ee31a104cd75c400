"""One request to an OpenAI-compatible endpoint, and what it cost."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedfit import console
from embedfit.config import GenerateConfig
from embedfit.errors import ConfigError, EndpointError, require
from embedfit.generate.ledger import Line
from embedfit.hosts import (
    KEY_REFUSED,
    OPENAI,
    OpenAIHost,
    Retries,
    checked_address,
    connected,
    error_status,
    header_value,
    is_header_name,
    key_in,
    key_variable,
    may_pass,
    openai_host,
    openai_url,
    quota_spent,
    redirect_target,
    retry_after,
    split_query,
    too_large,
)
from embedfit.replies import SECRET, Complaint, complains, complaint_in, complaint_of, described, is_html, masked, one_line, read_json

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DOLLARS = "US dollars"
PRICES = {
    "gpt-4.1": (2.0, 8.0),
    "gpt-4.1-mini": (0.4, 1.6),
    "gpt-4.1-nano": (0.1, 0.4),
    "gpt-4o": (2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.6),
    "gpt-5": (1.25, 10.0),
    "gpt-5-mini": (0.25, 2.0),
    "gpt-5-nano": (0.05, 0.4),
    "o4-mini": (1.1, 4.4),
}
"""Model -> US dollars for a million (prompt tokens, completion tokens) at OpenAI's endpoint, as published in 2025."""
_OTHER_NAME = {"max_tokens": "max_completion_tokens"}
"""Names of parameters in newer models that refuse the usual name."""
_NOT_NEEDED = ("seed", "temperature")
_CONNECT = 1.0
"""Minimum of the seconds allowed for a connection."""


class BudgetError(EndpointError):
    """The next request could exceed the budget."""


class Stopped(Exception):
    """Nothing more is sent. `Asker.stopping` holds the reason."""


class Refused(Exception):
    """A request was refused for its content. Other requests are not concerned.

    Attributes:
        reason: Outcome for the statistics, such as ``too long``.
        why: The endpoint's message.
    """

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason, self.why = reason, why


@dataclass(frozen=True)
class Limits:
    """Limits on requests, time and money.

    Attributes:
        concurrency: Maximum number of requests under way at a time.
        timeout: Seconds for one request, from the last byte sent to the last byte received.
        budget: Maximum price of all runs on a ledger together; None for no limit.
        tokens: Maximum number of tokens of all runs on a ledger together; None for no limit.
        retries: Retry policy. An endpoint that answers nothing but 429 for longer than its ``patience`` is given up.
        currency: Currency of the budget, in words.
    """

    concurrency: int = 32
    timeout: float = 120.0
    budget: float | None = None
    tokens: int | None = None
    retries: Retries = field(default_factory=Retries)
    currency: str = DOLLARS


@dataclass(frozen=True)
class Request:
    """One chat completion to ask for.

    Attributes:
        id: Id in the ledger. It depends on what is asked, and on nothing else.
        body: JSON body of POST /chat/completions, with ``max_tokens``.
        facts: More entries for the ledger line of the reply.
    """

    id: str
    body: dict[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Busy(Exception):
    """The endpoint answered 429, and nothing was charged.

    Attributes:
        wait: Seconds that the endpoint asks to wait; None if it does not say.
    """

    def __init__(self, wait: float | None) -> None:
        super().__init__("429")
        self.wait = wait


class Broken(Exception):
    """A request failed in a way that may pass.

    Attributes:
        charged: Whether the request may have to be paid for.
        unreachable: Whether the request never left this machine.
    """

    def __init__(self, why: str, *, charged: bool, unreachable: bool = False) -> None:
        super().__init__(why)
        self.charged, self.unreachable = charged, unreachable


class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
        base_url: URL as the OpenAI SDK takes it, ending in ``/v1``; or Azure's, with ``?api-version=``. By default OpenAI's.
        key: Key, sent as ``Authorization: Bearer``, or as ``api-key`` to Azure's older URLs.
        headers: More headers, such as those of a gateway.
        key_name: Source of the key, named in error messages.

    Raises:
        ConfigError: The URL is not http or https or holds a password, or the key or a header cannot be sent.
    """

    def __init__(
        self, base_url: str = OPENAI, key: str = "none", headers: Mapping[str, str] | None = None, *, key_name: str = "the key"
    ) -> None:
        self._address, self.key_name = base_url, key_name
        self.base_url, _ = split_query(base_url)
        self._key = header_value(key, key_name)
        for name in headers or {}:
            if not is_header_name(name):
                raise ConfigError("headers: a name cannot be that of a header; fix: letters, digits and hyphens, without a colon")
        self._headers = {name: header_value(value, f"the variable of header {name}") for name, value in (headers or {}).items()}
        secrets = {value for value in (self._key, *self._headers.values()) if len(value) >= SECRET}
        self._secrets = sorted({*secrets, *(json.dumps(secret)[1:-1] for secret in secrets)}, key=len, reverse=True)
        self._host: OpenAIHost | None = None
        self._client: AsyncOpenAI | None = None
        self._unwanted: set[str] = set()

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r})"

    def hidden(self, text: str) -> str:
        """Return a text with the key and the values of headers masked. An endpoint may repeat them."""
        return masked(text, *self._secrets)

    async def once(self, body: Mapping[str, Any], timeout: float) -> Line:
        """Send a request once, and return the completion.

        Args:
            body: JSON body of POST /chat/completions.
            timeout: Seconds from the last byte sent to the last byte received, and for a connection.

        Raises:
            Busy: The endpoint answered 429.
            Broken: The request failed in a way that may pass.
            Refused: The endpoint refuses this request for its content.
            EndpointError: The endpoint will answer no request.
            ConfigError: The proxy or certificate settings of this machine cannot be used.
        """
        client, sent = self._connected(timeout), self._wanted(body)
        keys = self._host.headers if self._host else {}
        import openai

        sent_whole = False
        connecting = max(timeout, _CONNECT)
        try:
            async with asyncio.timeout(None) as clock:

                def start() -> None:
                    nonlocal sent_whole
                    sent_whole = True
                    clock.reschedule(asyncio.get_running_loop().time() + timeout)

                _WHEN_SENT.set(start)
                # The SDK takes half a millisecond to walk through a schema, and sends extra_body as it is.
                named = {key: sent.pop(key) for key in ("model", "messages")}
                answer = await client.chat.completions.with_raw_response.create(**named, extra_body=sent, extra_headers=keys)
            status, headers, content = answer.status_code, answer.headers, answer.content
        except openai.APIStatusError as error:
            status, headers, content = error.status_code, error.response.headers, error.response.content
        except (TimeoutError, openai.APITimeoutError):
            why = f"no answer within {timeout:g} s" if sent_whole else f"no connection within {connecting:g} s"
            raise Broken(why, charged=sent_whole, unreachable=not sent_whole) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            why = one_line(self.hidden(f"{type(cause).__name__}: {cause}"))
            raise Broken(why, charged=sent_whole, unreachable=not sent_whole) from None
        except (openai.APIError, ValueError, AttributeError, TypeError) as error:
            raise Broken(one_line(self.hidden(f"not a chat completion: {error}")), charged=sent_whole) from None
        completion = read_json(content)
        if status < 300 and _is_completion(completion):
            text = json.dumps(completion)
            hidden = self.hidden(text)
            return completion if hidden == text else json.loads(hidden)  # type: ignore[no-any-return]
        complaint = complaint_of(content)
        if status < 300 and (choice := _complaining_choice(completion)):
            complaint = complaint_in(choice)
        elif status < 300 and not complains(completion):
            if is_html(content):
                raise EndpointError(
                    f"{self.base_url} answered {status} with an HTML page, as for a login; "
                    "fix: give the address of the API as base_url, which often ends in /v1"
                )
            broken = _is_broken_completion(completion, content)
            if broken or not complaint.message:
                raise Broken(one_line(self.hidden(f"not a chat completion: {described(content)}")), charged=broken)
        if self._adapts(status, complaint, body["model"], sent):
            return await self.once(body, timeout)
        raise self._meaning(status, headers, complaint)

    async def close(self) -> None:
        """Close the connections."""
        if self._client:
            await self._client.close()
            self._client = None

    def _connected(self, timeout: float) -> AsyncOpenAI:
        if self._client is None:
            openai = require("openai", extra="generate")
            self._host = host = openai_host(self._address, self._key, self._headers)
            # A redirect would take the headers to another host.
            self._client = connected(
                lambda: openai.AsyncOpenAI(
                    **host.client,
                    timeout=openai.Timeout(timeout, connect=max(timeout, _CONNECT)),
                    http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks={"request": [_watch]}),
                )
            )
        return self._client  # type: ignore[return-value]

    def _wanted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a body without the parameters that the model does not know."""
        return {_OTHER_NAME.get(key, "") if key in self._unwanted else key: value for key, value in body.items() if self._sends(key)}

    def _sends(self, key: str) -> bool:
        return key not in self._unwanted or key in _OTHER_NAME

    def _adapts(self, status: int, complaint: Complaint, model: str, sent: Mapping[str, Any]) -> bool:
        """Return whether an error is due to a parameter that can be omitted or renamed; if so, do that from now on."""
        if status not in (200, 400, 422, 500, 501) or complaint.too_long or complaint.filtered:
            return False
        parameter = complaint.unknown((*_OTHER_NAME, *_NOT_NEEDED))
        if parameter is None or parameter not in sent:
            return False
        if parameter not in self._unwanted:
            self._unwanted.add(parameter)
            change = f"{_OTHER_NAME[parameter]!r} is sent instead" if parameter in _OTHER_NAME else "it is left out"
            console.note(f"{model} takes no {parameter!r}: {change}")
        return True

    def _meaning(self, status: int, headers: Mapping[str, str], complaint: Complaint) -> Exception:
        """Return the exception for an error: wait, retry, give up this request, or stop."""
        status = error_status(status, complaint)
        message, code = one_line(self.hidden(complaint.message)), one_line(self.hidden(complaint.code.partition(" ")[0]), 60)
        if quota_spent(status, complaint):
            return EndpointError(f"{self.base_url} reports a spent quota ({code or status}); fix: top it up, and run the same command")
        if complaint.filtered and status not in (401, 429):
            return Refused("filtered", message or code)
        if too_large(status, complaint):
            return Refused("too long", message or code or f"HTTP {status}")
        if status in KEY_REFUSED:
            return EndpointError(f"{self.base_url} does not accept {self.key_name} ({status}); fix: correct it, and run the same command")
        if status == 429:
            return Busy(retry_after(headers))
        if status < 300 or may_pass(status):
            return Broken(f"HTTP {status}" + (f": {message}" if message else ""), charged=False)
        if 300 <= status < 400:
            target = redirect_target(headers)
            return EndpointError(f"{self.base_url} redirects requests to {target} ({status}); fix: give the final address")
        mode = "; fix: another 'mode' in [generate]" if _MODE.search(complaint.message) else ""
        return EndpointError(f"{self.base_url} refuses the request ({status} {code}): {message or 'no reason given'}{mode}")


def endpoint_of(config: GenerateConfig, ask: Callable[[str], str] | None = None) -> Endpoint:
    """Return the endpoint of a configuration, with its key from the environment.

    Args:
        config: Settings; ``key`` names the variable of the key if it is not the host's own.
        ask: Asks a person for the key of a host, if the environment holds none and the endpoint is not on this machine.

    Raises:
        ConfigError: An environment variable is not set.
    """
    base_url = config.base_url or openai_url()
    variable = config.key or key_variable(base_url)
    key = key_in(variable)
    if not key:
        host = checked_address(base_url).hostname or ""
        if host in ("localhost", "::1") or host.startswith("127."):
            key = "none"
        elif ask:
            key = header_value(ask(f"Key for {host}: "), "the key")
    if not key:
        raise ConfigError(f"{variable} is not set; fix: export {variable}=..., or name another variable with 'key' in [generate]")
    missing = [variable for variable in config.headers.values() if variable not in os.environ]
    if missing:
        raise ConfigError(f"{missing[0]} is not set, but generate.headers names it; fix: export it")
    headers = {name: os.environ[variable] for name, variable in config.headers.items()}
    return Endpoint(base_url, key, headers, key_name=variable)


_WHEN_SENT: contextvars.ContextVar[Callable[[], None]] = contextvars.ContextVar("_WHEN_SENT")
"""Function to call when the last byte of the current task's request was sent."""


async def _watch(request: Any) -> None:
    """Have the HTTP client report when a request was sent. Until then no host can charge for it."""
    when_sent = _WHEN_SENT.get()

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith("send_request_body.complete") and getattr(info.get("request"), "method", b"POST") != b"CONNECT":
            when_sent()

    request.extensions = {**request.extensions, "trace": trace}


_MODE = re.compile(r"response_format|json_schema|json_object|tool_choice|\btools?\b", re.IGNORECASE)


def _is_completion(body: Any) -> bool:
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and isinstance(first.get("message"), dict) and not first.get("error")


def _is_broken_completion(body: Any, content: bytes) -> bool:
    """Return whether a body is an unusable completion that was charged all the same: it has choices, or counts tokens."""
    if body is None:  # cut off, or a stream that was not asked for
        return b'"choices"' in content
    if not isinstance(body, dict):
        return False
    return isinstance(body.get("choices"), list) or any(
        token_count(body.get("usage"), name) for name in ("prompt_tokens", "completion_tokens")
    )


def _complaining_choice(body: Any) -> Line | None:
    """Return a choice that is an error; some gateways pass on their provider's error so."""
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) and first.get("error") else None


def token_count(usage: Any, name: str) -> int | None:
    """Return a number of tokens that an endpoint counted; None if it gives no number."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return int(count) if isinstance(count, (int, float)) and not isinstance(count, bool) and 0 <= count < 2**53 else None
