"""Encoders that live elsewhere: any OpenAI-compatible ``/v1/embeddings``, and Hugging Face Inference.

A remote encoder is named like a local one, and stands wherever a local one does:

    openai:MODEL[?dimensions=N][@URL]    openai:text-embedding-3-large
                                         openai:BAAI/bge-m3@http://localhost:8080/v1    (TEI, vLLM, Ollama ...)
    hf-inference:MODEL                   hf-inference:BAAI/bge-base-en-v1.5
    hf-inference:URL                     hf-inference:https://abc.endpoints.huggingface.cloud

No folder and no name on the Hub begins so: a name on the Hub has no colon, and a folder that has one can be given as ``./openai:x``.

A key goes to its own host and nowhere else: ``OPENAI_API_KEY`` to the host of ``OPENAI_BASE_URL``, or else api.openai.com; ``HF_TOKEN``
to huggingface.co and huggingface.cloud; to any other host the key of its own variable (`key_variable`), or none.
"""

from __future__ import annotations

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
from embedfit.encode import Kind, Part, Vectors
from embedfit.endpoint import OPENAI, key_variable, openai_headers, openais, retry_after
from embedfit.errors import ConfigError, EmbedfitError, ModelError, OfflineError, require

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
        url: Up to ``/embeddings``, or of the endpoint; None for a model that Hugging Face serves by name.
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
            ConfigError: It is not one, or its URL holds a password.
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
        if url and (urlsplit(url).username or urlsplit(url).password):
            raise ConfigError(
                f"model {provider}:... has a password in its URL, which would be written to reports; fix: {key_variable(url)} holds the key"
            )
        if not model or (url and not urlsplit(url).hostname):
            raise ConfigError(
                f"model {name!r} says no model; expected openai:MODEL, openai:MODEL@URL, hf-inference:MODEL or hf-inference:URL"
            )
        found = re.fullmatch(r"(?:dimensions=([1-9][0-9]*))?", options)
        if not found:
            raise ConfigError(
                f"model {name!r}: option {options!r} is unknown; expected dimensions=N, like openai:text-embedding-3-large?dimensions=256"
            )
        return cls(
            "openai" if provider == "openai" else "hf-inference",
            model,
            url.rstrip("/") if url else None,
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
        whole = [(self.prompts[kind] + text) or " " for text in texts]  # no API takes an empty text
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
        self, ask: _Ask, positions: list[int], texts: Sequence[str], stop: threading.Event
    ) -> tuple[_Answers, EmbedfitError | None]:
        """Ask for some texts until there is an answer, in halves if they are too many for one request.

        Returns:
            What was answered, and why that is not all.
        """
        tries = 0
        while not stop.wait(max(0.0, self._free_at - time.monotonic())):
            try:
                vectors, tokens = ask([texts[position] for position in positions])
                vectors = self._checked(vectors, len(positions))
            except _Failure as failure:
                if failure.too_much and len(positions) > 1:
                    half = len(positions) // 2
                    first, problem = self._answers(ask, positions[:half], texts, stop)
                    second, also = self._answers(ask, positions[half:], texts, stop)
                    return [*first, *second], problem or also
                tries += 1
                nobody_there = failure.status is None and not self._answered
                if not failure.again or tries >= (_TRIES_AT_FIRST if nobody_there else _TRIES):
                    stop.set()  # here, before this thread begins another request
                    return [], self._refusal(failure, tries, texts[positions[0]])
                self._pause(failure, tries, stop)
                continue
            except EmbedfitError as error:
                stop.set()
                return [], error
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
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and lengths.all()):
            raise ModelError(f"{self.name} gave a vector that is not finite, or all zero")
        wanted = self.address.dimensions
        if wanted and vectors.shape[1] != wanted:
            raise ModelError(f"{self.name} gave {vectors.shape[1]} dimensions, not the {wanted} asked for; this model cannot be cut")
        unit: Vectors = (vectors / lengths).astype(np.float32)
        return unit

    def _refusal(self, failure: _Failure, tries: int, text: str) -> ModelError:
        """Return what to tell the user; never what was sent with the request."""
        host, variable = self.address.host, self.address.variable
        said = " ".join(failure.said.replace(self._key or "\0", "***").split())[:200]
        if failure.status is None:
            return OfflineError(f"{self.name}: {host} cannot be reached ({said or 'no connection'}); what was answered before is kept")
        if failure.status in (401, 403):
            what = f"the key in {variable}" if self._key else "to answer without a key"
            return ModelError(f"{self.name}: {host} refuses {what} ({failure.status}); fix: set {variable}")
        if failure.quota:
            return ModelError(f"{self.name}: the account at {host} has no quota left; what was answered before is kept")
        if failure.too_much:
            return ModelError(f"{self.name}: {host} refuses a text of {len(text):,} characters as too long ({failure.status}: {said})")
        again = f" {tries} times" if failure.again else ""
        return ModelError(f"{self.name}: {host} answered {failure.status}{again}: {said}")


class _Failure(Exception):
    """A request that was not answered with vectors.

    Attributes:
        said: By the host, or about the connection.
        status: Of HTTP; None if there was no answer.
        wait: Seconds that it asks for; None if it does not.
        code: The host's own word for it.
    """

    def __init__(self, said: str, status: int | None = None, headers: Mapping[str, str] | None = None, code: str = "") -> None:
        self.said, self.status, self.wait, self.code = said, status, retry_after(headers or {}), code

    @property
    def quota(self) -> bool:
        """Whether the account can buy no more, which waiting does not mend."""
        return self.status == 402 or self.code == "insufficient_quota" or "insufficient_quota" in self.said

    @property
    def too_much(self) -> bool:
        """Whether less might be taken."""
        return self.status in (413, 422) or (self.status == 400 and "max_tokens_per_request" in f"{self.code} {self.said}")

    @property
    def again(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status is None or (self.status in (408, 409, 425, 429) and not self.quota) or self.status >= 500


def _difference(after: Spent, before: Spent) -> Spent:
    tokens = None if after.tokens is None else after.tokens - (before.tokens or 0)
    dollars = None if after.dollars is None else after.dollars - (before.dollars or 0.0)
    return Spent(after.texts - before.texts, after.requests - before.requests, tokens, dollars)


def _key_of(address: Address) -> str | None:
    """Return the key for a host, or None where it may do without.

    Raises:
        ModelError: There is none, and it cannot do without.
    """
    variable = address.variable
    if variable == "HF_TOKEN":
        from huggingface_hub import get_token

        key = get_token()  # also from 'hf auth login'
    else:
        key = os.environ.get(variable)
    key = (key or "").strip()
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
    client = openai.OpenAI(api_key=key or "none", base_url=address.url, max_retries=0, timeout=_TIMEOUT)
    dimensions = address.dimensions or openai.omit

    def ask(texts: list[str]) -> tuple[Vectors, int | None]:
        try:
            found = client.embeddings.create(model=address.model, input=texts, dimensions=dimensions, extra_headers=headers)
        except openai.APIStatusError as error:
            raise _Failure(error.message, error.status_code, error.response.headers, str(error.code or "")) from None
        except openai.APIConnectionError as error:
            raise _Failure(str(error.__cause__ or error)) from None
        except (openai.OpenAIError, ValueError) as error:
            raise ModelError(f"openai:{address.model}: {address.host} gave no vectors: {str(error).splitlines()[0]}") from None
        rows = sorted(found.data, key=lambda row: row.index)
        try:
            vectors = np.array([row.embedding for row in rows], np.float32)
        except (ValueError, TypeError):
            raise ModelError(f"openai:{address.model}: {address.host} gave vectors of different lengths") from None
        return vectors, found.usage.total_tokens if found.usage else None

    return ask


def _hugging_face(address: Address, key: str | None) -> _Ask:
    """Return how to ask Hugging Face Inference, by its own client."""
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

    lost: Any = HfHubHTTPError.__mro__[1]  # HTTPError of the HTTP library that the client uses; its versions differ
    # Without a key the client would look for the user's token itself, whatever the host.
    headers = {} if key else {"authorization": None}
    client = InferenceClient(address.model, provider="hf-inference", token=key, timeout=_TIMEOUT, headers=headers)  # type: ignore[arg-type]

    def ask(texts: list[str]) -> tuple[Vectors, int | None]:
        try:
            # A local model cuts long texts as well.
            return client.feature_extraction(texts, truncate=True), None  # type: ignore[arg-type]
        except InferenceTimeoutError:
            raise _Failure(f"no answer within {_TIMEOUT:.0f} s") from None
        except HfHubHTTPError as error:
            said = error.response.text or str(error)
            raise _Failure(said, error.response.status_code, error.response.headers) from None
        except (lost, OSError) as error:
            raise _Failure(str(error)) from None
        except (ValueError, TypeError) as error:
            raise ModelError(f"hf-inference:{address.model}: gave no vectors: {str(error).splitlines()[0]}") from None

    return ask
