"""Asking an LLM over HTTP: any OpenAI-compatible endpoint, many requests at a time, each paid for once.

An `Asker` looks into the ledger first. What is not there is sent: at most so many at a time, fewer while the endpoint says
429, again after errors that pass, and never where it could cost more than there is to spend. Errors that do not pass stop
everything at once. What is under way then is waited for, as it has to be paid for.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import random
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedfit import console
from embedfit.errors import ConfigError, EmbedfitError, EndpointError, require, shown
from embedfit.ledger import Cost, Ledger, Line, digest

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

OPENAI = "https://api.openai.com/v1"

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
"""USD for a million tokens of OpenAI's own endpoint, (prompt, completion), as published in 2025. Yours go before them."""

_TRIES = 8
"""Of a request that meets errors that may pass; 429 does not count, as long as anybody is answered."""
_TRIES_UNREACHABLE = 3
"""... where nothing has ever come from the endpoint."""
_LONGEST_WAIT = 30.0
_CERTAIN_TOKENS_PER_BYTE = 1.0
"""No tokenizer makes more tokens than there are bytes. What is seen later says how many fewer there are."""
_MARGIN = 1.25
"""Over the most tokens per byte that were seen."""
_OTHER_NAME = {"max_tokens": "max_completion_tokens"}
"""What newer models call a parameter that they refuse by its usual name."""
_NOT_NEEDED = ("seed", "temperature")
_SECRET = 8
"""Characters from which a key or a header's value is one; local servers are given any word."""


def openai_headers() -> list[str]:
    """Return the headers that OpenAI's SDK takes from the environment and would send to any host, though they are for OpenAI's."""
    custom = [line.partition(":")[0].strip() for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n") if ":" in line]
    return ["OpenAI-Organization", "OpenAI-Project", *custom]


def openais(url: str) -> bool:
    """Return whether this is the host that ``OPENAI_API_KEY`` is for: that of ``OPENAI_BASE_URL``, or else OpenAI's."""
    return urllib.parse.urlsplit(url).netloc == urllib.parse.urlsplit(os.environ.get("OPENAI_BASE_URL") or OPENAI).netloc


def key_variable(url: str) -> str:
    """Return the environment variable that holds the key for a host. Each has its own, so that no key goes to another's.

    >>> key_variable("https://vllm.example.com:8000/v1")
    'EMBEDFIT_KEY_VLLM_EXAMPLE_COM_8000'
    """
    if openais(url):
        return "OPENAI_API_KEY"
    host = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
    return "EMBEDFIT_KEY_" + re.sub(r"[^A-Z0-9]+", "_", host.upper()).strip("_")


class BudgetError(EndpointError):
    """The next request could cost more than there is left to spend."""


class Stopped(Exception):
    """Nothing more is sent; `Asker.stopping` says why."""


@dataclass(frozen=True)
class Limits:
    """What asking may take.

    Attributes:
        concurrency: Requests under way at a time, at most.
        timeout: Seconds for one request, from sending to the last byte.
        budget: Money that may be spent, all runs on a ledger together; None for any.
        tokens: Tokens that may be used, likewise.
        patience: Seconds without any answer after which an endpoint that only says 429 is given up.
        first_wait: Seconds before a request is tried again, at most; each further time it is twice that.
        currency: Of the budget, in words.
    """

    concurrency: int = 32
    timeout: float = 120.0
    budget: float | None = None
    tokens: int | None = None
    patience: float = 600.0
    first_wait: float = 1.0
    currency: str = DOLLARS


@dataclass(frozen=True)
class Request:
    """What to ask, and what it is for.

    Attributes:
        id: Depends on what is asked, and on nothing else.
        body: Of POST /chat/completions; it has ``max_tokens``.
        facts: More for the ledger.
    """

    id: str
    body: dict[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


class _Busy(Exception):
    """429: nothing was charged. ``wait`` is in seconds, if the endpoint said for how long."""

    def __init__(self, wait: float | None) -> None:
        super().__init__("429")
        self.wait = wait


class _Broken(Exception):
    """An error that may pass."""

    def __init__(self, why: str, *, charged: bool, unreachable: bool = False) -> None:
        super().__init__(why)
        self.charged, self.unreachable = charged, unreachable


class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
        base_url: As the OpenAI SDK takes it, with ``/v1``. By default OpenAI's.
        key: Sent as ``Authorization: Bearer``.
        headers: More headers, for gateways.
        key_name: Where the key came from, to be named in errors.

    Raises:
        ConfigError: The address is not http or https, or has a password in it.
    """

    def __init__(
        self, base_url: str = OPENAI, key: str = "none", headers: Mapping[str, str] | None = None, *, key_name: str = "the key"
    ) -> None:
        parsed = urllib.parse.urlsplit(base_url)
        if parsed.scheme not in ("http", "https") or not parsed.hostname or "@" in parsed.netloc or parsed.query:
            seen = f"{parsed.scheme}://{parsed.hostname}" if parsed.hostname else shown(base_url)
            raise ConfigError(f"base URL {seen}: expected http(s)://host/v1, without a password or a query in it")
        self.base_url, self.key_name = base_url, key_name
        self._key, self._headers = key, dict(headers or {})
        secrets = {value for value in (key, *self._headers.values()) if len(value) >= _SECRET}
        self._secrets = sorted({*secrets, *(json.dumps(secret)[1:-1] for secret in secrets)}, key=len, reverse=True)
        self._client: AsyncOpenAI | None = None
        self._unwanted: set[str] = set()

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r})"

    def hidden(self, text: str) -> str:
        """Return a text without the key and the headers' values, should an endpoint have said them back."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    async def once(self, body: Mapping[str, Any], timeout: float) -> Line:
        """Send a request once, and return the completion.

        Raises:
            EndpointError: It will never be answered.
        """
        client, sent = self._connected(timeout), self._wanted(body)
        import openai

        try:
            async with asyncio.timeout(timeout):
                # What is in extra_body goes out as it is; the SDK would take half a millisecond to walk through a schema.
                named = {key: sent.pop(key) for key in ("model", "messages")}
                completion = await client.chat.completions.create(**named, extra_body=sent)
            found: Line = completion.model_dump(mode="json", exclude_none=True, warnings=False)
        except openai.APIStatusError as error:
            if self._adapts(error, body["model"], sent):
                return await self.once(body, timeout)
            raise self._meaning(error) from None
        except (TimeoutError, openai.APITimeoutError):
            raise _Broken(f"no answer within {timeout:g} s", charged=True) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            refused = type(cause).__name__ in ("ConnectError", "ConnectTimeout")
            raise _Broken(self.hidden(f"{type(cause).__name__}: {cause}"), charged=not refused, unreachable=refused) from None
        except (openai.APIError, ValueError, AttributeError, TypeError) as error:
            raise _Broken(self.hidden(f"not a chat completion: {shown(str(error))}"), charged=True) from None
        choices = found.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict) and isinstance(choices[0].get("message"), dict)):
            raise _Broken("not a chat completion: it has no choices with a message", charged=True)
        text = json.dumps(found)
        hidden = self.hidden(text)
        if hidden != text:
            found = json.loads(hidden)
        return found

    async def close(self) -> None:
        """Close the connections."""
        if self._client:
            await self._client.close()
            self._client = None

    def _connected(self, timeout: float) -> AsyncOpenAI:
        if self._client is None:
            openai = require("openai", extra="generate")
            others: dict[str, Any] = {} if openais(self.base_url) else {name: openai.Omit() for name in openai_headers()}
            # Trying again is the Asker's part: the SDK would do it for a spent quota too, and say nothing of it.
            self._client = openai.AsyncOpenAI(
                base_url=self.base_url, api_key=self._key, default_headers={**others, **self._headers}, max_retries=0, timeout=timeout
            )
        return self._client  # type: ignore[return-value]

    def _wanted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a body without the parameters that this model does not know."""
        return {_OTHER_NAME.get(key, "") if key in self._unwanted else key: value for key, value in body.items() if self._sends(key)}

    def _sends(self, key: str) -> bool:
        return key not in self._unwanted or key in _OTHER_NAME

    def _adapts(self, error: APIStatusError, model: str, sent: Mapping[str, Any]) -> bool:
        """Return whether a parameter is to blame that can be left out or has another name, and do so from now on."""
        parameter = _said(error).get("param")
        if error.status_code != 400 or parameter not in (*_OTHER_NAME, *_NOT_NEEDED) or parameter not in sent:
            return False
        if parameter not in self._unwanted:
            self._unwanted.add(parameter)
            instead = f"{_OTHER_NAME[parameter]!r} is sent instead" if parameter in _OTHER_NAME else "it is left out"
            console.note(f"{model} takes no {parameter!r}: {instead}")
        return True

    def _meaning(self, error: APIStatusError) -> Exception:
        """Return what an HTTP error means: wait, try again, or stop."""
        status, said = error.status_code, _said(error)
        code = str(said.get("code") or said.get("type") or "")
        message = self.hidden(" ".join(str(said.get("message") or "").split()))[:200]
        if "insufficient_quota" in (said.get("code"), said.get("type")) or status == 402:
            return EndpointError(
                f"{self.base_url} says that the quota is spent ({code or status}); fix: top it up, and run the same command"
            )
        if status in (401, 403):
            return EndpointError(f"{self.base_url} does not accept {self.key_name} ({status}); fix: set it right, and run the same command")
        if status == 429:
            return _Busy(retry_after(error.response.headers))
        if status in (408, 409, 425) or status >= 500:
            return _Broken(f"HTTP {status}", charged=False)
        return EndpointError(f"{self.base_url} refuses the request ({status} {code}): {message or 'it does not say why'}")


def _said(error: APIStatusError) -> dict[str, Any]:
    """Return the error object of a body, which some servers wrap and some do not."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error")
        return inner if isinstance(inner, dict) else body
    return {}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a host asks to be left alone: a number, a date (RFC 9110, 10.2.3), or OpenAI's finer header."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    said = headers.get("retry-after")
    if said is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(said))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    return None


class _Pace:
    """How many requests may be under way: half as many after a 429, one more after as many answers as there are places."""

    def __init__(self, most: int, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.most, self.limit, self.under_way = most, float(most), 0
        self._sleep = sleep
        self._slowed = self._until = 0.0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for a place; gives the time at which it was had."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.under_way < max(1, int(self.limit)))
            self.under_way += 1
        try:
            if (wait := self._until - time.monotonic()) > 0:
                await self._sleep(wait)
            yield time.monotonic()
        finally:
            async with self._changed:
                self.under_way -= 1
                self._changed.notify_all()

    def slower(self, since: float, wait: float | None) -> None:
        """Take note of a 429; those sent before the last slowing down do not count, as they could not know of it."""
        if wait:
            self._until = max(self._until, time.monotonic() + wait)
        if since >= self._slowed:
            self._slowed, self.limit = time.monotonic(), max(1.0, self.limit / 2)

    def faster(self) -> None:
        """Take note of an answer."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)


class Asker:
    """Asks an endpoint for what is not in the ledger yet.

    Args:
        endpoint: Makes the endpoint; called when something has to be sent, so that no key is needed before.
        ledger: What is known already.
        limits: What it may take.
        prices: Model -> money for a million tokens of (prompt, completion).

    Attributes:
        stopping: Why nothing more is sent, if so.
    """

    def __init__(self, endpoint: Callable[[], Endpoint], ledger: Ledger, limits: Limits, prices: Mapping[str, tuple[float, float]]) -> None:
        self.ledger, self.limits, self.prices = ledger, limits, prices
        self.stopping: EmbedfitError | KeyboardInterrupt | None = None
        self._make = endpoint
        self._endpoint: Endpoint | None = None
        self._stopped = asyncio.Event()
        self._pace = _Pace(limits.concurrency, self._sleep)
        self._seen: dict[str, float] = {}
        self._answered: float | None = None
        self._began = time.monotonic()
        self._room = asyncio.Condition()

    def stop(self, why: EmbedfitError | KeyboardInterrupt) -> None:
        """Send nothing more; the first reason stays."""
        self.stopping = self.stopping or why
        self._stopped.set()

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not when nothing more is sent anyway."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def close(self) -> None:
        """Close the connections."""
        if self._endpoint:
            await self._endpoint.close()

    async def ask(self, request: Request) -> Line:
        """Return the ledger's line of a request's reply, sending it only if there is none.

        Raises:
            Stopped: Nothing more may be sent.
        """
        known = self.ledger.reply(request.id)
        if known:
            return known
        try:
            return await self._send(request)
        except EmbedfitError as error:
            self.stop(error)
            raise Stopped from None

    def most(self, body: Mapping[str, Any]) -> Cost:
        """Return what a request may cost at most."""
        per_byte = min(_CERTAIN_TOKENS_PER_BYTE, _MARGIN * self._seen.get(body["model"], _CERTAIN_TOKENS_PER_BYTE))
        return self._cost(body["model"], int(_size(body) * per_byte) + 1, int(body["max_tokens"]))

    def _cost(self, model: str, prompt: int, completion: int) -> Cost:
        each = self.prices.get(model, (0.0, 0.0))
        return Cost(prompt + completion, (prompt * each[0] + completion * each[1]) / 1e6)

    async def _send(self, request: Request) -> Line:
        failures = tries = 0
        while True:
            wait = None
            async with self._pace.turn() as since:
                await self._reserve(request)
                tries += 1
                started = time.monotonic()
                try:
                    completion = await self._connected().once(request.body, self.limits.timeout)
                except _Busy as busy:
                    await self._failed(request, "HTTP 429", charged=False)
                    wait = self._slower(since, busy.wait)
                except _Broken as broken:
                    await self._failed(request, str(broken), charged=broken.charged)
                    failures += 1
                    self._give_up(broken, failures)
                except EndpointError as error:
                    await self._failed(request, str(error), charged=False)
                    raise
                else:
                    self._answered = time.monotonic()
                    self._pace.faster()
                    return await self._keep(request, completion, tries, time.monotonic() - started)
            # Full jitter (M. Brooker, Exponential backoff and jitter, 2015): clients that failed together come back apart.
            longest = min(_LONGEST_WAIT, self.limits.first_wait * 2 ** min(10, tries - 1))
            await self._sleep(0 if wait else random.uniform(0, longest))

    async def _reserve(self, request: Request) -> None:
        """Wait until a request fits into what may be spent, and write that it goes out.

        Raises:
            Stopped: Somebody else stopped meanwhile.
            EmbedfitError: It does not fit, and nothing is under way whose real cost may be less.
        """
        most = self.most(request.body)
        async with self._room:
            while True:
                if self.stopping:
                    raise Stopped
                short = self._short(most)
                if not short:
                    self.ledger.sent(request.id, most)
                    return
                if not self.ledger.under_way:
                    raise BudgetError(f"{short}; fix: raise it, and run the same command")
                await self._room.wait()
                most = self.most(request.body)

    def _short(self, most: Cost) -> str:
        after = self.ledger.spent + most
        if self.limits.budget is not None and after.price > self.limits.budget:
            spent = f"{self.ledger.spent.price:.4f} {self.limits.currency} is spent, and the next request could cost {most.price:.4f}"
            return f"stopped before the budget of {self.limits.budget:g} would be passed: {spent}"
        if self.limits.tokens is not None and after.tokens > self.limits.tokens:
            used = f"{self.ledger.spent.tokens:,} are used, and the next request could take {most.tokens:,}"
            return f"stopped before {self.limits.tokens:,} tokens would be passed: {used}"
        return ""

    async def _failed(self, request: Request, why: str, *, charged: bool) -> None:
        self.ledger.failed(request.id, why, charged=charged)
        await self._settled()

    async def _settled(self) -> None:
        async with self._room:
            self._room.notify_all()

    def _slower(self, since: float, wait: float | None) -> float | None:
        self._pace.slower(since, wait)
        without = time.monotonic() - (self._answered or self._began)
        if max(without, wait or 0.0) > self.limits.patience:
            raise EndpointError(
                f"{self._connected().base_url} has been saying 429 for {without:.0f} s"
                + (f", and asks for {wait:.0f} s more" if wait else "")
                + "; fix: run the same command later"
            )
        return wait

    def _give_up(self, broken: _Broken, failures: int) -> None:
        most = _TRIES_UNREACHABLE if broken.unreachable and self._answered is None else _TRIES
        if failures >= most:
            seen = f"cannot be reached ({broken})" if broken.unreachable else f"failed {failures} times in a row ({broken})"
            raise EndpointError(f"{self._connected().base_url} {seen}; fix: run the same command when it is back, it goes on from here")

    def _connected(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = self._make()
        return self._endpoint

    async def _keep(self, request: Request, completion: Line, tries: int, seconds: float) -> Line:
        model, usage = request.body["model"], completion.get("usage") or {}
        said = "completion_tokens" in usage and "prompt_tokens" in usage
        text = json.dumps(completion["choices"][0].get("message") or {})
        # An endpoint that does not count is taken at its most for the prompt, and by bytes for the answer.
        prompt = int(usage["prompt_tokens"]) if said else self.most(request.body).tokens - int(request.body["max_tokens"])
        answer = int(usage["completion_tokens"]) if said else min(int(request.body["max_tokens"]), len(text))
        if said:
            self._seen[model] = max(self._seen.get(model, 0.0), prompt / _size(request.body))
        cost = self._cost(model, prompt, answer)
        line = {
            **request.facts,
            "prompt": digest([request.body["messages"], request.body.get("response_format"), request.body.get("tools")])[:16],
            "model": model,
            "seed": request.body.get("seed"),
            "parameters": {key: request.body[key] for key in ("max_tokens", "temperature") if key in request.body},
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "counted": said,
            "price": cost.price,
            "seconds": round(seconds, 3),
            "tries": tries,
            "reply": completion,
        }
        await self.ledger.keep(request.id, cost, line)
        await self._settled()
        return {"event": "reply", "id": request.id, **line}


def _size(body: Mapping[str, Any]) -> int:
    """Return the bytes of everything that the model reads, with room for what marks the turns."""
    read = {key: body[key] for key in ("messages", "response_format", "tools") if key in body}
    return len(json.dumps(read, ensure_ascii=False).encode("utf-8", "surrogatepass")) + 64
