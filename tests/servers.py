"""Servers for tests: real HTTP on loopback, in the shape of the services that embedfit talks to."""

import base64
import hashlib
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np


@dataclass
class Request:
    """What a server was sent."""

    method: str
    path: str
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    def __str__(self):
        return f"{self.method} {self.path} {self.headers} {self.body!r}"


@dataclass
class Server:
    """A server that is running; subclasses say what it answers.

    Attributes:
        requests: All that it was sent.
        faults: What to do with the next requests instead of answering: a status, (status, headers, body), or "drop".
        delay: Seconds before each answer.
    """

    requests: list = field(default_factory=list)
    faults: list = field(default_factory=list)
    delay: float = 0.0
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request):
        """Return (status, headers, body) for a request."""
        raise NotImplementedError

    def fault(self, request):
        """Return what to do instead of answering, or None."""
        with self.lock:
            return self.faults.pop(0) if self.faults else None


@contextmanager
def running(server):
    """Run a server on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            fault = server.fault(request)
            with server.lock:
                server.requests.append(request)
            if server.delay:
                time.sleep(server.delay)
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
                return
            if fault is None:
                status, headers, body = server.answer(request)
            else:
                status, headers, body = fault if isinstance(fault, tuple) else (fault, {}, b'{"error": {"message": "a fault"}}')
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_one

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda *arguments: None  # clients that hang up are part of the play
    server.address = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def as_json(body, status=200):
    return status, {"Content-Type": "application/json"}, json.dumps(body).encode()


def word_vectors(texts, dimensions=64):
    """Return vectors that are near each other where texts have words in common; not of unit length."""
    vectors = np.full((len(texts), dimensions), 0.01, np.float32)
    for row, text in enumerate(texts):
        for word, count in Counter(text.casefold().split()).items():
            vectors[row, int(hashlib.sha256(word.encode()).hexdigest(), 16) % dimensions] += count
    return vectors


@dataclass
class Embeddings(Server):
    """An OpenAI-compatible server at ``/v1/embeddings``, and a Hugging Face endpoint at every other path.

    Attributes:
        bought: How often each text was answered with a vector.
        at_most: Texts that it takes in a request; more are refused as text-embeddings-inference does.
        tells_usage: Whether it says how many tokens it read.
        in_order: Whether rows come in the order of the texts.
    """

    bought: Counter = field(default_factory=Counter)
    at_most: int | None = None
    tells_usage: bool = True
    in_order: bool = True
    width: int = 64

    def answer(self, request):
        if request.path.startswith("/api/models/"):  # the client asks the Hub what a model is for
            return as_json({"id": "any", "pipeline_tag": "feature-extraction", "tags": ["feature-extraction"]})
        said = request.json
        texts = said["inputs"] if "inputs" in said else said["input"]
        if self.at_most and len(texts) > self.at_most:
            message = f"batch size {len(texts)} > maximum allowed batch size {self.at_most}"
            return as_json({"error": message, "error_type": "Validation"}, 422)
        vectors = word_vectors(texts, said.get("dimensions") or self.width)
        with self.lock:
            self.bought.update(texts)
        if "inputs" in said:
            return as_json(vectors.tolist())
        whole = said.get("encoding_format") == "base64"
        rows = [
            {"object": "embedding", "index": index, "embedding": base64.b64encode(row.tobytes()).decode() if whole else row.tolist()}
            for index, row in enumerate(vectors)
        ]
        answer = {"object": "list", "model": said["model"], "data": rows if self.in_order else rows[::-1]}
        if self.tells_usage:
            tokens = sum(len(text.split()) for text in texts)
            answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        return as_json(answer)
