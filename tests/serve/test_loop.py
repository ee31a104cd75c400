"""The whole way with real parts: items are labelled in the page, a run goes live, picks teach it, and a better version takes over."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest
from loop_data import KINDS, expenses, kind_of
from serve_data import serving

from embedfit.serve.feedback import Feedback
from embedfit.serve.labelling import ItemSource, Labelling
from embedfit.serve.live import LiveFolder

VARIABLE = "EMBEDFIT_TEST_FEEDBACK"
UNSEEN = "Accruals"
"""A kind that no item is of."""
STRANGE = "entrance fees for zorbing"


def until(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Places:
    """Where one pass of the loop keeps feedback and index: an SQLite file and Chroma, or one PostgreSQL, which may be killed."""

    def __init__(self, folder, server=None):
        self.server = server
        kind, location = ("chroma", str(folder / "chroma")) if server is None else ("pgvector", f"env:{VARIABLE}")
        self.store = f"store = {{ kind = {json.dumps(kind)}, location = {json.dumps(location)} }}"
        self.options = () if server is None else ("--feedback", f"env:{VARIABLE}")
        self.workers = 1 if server is None else 2

    def kill(self):
        """Kill the database, if there is a process of it, and start it again."""
        if self.server is None:
            return
        pid_file = self.server.pgdata / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
        pid_file.unlink()  # its process may still be listed, as one that nobody has waited for
        until(self._started)

    def _started(self):
        try:
            self.server.ensure_postgres_running()
        except subprocess.CalledProcessError:  # a process of the killed one has not ended yet
            return False
        return True

    def feedback(self, live):
        return Feedback(live.path / "feedback.db" if self.server is None else f"env:{VARIABLE}")


@pytest.fixture(params=["SQLite and Chroma", "PostgreSQL and pgvector"])
def places(request, monkeypatch, tmp_path):
    """Places of this test alone."""
    if request.param == "SQLite and Chroma":
        yield Places(tmp_path)
        return
    import pgserver

    server = pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    monkeypatch.setenv(VARIABLE, server.get_uri())
    yield Places(tmp_path, server)
    server.cleanup()


@pytest.fixture(scope="module")
def labelled(browser, tiny_model, tmp_path_factory):
    """A folder with the documents, and with the labels of 60 items that were picked in the page."""
    folder = tmp_path_factory.mktemp("loop")
    return folder, label_in_the_page(browser, folder, tiny_model, 60)


class Server:
    """`embedfit serve` with one or two workers, started again at the same address."""

    def __init__(self, toml, workers, options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}"
        self.arguments = [str(toml), "--port", self.port, "--workers", str(workers), *options]
        self.start()

    def start(self):
        command = [sys.executable, "-m", "embedfit", "serve", *self.arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment, start_new_session=True)

    def workers(self):
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Picker(threading.Thread):
    """A client that sends everything again until it is accepted."""

    def __init__(self, address, rows):
        super().__init__()
        self.address, self.rows, self.accepted, self.stop = address, rows, {}, False

    def run(self):
        for text, kind in self.rows:
            while not self.stop and text not in self.accepted:
                try:
                    self.pick(text, kind)
                except httpx.TransportError:
                    time.sleep(0.05)

    def pick(self, text, kind):
        with httpx.Client(base_url=self.address, timeout=60, trust_env=False) as client:
            found = client.post("/search", json={"query": text, "person": "Ann"})
            if found.status_code == 200:
                search = found.json()["search_id"]
                for _ in range(2):  # as a client that did not hear the answer
                    stored = client.post("/feedback", json={"search_id": search, "choice": kind, "person": "Ann"})
                    if stored.status_code == 200:
                        self.accepted[text] = search


def label_in_the_page(browser, folder, model, count):
    """Label items by keys alone; return the file of the labels."""
    items = folder / "items.csv"
    items.write_text("text\n" + "".join(f"{text}\n" for text, _ in expenses(count, 0)))
    documents = {**{kind: f"{kind} expenses" for kind in KINDS}, UNSEEN: "Accruals and provisions"}
    rows = [json.dumps({"id": id, "text": text}) + "\n" for id, text in documents.items()]
    (folder / "documents.jsonl").write_text("".join(rows))
    queries, searcher = ItemSource(items, None, folder / "documents.jsonl", str(model), "{text}", None).read()
    output = folder / "labels.jsonl"
    with serving(searcher, folder, Labelling("items", queries, output)) as client:
        browser.open(str(client.base_url))
        for done in range(count):
            right = kind_of(browser.value("document.getElementById('item').textContent.trim()"))
            names = browser.value("[...document.querySelectorAll('section .answers .id')].map((name) => name.textContent)")
            key = str(names.index(right) + 1)
            browser.press(key, 48 + int(key))
            status = f"document.querySelector('.progress p').textContent.startsWith('{done + 1} of {count}')"
            until(lambda status=status: browser.value(status))
    return output


def settings_file(folder, labels, model, store):
    (folder / "embedfit.toml").write_text(
        f"""
        name = "loop"
        data = {{ queries = {json.dumps(str(labels))}, documents = "documents.jsonl" }}
        model = {{ name = {json.dumps(str(model))} }}
        split = {{ folds = 2 }}
        tune = {{ method = "adapter" }}
        general = {{ measure = "off" }}
        evaluate = {{ bm25 = false }}
        searcher = {{ views = ["documents", "examples", "terms"] }}
        {store}
        """
    )
    return folder / "embedfit.toml"


def ask_in_the_page(browser, text):
    """Search in the page; return the ids of the answers, and what speaks for the first one."""
    until(lambda: browser.value("document.activeElement.id === 'query'"))
    browser.tell("Input.insertText", text=text)
    browser.press("Enter", 13)
    until(lambda: browser.value("document.querySelectorAll('section .answers button').length > 0"))
    names = browser.value("[...document.querySelectorAll('section .answers .id')].map((name) => name.textContent)")
    return names, browser.value("document.querySelector('section .answers').textContent")


class Asker(threading.Thread):
    """A client that asks the same question all the time."""

    def __init__(self, address, answers):
        super().__init__()
        self.address, self.answers, self.stop = address, answers, False

    def run(self):
        with httpx.Client(base_url=self.address, timeout=60, trust_env=False) as client:
            while not self.stop:
                self.answers.append(client.post("/search", json={"query": "a cloud server beside the ocean", "k": 4}))
                time.sleep(0.02)


@pytest.mark.slow
def test_from_unlabelled_items_to_a_new_version_live_through_kills(labelled, browser, places, tiny_model, said):
    folder, labels = labelled
    toml = settings_file(folder, labels, tiny_model, places.store)
    live = LiveFolder(folder / "runs" / "loop-live")
    shutil.rmtree(live.path, ignore_errors=True)  # of the other places; the run with the labels is taken as it is
    assert said("refresh", toml, "--index", *places.options)[1].startswith("Live, as the first version: loop-")
    server = Server(toml, places.workers, places.options)
    try:
        with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
            until(lambda: answers(client))
            first = client.get("/info").json()["fingerprint"]
            browser.open(server.address)
            names, evidence = ask_in_the_page(browser, STRANGE)
            key = str(names.index(UNSEEN) + 1)
            browser.press(key, 48 + int(key))
            until(lambda: browser.value(f"document.getElementById('status').textContent === 'Saved: {UNSEEN}.'"))
            after_names, after = ask_in_the_page(browser, STRANGE)
            assert after_names.index(UNSEEN) <= names.index(UNSEEN)
            assert (STRANGE in evidence, STRANGE in after) == (False, True)  # it speaks for the answer now

        picker = Picker(server.address, expenses(160, 5))
        picker.start()
        until(lambda: len(picker.accepted) > 20)
        for worker in server.workers()[:1]:  # one worker is the server itself, which is killed below
            os.kill(worker, signal.SIGKILL)
        until(lambda: len(picker.accepted) > 50)
        places.kill()
        until(lambda: len(picker.accepted) > 80)
        server.kill()
        server.start()
        picker.join(500)
        picker.stop = True
        stored = places.feedback(live)
        rows = [(row["search"], row["choice"]) for row in stored.rows() if row["person"] == "Ann"]
        stored.close()
        assert len(rows) == len(set(rows)) == len({search for search, _ in rows})
        assert {(picker.accepted[text], kind) for text, kind in picker.rows} <= set(rows)

        answered = []
        askers = [Asker(server.address, answered) for _ in range(2)]
        for asker in askers:
            asker.start()
        code, out, _ = said("refresh", toml, "--index", *places.options)
        assert (code, out.startswith("Live now: loop-")) == (0, True), out
        until(lambda: not [answer for answer in answered[-20:] if answer.status_code != 200 or answer.json()["model"] == first])
        for asker in askers:
            asker.stop = True
        for asker in askers:
            asker.join()
        assert {answer.status_code for answer in answered} == {200}
        orders = {}
        for answer in map(httpx.Response.json, answered):
            orders.setdefault(answer["model"], set()).add(tuple((hit["id"], round(hit["score"], 2)) for hit in answer["hits"]))
        assert len(orders) == 2
        assert first in orders
        assert {len(order) for order in orders.values()} == {1}  # each version always gives its own answer
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) in (0, -signal.SIGTERM)  # a lone process passes the signal on when all is done
    finally:
        if server.process.poll() is None:
            server.kill()


def answers(client):
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False
