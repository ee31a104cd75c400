"""The body of a service's reply: JSON, an error, or a web page."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SECRET = 8
"""Minimum length of a key or header value that is masked. Local servers are given any word as a key."""


def one_line(text: str, limit: int = 200) -> str:
    """Return a host's text as one printable line of limited length."""
    line = " ".join(text.split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def masked(text: str, *secrets: str | None) -> str:
    """Return a text with ``***`` in place of each secret. A service may repeat a key in its error message."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def read_json(content: bytes) -> Any:
    """Return a body as JSON; None if it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def described(content: bytes) -> str:
    """Return a short description of an unexpected body."""
    text = content.lstrip().lstrip(b"\xef\xbb\xbf").lower()
    if not text:
        return "an empty body"
    body = read_json(content)
    if isinstance(body, dict):
        return f"JSON with {one_line(', '.join(map(repr, body)), 80) or 'no key'}"
    if body is not None or text == b"null":
        return f"JSON that is not an object ({type(body).__name__})"
    if is_html(content):
        return "an HTML page"
    return f"text that is not JSON: {one_line(words, 80)}" if (words := _plain(content)) else "data that is not JSON"


def is_html(content: bytes) -> bool:
    """Return whether a body is an HTML page, such as a login page."""
    text = content.lstrip().lstrip(b"\xef\xbb\xbf").lower()
    return text.startswith((b"<!doctype html", b"<html")) or b"</html>" in text


def _plain(content: bytes) -> str:
    """Return the text of a body that is neither JSON nor HTML; empty if there is none."""
    if is_html(content) or read_json(content) is not None:
        return ""
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig").strip()
    return ""


@dataclass(frozen=True)
class Complaint:
    """An error in a body, wherever the body holds it.

    Attributes:
        message: Message of the host; may be empty.
        code: Error code of the host; may be empty.
        status: HTTP status given in the body; None if there is none.
        parameters: Names of the parameters to blame.
    """

    message: str = ""
    code: str = ""
    status: int | None = None
    parameters: tuple[str, ...] = ()

    @property
    def quota(self) -> bool:
        """Whether the account can buy no more. Waiting does not help."""
        return "insufficient_quota" in f"{self.code} {self.message}"

    @property
    def filtered(self) -> bool:
        """Whether a content filter refused the request."""
        return bool(_FILTERED.search(f"{self.code} {self.message}"))

    @property
    def too_long(self) -> bool:
        """Whether the request is longer than the model or the host takes."""
        return bool(_TOO_LONG.search(f"{self.code} {self.message}"))

    def unknown(self, names: Iterable[str]) -> str | None:
        """Return the parameter that the host does not know, None if it is none of the names given."""
        text = f"{self.code} {self.message}"
        places = {}
        for name in names:
            if name in self.parameters and re.search(_UNKNOWN, text, re.IGNORECASE):
                return name
            match = re.search(rf"{_UNKNOWN}[^.,;]{{0,60}}?\b{name}\b|\b{name}\b[^.;]{{0,60}}?{_UNKNOWN}", text, re.IGNORECASE)
            if match:
                places[match.start() + match[0].find(name)] = name
        return places[min(places)] if places else None


_FILTERED = re.compile(
    r"content[ _-]?(filter|polic|management|moderation)|responsible ?ai|safety[ _](system|filter|polic|setting)|data_inspection_failed"
    r"|(prompt|input|content)\b[^.]{0,40}\bflagged|invalid_prompt|prohibited[ _]content|inappropriate content|moderation_blocked",
    re.IGNORECASE,
)
"""Content filters of OpenAI, Azure (ResponsibleAIPolicyViolation), Anthropic, Gemini, OpenRouter and DashScope."""
_TOO_LONG = re.compile(
    r"context[ _](length|window|size|limit)|exceed_context|string_above_max_length|maximum (context|sequence|prompt|input)"
    r"|max_(model|seq|sequence|input)_len"
    r"|\b(prompt|inputs?|messages?|request|text|documents?|sequence)\b[^.;]{0,60}(too (long|large|many tokens)|longer than)"
    r"|tokens?`?s? ?\+ ?`?max_(new_)?tokens|less than \d+ tokens|too many (input |prompt )?tokens|too large for model|reduce the length"
    r"|\b(body|payload|entity)\b[^.;]{0,40}(too (large|big)|larger than|exceed)|exceed\w*\b[^.;]{0,40}\b(body|payload)\b"
    r"|tokens?\b[^.;]{0,40}exceed|exceed\w*\b[^.;]{0,40}\b(tokens?|context|length)\b|is too large: \d+|request_too_large|payload too large",
    re.IGNORECASE,
)
"""Length errors of OpenAI, Azure, Anthropic, Gemini, Mistral, Groq, vLLM, text-generation-inference, text-embeddings-inference, llama.cpp
and Ollama."""
_UNKNOWN = (
    r"(?:\b(?:unknown|unrecogni[sz]ed|unsupported|unexpected|extra|additional|deprecated)|extra_forbidden|unsupported_|unknown_|no longer"
    r"|n(?:o|')t (?:be )?(?:support|allow|permit|recogni[sz]|accept|known?|expect)\w*)"
)
"""Wordings for an unknown parameter, as opposed to a value out of range."""
_UNAUTHORIZED = re.compile(
    r"\bunauthori[sz]ed\b|\bunauthenticated\b|\bforbidden\b|\baccess denied\b|\blog ?in (fail(ed|s|ure)?|required)\b"
    r"|\bauthentication[ _]?(failed|required|error)|\bnot (authenticated|authori[sz]ed)\b"
    r"|\b(invalid|incorrect|bad|wrong|missing|expired|unknown|no)[ _-]?(api[ _-]?)?key\b(?! (count|number|size))"
    r"|\b(invalid|incorrect|bad|wrong|missing|expired|no)[ _-](access[ _-]?token|auth\w*[ _-]token|bearer|credentials?|authorization)\b"
    r"|\b(key|access[ _-]?token|credentials?)\b (is |are |was )?(invalid|incorrect|missing|expired|revoked|disabled|not valid)\b",
    re.IGNORECASE,
)
"""Wordings for a wrong key, in bodies without a status."""
_MESSAGES = ("message", "msg", "error_message", "error_msg", "errormessage", "errmsg", "status_msg", "faultstring")
_ERRORS = ("error", "errors", "detail", "fault", *_MESSAGES)
_CODES = ("code", "error_code", "errorcode", "errcode", "status_code", "statuscode")
"""Keys of error bodies in lower case: OpenAI, MiniMax, Apigee, Baidu, WeChat and AWS."""


def complaint_of(content: bytes) -> Complaint:
    """Return the error in a body, in the format of OpenAI, Azure, FastAPI, vLLM, Gemini, Mistral, TGI, Ollama or Anthropic.

    A body that is neither JSON nor HTML is the message itself.
    """
    return complaint_in(_plain(content) or read_json(content))


def complaint_in(body: Any, depth: int = 3) -> Complaint:
    """Return the error in a parsed body, searching at most ``depth`` levels."""
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
    candidates = (error, *(inner.get(key) for key in (*_MESSAGES, "detail", "error")))
    texts = dict.fromkeys(text for text in candidates if isinstance(text, str) and text)
    message = ": ".join(texts) or "; ".join(text for _, text in problems)
    if not (message or error) and depth:  # some wrap it once more: {"base_resp": {...}}, {"Response": {"Error": {...}}}
        wrapped = (complaint_in(value, depth - 1) for value in body.values() if isinstance(value, dict))
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
    """Return the (parameter, message) pairs of a FastAPI error: a list of {loc, msg}, which some hosts put into an object."""
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
    """Return whether a body is an error. Some gateways and servers send errors under HTTP 200."""
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
        or complaint_in(body).status is not None
    )
