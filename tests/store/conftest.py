"""Stores for tests: Chroma in a folder and as a real server, a real PostgreSQL with pgvector, Qdrant's local mode."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from store_data import KINDS, SECRET

from embedfit.config import StoreConfig
from embedfit.store.open import open_store


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EMBEDFIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory):
    """A real `chroma run`; returns its URL."""
    folder = tmp_path_factory.mktemp("chroma")
    port = free_port()
    command = [Path(sys.executable).with_name("chroma"), "run", "--path", folder, "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    for _ in range(300):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def config_of(tmp_path, request):
    """Return the settings of a new store of some kind."""
    names = iter(range(1000))

    def config(kind):
        if kind == "pgvector":
            return StoreConfig(kind="pgvector", location=request.getfixturevalue("postgres")())
        if kind == "chroma server":
            index = f"test_{os.urandom(4).hex()}"
            return StoreConfig(kind="chroma", location=request.getfixturevalue("chroma_server"), index=index)
        return StoreConfig(kind=kind, location=str(tmp_path / f"{kind}{next(names)}"))

    return config


@pytest.fixture(params=KINDS)
def config(request, config_of):
    return config_of(request.param)


@pytest.fixture
def store(config):
    with open_store(config) as store:
        yield store


@pytest.fixture
def refusing():
    """A server on loopback that remembers what it was sent, and refuses it, with the key in its answer."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            seen.append((self.path, dict(self.headers), self.rfile.read(length)))
            body = json.dumps({"error": "Unauthorized", "message": f"key {SECRET}\nis wrong"}).encode()
            self.send_response(401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()


@pytest.fixture(scope="session")
def loaded_once():
    """Let every searcher that is read from one folder share its models: loading them takes longer than most tests."""
    from embedfit.encode.local import LocalEncoder

    with pytest.MonkeyPatch.context() as patch:
        known: dict[str, LocalEncoder] = {}

        def load(folder, **options):
            return known.setdefault(f"{folder} {options}", LocalEncoder(folder, **options))

        patch.setattr("embedfit.searcher.saving.LocalEncoder", load)
        yield


@pytest.fixture(scope="session")
def in_memory(searcher_folder, loaded_once):
    """The searcher in memory, which stores are compared with."""
    from embedfit.searcher.searcher import Searcher

    return Searcher.load(searcher_folder)


@pytest.fixture(scope="session")
def searcher_folder(transactions, tiny_model, tmp_path_factory):
    """A saved searcher over the transactions that reads every view, with probabilities."""
    from embedfit.encode.cache import CachedEncoder
    from embedfit.encode.local import LocalEncoder
    from embedfit.evaluation.calibration import Calibrator
    from embedfit.searcher.fusion import LIKELIEST, NEAREST, Fusion
    from embedfit.searcher.gather import Corpus, Examples, Views
    from embedfit.searcher.parts import Parts
    from embedfit.searcher.searcher import Searcher
    from embedfit.template import Template

    model = CachedEncoder(LocalEncoder(tiny_model, precision="fp32"))
    base = CachedEncoder(LocalEncoder(tiny_model, precision="fp32", query_prompt="base: "))
    known, asked = transactions.select(transactions.judged[:226]), transactions.select(transactions.judged[226:])
    corpus = Corpus.of(transactions, model, "{category}")
    examples = Examples.of(known, model, corpus.ids, base)
    views = Views.fit(corpus, examples)
    evidence = views.gather(asked, model, corpus.ids, base)
    cold = {"documents": 20.0, "words": 0.1, NEAREST: -4.0, LIKELIEST: -0.2}
    new = {"documents": 8.0, "examples": 9.0, "words": 0.1}
    weights = {"warm": {**new, "classes": 0.4, "terms": 0.4, "base": 0.3}, "new": new, "cold": cold}
    fusion = Fusion(weights, {"warm": 0.0, "new": 1.0, "cold": 2.0})
    calibrator = Calibrator.fit(fusion.scores(evidence.scores, evidence.candidates < 0), evidence.relevant)
    parts = Parts(
        model,
        transactions.corpus,
        corpus,
        examples,
        views,
        fusion,
        "{category}",
        base=base,
        query_template=Template("{merchant_name} {memo}", missing="unknown"),
        calibrator=calibrator,
    )
    return Searcher(parts).save(tmp_path_factory.mktemp("run") / "searcher")
