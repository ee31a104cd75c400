"""Asking an LLM over HTTP: any OpenAI-compatible endpoint, many requests at a time, each paid for once.

An `Asker` looks into the ledger first. What is not there is sent: at most so many at a time, fewer while the endpoint says
429, again after errors that pass, and never where it could cost more than there is to spend. A request that is refused for what it
says (too long, or caught by a content filter) is refused alone, and the ledger knows. Other errors that do not pass stop everything
at once. What is under way then is waited for, as it has to be paid for.

A request counts as charged when it was sent and no answer came: a timeout while reading, a dropped connection, a completion that is
broken. What never left (no connection, no host of that name, a refused certificate or proxy, a header that cannot be sent) and what
came back as anything else than a completion, also under status 200, does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import email.utils
import json
import math
import os
import random
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedfit import console
from embedfit.config import checked_address, is_header_name
from embedfit.errors import ConfigError, EmbedfitError, EndpointError, require
from embedfit.errors import connected as connected  # whoever asks a host uses them beside what is here
from embedfit.errors import header_value as header_value
from embedfit.ledger import Cost, Ledger, Line, digest

if TYPE_CHECKING:
    from openai import AsyncOpenAI

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
_ALONE = 5
"""Requests in a row, without an answer to any other, that may be given up one by one; more of them, and the endpoint is to blame."""
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
_LONGEST_RETRY_AFTER = 86_400.0
"""A host that asks for more seconds than these is taken to ask for a day."""
_CONNECT = 1.0
"""Seconds for a connection, if the time for a request is less."""
_SECRET = 8
"""Characters from which a key or a header's value is one; local servers are given any word."""


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


def one_line(text: str, limit: int = 200) -> str:
    """Return what a host said as one line that a terminal takes for text."""
    line = " ".join(text.split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def read_json(content: bytes) -> Any:
    """Return what a body says in JSON, None if it says nothing in JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def described(content: bytes) -> str:
    """Return in a few words what a body is that is not what it should be."""
    text = content.lstrip().lstrip(b"\xef\xbb\xbf").lower()
    if not text:
        return "an empty body"
    body = read_json(content)
    if isinstance(body, dict):
        return f"JSON with {one_line(', '.join(map(repr, body)), 80) or 'no key'}"
    if body is not None or text == b"null":
        return f"JSON that is no object ({type(body).__name__})"
    if is_html(content):
        return "an HTML page"
    return f"no JSON: {one_line(words, 80)}" if (words := _plain(content)) else "no JSON"


def is_html(content: bytes) -> bool:
    """Return whether a body is a page for people, such as that of a login."""
    text = content.lstrip().lstrip(b"\xef\xbb\xbf").lower()
    return text.startswith((b"<!doctype html", b"<html")) or b"</html>" in text


def _plain(content: bytes) -> str:
    """Return the words of a body that is neither JSON nor a page; empty if it holds none."""
    if is_html(content) or read_json(content) is not None:
        return ""
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig").strip()
    return ""


@dataclass(frozen=True)
class Complaint:
    """What a host says is wrong, wherever in the body it says so.

    Attributes:
        message: In its words.
        code: Its word for it; may be empty.
        status: Of HTTP, if the body says one.
        parameters: What it blames.
    """

    message: str = ""
    code: str = ""
    status: int | None = None
    parameters: tuple[str, ...] = ()

    @property
    def quota(self) -> bool:
        """Whether the account can buy no more, which waiting does not mend."""
        return "insufficient_quota" in f"{self.code} {self.message}"

    @property
    def filtered(self) -> bool:
        """Whether a filter did not like what was said."""
        return bool(_FILTERED.search(f"{self.code} {self.message}"))

    @property
    def too_long(self) -> bool:
        """Whether what was said is longer than the model reads."""
        return bool(_TOO_LONG.search(f"{self.code} {self.message}"))

    def unknown(self, names: Iterable[str]) -> str | None:
        """Return the one of some parameters that the host says it does not know, None if it is none of them."""
        text = f"{self.code} {self.message}"
        places = {}
        for name in names:
            if name in self.parameters and re.search(_UNKNOWN, text, re.IGNORECASE):
                return name
            found = re.search(rf"{_UNKNOWN}[^.,;]{{0,60}}?\b{name}\b|\b{name}\b[^.;]{{0,60}}?{_UNKNOWN}", text, re.IGNORECASE)
            if found:
                places[found.start() + found[0].find(name)] = name
        return places[min(places)] if places else None


_FILTERED = re.compile(
    r"content[ _-]?(filter|polic|management|moderation)|responsible ?ai|safety[ _](system|filter|polic|setting)|data_inspection_failed"
    r"|(prompt|input|content)\b[^.]{0,40}\bflagged|invalid_prompt|prohibited[ _]content|inappropriate content|moderation_blocked",
    re.IGNORECASE,
)
"""OpenAI, Azure (ResponsibleAIPolicyViolation), Anthropic, Gemini, OpenRouter, DashScope."""
_TOO_LONG = re.compile(
    r"context[ _](length|window|size|limit)|exceed_context|string_above_max_length|maximum (context|sequence|prompt|input)"
    r"|max_(model|seq|sequence|input)_len"
    r"|\b(prompt|inputs?|messages?|request|text|documents?|sequence)\b[^.;]{0,60}(too (long|large|many tokens)|longer than)"
    r"|tokens?`?s? ?\+ ?`?max_(new_)?tokens|less than \d+ tokens|too many (input |prompt )?tokens|too large for model|reduce the length"
    r"|\b(body|payload|entity)\b[^.;]{0,40}(too (large|big)|larger than|exceed)|exceed\w*\b[^.;]{0,40}\b(body|payload)\b"
    r"|tokens?\b[^.;]{0,40}exceed|exceed\w*\b[^.;]{0,40}\b(tokens?|context|length)\b|is too large: \d+|request_too_large|payload too large",
    re.IGNORECASE,
)
"""OpenAI, Azure, Anthropic, Gemini, Mistral, Groq, vLLM, text-generation-inference, text-embeddings-inference, llama.cpp, Ollama."""
_UNKNOWN = (
    r"(?:\b(?:unknown|unrecogni[sz]ed|unsupported|unexpected|extra|additional|deprecated)|extra_forbidden|unsupported_|unknown_|no longer"
    r"|n(?:o|')t (?:be )?(?:support|allow|permit|recogni[sz]|accept|known?|expect)\w*)"
)
"""How hosts say that they do not know a parameter; not that its value is out of range."""


_UNAUTHORIZED = re.compile(
    r"\bunauthori[sz]ed\b|\bunauthenticated\b|\bforbidden\b|\baccess denied\b|\blog ?in (fail(ed|s|ure)?|required)\b"
    r"|\bauthentication[ _]?(failed|required|error)|\bnot (authenticated|authori[sz]ed)\b"
    r"|\b(invalid|incorrect|bad|wrong|missing|expired|unknown|no)[ _-]?(api[ _-]?)?key\b(?! (count|number|size))"
    r"|\b(invalid|incorrect|bad|wrong|missing|expired|no)[ _-](access[ _-]?token|auth\w*[ _-]token|bearer|credentials?|authorization)\b"
    r"|\b(key|access[ _-]?token|credentials?)\b (is |are |was )?(invalid|incorrect|missing|expired|revoked|disabled|not valid)\b",
    re.IGNORECASE,
)
"""How hosts that give no status of their own say that a key is wrong."""
_MESSAGES = ("message", "msg", "error_message", "error_msg", "errormessage", "errmsg", "status_msg", "faultstring")
_ERRORS = ("error", "errors", "detail", "fault", *_MESSAGES)
_CODES = ("code", "error_code", "errorcode", "errcode", "status_code", "statuscode")
"""Keys in small letters; beside OpenAI's those of MiniMax, Apigee, Baidu, WeChat, AWS."""


def complaint_of(content: bytes) -> Complaint:
    """Return what an error's body complains of, in the form of OpenAI, Azure, FastAPI, vLLM, Gemini, Mistral, TGI, Ollama or Anthropic.

    A body that is neither JSON nor a page is taken as the message itself.
    """
    return _complaint(_plain(content) or read_json(content))


def _complaint(body: Any, depth: int = 3) -> Complaint:
    if isinstance(body, list):
        body = body[0] if body else None
    if isinstance(body, str):
        return Complaint(body, status=401 if _UNAUTHORIZED.search(body) else None)
    if not isinstance(body, dict):
        return Complaint()
    body = _small(body)
    error = next((body[key] for key in _ERRORS if body.get(key)), "")
    inner = _small(error) if isinstance(error, dict) else body
    problems = _problems(error) or _problems(inner.get("detail")) or _problems(inner.get("message"))
    told = (error, *(inner.get(key) for key in (*_MESSAGES, "detail", "error")))
    texts = dict.fromkeys(text for text in told if isinstance(text, str) and text)
    message = ": ".join(texts) or "; ".join(text for _, text in problems)
    if not (message or error) and depth:  # some wrap it once more: {"base_resp": {...}}, {"Response": {"Error": {...}}}
        wrapped = (_complaint(value, depth - 1) for value in body.values() if isinstance(value, dict))
        if nested := next((complaint for complaint in wrapped if complaint.message), None):
            return nested
    innermost = inner.get("innererror")
    codes = [inner.get("code"), innermost.get("code") if isinstance(innermost, dict) else "", inner.get("type"), inner.get("status")]
    codes += [inner.get(key) for key in _CODES]
    words = [str(code) for code in (*codes, body.get("error_type"), body.get("code")) if isinstance(code, (str, int)) and code]
    status = next((int(word) for word in words if re.fullmatch(r"[45][0-9][0-9]", word)), None)
    if status is None and _UNAUTHORIZED.search(" ".join([message, *words])):
        status = 401
    parameters = [name for name in (*(name for name, _ in problems), inner.get("param")) if name and isinstance(name, str)]
    return Complaint(message, " ".join(dict.fromkeys(word for word in words if not word.isdigit())), status, tuple(parameters))


def _small(body: dict[str, Any]) -> dict[str, Any]:
    return {key.lower(): value for key, value in body.items()}


def _problems(value: Any) -> list[tuple[str, str]]:
    """Return what FastAPI finds wrong, (parameter, message): a list of {loc, msg}, which others put into an object."""
    if isinstance(value, dict):
        value = next((some for some in value.values() if isinstance(some, list)), [])
    problems = []
    for problem in value if isinstance(value, list) else []:
        if isinstance(problem, dict):
            place = [str(part) for part in problem["loc"]] if isinstance(problem.get("loc"), list) else []
            text = str(problem.get("msg") or problem.get("message") or "")
            problems.append((place[-1] if place else "", f"{'.'.join(place)}: {text}" if place else text))
        elif isinstance(problem, str):
            problems.append(("", problem))
    return problems


def complains(body: Any) -> bool:
    """Return whether a body is an error, whatever the status: some gateways and servers give 200 with it."""
    if isinstance(body, list):
        return bool(body) and isinstance(body[0], dict) and complains(body[0])
    if not isinstance(body, dict):
        return False
    body = _small(body)
    return (
        any(body.get(key) for key in ("error", "errors", "detail", "fault", "error_code", "errcode"))
        or str(body.get("object")).lower() == "error"
        or str(body.get("status")).lower() in ("error", "fail", "failed", "failure")
        or body.get("success") is False
        or body.get("ok") is False
        or _complaint(body).status is not None
    )


class BudgetError(EndpointError):
    """The next request could cost more than there is left to spend."""


class Stopped(Exception):
    """Nothing more is sent; `Asker.stopping` says why."""


class Refused(Exception):
    """A request was refused for what it says, and no other is concerned: a word for the statistics, and why."""

    def __init__(self, reason: str, why: str, *, lasting: bool = True) -> None:
        super().__init__(why)
        self.reason, self.why, self.lasting = reason, why, lasting


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
        base_url: As the OpenAI SDK takes it, with ``/v1``; or Azure's, with ``?api-version=``. By default OpenAI's.
        key: Sent as ``Authorization: Bearer``, to Azure's older addresses as ``api-key``.
        headers: More headers, for gateways.
        key_name: Where the key came from, to be named in errors.

    Raises:
        ConfigError: The address is not http or https, or has a password in it; the key or a header cannot be sent.
    """

    def __init__(
        self, base_url: str = OPENAI, key: str = "none", headers: Mapping[str, str] | None = None, *, key_name: str = "the key"
    ) -> None:
        self._url, self._query = split_query(base_url)
        self.base_url, self.key_name = self._url, key_name
        self._key = header_value(key, key_name)
        for name in headers or {}:
            if not is_header_name(name):
                raise ConfigError("headers: a name cannot be that of a header; fix: letters, digits and hyphens, without a colon")
        self._headers = {name: header_value(value, f"the variable of header {name}") for name, value in (headers or {}).items()}
        secrets = {value for value in (self._key, *self._headers.values()) if len(value) >= _SECRET}
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

        Args:
            body: Of POST /chat/completions.
            timeout: Seconds from the last byte sent to the last byte that came; and for a connection.

        Raises:
            EndpointError: It will never be answered.
            ConfigError: No connection can be made with the settings of this machine.
            Refused: It will not, for what it says.
        """
        client, sent = self._connected(timeout), self._wanted(body)
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
                # What is in extra_body goes out as it is; the SDK would take half a millisecond to walk through a schema.
                named = {key: sent.pop(key) for key in ("model", "messages")}
                keys = authorization(self._key, self._query, openai.Omit())
                answer = await client.chat.completions.with_raw_response.create(**named, extra_body=sent, extra_headers=keys)
            status, headers, content = answer.status_code, answer.headers, answer.content
        except openai.APIStatusError as error:
            status, headers, content = error.status_code, error.response.headers, error.response.content
        except (TimeoutError, openai.APITimeoutError):
            why = f"no answer within {timeout:g} s" if sent_whole else f"no connection within {connecting:g} s"
            raise _Broken(why, charged=sent_whole, unreachable=not sent_whole) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            why = one_line(self.hidden(f"{type(cause).__name__}: {cause}"))
            raise _Broken(why, charged=sent_whole, unreachable=not sent_whole) from None
        except (openai.APIError, ValueError, AttributeError, TypeError) as error:
            raise _Broken(one_line(self.hidden(f"not a chat completion: {error}")), charged=sent_whole) from None
        completion = read_json(content)
        if status < 300 and _is_completion(completion):
            text = json.dumps(completion)
            hidden = self.hidden(text)
            return completion if hidden == text else json.loads(hidden)  # type: ignore[no-any-return]
        complaint = complaint_of(content)
        if status < 300 and (choice := _complaining_choice(completion)):
            complaint = _complaint(choice)
        elif status < 300 and not complains(completion):
            if is_html(content):
                raise EndpointError(
                    f"{self.base_url} answered {status} with an HTML page, as for a login; "
                    "fix: give the address of the API as base_url, which often ends in /v1"
                )
            broken = _is_broken_completion(completion, content)
            if broken or not complaint.message:
                raise _Broken(one_line(self.hidden(f"not a chat completion: {described(content)}")), charged=broken)
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
            others: dict[str, Any] = {} if openais(self.base_url) else {name: openai.Omit() for name in openai_headers()}
            # Trying again is the Asker's part: the SDK would do it for a spent quota too, and say nothing of it. A redirect would
            # take the headers to another host.
            self._client = connected(
                lambda: openai.AsyncOpenAI(
                    base_url=self._url,
                    api_key=self._key or "none",
                    default_headers={**others, **self._headers},
                    default_query=self._query,
                    max_retries=0,
                    timeout=openai.Timeout(timeout, connect=max(timeout, _CONNECT)),
                    http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks={"request": [_watch]}),
                )
            )
        return self._client  # type: ignore[return-value]

    def _wanted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a body without the parameters that this model does not know."""
        return {_OTHER_NAME.get(key, "") if key in self._unwanted else key: value for key, value in body.items() if self._sends(key)}

    def _sends(self, key: str) -> bool:
        return key not in self._unwanted or key in _OTHER_NAME

    def _adapts(self, status: int, complaint: Complaint, model: str, sent: Mapping[str, Any]) -> bool:
        """Return whether a parameter is to blame that can be left out or has another name, and do so from now on."""
        if status not in (200, 400, 422, 500, 501) or complaint.too_long or complaint.filtered:
            return False
        parameter = complaint.unknown((*_OTHER_NAME, *_NOT_NEEDED))
        if parameter is None or parameter not in sent:
            return False
        if parameter not in self._unwanted:
            self._unwanted.add(parameter)
            instead = f"{_OTHER_NAME[parameter]!r} is sent instead" if parameter in _OTHER_NAME else "it is left out"
            console.note(f"{model} takes no {parameter!r}: {instead}")
        return True

    def _meaning(self, status: int, headers: Mapping[str, str], complaint: Complaint) -> Exception:
        """Return what an error means: wait, try again, leave this one out, or stop."""
        if status < 300:
            status = complaint.status or status
        message, code = one_line(self.hidden(complaint.message)), one_line(self.hidden(complaint.code.partition(" ")[0]), 60)
        if complaint.quota or status == 402:
            return EndpointError(
                f"{self.base_url} says that the quota is spent ({code or status}); fix: top it up, and run the same command"
            )
        if status not in (401, 429):
            if complaint.filtered:
                return Refused("filtered", message or code)
            if status == 413 or (complaint.too_long and status != 403):
                return Refused("too long", message or code or f"HTTP {status}")
        if status in (401, 403):
            return EndpointError(f"{self.base_url} does not accept {self.key_name} ({status}); fix: set it right, and run the same command")
        if status == 429:
            return _Busy(retry_after(headers))
        if status < 300 or status in (408, 409, 425) or status >= 500:
            return _Broken(f"HTTP {status}" + (f": {message}" if message else ""), charged=False)
        if 300 <= status < 400:
            there = one_line(host_of(headers.get("location", ""))) or "another address"
            return EndpointError(f"{self.base_url} sends requests on to {there} ({status}); fix: give the address that answers itself")
        mode = "; fix: another 'mode' in [generate]" if _MODE.search(complaint.message) else ""
        return EndpointError(f"{self.base_url} refuses the request ({status} {code}): {message or 'it does not say why'}{mode}")


_WHEN_SENT: contextvars.ContextVar[Callable[[], None]] = contextvars.ContextVar("_WHEN_SENT")
"""To be called when the last byte of the request is out that this task has under way."""


async def _watch(request: Any) -> None:
    """Have the HTTP client tell when a request is out; until then no host can charge for it."""
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
    """Return whether a body is a completion that nobody can use, and that was charged all the same: it has choices, or counts tokens."""
    if body is None:  # cut off, or a stream that nobody asked for
        return b'"choices"' in content
    if not isinstance(body, dict):
        return False
    return isinstance(body.get("choices"), list) or any(_count(body.get("usage"), name) for name in ("prompt_tokens", "completion_tokens"))


def _complaining_choice(body: Any) -> Line | None:
    """Return a choice that is an error, as some gateways give what their provider said."""
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) and first.get("error") else None


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
        self._given_up = 0
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
            Refused: This one is refused for what it says, now or in an earlier run.
        """
        known = self.ledger.reply(request.id)
        if known:
            return known
        if refusal := self.ledger.refusal(request.id):
            raise Refused(*refusal)
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
        began = time.monotonic()
        while True:
            wait = None
            async with self._pace.turn() as since:
                endpoint = self._connected()
                await self._reserve(request)
                tries += 1
                started = time.monotonic()
                try:
                    completion = await endpoint.once(request.body, self.limits.timeout)
                except _Busy as busy:
                    await self._failed(request, "HTTP 429", charged=False)
                    wait = self._slower(since, busy.wait)
                except _Broken as broken:
                    await self._failed(request, str(broken), charged=broken.charged)
                    failures += 1
                    self._give_up(request, broken, failures, began)
                except Refused as refused:
                    self.ledger.refuse(request.id, refused.reason, refused.why)
                    await self._settled()
                    raise
                except EmbedfitError as error:
                    await self._failed(request, str(error), charged=False)
                    raise
                else:
                    self._answered, self._given_up = time.monotonic(), 0
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

    def _give_up(self, request: Request, broken: _Broken, failures: int, began: float) -> None:
        """Give up after too many failures in a row: this request alone, or everything where nobody is answered.

        Raises:
            Refused: The endpoint has answered others, and this request breaks it.
            EndpointError: It cannot be reached, has never answered, or breaks at many in a row.
        """
        most = _TRIES_UNREACHABLE if broken.unreachable and self._answered is None else _TRIES
        if failures < most:
            return
        self._given_up += 1
        if not broken.unreachable and self.ledger.requests and self._given_up <= _ALONE:
            why = f"failed {failures} times in a row ({broken})"
            if broken.charged and (self._answered or 0.0) > began:  # the next run would pay for as many tries again
                self.ledger.refuse(request.id, "failed", why)
            raise Refused("failed", why)
        seen = f"cannot be reached ({broken})" if broken.unreachable else f"failed {failures} times in a row ({broken})"
        raise EndpointError(f"{self._connected().base_url} {seen}; fix: run the same command when it is back, it goes on from here")

    def _connected(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = self._make()
        return self._endpoint

    async def _keep(self, request: Request, completion: Line, tries: int, seconds: float) -> Line:
        model, usage = request.body["model"], completion.get("usage")
        counted = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        said = None not in counted
        text = json.dumps(completion["choices"][0]["message"])
        # An endpoint that does not count is taken at its most for the prompt, and by bytes for the answer.
        prompt = self.most(request.body).tokens - int(request.body["max_tokens"]) if counted[0] is None else counted[0]
        answer = min(int(request.body["max_tokens"]), len(text)) if counted[1] is None else counted[1]
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


def _count(usage: Any, name: str) -> int | None:
    """Return the tokens that an endpoint says it counted, None if it says no number."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return int(count) if isinstance(count, (int, float)) and not isinstance(count, bool) and 0 <= count < 2**53 else None


def _size(body: Mapping[str, Any]) -> int:
    """Return the bytes of everything that the model reads, with room for what marks the turns."""
    read = {key: body[key] for key in ("messages", "response_format", "tools") if key in body}
    return len(json.dumps(read, ensure_ascii=False).encode("utf-8", "surrogatepass")) + 64
