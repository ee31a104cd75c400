"""LangWatch's interface: address, keys, and what its server is sent and answers."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from embedfit.errors import require
from embedfit.hosts import host_of, key_in
from embedfit.replies import masked, one_line

Rows: TypeAlias = Sequence[Mapping[str, Any]]
"""Results of queries, as the spool holds them."""
_ENDPOINT = "https://app.langwatch.ai"


def langwatch_key() -> str | None:
    """Return the value of ``LANGWATCH_API_KEY``, or None if it is not set."""
    return os.environ.get("LANGWATCH_API_KEY", "").strip() or None


def endpoint() -> str:
    """Return the value of ``LANGWATCH_ENDPOINT``, by default the address of LangWatch's cloud."""
    return (os.environ.get("LANGWATCH_ENDPOINT", "").strip() or _ENDPOINT).rstrip("/")


def shown_endpoint() -> str:
    """Return the endpoint for messages, without a password or query that its URL may contain."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(endpoint())
        if parts.netloc:
            return parts._replace(netloc=host_of(endpoint()), query="", fragment="").geturl()
    return "LangWatch" if "@" in endpoint() or "?" in endpoint() else endpoint()


def headers() -> dict[str, str]:
    """Return the headers that authenticate a request, for each kind of LangWatch key."""
    key = key_in("LANGWATCH_API_KEY")
    project = key_in("LANGWATCH_PROJECT_ID")
    if key.startswith("pat-lw-") and project:  # a personal key, which does not identify a project
        return {"Authorization": f"Basic {base64.b64encode(f'{project}:{key}'.encode()).decode()}"}
    named = {"X-Project-Id": project} if project and not key.startswith("pat-lw-") else {}
    return {"Authorization": f"Bearer {key}", "X-Auth-Token": key, **named}


def short_id(length: int, *parts: str) -> str:
    """Return the first ``length`` hexadecimal digits of a hash of texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:length]


def results_body(slug: str, head: Mapping[str, Any], rows: Rows, done: int, total: int) -> dict[str, Any]:
    """Return the body of a request that logs results.

    Args:
        slug: Slug of the experiment.
        head: First line of the spool: the experiment, run and targets.
        rows: Results to log.
        done: Number of results logged after this request.
        total: Number of results of the run; the last request marks the run as finished.
    """
    finished = {"finished_at": int(time.time() * 1000)} if done == total else {}
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
        "name": head["experiment"],
        "run_id": head["run_id"],
        "dataset": dataset,
        "evaluations": evaluations,
        "targets": head["targets"],
        "progress": done,
        "total": total,
        "timestamps": {"created_at": head["created_at"], **finished},
    }


def rejected_spans(body: Any, protobuf: bytes) -> str:
    """Return the number of rejected spans in an OTLP reply with the reason, as text; empty if all were accepted.

    Source: OpenTelemetry Protocol 1.x, section "Partial Success".

    Args:
        body: JSON reply, if it is JSON.
        protobuf: Protobuf reply, if it is protobuf; otherwise empty.
    """
    count: Any = 0
    reason = ""
    if protobuf:
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        with contextlib.suppress(DecodeError):
            partial = ExportTraceServiceResponse.FromString(protobuf).partial_success
            count, reason = partial.rejected_spans, partial.error_message
    elif isinstance(body, dict):
        partial = body.get("partialSuccess", body.get("partial_success"))
        if isinstance(partial, dict):
            count = partial.get("rejectedSpans", partial.get("rejected_spans", 0))
            reason = str(partial.get("errorMessage", partial.get("error_message", "")))
    if str(count or 0) == "0":
        return ""
    return masked(one_line(f"{count} spans" + (f": {reason}" if reason else "")), langwatch_key())


def span_encoder() -> Callable[[str, Rows], bytes]:
    """Return a function that writes results as spans of type ``rag`` in OpenTelemetry's protobuf: (run id, rows) -> bytes.

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

    def encode(run_id: str, rows: Rows) -> bytes:
        spans = []
        for row in rows:
            started = int(row["at"] * 1e9)
            chunks = [{**chunk, "chunk_id": chunk["document_id"]} for chunk in row["retrieved"]]
            evaluation = {"evaluation.run_id": run_id, "evaluation.index": row["index"]} if "scores" in row else {}
            attributes = {
                "langwatch.span.type": "rag",
                "langwatch.input": json.dumps({"type": "text", "value": row["query"]}),
                "langwatch.output": json.dumps({"type": "json", "value": [chunk["document_id"] for chunk in chunks]}),
                "langwatch.rag_contexts": json.dumps(
                    [{key: chunk[key] for key in ("document_id", "chunk_id", "content")} for chunk in chunks]
                ),
                "langwatch.origin": "evaluation" if evaluation else "application",
                "evaluation.target": row["target"],
                **evaluation,
            }
            context = SpanContext(int(row["trace_id"], 16), int(short_id(16, row["trace_id"]), 16), False, TraceFlags(TraceFlags.SAMPLED))
            ended = started + int(row["seconds"] * 1e9)
            spans.append(
                ReadableSpan("retrieval", context, None, resource, attributes, kind=SpanKind.INTERNAL, start_time=started, end_time=ended)
            )
        body: bytes = encode_spans(spans).SerializeToString()
        return body

    return encode
