"""Load on a server: requests a second and latencies, beside sentence-transformers in a plain FastAPI route, in one run.

    python benchmarks/serve.py [--seconds 5]
    python benchmarks/serve.py --alone 300

The servers are processes of their own with the same model (all-MiniLM-L6-v2, fp32), FastAPI and uvicorn with one worker, and as many
threads as OMP_NUM_THREADS says. One of ours runs the model's ONNX form, which gives the same vectors. The plain route is what a
tutorial shows: `def` with `model.encode(texts).tolist()`. Clients are
coroutines in this process; each sends its next request when it has the answer to the one before. Queries are the general set's, which
are short; every request has other ones. For each number of clients the servers take turns, and the machine is warmed up first.

`cpu_ms` is the processor time of the server for a request. Neighbours on the machine do not change it much, unlike the latencies.

Texts that are encoded directly, one at a time in this process, give the floor for a lone client: `/search` also ranks 27 documents and
stores the search. Results go to benchmarks/results/serve.json.

`--alone N` compares with that floor alone: N times, a lone client's `/search` and then the same text encoded in this process. One
searcher is not trained, and takes texts. The other takes records, has all views that an untuned model allows, and 10,000 examples.

infinity-emb 0.0.78 is no peer here: it does not install beside these packages (pip: ResolutionImpossible).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from embedfit.data.load import load
from embedfit.encode.local import LocalEncoder
from embedfit.samples import GENERAL, TRANSACTIONS

MODEL = "all-MiniLM-L6-v2"
CLIENTS = (1, 8, 64)
RESULTS = Path(__file__).parent / "results" / "serve.json"


class Texts(BaseModel):
    """The body of the plain route."""

    texts: list[str]


def ours(port: int, *, onnx: bool = False) -> None:
    """Serve with embedfit: the model itself, or its ONNX form."""
    from embedfit.encode.export import export_onnx
    from embedfit.encode.onnx import OnnxEncoder
    from embedfit.serve.app import make_app
    from embedfit.serve.running import serve
    from embedfit.serve.searching import Served
    from embedfit.serve.settings import Settings

    documents = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
    model = LocalEncoder(MODEL, precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        form = Path(folder) / "onnx"
        if onnx:
            export_onnx(model, form, "onnx")
        encoder = OnnxEncoder(form) if onnx else model
        searcher = Served.untrained(encoder, documents, "{category}: {sample_transactions}")
        settings = Settings("transactions", port=port, feedback=f"{folder}/feedback.db")
        serve(settings, app=lambda: make_app(searcher, settings))


def fitted(port: int) -> None:
    """Serve records with fitted views and 10,000 examples, most of which are random vectors."""
    import numpy as np

    from embedfit.data.records import record_type
    from embedfit.searcher.fit import fit_searcher
    from embedfit.serve.app import make_app
    from embedfit.serve.running import serve
    from embedfit.serve.searching import Served, with_labels
    from embedfit.serve.settings import Settings

    data = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
    template = record_type("transaction").template
    model = LocalEncoder(MODEL, precision="fp32")
    searcher = fit_searcher(data, model, template="{category}: {sample_transactions}", query_template=template)
    examples, rng = searcher.parts.examples, np.random.default_rng(0)
    vectors = rng.standard_normal((10_000 - len(examples.texts), examples.vectors.shape[1])).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    more = {f"more {number}": ("a text", int(rng.integers(len(data.corpus)))) for number in range(len(vectors))}
    parts = searcher.parts.with_examples(with_labels(examples, more, vectors))
    searcher.parts = replace(parts, encoder=model)  # without the cache, which knows these queries
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings("transactions", port=port, feedback=f"{folder}/feedback.db")
        serve(settings, app=lambda: make_app(Served(searcher, "fitted", "fitted"), settings))


def plain(port: int) -> None:
    """Serve sentence-transformers in a plain route."""
    import uvicorn
    from fastapi import FastAPI
    from sentence_transformers import SentenceTransformer

    from embedfit.hub import model_folder

    model = SentenceTransformer(str(model_folder(MODEL)))
    app = FastAPI()

    @app.post("/embed")
    def embed(body: Texts) -> list[list[float]]:
        return model.encode(body.texts, normalize_embeddings=True, show_progress_bar=False).tolist()  # type: ignore[no-any-return]

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


class Load:
    """Clients that ask one route of one server.

    Args:
        server: Process of the server, and its port.
        path: Route.
        bodies: Bodies of requests, taken in turn.
    """

    def __init__(self, server: tuple[subprocess.Popen[bytes], int], path: str, bodies: list[bytes]) -> None:
        self.process, self.port = server
        self.bodies = itertools.cycle(bodies)
        self.head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "

    async def client(self, end: float, latencies: list[float]) -> None:
        """Send requests until a time."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while (start := time.perf_counter()) < end:
            body = next(self.bodies)
            writer.write(f"{self.head}{len(body)}\r\n\r\n".encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            latencies.append(time.perf_counter() - start)
        writer.close()

    def processor_seconds(self) -> float:
        """Return the processor time that the server has used so far (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def run(self, clients: int, seconds: float) -> dict[str, float]:
        """Return requests a second, and the latencies' percentiles in milliseconds."""
        latencies: list[float] = []
        start, used = time.perf_counter(), self.processor_seconds()
        await asyncio.gather(*(self.client(start + seconds, latencies) for _ in range(clients)))
        wall = time.perf_counter() - start
        cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else latencies * 99
        cpu = 1000 * (self.processor_seconds() - used) / len(latencies)
        return {"per_second": len(latencies) / wall, "cpu_ms": cpu, **{f"p{at}_ms": 1000 * cuts[at - 1] for at in (50, 95, 99)}}


def started(name: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server and wait until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, __file__, "--serve", name, str(port)])
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return server, port
        except OSError:
            assert server.poll() is None
            time.sleep(0.2)


def alone(count: int) -> None:
    """Print how much longer a lone client's search takes than encoding its text, in turns."""
    from http.client import HTTPConnection

    from embedfit.data.records import record_type

    template = record_type("transaction").template
    rows = [json.loads(line) for line in (TRANSACTIONS / "transactions.jsonl").read_text().splitlines()]
    records = [{name: row.get(name) for name in template.fields} for row in rows]
    queries: dict[str, list[Any]] = {"ours": load(GENERAL).query_texts(), "fitted": records}
    encoder = LocalEncoder(MODEL, precision="fp32")
    for name, asked in queries.items():
        server = started(name)
        load_ = Load(server, "/search", [])
        connection = HTTPConnection("127.0.0.1", server[1])
        searching, encoding = [], []
        try:
            for number in range(-20, count):
                query = asked[number % len(asked)]
                text = query if isinstance(query, str) else template.render(query)
                if number == 0:
                    used, mine = load_.processor_seconds(), 0.0
                    searching, encoding = [], []
                start = time.perf_counter()
                connection.request("POST", "/search", json.dumps({"query": query}), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()
                searching.append(time.perf_counter() - start)
                start, before = time.perf_counter(), time.process_time()
                encoder.encode([text], "query")
                encoding.append(time.perf_counter() - start)
                if number >= 0:
                    mine += time.process_time() - before
            cpu = load_.processor_seconds() - used
        finally:
            connection.close()
            server[0].terminate()
            server[0].wait()
        search, encode = 1000 * statistics.median(searching), 1000 * statistics.median(encoding)
        print(f"{name}: /search p50 {search:.1f} ms, encoding alone {encode:.1f} ms, ratio {search / encode:.2f}", end="; ")
        print(f"processor time {1000 * cpu / count:.1f} ms and {1000 * mine / count:.1f} ms, ratio {cpu / mine:.2f}", flush=True)


def main(seconds: float) -> None:
    """Measure both servers, and write the results."""
    texts = load(GENERAL).query_texts()
    groups = [texts[start : start + 32] for start in range(0, len(texts) - 32, 32)]
    servers = {name: started(name) for name in ("ours", "onnx", "plain")}

    def bodies(key: str, values: list[object]) -> list[bytes]:
        return [json.dumps({key: value}).encode() for value in values]

    singles: list[object] = [[text] for text in texts]
    loads = {
        "plain /embed, one text": Load(servers["plain"], "/embed", bodies("texts", singles)),
        "embedfit /embed, one text": Load(servers["ours"], "/embed", bodies("inputs", singles)),
        "embedfit /search, one text": Load(servers["ours"], "/search", bodies("query", list(texts))),
        "embedfit onnx /embed, one text": Load(servers["onnx"], "/embed", bodies("inputs", singles)),
        "embedfit onnx /search, one text": Load(servers["onnx"], "/search", bodies("query", list(texts))),
        "plain /embed, 32 texts": Load(servers["plain"], "/embed", bodies("texts", list(groups))),
        "embedfit /embed, 32 texts": Load(servers["ours"], "/embed", bodies("inputs", list(groups))),
        "embedfit onnx /embed, 32 texts": Load(servers["onnx"], "/embed", bodies("inputs", list(groups))),
    }
    results: dict[str, dict[str, dict[str, float]]] = {name: {} for name in loads}
    try:
        for load_ in loads.values():
            asyncio.run(load_.run(4, 1))
        for clients in CLIENTS:
            for name, load_ in loads.items():
                results[name][str(clients)] = row = asyncio.run(load_.run(clients, seconds))
                shown = "  ".join(f"{key} {value:8.1f}" for key, value in row.items())
                print(f"{clients:3} clients  {name:31} {shown}", flush=True)
    finally:
        for server, _ in servers.values():
            server.terminate()
            server.wait()
    encoder = LocalEncoder(MODEL, precision="fp32")
    encoder.encode(texts[:20], "query")
    times = []
    for text in texts[:200]:
        start = time.perf_counter()
        encoder.encode([text], "query")
        times.append(time.perf_counter() - start)
    alone = 1000 * statistics.median(times)
    print(f"encoding one text in this process: p50 {alone:.1f} ms")
    ratios = {}
    for form, kind, clients in itertools.product(("", " onnx"), ("one text", "32 texts"), map(str, CLIENTS)):
        mine, theirs = results[f"embedfit{form} /embed, {kind}"][clients], results[f"plain /embed, {kind}"][clients]
        ratios[f"{kind}, {clients} clients{form and ',' + form}"] = {
            "requests_per_second": mine["per_second"] / theirs["per_second"],
            "requests_per_processor_second": theirs["cpu_ms"] / mine["cpu_ms"],
        }
    for name, ratio in ratios.items():
        print(f"embedfit / plain, {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in ratio.items()))
    machine = {"processor": platform.processor() or platform.machine(), "threads": os.environ.get("OMP_NUM_THREADS", "all")}
    content = {"machine": machine, "seconds": seconds, "encode_p50_ms": alone, "results": results, "ratios": ratios}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--alone", type=int, default=0, metavar="N")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "PORT"))
    arguments = parser.parse_args()
    if arguments.serve:
        {"ours": ours, "onnx": partial(ours, onnx=True), "plain": plain, "fitted": fitted}[arguments.serve[0]](int(arguments.serve[1]))
    elif arguments.alone:
        alone(arguments.alone)
    else:
        main(arguments.seconds)
