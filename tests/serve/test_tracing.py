"""Traces: what a loopback collector is sent, and that one which does not answer slows nothing down."""

import json
import threading
import time
from dataclasses import dataclass, field

import pytest
from serve_data import TEXTS, searcher, serving
from servers import LangWatch, running

from embedfit.errors import ConfigError
from embedfit.serve import tracing
from embedfit.serve.tracing import targets


@dataclass
class Collector(LangWatch):
    """Takes traces at any path, once it is let."""

    free: threading.Event = field(default_factory=threading.Event)

    def answer(self, request):
        assert self.free.wait(30)
        return 200, {"Content-Type": "application/x-protobuf"}, b""

    def sent_to(self, path):
        return self.requests


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name in ("LANGWATCH_API_KEY", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracing, "_PAUSE_SECONDS", 0.05)


@pytest.fixture
def collector():
    with running(Collector()) as collector:
        collector.free.set()
        yield collector
        collector.free.set()


def counted(client, name):
    return float(next(line.split()[1] for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")))


def test_langwatch_is_sent_a_rag_span_with_contexts_for_each_search(word_encoder, tmp_path, collector, monkeypatch):
    monkeypatch.setenv("LANGWATCH_API_KEY", "sk-lw-key-of-this-test")
    monkeypatch.setenv("LANGWATCH_ENDPOINT", collector.address)
    with serving(searcher(word_encoder), tmp_path, traces="texts") as client:
        answer = client.post("/search", json={"queries": ["uber ride", "dinner"], "k": 2}).json()["answers"]
    [(name, _, first), (_, _, second)] = collector.spans()
    assert collector.requests[0].path == "/api/otel/v1/traces"
    assert collector.requests[0].headers["authorization"] == "Bearer sk-lw-key-of-this-test"
    assert (name, first["langwatch.span.type"]) == ("search", "rag")
    assert json.loads(first["langwatch.input"]) == {"type": "text", "value": "uber ride"}
    contexts = json.loads(first["langwatch.rag_contexts"])
    assert [context["document_id"] for context in contexts] == [hit["id"] for hit in answer[0]["hits"]]
    assert contexts[0]["content"] == TEXTS["taxi"]
    assert second["embedfit.query"] == "dinner"


def test_a_collector_is_sent_no_text_of_a_person_unless_that_is_asked_for(word_encoder, tmp_path, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address + "/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20secret, x-team=red")
    with serving(searcher(word_encoder), tmp_path, traces="ids") as client:
        client.post("/search", json={"query": "a-very-private-text uber", "person": "Private Ann"})
    [(_, _, attributes)] = collector.spans()
    [request] = collector.requests
    assert (request.path, request.headers["x-key"], request.headers["x-team"]) == ("/v1/traces", "a secret", "red")
    assert b"private" not in request.body.lower()
    assert TEXTS["taxi"].encode() not in request.body
    assert json.loads(attributes["langwatch.output"])["value"][0] == "taxi"


def test_nothing_is_sent_by_default(word_encoder, tmp_path, collector, monkeypatch):
    monkeypatch.setenv("LANGWATCH_API_KEY", "key")
    monkeypatch.setenv("LANGWATCH_ENDPOINT", collector.address)
    with serving(searcher(word_encoder), tmp_path) as client:
        client.post("/search", json={"query": "uber"})
    assert collector.requests == []


def test_with_a_collector_that_does_not_answer_every_search_is_answered_and_what_is_dropped_is_counted(
    word_encoder, tmp_path, collector, monkeypatch
):
    collector.free.clear()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.address)
    monkeypatch.setattr(tracing, "_MOST_WAITING", 10)
    monkeypatch.setattr(tracing, "_PATIENCE_SECONDS", 2.0)
    with serving(searcher(word_encoder), tmp_path, traces="ids") as client:
        client.post("/search", json={"query": "first"})
        while not collector.requests:
            time.sleep(0.01)
        for number in range(30):
            assert client.post("/search", json={"query": f"uber {number}"}).status_code == 200
        dropped = counted(client, "embedfit_dropped_traces_total")
        assert 20 <= dropped <= 31  # 10 wait
    assert len(collector.requests) <= 2


def test_an_address_that_nobody_listens_at_costs_one_try_and_not_one_for_each_search(word_encoder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with serving(searcher(word_encoder), tmp_path, traces="ids") as client:
        deadline = time.monotonic() + 30
        sent = 0
        while counted(client, "embedfit_dropped_traces_total") < 5:
            client.post("/search", json={"query": "uber"})
            sent += 1
            assert time.monotonic() < deadline
    assert sent >= 5
    assert len([record for record in caplog.records if "traces are not delivered (ConnectError)" in record.getMessage()]) == 1


def test_without_an_address_the_server_says_what_to_set(said, tmp_path):
    with pytest.raises(ConfigError, match="set LANGWATCH_API_KEY, or OTEL_EXPORTER_OTLP_ENDPOINT"):
        targets()
    code, _, err = said("serve", tmp_path, "--traces", "ids")
    assert (code, "--traces: there is no address" in err) == (2, True)
