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
