"""Servers for examples and tests: real HTTP on loopback, in the shape of the services that embedfit talks to."""

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

    class Patient(ThreadingHTTPServer):
        request_queue_size = 128  # five by default: more clients at a time would be turned away

    http = Patient(("127.0.0.1", 0), Handler)
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

    def vectors(self, texts, dimensions):
        """Return what the model behind it makes of texts."""
        return word_vectors(texts, dimensions)

    def answer(self, request):
        if request.path.startswith("/api/models/"):  # the client asks the Hub what a model is for
            return as_json({"id": "any", "pipeline_tag": "feature-extraction", "tags": ["feature-extraction"]})
        said = request.json
        texts = said["inputs"] if "inputs" in said else said["input"]
        if self.at_most and len(texts) > self.at_most:
            message = f"batch size {len(texts)} > maximum allowed batch size {self.at_most}"
            return as_json({"error": message, "error_type": "Validation"}, 422)
        vectors = self.vectors(texts, said.get("dimensions") or self.width)
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


@dataclass
class Hub(Server):
    """The Hugging Face Hub as its client sees it: create, validate-yaml, preupload, LFS batch, commit, and downloads.

    Attributes:
        storage: Address of another server, where large files are PUT.
        repos: (type, name) -> {"private": ..., "files": {path: content}}.
        stored: Content of large files by hash, as the storage received it.
        damaged: Whether downloads of weights come back with half of it zero.
    """

    storage: "Storage" = None
    repos: dict = field(default_factory=dict)
    damaged: bool = False
    COMMIT = "c" * 40

    def answer(self, request):
        path, _, _ = request.path.partition("?")
        if path == "/":
            return 200, {}, b""
        if path == "/api/repos/create":
            said = request.json
            self.repos[said.get("type", "model"), f"{said['organization']}/{said['name']}"] = {
                "private": said["visibility"] == "private",
                "files": {},
            }
            return as_json({"url": f"{self.address}/{said['organization']}/{said['name']}"})
        if path == "/api/validate-yaml":
            assert request.json["content"].startswith("---\n")
            return as_json({"errors": [], "warnings": []})
        for (kind, name), repo in self.repos.items():
            here = f"/datasets/{name}" if kind == "dataset" else f"/{name}"
            if path.startswith((f"/api/{kind}s/{name}", here)):
                return self.answer_about(repo, kind, name, path, request)
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def answer_about(self, repo, kind, name, path, request):
        if path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["size"] > 100_000 else "regular", "shouldIgnore": False, "oid": None}
                for file in request.json["files"]
            ]
            return as_json({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.storage.address}/{one['oid']}?X-Signature=presigned"}}}
                for one in request.json["objects"]
            ]
            return as_json({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            for line in request.body.splitlines():
                said = json.loads(line)
                if said["key"] == "file":
                    repo["files"][said["value"]["path"]] = base64.b64decode(said["value"]["content"])
                elif said["key"] == "lfsFile":
                    repo["files"][said["value"]["path"]] = self.storage.stored[said["value"]["oid"]]
                elif said["key"] == "deletedFile":
                    del repo["files"][said["value"]["path"]]
            url = f"{self.address}/{name}/commit/{self.COMMIT}"
            return as_json({"commitUrl": url, "commitOid": self.COMMIT, "pullRequestUrl": None, "success": True})
        if f"/tree/{self.COMMIT}" in path:
            return as_json([{"type": "file", "path": file, "size": len(body), "oid": "0" * 40} for file, body in repo["files"].items()])
        if f"/resolve/{self.COMMIT}/" in path:
            file = path.partition(f"/resolve/{self.COMMIT}/")[2]
            body = repo["files"][file]
            if self.damaged and file.endswith(".safetensors"):
                body = body[: len(body) // 2] + bytes(len(body) - len(body) // 2)
            return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": self.COMMIT}, body
        if path.startswith("/api/"):
            siblings = [{"rfilename": file} for file in repo["files"]]
            return as_json({"id": name, "sha": self.COMMIT, "private": repo["private"], "siblings": siblings})
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"


@dataclass
class Storage(Server):
    """Where the Hub has large files put: another host, which must not see the Hub's token."""

    stored: dict = field(default_factory=dict)

    def answer(self, request):
        assert request.method == "PUT"
        assert hashlib.sha256(request.body).hexdigest() == request.path[1:].partition("?")[0]
        self.stored[request.path[1:].partition("?")[0]] = request.body
        return 200, {}, b""


@contextmanager
def running_hub():
    """Run a Hub and its storage."""
    with running(Storage()) as storage, running(Hub(storage=storage)) as hub:
        yield hub


@dataclass
class LangWatch(Server):
    """LangWatch: traces as OTLP protobuf, and experiments, whose results can be read back."""

    def answer(self, request):
        path = request.path.partition("?")[0]
        if path == "/api/experiment/init":
            slug = request.json["experiment_slug"]
            return as_json({"path": f"/project/experiments/{slug}", "slug": slug})
        if path == "/api/evaluations/v3/runs/" + path.split("/")[-2] + "/results":
            return as_json(self.results(path.split("/")[-2]))
        if path == "/api/otel/v1/traces":
            return 200, {"Content-Type": "application/x-protobuf"}, b""
        if path == "/api/evaluations/batch/log_results":
            assert request.json["run_id"]
            return as_json({})
        return 404, {}, b"{}"

    def sent_to(self, path):
        return [request for request in self.requests if request.path.partition("?")[0] == path]

    def results(self, run_id):
        """Return what LangWatch shows of a run: rows and evaluations, each once, the last one sent."""
        rows, evaluations = {}, {}
        for request in self.sent_to("/api/evaluations/batch/log_results"):
            said = request.json
            if said["run_id"] == run_id:
                rows |= {(row["index"], row.get("target_id")): row for row in said["dataset"]}
                evaluations |= {(one["index"], one.get("target_id"), one["name"]): one for one in said["evaluations"]}
        renamed = {"target_id": "targetId", "trace_id": "traceId"}
        return {
            "dataset": [{renamed.get(key, key): value for key, value in row.items()} for row in rows.values()],
            "evaluations": [{renamed.get(key, key): value for key, value in one.items()} for one in evaluations.values()],
        }

    def spans(self):
        """Return every span sent, decoded: (name, trace id, attributes)."""
        import gzip

        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        found = []
        for request in self.sent_to("/api/otel/v1/traces"):
            body = gzip.decompress(request.body) if request.headers.get("content-encoding") == "gzip" else request.body
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        attributes = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
                        found.append((span.name, span.trace_id.hex(), attributes))
        return found
