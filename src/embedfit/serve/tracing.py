"""Traces of searches, for LangWatch and any OpenTelemetry collector: sent in the background, and dropped before they slow a search.

Where they go is said by the environment: LangWatch by ``LANGWATCH_API_KEY`` (and ``LANGWATCH_ENDPOINT``), a collector by
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_ENDPOINT`` (and ``OTEL_EXPORTER_OTLP_HEADERS``), over HTTP with protobuf.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote

import httpx

from embedfit.errors import ConfigError, require
from embedfit.serve.service import Answer
from embedfit.track.langwatch import endpoint, headers, langwatch_key

log = logging.getLogger("embedfit.serve")

Traces: TypeAlias = Literal["none", "ids", "texts"]
"""What traces hold: nothing; document ids, scores and times; or also the texts of queries and documents."""
_MOST_WAITING, _MOST_SENT = 1000, 100
_PAUSE_SECONDS, _PATIENCE_SECONDS, _REST_SECONDS = 1.0, 3.0, 10.0
"""Time between two deliveries, for a delivery, and before the next one after a failure."""


def targets() -> dict[str, dict[str, str]]:
    """Return the headers for each address that traces are sent to, as the environment says.

    Raises:
        ConfigError: No address is configured.
    """
    found = {}
    if langwatch_key():
        found[f"{endpoint()}/api/otel/v1/traces"] = headers()
    address = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
    base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip().rstrip("/")
    if address or base:
        pairs = [pair.partition("=") for pair in os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",") if "=" in pair]
        found[address or f"{base}/v1/traces"] = {name.strip(): unquote(value.strip()) for name, _, value in pairs}
    if not found:
        raise ConfigError("--traces: there is no address; fix: set LANGWATCH_API_KEY, or OTEL_EXPORTER_OTLP_ENDPOINT")
    return found


class Tracer:
    """Sends a span for each search, from a thread of its own.

    Args:
        addresses: Address -> headers.
        texts: Whether spans hold the texts of queries and documents.
        dropped: Called with the number of spans that were given up.

    Raises:
        EmbedfitError: OpenTelemetry is not installed.
    """

    def __init__(self, addresses: Mapping[str, Mapping[str, str]], *, texts: bool, dropped: Callable[[int], None]) -> None:
        self._encode = _encoder()
        self._addresses, self._texts, self._dropped = addresses, texts, dropped
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue(_MOST_WAITING)
        self._closing = threading.Event()
        self._resting = dict.fromkeys(addresses, 0.0)
        self._thread = threading.Thread(target=self._run, name="embedfit-traces", daemon=True)
        self._thread.start()

    def add(self, answers: Sequence[Answer], seconds: float) -> None:
        """Add the answers of a request. It never waits: what the queue has no room for is dropped."""
        now = time.time_ns()
        for answer in answers:
            try:
                self._waiting.put_nowait({"answer": answer, "start": now - int(seconds * 1e9), "end": now})
            except queue.Full:
                self._dropped(1)

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        self._closing.set()
        self._thread.join(_PATIENCE_SECONDS)

    def _run(self) -> None:
        with httpx.Client(timeout=_PATIENCE_SECONDS) as client:
            while not (self._closing.is_set() and self._waiting.empty()):
                self._closing.wait(_PAUSE_SECONDS)
                while rows := list(self._taken()):
                    self._send(client, rows)

    def _taken(self) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(queue.Empty):
            for _ in range(_MOST_SENT):
                yield self._waiting.get_nowait()

    def _send(self, client: httpx.Client, rows: Sequence[Mapping[str, Any]]) -> None:
        body = self._encode(rows, self._texts)
        for address, header in self._addresses.items():
            if time.monotonic() < self._resting[address]:
                self._dropped(len(rows))
                continue
            problem = ""
            try:
                answer = client.post(address, content=body, headers={**header, "Content-Type": "application/x-protobuf"})
                problem = "" if answer.is_success else f"status {answer.status_code}"
            except Exception as error:  # whatever is wrong with an address, searches go on
                problem = type(error).__name__
            if problem:
                self._dropped(len(rows))
                self._resting[address] = time.monotonic() + _REST_SECONDS
                log.warning("traces are not delivered (%s); the next try is in %.0f s", problem, _REST_SECONDS)


def _encoder() -> Callable[[Sequence[Mapping[str, Any]], bool], bytes]:
    require("opentelemetry.exporter.otlp.proto.common", extra="langwatch")
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

    resource = Resource.create({"service.name": "embedfit", "service.version": version("embedfit")})

    def encode(rows: Sequence[Mapping[str, Any]], texts: bool) -> bytes:
        spans = []
        for row in rows:
            context = SpanContext(secrets.randbits(128) or 1, secrets.randbits(64) or 1, False, TraceFlags(TraceFlags.SAMPLED))
            spans.append(
                ReadableSpan(
                    "search",
                    context,
                    resource=resource,
                    attributes=_attributes(row["answer"], texts),
                    kind=SpanKind.SERVER,
                    start_time=row["start"],
                    end_time=row["end"],
                )
            )
        body: bytes = encode_spans(spans).SerializeToString()
        return body

    return encode


def _attributes(answer: Answer, texts: bool) -> dict[str, Any]:
    """Return the attributes of a span: those of LangWatch, and plain ones for other collectors."""
    ids = [hit.id for hit in answer.hits]
    contexts = [{"document_id": hit.id, "chunk_id": hit.id, "content": hit.text if texts else ""} for hit in answer.hits]
    attributes: dict[str, Any] = {
        "langwatch.span.type": "rag",
        "langwatch.origin": "application",
        "langwatch.output": json.dumps({"type": "json", "value": ids}),
        "langwatch.rag_contexts": json.dumps(contexts),
        "embedfit.model": answer.model,
        "embedfit.ids": ids,
        "embedfit.scores": [hit.score for hit in answer.hits],
        "embedfit.abstained": answer.abstained,
    }
    if answer.hits and answer.hits[0].probability is not None:
        attributes["embedfit.probability"] = answer.hits[0].probability
    if texts:
        attributes["langwatch.input"] = json.dumps({"type": "text", "value": answer.text})
        attributes["embedfit.query"] = answer.text
    return attributes
