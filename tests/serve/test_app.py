import asyncio
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from serve_data import TEXTS, searcher, serving

from embedfit.encode.encoder import WrappingEncoder
from embedfit.errors import StorageError
from embedfit.searcher.saving import searcher_digest
from embedfit.searcher.searcher import Searcher
from embedfit.serve.app import make_app
from embedfit.serve.feedback import Feedback
from embedfit.serve.recording import Recording
from embedfit.serve.settings import Settings


def search(client, query, **more):
    answer = client.post("/search", json={"query": query, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def kinds(hit):
    return [reason["kind"] for reason in hit["because"]]


def ids(answer):
    return [hit["id"] for hit in answer["hits"]]


def test_the_process_serves_what_the_run_measured(address, run_folder):
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        answer = search(client, "a train ticket", k=2)
        info = client.get("/info").json()
        assert client.get("/health").status_code == 200
        head = client.head("/info")  # as monitors ask
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(client.get("/info").content)))
    searcher = Searcher.load(run_folder / "searcher")
    expected = [vars(hit) for hit in searcher.search("a train ticket", 2)]
    assert [(hit["id"], hit["text"], hit["probability"]) for hit in answer["hits"]] == [
        (hit["id"], hit["text"], hit["probability"]) for hit in expected
    ]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit["score"] for hit in expected], abs=1e-4)
    assert answer["hits"][0]["because"][0]["kind"] == "document"
    assert answer["model"] == info["fingerprint"] == searcher_digest(run_folder / "searcher")
    assert (info["documents"], info["dimension"], info["model_id"]) == (4, 384, run_folder.name)


def test_a_folder_without_a_searcher_and_a_damaged_one_are_refused(run_folder, tmp_path, said):
    assert said("serve", tmp_path / "nothing")[2].startswith(f"embedfit: {tmp_path / 'nothing'}: does not exist")
    assert "has no searcher; expected a finished run directory; fix: run 'embedfit run' again" in said("serve", tmp_path)[2]
    shutil.copytree(run_folder, tmp_path / "run")
    with (tmp_path / "run" / "searcher" / "vectors.npz").open("ab") as file:
        file.write(b"x")
    assert "vectors.npz: is missing or damaged" in said("serve", tmp_path / "run")[2]
    shutil.rmtree(tmp_path / "run" / "searcher")
    shutil.copytree(run_folder / "searcher", tmp_path / "run" / "searcher")
    settings = tmp_path / "run" / "searcher" / "model" / "config_sentence_transformers.json"
    settings.write_text(settings.read_text().replace("passage: ", "text: ") + " ")
    assert "is another model than the searcher was made with" in said("serve", tmp_path / "run")[2]


def test_a_search_has_k_hits_with_their_evidence_and_several_queries_are_one_request(client):
    answer = search(client, "dinner", k=2)
    assert len(answer["hits"]) == 2
    assert set(answer["hits"][0]) == {"id", "text", "score", "probability", "because"}
    assert answer["hits"][0]["id"] == "food"
    assert answer["hits"][0]["text"] == TEXTS["food"]
    assert answer["abstained"] is False
    several = client.post("/search", json={"queries": ["dinner", "uber"], "k": 1}).json()["answers"]
    assert [ids(answer) for answer in several] == [["food"], ["taxi"]]
    assert len({answer["search_id"], *(each["search_id"] for each in several)}) == 3


def test_a_filter_leaves_only_documents_that_have_the_metadata(client):
    assert ids(search(client, "uber", filter={"group": "Meals"})) == ["food"]
    assert ids(search(client, "uber", filter={"group": "no such"})) == []
    assert search(client, "uber", filter={"group": "no such"})["abstained"] is True


def test_a_pick_teaches_the_next_search_and_can_be_taken_back(client):
    first = search(client, "zorbing voucher")
    assert kinds(first["hits"][0]) == ["document"]
    stored = client.post("/feedback", json={"search_id": first["search_id"], "choice": "taxi"}).json()
    assert stored == {"repeated": False, "replaced": False, "learned": True, "conflict": False}
    again = search(client, "zorbing voucher")
    assert ids(again)[0] == "taxi"
    assert kinds(again["hits"][0]) == ["example", "document"]
    assert again["hits"][0]["because"][0]["text"] == "zorbing voucher"
    assert client.post("/feedback", json={"search_id": first["search_id"], "choice": "taxi"}).json()["repeated"] is True
    assert client.delete("/feedback", params={"search_id": first["search_id"]}).json() == {"deleted": 2}
    assert kinds(search(client, "zorbing voucher")["hits"][0]) == ["document"]


def test_everything_of_a_person_is_deleted_however_the_name_is_spaced(client):
    answer = search(client, "uber", person=" Ann\u0000\n Lee")
    pick = {"search_id": answer["search_id"], "choice": "taxi"}
    assert client.post("/feedback", json={**pick, "person": "Ann  Lee"}).status_code == 200
    assert client.delete("/feedback", params={"person": "Ann Lee "}).json() == {"deleted": 2}
    assert client.post("/feedback", json=pick).status_code == 404


def test_what_was_picked_counts_after_a_restart_and_in_another_process(word_encoder, tmp_path):
    with serving(searcher(word_encoder), tmp_path) as one, serving(searcher(word_encoder), tmp_path) as other:
        answer = search(one, "zorbing voucher")
        # The search is known to every process on the same file.
        assert other.post("/feedback", json={"search_id": answer["search_id"], "choice": "cloud"}).status_code == 200
        assert ids(search(one, "zorbing voucher"))[0] == "cloud"
    with serving(searcher(word_encoder), tmp_path) as later:
        assert ids(search(later, "zorbing voucher"))[0] == "cloud"
    assert not list(tmp_path.glob("*-wal"))


def test_searches_are_answered_while_the_database_is_locked_and_a_pick_waits_for_its_search(word_encoder, tmp_path):
    with serving(searcher(word_encoder), tmp_path) as one, serving(searcher(word_encoder), tmp_path) as other:
        with contextlib.closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None, check_same_thread=False)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            answers = [search(one, "zorbing voucher") for _ in range(3)]
            threading.Timer(0.2, writer.execute, ["COMMIT"]).start()
            stored = other.post("/feedback", json={"search_id": answers[-1]["search_id"], "choice": "cloud"})
            assert (stored.status_code, stored.json()["learned"]) == (200, True)
        feedback = Feedback(tmp_path / "feedback.db")
        assert len(feedback.asked()) == 3
        feedback.close()


def test_one_search_that_cannot_be_stored_takes_no_other_with_it():
    stored, failed = [], []

    class Picky:
        def record(self, searches):
            if any(search == "bad" for search in searches):
                raise ValueError
            stored.extend(searches)

    async def record():
        recording = Recording(Picky(), failed.append)
        await recording.add(["first", "bad", "last"])
        recording.close()

    asyncio.run(record())
    assert (stored, failed) == (["first", "last"], [1])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"query": "x", "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ({"query": "x", "more": 1}, 422, "more: Extra inputs are not permitted"),
        ({"query": ""}, 422, "query 1: is empty; expected a text"),
        ({"queries": ["x", " "]}, 422, "query 2: is empty; expected a text"),
        ({"query": "x" * 200_001}, 422, "query 1: has 200,001 characters; expected at most 200,000"),
        ({"query": {"a": "b"}}, 422, "query 1: is a record; expected a text; fix: this searcher was made of texts"),
        ({"queries": ["x"] * 513}, 422, "513 texts; expected at most 512 in a request"),
        ({}, 422, "expected either 'query' or 'queries'"),
        ({"query": "x", "queries": ["x"]}, 422, "expected either 'query' or 'queries'"),
    ],
)
def test_a_body_that_cannot_be_used_is_refused_in_one_line(client, body, status, message):
    answer = client.post("/search", json=body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)


def test_an_unknown_search_or_document_is_refused(client):
    answer = client.post("/feedback", json={"search_id": "nobody", "choice": "taxi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_search")
    answer = client.post("/feedback", json={"search_id": search(client, "uber")["search_id"], "choice": "taxis"})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "choice: no document has this id; did you mean 'taxi'?"


class SlowEncoder(WrappingEncoder):
    """Waits for a gate before it encodes a query that says so."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.gate, self.begun = threading.Event(), threading.Event()

    def encode(self, texts, kind):
        if any("slow" in text for text in texts):
            self.begun.set()
            self.gate.wait(20)
        return super().encode(texts, kind)


def test_a_full_queue_is_429_with_retry_after_and_what_was_accepted_is_finished_at_shutdown(word_encoder, tmp_path):
    encoder = SlowEncoder(word_encoder)
    answers = []
    with serving(searcher(encoder), tmp_path, queue=1, largest=1) as client:

        def ask():
            answers.append(httpx.post(f"{client.base_url}/search", json={"query": "slow"}, timeout=30, trust_env=False))

        threads = [threading.Thread(target=ask)]
        threads[0].start()
        encoder.begun.wait(20)
        refused = client.post("/search", json={"query": "uber"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        client.server.should_exit = True
        encoder.gate.set()
        threads[0].join()
    [answer] = answers
    assert answer.status_code == 200
    feedback = Feedback(tmp_path / "feedback.db")
    assert feedback.pick(answer.json()["search_id"], "taxi").learned  # it was stored before it was answered
    feedback.close()


def test_a_client_that_goes_away_disturbs_nobody(client):
    body = json.dumps({"query": "uber"}).encode()
    head = f"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for sent in (head, head + body[:5], head + body):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(sent)
    assert ids(search(client, "uber"))[0] == "taxi"


def test_the_metrics_count_and_name_no_text(client):
    search(client, "a secret dinner")
    client.get("/no/such/secret")
    text = client.get("/metrics").text
    assert 'embedfit_requests_total{method="POST",route="/search",status="200"} 1.0' in text
    assert 'embedfit_searches_total{abstained="no"} 1.0' in text
    assert 'embedfit_batch_items_count{lane="search"} 1.0' in text
    assert "secret" not in text


def test_openapi_describes_every_route(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert paths.keys() >= {"/search", "/feedback", "/health", "/info", "/metrics", "/v1/embeddings", "/v1/models", "/v1/rerank", "/embed"}
    for path in paths.values():
        assert all(operation["summary"] for operation in path.values())


def test_shown_orders_are_recorded_with_their_probability(word_encoder, tmp_path):
    with serving(searcher(word_encoder), tmp_path, explore=1.0) as client:
        answers = [search(client, "uber", k=2) for _ in range(20)]
        for answer in answers:
            client.post("/feedback", json={"search_id": answer["search_id"], "choice": "taxi"})
    assert {ids(answer)[0] for answer in answers} == {"taxi", ids(answers[0])[1] if ids(answers[0])[0] == "taxi" else ids(answers[0])[0]}
    feedback = Feedback(tmp_path / "feedback.db")
    rows = list(feedback.rows())
    feedback.close()
    assert {row["order_probability"] for row in rows} == {0.5}
    for row, answer in zip(rows, answers, strict=True):
        assert [hit["id"] for hit in json.loads(row["shown"])] == ids(answer)
        assert row["place"] == ids(answer).index("taxi") + 1


def test_a_worker_that_starts_while_the_database_is_away_waits_for_it(word_encoder, tmp_path):
    (tmp_path / "later").write_text("a file where a folder is to be")
    settings = Settings("folder", feedback=str(tmp_path / "later" / "feedback.db"))
    with pytest.raises(StorageError, match="cannot be opened"):
        make_app(searcher(word_encoder), settings)

    def mend():
        (tmp_path / "later").unlink()
        (tmp_path / "later").mkdir()

    threading.Timer(0.2, mend).start()
    make_app(searcher(word_encoder), settings, patience=60)
    assert (tmp_path / "later" / "feedback.db").exists()


def test_a_signal_does_not_wait_for_a_worker_that_is_only_starting():
    from uvicorn import Config

    from embedfit.serve.workers import Workers

    workers = object.__new__(Workers)
    workers.config = Config("app", timeout_worker_healthcheck=60)
    workers.signal_queue = []
    ours, theirs = multiprocessing.Pipe()
    workers.processes = [SimpleNamespace(process=SimpleNamespace(is_alive=lambda: True), parent_conn=ours)]
    threading.Timer(0.1, workers.signal_queue.append, [signal.SIGTERM]).start()
    started = time.monotonic()
    workers.keep_subprocess_alive()
    assert time.monotonic() - started < 20
    assert theirs.recv() == b"ping"


def test_what_cannot_be_served_is_said_once_before_workers_start(said, tmp_path):
    code, out, err = said("serve", tmp_path, "--port", 0, "--workers", 2)
    assert (code, out) == (2, "")
    assert err.count("has no searcher; expected a finished run directory") == 1


@pytest.mark.slow
def test_two_workers_share_picks_survive_a_kill_and_stop_on_a_signal(run_folder, tmp_path):
    command = [sys.executable, "-m", "embedfit", "serve", str(run_folder), "--port", "0", "--workers", "2", "--log"]
    server = subprocess.Popen([*command, "--feedback", str(tmp_path / "f.db")], stderr=subprocess.PIPE, text=True)
    address = re.search(r"at (http://\S+) with 2 workers", server.stderr.readline())[1]
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        answer = search(client, "zorbing voucher")
        client.post("/feedback", json={"search_id": answer["search_id"], "choice": "rent"})
        for _ in range(10):  # whichever worker answers
            with httpx.Client(base_url=address, timeout=60, trust_env=False) as fresh:
                assert ids(search(fresh, "zorbing voucher"))[0] == "rent"
        assert b"embedfit_searches_total" in client.get("/metrics").content
    children = subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True).stdout.split()
    workers = [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
                assert ids(search(client, "zorbing voucher"))[0] == "rent"
                break
        except httpx.TransportError:
            continue
    server.send_signal(signal.SIGTERM)
    assert server.wait(300) == 0
    assert len(re.findall(r"^embedfit: POST /search 200 [0-9.]+ ms$", server.stderr.read(), re.MULTILINE)) >= 12
