"""A server in this process over real HTTP, and a searcher that takes no time."""

import contextlib
import socket
import threading
import time

import httpx
import uvicorn

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.serve.app import make_app
from embedfit.serve.searching import Served
from embedfit.serve.settings import Settings

TEXTS = {
    "taxi": "Travel: uber taxi train",
    "food": "Meals: restaurant dinner coffee",
    "cloud": "Hosting: servers cloud storage",
    "<b>rent</b>": "Office: rent desk <script>alert(1)</script>",
    "constructor": "Software: licence seats",
}


def documents(texts=TEXTS):
    corpus = {id: Document(id, text, metadata={"group": text.partition(":")[0]}) for id, text in texts.items()}
    return Dataset({"q": Query("q", "uber")}, corpus, {"q": {next(iter(corpus)): 1}} if corpus else {})


def searcher(encoder, texts=TEXTS):
    return Served.untrained(encoder, documents(texts), "{text}", "words")


@contextlib.contextmanager
def serving(searcher, folder=None, items=None, served="folder", other=None, **settings):
    """Yield a client of a server in a thread of this process."""
    if folder is not None:
        settings["feedback"] = str(folder / "feedback.db")
    settings = Settings(served, **settings)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(make_app(searcher, settings, items, other), log_level="warning", access_log=False, timeout_graceful_shutdown=20)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    assert server.started
    try:
        with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
            client.server = server
            yield client
    finally:
        server.should_exit = True
        thread.join()
