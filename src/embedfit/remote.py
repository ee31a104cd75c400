"""Encoders that live elsewhere: any OpenAI-compatible ``/v1/embeddings``, and Hugging Face Inference.

A remote encoder is named like a local one, and stands wherever a local one does:

    openai:MODEL[?dimensions=N][@URL]    openai:text-embedding-3-large
                                         openai:BAAI/bge-m3@http://localhost:8080/v1    (TEI, vLLM, Ollama ...)
                                         openai:ada@https://me.openai.azure.com/openai/deployments/ada?api-version=2024-06-01
    hf-inference:MODEL                   hf-inference:BAAI/bge-base-en-v1.5
    hf-inference:URL                     hf-inference:https://abc.endpoints.huggingface.cloud

No folder and no name on the Hub begins so: a name on the Hub has no colon, and a folder that has one can be given as ``./openai:x``.

A key goes to its own host and nowhere else: ``OPENAI_API_KEY`` to the host of ``OPENAI_BASE_URL``, or else api.openai.com; ``HF_TOKEN``
to huggingface.co and huggingface.cloud; to any other host the key of its own variable (`key_variable`), or none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from embedfit import console
from embedfit.config import checked_address
from embedfit.encode import Kind, Part, Vectors
from embedfit.endpoint import (
    OPENAI,
    Complaint,
    authorization,
    complains,
    complaint_of,
    connected,
    described,
    header_value,
    host_of,
    key_variable,
    one_line,
    openai_headers,
    openais,
    read_json,
    retry_after,
    split_query,
)
from embedfit.errors import ConfigError, EmbedfitError, ModelError, OfflineError, require, shown

PRICES = {"text-embedding-3-small": 0.02, "text-embedding-3-large": 0.13, "text-embedding-ada-002": 0.10}
"""US dollars for a million tokens at api.openai.com, as listed in November 2026. Anything else is ``price`` or unknown."""

_OPENAI_TEXTS, _OPENAI_TOKENS = 2048, 300_000
"""What api.openai.com takes in one request."""
_SERVER_TEXTS, _SERVER_BYTES = 32, 1_000_000
"""What any server takes: text-embeddings-inference, unless told otherwise, refuses more than 32 texts and 2 MB."""
_CONCURRENT = 8
_TRIES, _TRIES_AT_FIRST = 7, 3
"""How often a request is sent before giving up; fewer where there is no connection and never was, as nobody may be there."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second try, twice as long before each one after it. The host may ask for more, by Retry-After."""
_TRIES_WHOLE, _TRIES_ALONE = 2, 3
"""How often a request is sent that breaks the server, before it is cut in halves; and what is left of it as a single text."""
_LONGEST_ASKED = 900.0
"""A host that asks for more seconds than these is not waited for."""
_TIMEOUT = 60.0

Provider: TypeAlias = Literal["openai", "hf-inference"]
_Ask: TypeAlias = Callable[[list[str]], tuple[Vectors, int | None]]
_Answers: TypeAlias = list[tuple[list[int], Vectors]]
"""Positions of texts, and their vectors."""


def is_remote(name: str) -> bool:
    """Return whether a model's name is one of an encoder that lives elsewhere."""
    return name.startswith(("openai:", "hf-inference:"))


@dataclass(frozen=True)
class Address:
    """Where a remote encoder is, and what to ask it for.

    Attributes:
        provider: How to ask.
        model: Its name there; of a Hugging Face endpoint, its URL.
        url: Up to ``/embeddings``, with Azure's ``?api-version=`` if there is one, or of the endpoint; None for a model that Hugging Face
            serves by name.
        dimensions: How many to ask for; None for all.
    """

    provider: Provider
    model: str
    url: str | None
    dimensions: int | None = None

    @classmethod
    def of(cls, name: str) -> Address:
        """Read a name; see the module for what it looks like.

        Raises:
            ConfigError: It is not one, or its URL holds a password or an unknown query; neither is shown.
        """
        provider, _, rest = name.partition(":")
        if provider == "hf-inference":
            model, url = rest, rest if rest.startswith(("http://", "https://")) else None
            options = ""
        elif provider == "openai":
            model, at, url = re.fullmatch(r"(.*?)(?:(@)(https?://.*))?", rest, re.DOTALL).groups()  # type: ignore[union-attr]
            model, _, options = model.partition("?")
            url = url if at else os.environ.get("OPENAI_BASE_URL") or OPENAI
        else:
            raise ConfigError(f"model {name!r} is not remote; expected openai:MODEL or hf-inference:MODEL")
        if "://" in model and model != url:
            raise ConfigError(f"model {provider}:... names an address that is not http(s)://host; it is not shown")
        if not model:
            raise ConfigError(
                f"model '{provider}:' says no model; expected openai:MODEL, openai:MODEL@URL, hf-inference:MODEL or hf-inference:URL"
            )
        if url:
            try:
                parts = checked_address(url)
            except ConfigError as error:
                secret = "has a password in its URL, or something else that" if "@" in url else "has something in its URL that"
                raise ConfigError(
                    f"model {provider}:... {secret} does not belong there and would be written to reports ({error}); "
                    f"fix: the environment holds the key ({key_variable(url)})"
                ) from None
            if provider == "hf-inference" and parts.query:
                raise ConfigError("model hf-inference:... has a query in its URL, which is not sent on; fix: leave it out")
        found = re.fullmatch(r"(?:dimensions=([1-9][0-9]*))?", options)
        if not found:
            option = options if re.fullmatch(r"\w+=\d{0,6}", options) else options.partition("=")[0]
            raise ConfigError(
                f"model {provider}:{one_line(model, 60)}: option {shown(option)} is unknown; expected dimensions=N, "
                "like openai:text-embedding-3-large?dimensions=256"
            )
        return cls(
            "openai" if provider == "openai" else "hf-inference",
            model,
            url.strip().rstrip("/") if url else None,
            int(found[1]) if found[1] else None,
        )

    @property
    def host(self) -> str:
        """The host's name, and port if it says one."""
        return urlsplit(self.url).netloc if self.url else "huggingface.co"

    @property
    def variable(self) -> str:
        """The environment variable that holds the key for this host."""
        if self.provider == "openai" and openais(self.url or OPENAI):
            return "OPENAI_API_KEY"
        name = self.host.partition(":")[0]
        if name in ("huggingface.co", "huggingface.cloud") or name.endswith((".huggingface.co", ".huggingface.cloud")):
            return "HF_TOKEN"
        return key_variable(f"//{self.host}")

    @property
    def metered(self) -> bool:
        """Whether this is api.openai.com, with its prices and limits."""
        return self.host == urlsplit(OPENAI).netloc


@dataclass(frozen=True)
class Spent:
    """What an encoder has bought, in this process.

    Attributes:
        texts: Sent and answered.
        requests: Answered.
        tokens: As the host counted them; None if it does not say.
        dollars: At the price per token; None if the tokens or the price are not known.
    """

    texts: int = 0
    requests: int = 0
    tokens: int | None = 0
    dollars: float | None = 0.0

    def __str__(self) -> str:
        """Return it in words."""
        tokens = "tokens not told" if self.tokens is None else f"{self.tokens:,} tokens"
        dollars = "price not known" if self.dollars is None else f"US${self.dollars:.4f}"
        requests = "1 request" if self.requests == 1 else f"{self.requests:,} requests"
        return f"{self.texts:,} texts in {requests}, {tokens}, {dollars}"


class RemoteEncoder:
    """An encoder behind an API. Put a `CachedEncoder` around it, and nothing is bought twice.

    Requests go out side by side, within what the host takes in one. Where it asks for time (429, Retry-After), all of them
    wait; where it fails (5xx, a dropped connection), a request is sent again after growing, random pauses. What cannot get better
    by trying again (a refused key, an account without quota) stops at once.

    Args:
        name: Like ``openai:text-embedding-3-large``; see the module.
        query_prompt: Put before each query.
        document_prompt: Put before each document.
        price: US dollars for a million tokens; by default from `PRICES`, for api.openai.com.
        concurrent: Requests under way at a time.

    Raises:
        ConfigError: The name is none, or the price is not one.
        ModelError: The key is not set.
    """

    def __init__(
        self,
        name: str,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        price: float | None = None,
        concurrent: int = _CONCURRENT,
    ) -> None:
        self.name, self.address, self.concurrent = name, Address.of(name), concurrent
        self.prompts: dict[Kind, str] = {"query": query_prompt or "", "document": document_prompt or ""}
        self.price = PRICES.get(self.address.model) if price is None and self.address.metered else price
        if self.price is not None and not (math.isfinite(self.price) and self.price >= 0):
            raise ConfigError(f"price is {self.price:g}; expected US dollars for a million tokens, such as 0.13")
        self.spent = Spent()
        self._lock, self._free_at, self._answered = threading.Lock(), 0.0, False
        self._key = _key_of(self.address)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of host, model, dimensions and prompts: what is known of a model whose weights are not."""
        address = self.address
        described = ["remote", address.provider, address.model, address.url, address.dimensions, self.prompts]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions).

        Raises:
            ModelError: The host refuses, or gives something other than a vector for each text.
            OfflineError: It cannot be reached.
        """
        vectors: Vectors = np.zeros((len(texts), self.address.dimensions or 0), np.float32)
        for positions, found in self.encode_parts(texts, kind):
            if vectors.shape[1] != found.shape[1]:
                vectors = np.zeros((len(texts), found.shape[1]), np.float32)
            vectors[positions] = found
        return vectors

    def encode_parts(self, texts: Sequence[str], kind: Kind) -> Iterator[Part]:
        """Yield the vectors of each request as it is answered, so that what was paid for can be kept.

        Raises:
            ModelError: As `encode`; what was answered until then has been yielded.
            OfflineError: Likewise.
        """
        # No API takes an empty text, and half a surrogate pair cannot be sent.
        whole = [((self.prompts[kind] + text) or " ").encode("utf-8", "replace").decode() for text in texts]
        before, stop, ask = self.spent, threading.Event(), self._ask
        executor = ThreadPoolExecutor(self.concurrent)
        width, problem = None, None
        try:
            with console.progress(f"{kind} texts from {self.address.host}", len(texts)) as done:
                waiting = {executor.submit(self._answers, ask, positions, whole, stop) for positions in self._cut(whole)}
                while waiting:
                    ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in ready:
                        answers, refusal = future.result()
                        problem = problem or refusal  # what others are being answered meanwhile is still taken in
                        for positions, vectors in answers:
                            if width not in (None, vectors.shape[1]):
                                raise ModelError(f"{self.name} gave vectors of {width} and of {vectors.shape[1]} dimensions")
                            width = vectors.shape[1]
                            yield Part(np.array(positions), vectors)
                            done(len(positions))
            if problem:
                raise problem
        finally:
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
            bought = _difference(self.spent, before)
            if bought.texts > 1:  # the cost of one query is no news
                console.note(f"{self.name}: {bought}")

    def _cut(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Yield the positions of texts that may go in one request."""
        # A token of a byte-level tokenizer stands for one byte or more, so bytes are an upper bound that needs no tokenizer.
        most, most_bytes = (_OPENAI_TEXTS, _OPENAI_TOKENS) if self.address.metered else (_SERVER_TEXTS, _SERVER_BYTES)
        batch: list[int] = []
        size = 0
        for position, text in enumerate(texts):
            length = len(text.encode("utf-8", "surrogatepass"))
            if batch and (len(batch) == most or size + length > most_bytes):
                yield batch
                batch, size = [], 0
            batch.append(position)
            size += length
        if batch:
            yield batch

    def _answers(
        self, ask: _Ask, positions: list[int], texts: Sequence[str], stop: threading.Event, failures: int | None = None
    ) -> tuple[_Answers, EmbedfitError | None]:
        """Ask for some texts until there is an answer, in halves if they are too many for one request or one of them breaks the server.

        Args:
            ask: Sends one request.
            positions: Of the texts to ask for.
            texts: All of them.
            stop: Set when nothing more is to be sent.
            failures: How often the server has failed in a row on what these texts are a half of; None if they are a whole request.

        Returns:
            What was answered, and why that is not all.
        """
        tries, halved, failures = 0, failures is not None, failures or 0
        while not stop.wait(max(0.0, self._free_at - time.monotonic())):
            try:
                vectors, tokens = ask([texts[position] for position in positions])
                vectors = self._checked(vectors, len(positions))
            except _Failure as failure:
                tries += 1
                failures += 1
                breaks = (failure.breaks and self._answered) or (failure.status or 0) >= 500
                if len(positions) > 1 and (failure.too_much or (breaks and failures >= _TRIES_WHOLE)):
                    if not failure.too_much:
                        self._pause(failure, failures, stop)
                    half = len(positions) // 2
                    first, problem = self._answers(ask, positions[:half], texts, stop, None if failure.too_much else failures)
                    second, also = self._answers(ask, positions[half:], texts, stop, None if failure.too_much else 0)
                    return [*first, *second], problem or also
                nobody_there = failure.status is None and not self._answered
                most = _TRIES_AT_FIRST if nobody_there else _TRIES
                alone = halved and len(positions) == 1 and tries >= _TRIES_ALONE
                if not failure.again or failures >= most or alone or (failure.wait or 0.0) > _LONGEST_ASKED:
                    stop.set()  # here, before this thread begins another request
                    return [], self._refusal(failure, failures, positions, texts)
                self._pause(failure, failures, stop)
                continue
            except EmbedfitError as error:
                stop.set()
                return [], error
            except Exception as error:  # a library's own, or a server nobody thought of: one line, not a traceback from a thread
                stop.set()
                return [], ModelError(f"{self.name}: {self.address.host} gave no vectors ({type(error).__name__})")
            with self._lock:
                self._answered = True
                self.spent = self._with(len(positions), tokens)
            return [(positions, vectors)], None
        return [], None

    def _pause(self, failure: _Failure, tries: int, stop: threading.Event) -> None:
        pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
        if failure.wait is None:
            stop.wait(pause)
            return
        # It asks for time, and means all requests.
        if failure.wait > _LONGEST_WAIT:
            console.note(f"{self.address.host} asks to wait for {failure.wait:.0f} s")
        self._free_at = max(self._free_at, time.monotonic() + failure.wait + random.uniform(0.0, 0.1) * pause)

    @cached_property
    def _ask(self) -> _Ask:
        return _openai(self.address, self._key) if self.address.provider == "openai" else _hugging_face(self.address, self._key)

    def _with(self, texts: int, tokens: int | None) -> Spent:
        total = None if tokens is None or self.spent.tokens is None else self.spent.tokens + tokens
        dollars = None if total is None or self.price is None else total * self.price / 1e6
        return Spent(self.spent.texts + texts, self.spent.requests + 1, total, dollars)

    def _checked(self, vectors: Vectors, count: int) -> Vectors:
        """Return the vectors at unit length."""
        if vectors.ndim != 2 or len(vectors) != count:
            kind = "a vector for each token" if vectors.ndim == 3 else f"an array of shape {vectors.shape}"
            raise ModelError(f"{self.name} gave {kind}; expected one vector for each of {count:,} texts")
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and lengths.all()):
            raise ModelError(f"{self.name} gave a vector that is not finite, or all zero")
        wanted = self.address.dimensions
        if wanted and vectors.shape[1] != wanted:
            raise ModelError(f"{self.name} gave {vectors.shape[1]} dimensions, not the {wanted} asked for; this model cannot be cut")
        unit: Vectors = (vectors / lengths).astype(np.float32)
        return unit

    def _refusal(self, failure: _Failure, tries: int, positions: list[int], texts: Sequence[str]) -> ModelError:
        """Return what to tell the user; never a key, and of a single text its place and its first words."""
        host, variable, status = self.address.host, self.address.variable, failure.status
        told = one_line(failure.complaint.message.replace(self._key or "\0", "***")) or "it does not say why"
        if status is None:
            return OfflineError(f"{self.name}: {host} cannot be reached ({told}); what was answered before is kept")
        if status in (401, 403) and not failure.complaint.filtered:
            what = f"the key in {variable}" if self._key else "to answer without a key"
            return ModelError(f"{self.name}: {host} refuses {what} ({status}); fix: set {variable}")
        if failure.quota:
            return ModelError(f"{self.name}: the account at {host} has no quota left; what was answered before is kept")
        if (failure.wait or 0.0) > _LONGEST_ASKED:
            return ModelError(
                f"{self.name}: {host} answered {status} and asks to wait for {failure.wait:,.0f} s; fix: run the same command then"
            )
        text = texts[positions[0]]
        place = f"text {positions[0] + 1:,} of {len(texts):,}, {shown(text)}" if len(texts) > 1 else shown(text)
        if len(positions) == 1 and (status == 413 or failure.complaint.too_long):
            return ModelError(f"{self.name}: {host} refuses a text of {len(text):,} characters as too long ({status}: {told}): {place}")
        again = f" {tries} times" if failure.again else ""
        alone = f" (to one text alone: {place})" if len(positions) == 1 and (failure.too_much or failure.again) else ""
        return ModelError(f"{self.name}: {host} answered {status}{again}: {told}{alone}")


class _Failure(Exception):
    """A request that was not answered with vectors.

    Attributes:
        complaint: What the host says, or what is known of the connection.
        status: Of HTTP, or that in an error's body under 200; None if there was no answer.
        wait: Seconds that it asks for; None if it does not.
        breaks: Whether the request was sent, and the connection then broke or timed out.
    """

    def __init__(
        self, complaint: Complaint, status: int | None = None, headers: Mapping[str, str] | None = None, *, breaks: bool = False
    ) -> None:
        if status and 300 <= status < 400:
            there = one_line(host_of((headers or {}).get("location", ""))) or "another address"
            complaint = Complaint(f"it sends requests on to {there}; fix: give the address that answers itself")
        super().__init__(complaint.message)
        self.complaint, self.wait, self.breaks = complaint, retry_after(headers or {}), breaks
        self.status = complaint.status or status if status == 200 else status

    @property
    def quota(self) -> bool:
        """Whether the account can buy no more, which waiting does not mend."""
        return self.status == 402 or self.complaint.quota

    @property
    def too_much(self) -> bool:
        """Whether less might be taken: fewer texts, or all but one of them. A wrong key, which some hosts call 400, stays wrong."""
        wrong_key = self.status == 400 and self.complaint.status in (401, 403) and not self._of_its_size
        return not self.quota and not wrong_key and (self.status in (200, 400, 413, 422, 424) or self._of_its_size)

    @property
    def _of_its_size(self) -> bool:
        """Whether the host says that a request is too large, rather than that there are too many of them."""
        return self.status in (400, 429) and bool(_LARGE_BATCH.search(self.complaint.message))

    @property
    def again(self) -> bool:
        """Whether the same request may be answered later."""
        passing = self.status in (408, 409, 424, 425, 429) and not self._of_its_size
        return self.status is None or (passing and not self.quota) or self.status >= 500


_LARGE_BATCH = re.compile(
    r"\b(batch(es)?|requests?|payload|body|inputs?)\b[^.;]{0,40}\btoo (large|big|long)\b|\bbatch[ _]size\b|\btoo (large|big) a? ?batch"
    r"|\btoo many (inputs?|texts|items|documents|sequences)\b",
    re.IGNORECASE,
)


def _difference(after: Spent, before: Spent) -> Spent:
    tokens = None if after.tokens is None else after.tokens - (before.tokens or 0)
    dollars = None if after.dollars is None else after.dollars - (before.dollars or 0.0)
    return Spent(after.texts - before.texts, after.requests - before.requests, tokens, dollars)


def _key_of(address: Address) -> str | None:
    """Return the key for a host, or None where it may do without.

    Raises:
        ModelError: There is none, and it cannot do without.
        ConfigError: It cannot be sent in a header.
    """
    variable = address.variable
    if variable == "HF_TOKEN":
        from huggingface_hub import get_token

        key = get_token()  # also from 'hf auth login'
    else:
        key = os.environ.get(variable)
    key = header_value(key or "", variable)
    if not key and variable == "OPENAI_API_KEY":
        raise ModelError(
            f"openai:{address.model} needs a key; fix: set {variable}, or name another server: openai:MODEL@http://localhost:8080/v1"
        )
    return key or None


def _openai(address: Address, key: str | None) -> _Ask:
    """Return how to ask an OpenAI-compatible server, by OpenAI's SDK."""
    openai = require("openai", extra="openai")
    headers: dict[str, Any] = {}
    if not key:
        headers["Authorization"] = openai.Omit()
    if address.variable != "OPENAI_API_KEY":
        headers |= {name: openai.Omit() for name in openai_headers()}
    url, query = split_query(address.url or OPENAI)
    headers |= authorization(key, query, openai.Omit()) if key else {}
    # A redirect would take the headers to another host.
    client = connected(
        lambda: openai.OpenAI(
            api_key=key or "none",
            base_url=url,
            default_query=query,
            max_retries=0,
            timeout=_TIMEOUT,
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
    )
    dimensions = address.dimensions or openai.omit

    def ask(texts: list[str]) -> tuple[Vectors, int | None]:
        create = client.embeddings.with_raw_response.create
        try:
            answer = create(model=address.model, input=texts, dimensions=dimensions, extra_headers=headers)
        except openai.APIStatusError as error:
            raise _Failure(complaint_of(error.response.content), error.status_code, error.response.headers) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _Failure(Complaint(_told(cause)), breaks=type(cause).__name__ not in _NO_CONNECTION) from None
        content = answer.content
        body = read_json(content)
        rows = body.get("data") if isinstance(body, dict) else None
        if not rows and (complains(body) or (isinstance(body, dict) and complaint_of(content).message)):
            raise _Failure(complaint_of(content), 200, answer.headers)
        where = f"openai:{address.model}: {address.host} answered {answer.status_code}"
        if not isinstance(rows, list):
            raise ModelError(f"{where} with {described(content)}; expected JSON with 'data'")
        return _in_order(rows, len(texts), where), _tokens(body.get("usage"))

    return ask


_NO_CONNECTION = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "LocalProtocolError", "UnsupportedProtocol", "InvalidURL")


def _told(error: BaseException) -> str:
    """Return what a connection's error says, without an address that it may name."""
    return re.sub(r"\S+://\S+", "...", str(error)) or type(error).__name__


def _in_order(rows: list[Any], count: int, where: str) -> Vectors:
    """Return the vectors of ``data`` in the order of the texts, by ``index``.

    Raises:
        ModelError: An index or a vector is not what it should be.
    """
    found: list[Any] = [None] * count
    if len(rows) != count:
        raise ModelError(f"{where} with {len(rows):,} vectors; expected one vector for each of {count:,} texts")
    for row in rows:
        index = row.get("index") if isinstance(row, dict) else None
        if type(index) is not int or not 0 <= index < count or found[index] is not None:
            seen = shown(row.get("index")) if isinstance(row, dict) and "index" in row else "none"
            raise ModelError(f"{where} with a vector whose index is {seen}; expected each of 0 to {count - 1:,} once")
        found[index] = _vector(row.get("embedding"))
        if found[index] is None:
            seen = shown(row.get("embedding"), 40)
            raise ModelError(f"{where} with {seen} as embedding; expected numbers")
        if len(found[index]) != len(found[rows[0]["index"]]):
            raise ModelError(f"{where} with vectors of different lengths")
    return np.stack(found) if found else np.zeros((0, 0), np.float32)


def _vector(value: Any) -> Vectors | None:
    """Return an embedding, as numbers or as base64 of little-endian float32; None if it is neither."""
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), "<f4")
        numbers = np.array(value) if isinstance(value, list) else np.array(None)
    except (ValueError, OverflowError):
        return None
    return numbers.astype(np.float64) if numbers.ndim == 1 and numbers.dtype.kind in "fiu" else None


def _tokens(usage: Any) -> int | None:
    """Return the tokens that a server counted, None if it says no number."""
    for name in ("total_tokens", "prompt_tokens"):
        count = usage.get(name) if isinstance(usage, dict) else None
        if type(count) is int and 0 <= count < 2**53:
            return count
    return None


def _hugging_face(address: Address, key: str | None) -> _Ask:
    """Return how to ask Hugging Face Inference, by its own client."""
    from huggingface_hub import InferenceClient, get_session
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    lost: Any = HfHubHTTPError.__mro__[1]  # HTTPError of the HTTP library that the client uses; its versions differ
    # Without a key the client would look for the user's token itself, whatever the host.
    headers = {} if key else {"authorization": None}
    last = threading.local()

    class Client(InferenceClient):
        """Keeps the body of the last answer, since the client turns anything that numpy can read into vectors.

        It follows no redirect, which would take the texts to another host; the session that it shares with downloads has to.
        """

        def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
            response = get_session().post(
                request_parameters.url,
                json=request_parameters.json,
                content=request_parameters.data,
                headers=request_parameters.headers,
                cookies=self.cookies,
                timeout=self.timeout,
                follow_redirects=False,
            )
            if response.is_redirect:
                raise _Failure(Complaint(), response.status_code, response.headers)
            hf_raise_for_status(response)
            last.body = response.content
            return last.body

    client = Client(address.model, provider="hf-inference", token=key, timeout=_TIMEOUT, headers=headers)  # type: ignore[arg-type]
    connected(get_session)

    def ask(texts: list[str]) -> tuple[Vectors, int | None]:
        last.body = b""
        where = f"hf-inference:{address.host if address.url else address.model}: {address.host} answered 200"
        try:
            # A local model cuts long texts as well.
            found = client.feature_extraction(texts, truncate=True)  # type: ignore[arg-type]
        except HfHubHTTPError as error:
            complaint = complaint_of(error.response.content)
            complaint = complaint if complaint.message else Complaint(_told(error))
            raise _Failure(complaint, error.response.status_code, error.response.headers) from None
        except (lost, OSError) as error:
            if type(error).__name__ in ("ReadTimeout", "WriteTimeout"):
                raise _Failure(Complaint(f"no answer within {_TIMEOUT:.0f} s"), breaks=True) from None
            raise _Failure(Complaint(_told(error)), breaks=type(error).__name__ not in _NO_CONNECTION) from None
        except (ValueError, TypeError, OverflowError, RecursionError):
            body = read_json(last.body)
            if complains(body) or (isinstance(body, dict) and complaint_of(last.body).message):
                raise _Failure(complaint_of(last.body), 200) from None
            raise ModelError(f"{where} with {described(last.body)}; expected one vector for each text") from None
        rows = read_json(last.body) if isinstance(last.body, bytes) else None
        if isinstance(rows, list) and any(_vector(row) is None for row in rows) and found.ndim == 2:
            raise ModelError(f"{where} with something other than numbers in a vector")
        return found, None

    return ask
