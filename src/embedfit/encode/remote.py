"""Encoders behind an API: any OpenAI-compatible ``/v1/embeddings``, and Hugging Face Inference.

A remote encoder is given by name like a local one, and works wherever a local one does:

    openai:MODEL[?dimensions=N][@URL]    openai:text-embedding-3-large
                                         openai:BAAI/bge-m3@http://localhost:8080/v1    (TEI, vLLM, Ollama ...)
                                         openai:ada@https://me.openai.azure.com/openai/deployments/ada?api-version=2024-06-01
    hf-inference:MODEL                   hf-inference:BAAI/bge-base-en-v1.5
    hf-inference:URL                     hf-inference:https://abc.endpoints.huggingface.cloud

These names cannot be mistaken: a name on the Hub has no colon, and a folder with one can be given as ``./openai:x``.

A key goes to its own host and nowhere else: ``OPENAI_API_KEY`` to the host of ``OPENAI_BASE_URL``, or api.openai.com if that is not set;
``HF_TOKEN`` to huggingface.co and huggingface.cloud. Any other host gets the key in its own variable (`key_variable`), or none.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from embedfit import console, progress
from embedfit.encode.encoder import BaseEncoder, Kind, Part, Vectors
from embedfit.encode.providers import Address, Answers, Ask, Failure, hugging_face_asker, key_of, openai_asker
from embedfit.errors import ConfigError, EmbedfitError, ModelError, OfflineError, shown
from embedfit.files import digest
from embedfit.hosts import KEY_REFUSED, Retries
from embedfit.replies import masked, one_line

PRICES = {"text-embedding-3-small": 0.02, "text-embedding-3-large": 0.13, "text-embedding-ada-002": 0.10}
"""Model -> US dollars for a million tokens at api.openai.com, as listed in November 2026."""
_OPENAI_TEXTS, _OPENAI_TOKENS = 2048, 300_000
"""Limits of one request to api.openai.com."""
_SERVER_TEXTS, _SERVER_BYTES = 32, 1_000_000
"""Limits of one request to any other server. By default text-embeddings-inference refuses more than 32 texts or 2 MB."""
_CONCURRENT = 8
_RETRIES = Retries(tries=7, first_wait=0.5, patience=900.0)
_TRIES_WHOLE, _TRIES_ALONE = 2, 3
"""Tries of a request that breaks the server before it is halved, and of a single text that is left of it."""


def is_remote(name: str) -> bool:
    """Return whether a model's name is that of a remote encoder."""
    return name.startswith(("openai:", "hf-inference:"))


@dataclass(frozen=True)
class Spent:
    """Requests, tokens and cost of an encoder in this process.

    Attributes:
        texts: Number of texts with a vector.
        requests: Number of answered requests.
        tokens: Number of tokens, as counted by the host; None if the host does not count.
        dollars: Price in US dollars; None if the tokens or their price are not known.
    """

    texts: int = 0
    requests: int = 0
    tokens: int | None = 0
    dollars: float | None = 0.0

    def __str__(self) -> str:
        """Return a summary in one line."""
        tokens = "tokens not reported" if self.tokens is None else f"{self.tokens:,} tokens"
        dollars = "price unknown" if self.dollars is None else f"US${self.dollars:.4f}"
        requests = "1 request" if self.requests == 1 else f"{self.requests:,} requests"
        return f"{self.texts:,} texts in {requests}, {tokens}, {dollars}"


class RemoteEncoder(BaseEncoder):
    """An encoder behind an API. Wrap it in a `CachedEncoder`, and no text is bought twice.

    Requests run in parallel, each within the limits of the host. If the host asks for time (429 with Retry-After), all requests wait. If it
    fails (5xx, a dropped connection), a request is sent again after growing, random pauses. Errors that do not pass, such as a refused
    key or a spent quota, stop everything at once.

    Args:
        name: Name such as ``openai:text-embedding-3-large``; the module's docstring lists the forms.
        query_prompt: Text put before each query.
        document_prompt: Text put before each document.
        price: US dollars for a million tokens; by default from `PRICES`, for api.openai.com alone.
        concurrent: Number of requests under way at a time.
        unit: Whether vectors are scaled to unit length; False to return them as the host sends them.

    Raises:
        ConfigError: The name is not that of a remote encoder, or the price is negative or not finite.
        ModelError: The key is not set.
    """

    remote = True

    def __init__(
        self,
        name: str,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        price: float | None = None,
        concurrent: int = _CONCURRENT,
        unit: bool = True,
    ) -> None:
        self.name, self.address, self.concurrent, self.unit = name, Address.of(name), concurrent, unit
        self.prompts: dict[Kind, str] = {"query": query_prompt or "", "document": document_prompt or ""}
        self.price = PRICES.get(self.address.model) if price is None and self.address.metered else price
        if self.price is not None and not (math.isfinite(self.price) and self.price >= 0):
            raise ConfigError(f"price is {self.price:g}; expected US dollars for a million tokens, such as 0.13")
        self.spent = Spent()
        self._lock, self._free_at, self._answered = threading.Lock(), 0.0, False
        self._key = key_of(self.address)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of host, model, dimensions and prompts, as the weights are not known."""
        address = self.address
        length = [] if self.unit else ["as sent"]
        identity = ["remote", address.provider, address.model, address.url, address.dimensions, self.prompts, *length]
        return digest(identity, sort_keys=False)

    @property
    def dimension(self) -> int | None:
        """Number of dimensions asked for in the name; None if the name asks for none."""
        return self.address.dimensions

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one vector per text, in order, as a float32 matrix (texts, dimensions).

        Raises:
            ModelError: The host refuses the request, or does not return a vector for each text.
            OfflineError: The host cannot be reached.
        """
        vectors: Vectors = np.zeros((len(texts), self.dimension or 0), np.float32)
        for positions, part in self.encode_parts(texts, kind):
            if vectors.shape[1] != part.shape[1]:
                vectors = np.zeros((len(texts), part.shape[1]), np.float32)
            vectors[positions] = part
        return vectors

    def encode_parts(self, texts: Sequence[str], kind: Kind) -> Iterator[Part]:
        """Yield the vectors of each request as soon as it is answered, so that they can be kept whatever happens later.

        Raises:
            ModelError: The host refuses a request, or does not return a vector for each text. Answers to other requests were yielded.
            OfflineError: The host cannot be reached. Answers to other requests were yielded.
        """
        # No API takes an empty text, and a lone surrogate cannot be sent.
        whole = [((self.prompts[kind] + text) or " ").encode("utf-8", "replace").decode() for text in texts]
        before, stop, ask = self.spent, threading.Event(), self._ask
        executor = ThreadPoolExecutor(self.concurrent)
        width, problem = None, None
        try:
            with progress.bar(f"{kind} texts from {self.address.host}", len(texts)) as done:
                waiting = {executor.submit(self._answers, ask, positions, whole, stop) for positions in self._cut(whole)}
                while waiting:
                    ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in ready:
                        answers, refusal = future.result()
                        problem = problem or refusal  # other requests may still be answered
                        for positions, vectors in answers:
                            if width not in (None, vectors.shape[1]):
                                raise ModelError(f"{self.name} returned vectors of {width} and of {vectors.shape[1]} dimensions")
                            width = vectors.shape[1]
                            yield Part(np.array(positions), vectors)
                            done(len(positions))
            if problem:
                raise problem
        finally:
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
            bought = _difference(self.spent, before)
            if bought.texts > 1:  # the cost of a single query is not worth a note
                console.note(f"{self.name}: {bought}")

    def _cut(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Yield the positions of the texts in each request."""
        # No token is shorter than a byte, so bytes are an upper bound on tokens that needs no tokenizer.
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
        self, ask: Ask, positions: list[int], texts: Sequence[str], stop: threading.Event, failures: int | None = None
    ) -> tuple[Answers, EmbedfitError | None]:
        """Send texts until they are answered. A request that is too large, or breaks the server, is halved.

        Args:
            ask: Sends one request.
            positions: Positions of the texts to send.
            texts: All texts.
            stop: Event that is set when nothing more is to be sent.
            failures: Number of failures in a row of the request that these texts are a half of; None for a whole request.

        Returns:
            The answers, and the reason why some are missing; None if none is.
        """
        tries, halved, failures = 0, failures is not None, failures or 0
        while not stop.wait(max(0.0, self._free_at - time.monotonic())):
            try:
                vectors, tokens = ask([texts[position] for position in positions])
                vectors = self._checked(vectors, len(positions))
            except Failure as failure:
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
                limit = _RETRIES.limit(unreachable=failure.status is None and not self._answered)
                alone = halved and len(positions) == 1 and tries >= _TRIES_ALONE
                if not failure.again or failures >= limit or alone or _RETRIES.is_too_long(failure.wait):
                    stop.set()  # before this thread starts another request
                    return [], self._refusal(failure, failures, positions, texts)
                self._pause(failure, failures, stop)
                continue
            except EmbedfitError as error:
                stop.set()
                return [], error
            except Exception as error:  # an unforeseen error of a library or a server: one line, not a traceback from a thread
                stop.set()
                return [], ModelError(f"{self.name}: {self.address.host} returned no vectors ({type(error).__name__})")
            with self._lock:
                self._answered = True
                self.spent = self._with(len(positions), tokens)
            return [(positions, vectors)], None
        return [], None

    def _pause(self, failure: Failure, failures: int, stop: threading.Event) -> None:
        wait = _RETRIES.wait(failures)
        if failure.wait is None:
            stop.wait(wait)
            return
        if failure.wait > _RETRIES.longest_wait:
            console.note(f"{self.address.host} asks to wait for {failure.wait:.0f} s")
        # Retry-After holds for all requests. Those that it held back start a little apart.
        self._free_at = max(self._free_at, time.monotonic() + failure.wait + 0.1 * wait)

    @cached_property
    def _ask(self) -> Ask:
        return openai_asker(self.address, self._key) if self.address.provider == "openai" else hugging_face_asker(self.address, self._key)

    def _with(self, texts: int, tokens: int | None) -> Spent:
        total = None if tokens is None or self.spent.tokens is None else self.spent.tokens + tokens
        dollars = None if total is None or self.price is None else total * self.price / 1e6
        return Spent(self.spent.texts + texts, self.spent.requests + 1, total, dollars)

    def _checked(self, vectors: Vectors, count: int) -> Vectors:
        """Return the vectors, scaled to unit length if that is asked for.

        Raises:
            ModelError: The shape is wrong, or a vector is zero or not finite.
        """
        if vectors.ndim != 2 or len(vectors) != count:
            kind = "a vector for each token" if vectors.ndim == 3 else f"an array of shape {vectors.shape}"
            raise ModelError(f"{self.name} returned {kind}; expected one vector for each of {count:,} texts")
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and lengths.all()):
            raise ModelError(f"{self.name} returned a vector that is not finite, or all zero")
        dimensions = self.address.dimensions
        if dimensions and vectors.shape[1] != dimensions:
            raise ModelError(
                f"{self.name} returned {vectors.shape[1]} dimensions, not the {dimensions} asked for; fix: leave dimensions out"
            )
        checked: Vectors = (vectors / lengths if self.unit else vectors).astype(np.float32)
        return checked

    def _refusal(self, failure: Failure, tries: int, positions: list[int], texts: Sequence[str]) -> ModelError:
        """Return the error for the user. It never holds a key; it names a single text by its position and its first words."""
        host, variable, status = self.address.host, self.address.variable, failure.status
        reason = one_line(masked(failure.complaint.message, self._key)) or "no reason given"
        if status is None:
            return OfflineError(f"{self.name}: {host} cannot be reached ({reason}); what was answered before is kept")
        if status in KEY_REFUSED and not failure.complaint.filtered:
            what = f"the key in {variable}" if self._key else "to answer without a key"
            return ModelError(f"{self.name}: {host} refuses {what} ({status}); fix: set {variable}")
        if failure.quota:
            return ModelError(f"{self.name}: the account at {host} has no quota left; what was answered before is kept")
        if _RETRIES.is_too_long(failure.wait):
            return ModelError(
                f"{self.name}: {host} answered {status} and asks to wait for {failure.wait:,.0f} s; fix: run the same command then"
            )
        text = texts[positions[0]]
        place = f"text {positions[0] + 1:,} of {len(texts):,}, {shown(text)}" if len(texts) > 1 else shown(text)
        if len(positions) == 1 and (status == 413 or failure.complaint.too_long):
            return ModelError(f"{self.name}: {host} refuses a text of {len(text):,} characters as too long ({status}: {reason}): {place}")
        again = f" {tries} times" if failure.again else ""
        alone = f" (to one text alone: {place})" if len(positions) == 1 and (failure.too_much or failure.again) else ""
        return ModelError(f"{self.name}: {host} answered {status}{again}: {reason}{alone}")


def _difference(after: Spent, before: Spent) -> Spent:
    tokens = None if after.tokens is None else after.tokens - (before.tokens or 0)
    dollars = None if after.dollars is None else after.dollars - (before.dollars or 0.0)
    return Spent(after.texts - before.texts, after.requests - before.requests, tokens, dollars)
