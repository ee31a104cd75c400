import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from servers import Embeddings, LangWatch, running
from small_start import write_start

from embedfit.config import make_config
from embedfit.data.load import load
from embedfit.encode.named import encoder_of
from embedfit.errors import ConfigError, EmbedfitError
from embedfit.pipeline import experiment, measuring, parts, training
from embedfit.track import sender
from embedfit.track.langwatch import headers
from embedfit.track.sender import resend
from embedfit.track.tracker import trace_search, tracking
from embedfit.tune.training import Training

KEY = "sk-lw-very-secret-0123456789"
EXPERIMENT, RESULTS, TRACES = "/api/experiment/init", "/api/evaluations/batch/log_results", "/api/otel/v1/traces"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBEDFIT_CACHE", str(tmp_path / "cache"))
    for name in ("LANGWATCH_API_KEY", "LANGWATCH_ENDPOINT", "LANGWATCH_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def langwatch(monkeypatch):
    with running(LangWatch()) as server:
        monkeypatch.setenv("LANGWATCH_API_KEY", KEY)
        monkeypatch.setenv("LANGWATCH_ENDPOINT", server.address)
        yield server


@pytest.fixture
def unreachable(monkeypatch):
    """LangWatch at an address that no packet comes back from."""
    monkeypatch.setenv("LANGWATCH_API_KEY", KEY)
    monkeypatch.setenv("LANGWATCH_ENDPOINT", "http://192.0.2.1:9")  # reserved for documentation (RFC 5737)


@pytest.fixture
def project(tmp_path):
    write_start(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def dataset(project):
    return load(project / "queries.jsonl", project / "documents.jsonl")


def undelivered():
    """Return the folders beside the cache that hold results which were not delivered."""
    return [path.parent for path in Path(os.environ["EMBEDFIT_CACHE"]).glob("track/*/*.jsonl")]


# What is sent


def test_an_experiment_has_every_query_of_every_model_with_scores_and_contexts(langwatch, dataset, word_encoder, capsys):
    with tracking("support-evaluate") as tracker:
        frame = measuring.evaluate(dataset, [word_encoder], templates=["{title}", "{title}. {text}"], tracker=tracker)
    [init] = langwatch.sent_to(EXPERIMENT)
    assert init.json == {
        "experiment_name": "support-evaluate",
        "experiment_slug": "support-evaluate",
        "experiment_type": "BATCH_EVALUATION_V2",
    }
    found = langwatch.results(langwatch.sent_to(RESULTS)[0].json["run_id"])
    assert len(found["dataset"]) == 40
    assert {row["targetId"] for row in found["dataset"]} == {"words", "words (2)"}
    first = next(row for row in found["dataset"] if row["index"] == 0)
    id = dataset.judged[0]
    assert first["entry"] == {"query": dataset.queries[id].text, "expected": list(dataset.relevant(id))}
    assert {chunk["document_id"] for chunk in first["predicted"]["output"]} == set(dataset.corpus)
    assert all(chunk["content"] for chunk in first["predicted"]["output"])
    assert {one["name"] for one in found["evaluations"]} == {"recall@1", "recall@3", "recall@5", "recall@10", "mrr@10"}
    for template, target in (("{title}", "words"), ("{title}. {text}", "words (2)")):
        for metric, k in (("recall", 1), ("mrr", 10)):
            scores = [one["score"] for one in found["evaluations"] if one["targetId"] == target and one["name"] == f"{metric}@{k}"]
            row = frame[(frame.document == template) & (frame.metric == metric) & (frame.k == k)]
            assert sum(scores) / len(scores) == pytest.approx(row.value.item(), abs=1e-5)
    assert "LangWatch: 40 results at " in capsys.readouterr().err
    assert undelivered() == []


def test_retrieval_is_a_rag_span_with_contexts_in_the_trace_of_its_result(langwatch, dataset, word_encoder):
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    found = langwatch.results(langwatch.sent_to(RESULTS)[0].json["run_id"])
    spans = {trace: attributes for _, trace, attributes in langwatch.spans()}
    assert len(spans) == 20
    assert set(spans) == {row["traceId"] for row in found["dataset"]}
    for row in found["dataset"]:
        attributes = spans[row["traceId"]]
        assert attributes["langwatch.span.type"] == "rag"
        assert json.loads(attributes["langwatch.input"]) == {"type": "text", "value": row["entry"]["query"]}
        contexts = json.loads(attributes["langwatch.rag_contexts"])
        assert [one["content"] for one in contexts] == [one["content"] for one in row["predicted"]["output"]]
        assert attributes["evaluation.index"] == row["index"]


def test_the_last_results_say_that_there_are_no_more(langwatch, dataset, word_encoder, monkeypatch):
    monkeypatch.setattr(sender, "_BATCH", 7)
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    bodies = [request.json for request in langwatch.sent_to(RESULTS)]
    assert [len(body["dataset"]) for body in bodies] == [7, 7, 6]
    assert [("finished_at" in body["timestamps"]) for body in bodies] == [False, False, True]
    assert [body["progress"] for body in bodies] == [7, 14, 20]


def test_a_search_is_a_span_of_its_own_and_no_experiment(langwatch):
    trace_search("where is my bill", [("invoice", "Invoices of past months", 0.9)], model="words", seconds=0.01)
    [(name, _, attributes)] = langwatch.spans()
    assert name == "retrieval"
    assert json.loads(attributes["langwatch.rag_contexts"]) == [
        {"document_id": "invoice", "chunk_id": "invoice", "content": "Invoices of past months"}
    ]
    assert attributes["langwatch.origin"] == "application"
    assert langwatch.sent_to(EXPERIMENT) == langwatch.sent_to(RESULTS) == []


@pytest.mark.slow
def test_langwatchs_own_client_says_the_same_in_the_same_words(langwatch, dataset, word_encoder):
    """In a process of its own, as the client takes hold of OpenTelemetry for good."""
    code = """
import langwatch
from langwatch.domain import RAGChunk
from langwatch.experiment.experiment import Experiment
from opentelemetry import trace
Experiment._auto_display_results = lambda self: None  # waits for five seconds, and prints
langwatch.setup()
experiment = langwatch.experiment.init("theirs", run_id="theirs")
for row in experiment.loop([1]):
    with experiment.target("words", {"model": "words"}):
        with langwatch.span(type="rag", name="retrieval", input="a query") as span:
            span.update(contexts=[RAGChunk(document_id="a", chunk_id="a", content="text")], output=["a"])
        experiment.log_response({"output": ["a"]})
        experiment.log("recall@1", index=0, score=1.0, data={"query": "a query"})
trace.get_tracer_provider().force_flush()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    theirs = LangWatch(requests=list(langwatch.requests))
    langwatch.requests.clear()
    with tracking("ours") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    for path in (EXPERIMENT, RESULTS, TRACES):
        for name in ("authorization", "x-auth-token", "content-type"):
            assert langwatch.sent_to(path)[0].headers[name] == theirs.sent_to(path)[0].headers[name]
    assert set(langwatch.sent_to(EXPERIMENT)[0].json) == set(theirs.sent_to(EXPERIMENT)[0].json)
    our = langwatch.sent_to(RESULTS)[0].json
    # The client sends what it has every second, with the keys that it has something for.
    bodies = [request.json for request in theirs.sent_to(RESULTS)]
    their = {key: next((body[key] for body in bodies if body.get(key)), None) for body in bodies for key in body}
    assert set(our) == set(their)
    for key in ("dataset", "evaluations", "targets"):
        assert set(our[key][0]) == set(their[key][0])
    span = next(attributes for name, _, attributes in theirs.spans() if name == "retrieval")
    ours = langwatch.spans()[0][2]
    for key in ("langwatch.span.type", "langwatch.input", "langwatch.output", "langwatch.rag_contexts"):
        assert type(ours[key]) is type(span[key])
    assert set(json.loads(ours["langwatch.input"])) == set(json.loads(span["langwatch.input"]))
    assert set(json.loads(ours["langwatch.rag_contexts"])[0]) == set(json.loads(span["langwatch.rag_contexts"])[0])


@pytest.mark.parametrize(
    ("key", "project", "expected"),
    [
        ("sk-lw-abc", None, {"Authorization": "Bearer sk-lw-abc", "X-Auth-Token": "sk-lw-abc"}),
        ("sk-lw-abc", "p", {"Authorization": "Bearer sk-lw-abc", "X-Auth-Token": "sk-lw-abc", "X-Project-Id": "p"}),
        ("pat-lw-abc", "p", {"Authorization": "Basic cDpwYXQtbHctYWJj"}),
    ],
)
def test_each_kind_of_key_goes_as_langwatch_expects_it(monkeypatch, key, project, expected):
    monkeypatch.setenv("LANGWATCH_API_KEY", key)
    if project:
        monkeypatch.setenv("LANGWATCH_PROJECT_ID", project)
    assert headers() == expected


# Without a key


def test_without_a_key_nothing_is_sent_written_or_imported(project, tiny_model, tmp_path):
    with running(LangWatch()) as server:
        config = (project / "embedfit.toml").read_text().replace("all-MiniLM-L6-v2", str(tiny_model))
        (project / "embedfit.toml").write_text(config)
        code = (
            "import sys; from embedfit.cli.app import main\n"
            f"try: main(['evaluate', {str(project / 'embedfit.toml')!r}, '--json'])\n"
            "except SystemExit: pass\n"
            "print(sorted(name for name in sys.modules if name.startswith(('langwatch', 'opentelemetry', 'mlflow'))), file=sys.stderr)"
        )
        environment = {**os.environ, "LANGWATCH_ENDPOINT": server.address}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[]"
        assert json.loads(done.stdout)
        assert server.requests == []
    assert undelivered() == []


def test_a_configuration_can_do_without(langwatch, dataset, word_encoder):
    with tracking("support", wanted=False) as tracker:
        assert tracker is None
        measuring.measure(word_encoder, dataset, tracker=tracker)
    assert langwatch.requests == []


# Where nobody answers


def note_of(capsys):
    """Return (how many were not delivered, the folder to send them from again)."""
    [line] = [line for line in capsys.readouterr().err.splitlines() if "not delivered" in line]
    count = int(line.split()[1])
    return count, line.partition("'embedfit track resend ")[2].partition("'")[0]


def test_an_unreachable_server_costs_at_most_three_seconds_and_resend_delivers(
    unreachable, dataset, word_encoder, capsys, said, monkeypatch
):
    with tracking("support") as tracker:
        scores = measuring.measure(word_encoder, dataset, tracker=tracker)
        measured = time.monotonic()
    assert time.monotonic() - measured < 3
    assert len(scores.query_ids) == 20
    count, folder = note_of(capsys)
    assert count == 20
    with running(LangWatch()) as server:
        monkeypatch.setenv("LANGWATCH_ENDPOINT", server.address)
        code, out, _ = said("track", "resend", folder)
        assert code == 0
        assert out.startswith(f"20 results delivered: {server.address}/project/experiments/support?runId=support-")
        assert len(server.results(server.sent_to(RESULTS)[0].json["run_id"])["dataset"]) == 20
        assert len(server.spans()) == 20
    assert undelivered() == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://no-such-host.invalid", "nonsense", "http://[::bad"])
def test_no_server_and_no_address_are_told_and_nothing_is_lost(dataset, word_encoder, capsys, monkeypatch, address):
    monkeypatch.setenv("LANGWATCH_API_KEY", KEY)
    monkeypatch.setenv("LANGWATCH_ENDPOINT", address)
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
        measured = time.monotonic()
    assert time.monotonic() - measured < 3
    assert note_of(capsys)[0] == 20
    assert len(undelivered()) == 1


def test_a_server_that_accepts_and_never_answers_costs_no_more(langwatch, dataset, word_encoder, capsys):
    langwatch.delay = 20
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
        measured = time.monotonic()
    assert time.monotonic() - measured < 3
    assert note_of(capsys)[0] == 20


def test_a_server_that_drips_costs_no_more_either(dataset, word_encoder, capsys, monkeypatch):
    listening = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listening.accept()
        with contextlib.suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\n" * 3:
                connection.sendall(bytes([byte]))
                time.sleep(0.5)

    threading.Thread(target=drip, daemon=True).start()
    monkeypatch.setenv("LANGWATCH_API_KEY", KEY)
    monkeypatch.setenv("LANGWATCH_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
        measured = time.monotonic()
    assert time.monotonic() - measured < 3
    assert note_of(capsys)[0] == 20


@pytest.mark.parametrize("fault", [500, 401, "drop", (200, {}, b"<html>")])
def test_what_fails_in_the_middle_is_sent_again_from_there(langwatch, dataset, word_encoder, capsys, monkeypatch, fault):
    monkeypatch.setattr(sender, "_BATCH", 5)
    faults = iter([None] * 5 + [fault] * 20) if not isinstance(fault, tuple) else iter([fault] * 20)
    langwatch.fault = lambda request: next(faults, None)
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    count, folder = note_of(capsys)
    assert count == (10 if not isinstance(fault, tuple) else 20)
    with pytest.raises(EmbedfitError, match="they are kept, the same command sends them"):
        resend(folder)
    langwatch.fault = lambda request: None
    assert resend(folder).delivered == count
    found = langwatch.results(Path(folder).name)
    assert sorted(row["index"] for row in found["dataset"]) == list(range(20))
    assert len({trace for _, trace, _ in langwatch.spans()}) == 20
    assert resend_again_says_nothing_is_left(folder)


def resend_again_says_nothing_is_left(folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    return resend(folder).delivered == 0


def larger_than(limit, status=413, body=b"<html>413 Request Entity Too Large</html>"):
    """Refuse requests of more bytes than so many."""
    return lambda request: (status, {}, body) if len(request.body) > limit else None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (413, b"<html>413 Request Entity Too Large</html>"),
        (413, b""),
        (400, b'{"message": "request entity too large", "error": "PayloadTooLargeError"}'),
        (400, b'{"error": "Payload too large"}'),
        (400, b"Body exceeded 1mb limit"),
        (500, b'{"message": "request entity too large"}'),
        (500, b"request entity too large"),
    ],
)
def test_what_is_too_large_for_one_request_is_sent_in_smaller_ones(langwatch, dataset, word_encoder, status, body):
    with tracking("whole") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    largest = max(len(request.body) for request in langwatch.requests)
    langwatch.requests.clear()
    langwatch.fault = larger_than(largest // 3, status, body)
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    assert undelivered() == []
    accepted = [request for request in langwatch.requests if len(request.body) <= largest // 3]
    served = LangWatch(requests=accepted)
    assert len(served.results(accepted[0].json.get("run_id") or accepted[1].json["run_id"])["dataset"]) == 20
    assert len({trace for _, trace, _ in served.spans()}) == 20
    bodies = [request.json for request in served.sent_to(RESULTS)]
    assert [("finished_at" in one["timestamps"]) for one in bodies] == [False] * (len(bodies) - 1) + [True]


def test_a_result_that_is_too_large_alone_is_named_and_kept_and_all_others_are_delivered(langwatch, dataset, word_encoder, capsys):
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
        large = tracker._rows[7]
        large["query"] = "a very long query " + large["query"]
        large["retrieved"] = [{**chunk, "content": "long " * 100_000} for chunk in large["retrieved"]]
    langwatch.requests.clear()
    langwatch.fault = larger_than(200_000)
    tracker.deliver()
    err = capsys.readouterr().err
    assert "1 results were not delivered" in err
    assert f"answered 413, even alone: the result of query '{large['query'][:20]}" in err
    folder = tracker.folder
    kept = [json.loads(line) for line in (folder / "langwatch.jsonl").read_text().splitlines()[1:]]
    assert [row["index"] for row in kept] == [7]
    with pytest.raises(EmbedfitError, match=r"1 results were not delivered .*even alone"):
        resend(folder)
    langwatch.requests = [request for request in langwatch.requests if len(request.body) <= 200_000]
    assert sorted(row["index"] for row in langwatch.results(folder.name)["dataset"]) == [index for index in range(20) if index != 7]
    langwatch.fault = lambda request: None
    assert resend(folder).delivered == 1
    assert sorted(row["index"] for row in langwatch.results(folder.name)["dataset"]) == list(range(20))


@pytest.mark.parametrize("path", [EXPERIMENT, RESULTS, TRACES])
@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        ((200, {"Content-Type": "text/html"}, b"<!doctype html><title>Log in</title>"), "answered 200 with an HTML page"),
        ((200, {}, b"<html>Log in</html>"), "answered 200 with an HTML page"),
        ((200, {}, b"please log in"), "answered 200 with text that is not JSON"),
        ((200, {}, b'{"error": "please log in"}'), "answered 200: please log in"),
        ((200, {"Content-Type": "text/html"}, b""), "answered 200 with an empty body"),
        ((200, {}, b'{"message": "Unauthorized"}'), "answered 200: Unauthorized"),
        ((200, {}, b'{"success": false, "message": "no room"}'), "answered 200: no room"),
        ((200, {}, b'{"status": "error", "msg": "no room"}'), "answered 200: no room"),
        ((200, {}, b"[]"), "answered 200 with JSON that is not an object"),
        ((302, {"Location": "https://login.example/?token=hunter2"}, b""), "answered 302 and redirects to login.example"),
        ((307, {"Location": "/login"}, b""), "answered 307 and redirects to another page of its own"),
    ],
)
def test_a_login_page_takes_no_results(langwatch, dataset, word_encoder, capsys, path, answer, seen):
    langwatch.fault = lambda request: answer if request.path.startswith(path) else None
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    err = capsys.readouterr().err
    assert "20 results were not delivered" in err
    assert seen in err
    assert "hunter2" not in err
    [folder] = undelivered()
    langwatch.fault = lambda request: None
    assert resend(folder).delivered == 20


def partial_success(rejected, why=""):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans, response.partial_success.error_message = rejected, why
    return response.SerializeToString()


@pytest.mark.parametrize("form", ["camel", "text", "snake", "protobuf"])
def test_spans_that_were_rejected_are_kept(langwatch, dataset, word_encoder, capsys, form):
    bodies = {
        "camel": json.dumps({"partialSuccess": {"rejectedSpans": 5, "errorMessage": "too old"}}).encode(),
        "text": b'{"partialSuccess": {"rejectedSpans": "5", "errorMessage": "too old"}}',
        "snake": b'{"partial_success": {"rejected_spans": 5, "error_message": "too old"}}',
        "protobuf": partial_success(5, "too old"),
    }
    kind = {"Content-Type": "application/x-protobuf" if form == "protobuf" else "application/json"}
    langwatch.fault = lambda request: (200, kind, bodies[form]) if request.path.startswith(TRACES) else None
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    err = capsys.readouterr().err
    assert "20 results were not delivered" in err
    assert "answered 200 and rejected 5 spans: too old" in err
    [folder] = undelivered()
    taken = partial_success(0, "a warning") if form == "protobuf" else b'{"partialSuccess": {"rejectedSpans": 0}}'
    langwatch.fault = lambda request: (200, kind, taken) if request.path.startswith(TRACES) else None
    assert resend(folder).delivered == 20


def test_a_key_that_cannot_be_sent_and_an_address_with_a_password_are_not_shown(dataset, word_encoder, capsys, monkeypatch, langwatch):
    monkeypatch.setenv("LANGWATCH_API_KEY", "sk-lw-\nSECRET")
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    assert langwatch.requests == []
    err = capsys.readouterr().err
    assert "LANGWATCH_API_KEY holds a character that cannot be sent in a header" in err
    monkeypatch.setenv("LANGWATCH_API_KEY", KEY + "\n")
    monkeypatch.setenv("LANGWATCH_ENDPOINT", "http://me:SECRET@127.0.0.1:9/?token=SECRET")
    tracker.deliver()
    err += capsys.readouterr().err
    assert "http://127.0.0.1:9" in err
    monkeypatch.setenv("LANGWATCH_ENDPOINT", langwatch.address)
    monkeypatch.setenv("ALL_PROXY", "socks5://me:SECRET@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    tracker.deliver()
    err += capsys.readouterr().err
    assert "ALL_PROXY is a SOCKS proxy; fix: pip install socksio" in err
    assert "SECRET" not in err
    assert all(b"SECRET" not in (folder / "langwatch.jsonl").read_bytes() for folder in undelivered())


def test_resend_needs_a_folder_and_a_key(tmp_path, unreachable, dataset, word_encoder, capsys, monkeypatch):
    with pytest.raises(ConfigError, match="is not a run directory"):
        resend(tmp_path / "nothing")
    monkeypatch.setenv("LANGWATCH_ENDPOINT", "http://127.0.0.1:9")
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    monkeypatch.delenv("LANGWATCH_API_KEY")
    with pytest.raises(ConfigError, match="set LANGWATCH_API_KEY"):
        resend(note_of(capsys)[1])


def test_a_folder_that_cannot_be_written_does_not_end_the_work(langwatch, dataset, word_encoder, capsys, monkeypatch):
    monkeypatch.setenv("EMBEDFIT_CACHE", "/proc/none")
    with tracking("support") as tracker:
        tracker.add("words", *searched(dataset, word_encoder), template="{text}")
    assert "20 results were not delivered to LangWatch" in capsys.readouterr().err


def searched(dataset, encoder):
    from embedfit.evaluation.score import score_run
    from embedfit.retrieve.retrievers import DenseRetriever

    run = DenseRetriever(encoder, "{text}").search(dataset, 10)
    return dataset, run, score_run(run, dataset.qrels)


# In the commands


def settings(project, tiny_model, **more):
    return {
        "name": "support",
        "output": str(project / "runs"),
        "data": {"queries": str(project / "queries.jsonl"), "documents": str(project / "documents.jsonl")},
        "model": {"name": str(tiny_model)},
        "split": {"folds": 0},
        **more,
    }


def test_run_logs_base_and_tuned_under_the_run_directorys_name(langwatch, project, tiny_model, monkeypatch):
    config = make_config(settings(project, tiny_model, tune={"method": "adapter"}))
    monkeypatch.setenv("LANGWATCH_ENDPOINT", "http://127.0.0.1:9")
    result = experiment.run(config)
    assert result.comparison.queries == "4 held-out queries"
    assert (result.folder / "langwatch.jsonl").exists()
    monkeypatch.setenv("LANGWATCH_ENDPOINT", langwatch.address)
    assert resend(result.folder).delivered == 8
    found = langwatch.results(result.folder.name)
    assert {row["targetId"] for row in found["dataset"]} == {"tiny", "tiny, searcher"}
    for target, mean in (("tiny", result.comparison["mrr@10"].base), ("tiny, searcher", result.comparison["mrr@10"].tuned)):
        scores = [one["score"] for one in found["evaluations"] if one["targetId"] == target and one["name"] == "mrr@10"]
        assert sum(scores) / len(scores) == pytest.approx(mean, abs=1e-5)
    assert not (result.folder / "langwatch.jsonl").exists()
    assert str(tiny_model.parent) not in str([request.body for request in langwatch.requests])


def test_evaluate_and_compare_log_an_experiment_and_keep_stdout_clean(langwatch, project, said):
    with running(Embeddings()) as server:
        name = f"openai:m@{server.address}/v1"
        toml = project / "embedfit.toml"
        toml.write_text(toml.read_text().replace("all-MiniLM-L6-v2", name))
        code, out, err = said("evaluate", toml, "--json")
        assert code == 0
        assert json.loads(out)
        assert "LangWatch: 20 results at" in err
        code, out, _ = said("compare", toml, name, f"openai:m?dimensions=8@{server.address}/v1", "--part", "all", "--json")
        assert json.loads(out)["queries"] == 20
        assert {request.json["experiment_name"] for request in langwatch.sent_to(EXPERIMENT)} == {"support-evaluate", "support-compare"}
        targets = {row["target_id"] for request in langwatch.sent_to(RESULTS) for row in request.json["dataset"]}
        assert targets == {name, f"openai:m?dimensions=8@{server.address}/v1"}
        # Each key to its own host, and written nowhere.
        assert all(KEY not in str(request) for request in server.requests)
        for request in langwatch.requests:
            assert request.headers["authorization"] == f"Bearer {KEY}"
            assert KEY.encode() not in request.body
    for root in (project, os.environ["EMBEDFIT_CACHE"]):
        assert all(KEY.encode() not in path.read_bytes() for path in Path(root).rglob("*") if path.is_file())
    assert KEY not in out + err


def test_a_key_is_not_written_with_what_was_not_delivered(unreachable, dataset, word_encoder, monkeypatch):
    monkeypatch.setenv("LANGWATCH_ENDPOINT", "http://127.0.0.1:9")
    with tracking("support") as tracker:
        measuring.measure(word_encoder, dataset, tracker=tracker)
    [folder] = undelivered()
    assert KEY not in (folder / "langwatch.jsonl").read_text()


# The trainer's callbacks


def test_training_is_logged_to_mlflow(project, tiny_model, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "support")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    config = make_config(settings(project, tiny_model, tune={"epochs": 2}, track={"report_to": ["mlflow"]}))
    data = parts.read(config.data)
    base = encoder_of(config.model)
    with pytest.raises(EmbedfitError, match="training cannot be logged to mlflow: The filesystem tracking backend"):
        training.tune(base, Training(data, None, tmp_path / "refused", config.tune, "{text}", config.track.report_to))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    training.tune(base, Training(data, None, tmp_path / "logged", config.tune, "{text}", config.track.report_to))
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    [run] = mlflow.search_runs(experiment_names=["support"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == [1, 2]
    assert run.data.params["num_train_epochs"] == "2"
    # Logging changes nothing of what is trained.
    training.tune(base, Training(data, None, tmp_path / "plain", config.tune, "{text}"))
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("logged", "plain")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_one_line_before_anything_is_measured(project, tiny_model, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    config = make_config(settings(project, tiny_model, track={"report_to": [name]}))
    with pytest.raises(EmbedfitError, match=rf"pip install 'embedfit\[{name}\]'"):
        experiment.run(config)
    with pytest.raises(ConfigError, match=r"track\.report_to"):
        make_config(settings(project, tiny_model, track={"report_to": ["neptune"]}))


def wandb_records(path):
    """Yield what Weights & Biases has kept in a file to be sent later: LevelDB's log format, after seven bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if 32768 - at % 32768 < 7 or not kind:  # the rest of a block
            at += 32768 - at % 32768
            continue
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_training_is_logged_to_wandb_each_as_a_run_of_its_own(project, tiny_model, tmp_path, monkeypatch, capfd):
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "PROJECT": "support", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    config = make_config(settings(project, tiny_model, tune={"epochs": 2}, track={"report_to": ["wandb"]}))
    data, base = parts.read(config.data), encoder_of(config.model)
    for fold in "01":
        folder = tmp_path / "support" / "folds" / fold
        training.tune(base, Training(data, None, folder, config.tune, "{text}", config.track.report_to))
    assert capfd.readouterr().out == ""
    seen = {}
    for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb"):
        records = list(wandb_records(path))
        [run] = [record.run for record in records if record.HasField("run")]
        assert run.project == "support"
        items = [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        seen[run.display_name] = [(item["train/global_step"], item["train/loss"]) for item in items if "train/loss" in item]
    history = json.loads((folder / "tuned.json").read_text())["history"]
    assert sorted(seen) == ["support/folds/0", "support/folds/1"]
    assert [loss for _, loss in seen["support/folds/1"]] == pytest.approx([epoch["loss"] for epoch in history], abs=1e-3)


@pytest.mark.slow
def test_a_run_of_wandb_that_the_caller_began_is_left_open(project, tiny_model, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = make_config(settings(project, tiny_model, tune={"epochs": 1}, track={"report_to": ["wandb"]}))
    with wandb.init(dir=tmp_path) as run:
        base = encoder_of(config.model)
        training.tune(base, Training(parts.read(config.data), None, tmp_path / "a", config.tune, "{text}", ("wandb",)))
        assert wandb.run is run


@pytest.mark.parametrize("given", [False, True])
def test_training_is_logged_to_tensorboard_and_what_was_logged_is_kept(project, tiny_model, tmp_path, monkeypatch, given):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if given:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    config = make_config(settings(project, tiny_model, tune={"epochs": 2}, track={"report_to": ["tensorboard"]}))
    folder = tmp_path / "support" / "folds" / "0"
    training.tune(encoder_of(config.model), Training(parts.read(config.data), None, folder, config.tune, "{text}", ("tensorboard",)))
    events = EventAccumulator(str(tmp_path / "logs" / "support" / "folds" / "0" if given else folder / "tensorboard"))
    events.Reload()
    history = json.loads((folder / "tuned.json").read_text())["history"]
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == [1, 2]
    assert [point.value for point in points] == pytest.approx([epoch["loss"] for epoch in history], abs=1e-3)
