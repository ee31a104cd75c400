"""Spans sent to LangWatch, or spooled until they can be."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from embedfit import console
from embedfit.errors import ConfigError, EmbedfitError, did_you_mean, require, shown
from embedfit.files import cache_folder, writing
from embedfit.hosts import connected, host_of, key_in, redirect_target, too_large
from embedfit.replies import complains, complaint_of, described, masked, one_line, read_json

if TYPE_CHECKING:
    import httpx

PATIENCE, _PATIENCE_AGAIN = 2.5, 30.0
"""Seconds without an answer after which no more is sent: at the end of a command, and when that is all it is to do."""
_BATCH = 50
"""Results in a request."""
SPOOL = "langwatch.jsonl"


def _shown_endpoint() -> str:
    """Return where LangWatch is without a password or a query that may stand in the address."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(endpoint())
        if parts.netloc:
            return parts._replace(netloc=host_of(endpoint()), query="", fragment="").geturl()
    return "LangWatch" if "@" in endpoint() or "?" in endpoint() else endpoint()


@dataclass(frozen=True)
class Delivery:
    """How a sending went.

    Attributes:
        delivered: Results that the server took.
        left: Results that it did not take, which are kept.
        problem: Why not; empty if all were taken.
        address: Where they can be seen; empty if nowhere.
    """

    delivered: int
    left: int
    problem: str = ""
    address: str = ""


def resend(folder: str | Path) -> Delivery:
    """Send again what was not delivered.

    Args:
        folder: The run directory, or the folder that the note named.

    Raises:
        ConfigError: There is no such folder, or no key.
        EmbedfitError: It could not be delivered this time either; it is kept.
    """
    folder = Path(folder)
    if not folder.is_dir():
        beside = [path.name for path in folder.absolute().parent.glob("*") if path.is_dir()]
        raise ConfigError(f"{folder}: is no run directory{did_you_mean(folder.name, beside)}")
    if not (folder / SPOOL).exists():
        return Delivery(0, 0)
    if not langwatch_key():
        raise ConfigError("LangWatch needs a key; fix: set LANGWATCH_API_KEY")
    found = deliver(folder, _PATIENCE_AGAIN)
    if found.left:
        raise EmbedfitError(
            f"{found.left:,} results were not delivered to LangWatch ({found.problem}); they are kept, the same command sends them"
        )
    return found


def spool_place(name: str, folder: Path | None) -> tuple[str, Path]:
    """Return a run's id, and where its results are kept until they are delivered."""
    if folder:
        return folder.name, folder
    run_id = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 10**6:06}"
    return run_id, cache_folder() / "track" / run_id


def another_endpoint(name: str, taken: Sequence[str]) -> str:
    """Return a name that is not taken: with a number behind it where it is."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name} ({number})"
    return found


def short_id(length: int, *parts: str) -> str:
    """Return the first hexadecimal digits of a hash of some texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:length]


def write_spool(path: Path, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write results that wait to be delivered: what they share, then a line for each."""
    with writing(path) as file:
        for row in (head, *rows):
            file.write(json.dumps(row).encode() + b"\n")


def deliver(folder: Path, patience: float) -> Delivery:
    """Send a folder's results, and leave there those that were not taken."""
    head, *rows = (json.loads(line) for line in (folder / SPOOL).read_text(encoding="utf-8").splitlines())
    sender = _Sender(head, rows, patience)
    # A thread of its own, since looking up a host name has no timeout.
    thread = threading.Thread(target=sender.run, daemon=True)
    thread.start()
    with console.progress("results to LangWatch", len(rows)) as done:
        shown = 0
        while thread.is_alive() and time.monotonic() - sender.moved < patience:
            thread.join(0.02)
            done(sender.reached - shown)
            shown = sender.reached
    left = [*sender.too_large, *rows[sender.reached :]]
    if left:
        write_spool(folder / SPOOL, head, left)
        return Delivery(len(rows) - len(left), len(left), sender.problem or f"{_shown_endpoint()} does not answer")
    (folder / SPOOL).unlink()
    with contextlib.suppress(OSError):
        if folder.parent == cache_folder() / "track":
            folder.rmdir()
    return Delivery(len(rows), 0, "", sender.address)


class _Refused(Exception):
    """The server did not take some results. ``too_large`` where it might take fewer."""

    def __init__(self, why: str, *, too_large: bool = False) -> None:
        super().__init__(why)
        self.too_large = too_large


class _Sender:
    """Sends results in order, batch by batch, until something goes wrong; a batch that is too large in halves.

    Attributes:
        reached: How many were taken, or are too large to be.
        too_large: Those that the server does not take even alone.
        moved: When something last went well; in the future while something is loaded.
        problem: What went wrong.
        address: Where results can be seen.
    """

    def __init__(self, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], patience: float) -> None:
        self._head, self._rows, self._patience = head, rows, patience
        self.reached, self.problem, self.address = 0, "", ""
        self.too_large: list[Mapping[str, Any]] = []
        self.moved = time.monotonic()

    def run(self) -> None:
        """Send everything; never raises, as nobody would see it."""
        import httpx

        host = _shown_endpoint()
        try:
            with connected(lambda: httpx.Client(base_url=endpoint(), headers=_headers(), timeout=self._patience)) as client:
                self._send(client)
        except httpx.HTTPError as error:
            self.problem = f"{host} cannot be reached: {one_line(str(error)) or type(error).__name__}"
        except (EmbedfitError, _Refused) as error:
            self.problem = str(error)
        except Exception as error:  # another server, another format: nothing of it may end the work, and a thread would print it
            self.problem = f"{host} does not answer as LangWatch does: {type(error).__name__}"

    def _send(self, client: httpx.Client) -> None:
        slug = name = self._head["experiment"]
        if name is not None:
            kind = {"experiment_name": name, "experiment_slug": name, "experiment_type": "BATCH_EVALUATION_V2"}
            found = self._post(client, "/api/experiment/init", json=kind)
            slug, path = (found.get(key) if isinstance(found, dict) else None for key in ("slug", "path"))
            if not (isinstance(slug, str) and isinstance(path, str)):
                raise _Refused(f"{_shown_endpoint()} does not answer as LangWatch does: its experiment has no slug and path")
            self.address = f"{_shown_endpoint()}{quote(path)}?runId={quote(self._head['run_id'])}"
        else:
            # Nobody should wait for what is loaded below only to find that there is no server.
            client.head("/")
        self.moved = float("inf")
        encode = _span_encoder()
        self.moved = time.monotonic()
        for start in range(0, len(self._rows), _BATCH):
            self._send_some(client, encode, slug, self._rows[start : start + _BATCH])

    def _send_some(self, client: httpx.Client, encode: Any, slug: str | None, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send some results, in halves where they are too large together; one that is too large alone is set aside."""
        try:
            if slug is not None:
                self._post(client, "/api/evaluations/batch/log_results", json=self._results(slug, rows))
            spans = encode(self._head["run_id"], rows)
            self._post(client, "/api/otel/v1/traces", content=spans, headers={"Content-Type": "application/x-protobuf"})
        except _Refused as refused:
            if not refused.too_large:
                raise
            if len(rows) > 1:
                half = len(rows) // 2
                self._send_some(client, encode, slug, rows[:half])
                self._send_some(client, encode, slug, rows[half:])
                return
            self.too_large.append(rows[0])
            more = f", and {len(self.too_large) - 1:,} more" if len(self.too_large) > 1 else ""
            self.problem = f"{refused}, even alone: the result of query {shown(self.too_large[0]['query'])}{more}"
        self.reached += len(rows)

    def _post(self, client: httpx.Client, path: str, **content: Any) -> Any:
        """Return what the server answers in JSON, None if it answers in another way that says it took it.

        Raises:
            _Refused: It did not take it, or something else answers in its place, such as a login page.
        """
        response = client.post(path, **content)
        self.moved = time.monotonic()
        host, status, body = _shown_endpoint(), response.status_code, read_json(response.content)
        complaint = complaint_of(response.content)
        if response.is_success and not complains(body):
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if rejected := _rejected_spans(body, response.content if kind == "application/x-protobuf" else b""):
                raise _Refused(f"{host} answered {status} and rejected {rejected}")
            if isinstance(body, dict) or kind == "application/x-protobuf" or (not response.content and kind != "text/html"):
                return body
            raise _Refused(f"{host} answered {status} with {described(response.content)}; fix: see whether LANGWATCH_ENDPOINT is right")
        if response.is_redirect:
            there = redirect_target(response.headers, "another page of its own, as for a login")
            raise _Refused(f"{host} answered {status} and sends to {there}; fix: see whether LANGWATCH_ENDPOINT is right")
        why = one_line(masked(complaint.message, langwatch_key()))
        raise _Refused(f"{host} answered {status}" + (f": {why}" if why else ""), too_large=too_large(status, complaint))

    def _results(self, slug: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the body that tells LangWatch of some results, and with the last ones that there are no more."""
        done = self.reached + len(rows)
        finished = {"finished_at": int(time.time() * 1000)} if done == len(self._rows) else {}
        dataset = [
            {
                "index": row["index"],
                "entry": {"query": row["query"], "expected": row["expected"]},
                "duration": round(1000 * row["seconds"]),
                "trace_id": row["trace_id"],
                "target_id": row["target"],
                "predicted": {"output": row["retrieved"]},
            }
            for row in rows
        ]
        evaluations = [
            {
                "name": metric,
                "evaluator": metric,
                "trace_id": row["trace_id"],
                "status": "processed",
                "score": score,
                "index": row["index"],
                "target_id": row["target"],
                "inputs": {"query": row["query"]},
            }
            for row in rows
            for metric, score in row["scores"].items()
        ]
        return {
            "experiment_slug": slug,
            "name": self._head["experiment"],
            "run_id": self._head["run_id"],
            "dataset": dataset,
            "evaluations": evaluations,
            "targets": self._head["targets"],
            "progress": done,
            "total": len(self._rows),
            "timestamps": {"created_at": self._head["created_at"], **finished},
        }


def _rejected_spans(body: Any, protobuf: bytes) -> str:
    """Return how many spans OTLP's reply says were not taken, and why; empty if they all were.

    Source: OpenTelemetry Protocol 1.x, "Partial Success", in JSON or in protobuf.
    """
    count: Any = 0
    why = ""
    if protobuf:
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        with contextlib.suppress(DecodeError):
            partial = ExportTraceServiceResponse.FromString(protobuf).partial_success
            count, why = partial.rejected_spans, partial.error_message
    elif isinstance(body, dict):
        partial = body.get("partialSuccess", body.get("partial_success"))
        if isinstance(partial, dict):
            count = partial.get("rejectedSpans", partial.get("rejected_spans", 0))
            why = str(partial.get("errorMessage", partial.get("error_message", "")))
    if str(count or 0) == "0":
        return ""
    return masked(one_line(f"{count} spans" + (f": {why}" if why else "")), langwatch_key())


def _span_encoder() -> Any:
    """Return how to write results as spans of type ``rag``, in OpenTelemetry's protobuf: (run id, rows) -> bytes.

    Raises:
        EmbedfitError: OpenTelemetry is not installed.
    """
    require("opentelemetry.exporter.otlp.proto.common", extra="langwatch")
    from importlib.metadata import version

    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

    resource = Resource.create({"service.name": "embedfit", "service.version": version("embedfit")})

    def encode(run_id: str, rows: Sequence[Mapping[str, Any]]) -> bytes:
        spans = []
        for row in rows:
            started = int(row["at"] * 1e9)
            chunks = [{**one, "chunk_id": one["document_id"]} for one in row["retrieved"]]
            evaluated = {"evaluation.run_id": run_id, "evaluation.index": row["index"]} if "scores" in row else {}
            attributes = {
                "langwatch.span.type": "rag",
                "langwatch.input": json.dumps({"type": "text", "value": row["query"]}),
                "langwatch.output": json.dumps({"type": "json", "value": [one["document_id"] for one in chunks]}),
                "langwatch.rag_contexts": json.dumps([{key: one[key] for key in ("document_id", "chunk_id", "content")} for one in chunks]),
                "langwatch.origin": "evaluation" if evaluated else "application",
                "evaluation.target": row["target"],
                **evaluated,
            }
            context = SpanContext(int(row["trace_id"], 16), int(short_id(16, row["trace_id"]), 16), False, TraceFlags(TraceFlags.SAMPLED))
            ended = started + int(row["seconds"] * 1e9)
            spans.append(
                ReadableSpan("retrieval", context, None, resource, attributes, kind=SpanKind.INTERNAL, start_time=started, end_time=ended)
            )
        body: bytes = encode_spans(spans).SerializeToString()
        return body

    return encode


def _headers() -> dict[str, str]:
    """Return how LangWatch knows whose results these are, for each kind of its keys."""
    key = key_in("LANGWATCH_API_KEY")
    project = key_in("LANGWATCH_PROJECT_ID")
    if key.startswith("pat-lw-") and project:  # a person's key, which says no project
        return {"Authorization": f"Basic {base64.b64encode(f'{project}:{key}'.encode()).decode()}"}
    named = {"X-Project-Id": project} if project and not key.startswith("pat-lw-") else {}
    return {"Authorization": f"Bearer {key}", "X-Auth-Token": key, **named}


_ENDPOINT = "https://app.langwatch.ai"


def langwatch_key() -> str | None:
    """Return the key for LangWatch; without one nothing is sent."""
    return os.environ.get("LANGWATCH_API_KEY", "").strip() or None


def endpoint() -> str:
    """Return where LangWatch is: ``LANGWATCH_ENDPOINT``, else its cloud."""
    return (os.environ.get("LANGWATCH_ENDPOINT", "").strip() or _ENDPOINT).rstrip("/")
