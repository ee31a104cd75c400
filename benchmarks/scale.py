"""Exact search and the embedding cache as the corpus grows.

- ``embedfit.retrieve.exact.top_k`` beside faiss' IndexFlatIP, which is exact too: 1,000 queries, k of 10 and 100, 384 float32
  dimensions, the same vectors (random, unit length), the same number of threads, in turn. faiss holds all vectors in
  memory; top_k reads them from a file. Beside both, the floor: the matrix product alone, in blocks (2 FLOPs for each
  query, document and dimension), and one reading of the file.
- Time and memory of top_k, from 10,000 documents to a million.
- The embedding cache: writing and reading as many vectors, from an encoder that takes no time.

Each measurement is a process of its own. Seconds are the processor's, divided by the threads, as the machine may have other
work, and the best of some rounds; the clock's own are in the JSON beside them. Memory is the most that was held beyond what was
held before, without the vectors themselves (anonymous pages: what the file's own pages take is the system's to give and take).

    python benchmarks/scale.py [--documents 1000000] [--threads 1 2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).parent / "results"
DIMENSIONS, QUERIES, KS = 384, 1000, (10, 100)


def main() -> None:
    """Measure, print, and write results/scale.json and scale.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = {"peer": measure_peer, "search": measure_search, "cache": measure_cache}[options.side]
        print(json.dumps(side(options.documents, options.folder, options.rounds)))
        return
    sizes = [options.documents // 100, options.documents // 10, options.documents]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_vectors(folder / "documents", options.documents)
        peers = {count: measured("peer", options, folder, options.documents, count) for count in options.threads}
        searches = [measured("search", options, folder, size, min(options.threads)) for size in sizes]
        caches = [measured("cache", options, folder, size, min(options.threads)) for size in sizes]
    versions = {package: version(package) for package in ("numpy", "faiss-cpu")}
    said = {"documents": options.documents, "queries": QUERIES, "dimensions": DIMENSIONS, "versions": versions}
    said |= {"peers": peers, "searches": searches, "caches": caches}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scale.json").write_text(json.dumps(said, indent=1) + "\n")
    (RESULTS / "scale.md").write_text(tables(said))
    plot(said, RESULTS / "scale.png")
    print(tables(said))


def measured(side: str, options: argparse.Namespace, folder: Path, documents: int, count: int) -> dict[str, Any]:
    """Return what a process of its own measured."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(count), "OPENBLAS_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--documents", str(documents)]
    done = subprocess.run([*command, "--rounds", str(options.rounds)], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"{side}, {documents:,} documents, {count} threads: {found}", file=sys.stderr)
    return {"documents": documents, "threads": count, **found}


def measure_peer(documents: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Measure top_k, faiss and the matrix product alone, in turn."""
    import faiss

    from embedfit.retrieve.exact import top_k

    faiss.omp_set_num_threads(threads())
    queries, vectors = unit(QUERIES, 1), read_vectors(folder / "documents", documents)
    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(np.ascontiguousarray(vectors))
    found: dict[str, Any] = {}
    for k in KS:
        taken: dict[str, list[Seconds]] = {"faiss": [], "embedfit": [], "product alone": [], "reading": []}
        for _ in range(rounds):
            with timed(taken["faiss"]):
                their_scores, theirs = index.search(queries, k)
            with timed(taken["embedfit"]):
                ours, our_scores = top_k(queries, vectors, k)
            with timed(taken["product alone"]):
                space = np.empty((2048, QUERIES), np.float32)
                for first in range(0, documents - 2047, 2048):
                    np.matmul(vectors[first : first + 2048], queries.T, out=space)
            with timed(taken["reading"]):
                for first in range(0, documents, 2048):
                    vectors[first : first + 2048].max()
        best = {name: min(one.processor for one in each) / threads() for name, each in taken.items()}
        pairs = zip(taken["embedfit"], taken["faiss"], strict=True)
        found[str(k)] = {
            "seconds": best,
            "ratio": best["embedfit"] / best["faiss"],
            "ratio of the clock's, each round": [mine.clock / theirs.clock for mine, theirs in pairs],
            "clock": {name: min(one.clock for one in each) for name, each in taken.items()},
            "GFLOP/s of the product": 2e-9 * QUERIES * documents * DIMENSIONS / best["product alone"],
            "same document": float((ours == theirs).mean()),
            "largest difference of scores": float(np.abs(our_scores - their_scores).max()),
        }
    return found


def measure_search(documents: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Measure top_k on a file of vectors."""
    from embedfit.retrieve.exact import top_k

    queries, vectors = unit(QUERIES, 1), read_vectors(folder / "documents", documents)
    top_k(queries[:10], vectors[:100], 10)
    taken: list[Seconds] = []
    with memory() as held:
        for _ in range(rounds):
            with timed(taken):
                top_k(queries, vectors, 100)
    return {"seconds": min(one.processor for one in taken) / threads(), "clock": min(one.clock for one in taken), "memory_MiB": held[0]}


def measure_cache(documents: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Measure writing vectors to the embedding cache, and reading them."""
    from embedfit.encode.cache import CachedEncoder

    class Drawn:
        name = fingerprint = f"drawn{documents}"

        def __init__(self) -> None:
            self.vectors = unit(8192, 2)

        def encode(self, texts: Any, kind: str) -> Any:
            return self.vectors[: len(texts)]

    texts = [f"document number {number}" for number in range(documents)]
    encoder = CachedEncoder(Drawn(), folder / "cache")
    encoder.encode(texts[:1], "query")
    said: dict[str, Any] = {}
    for name in ("write", "read"):
        taken: list[Seconds] = []
        with memory() as held, timed(taken):
            vectors = encoder.encode(texts, "document")
        said |= {f"{name}_seconds": taken[0].processor, f"{name}_clock": taken[0].clock}
        said |= {f"{name}_memory_MiB": held[0] - vectors.nbytes / 2**20}
        del vectors
    return {**said, "file_over_vectors": encoder.path.stat().st_size / (4 * DIMENSIONS * documents)}


def unit(rows: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return random vectors of unit length."""
    vectors = np.random.default_rng(seed).standard_normal((rows, DIMENSIONS), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def write_vectors(path: Path, rows: int) -> None:
    """Write a file of random vectors."""
    with path.open("wb") as file:
        for first in range(0, rows, 50_000):
            file.write(unit(min(50_000, rows - first), first).tobytes())


def read_vectors(path: Path, rows: int) -> np.memmap[Any, np.dtype[np.float32]]:
    """Return the first vectors of a file, without reading them."""
    return np.memmap(path, np.float32, "r", shape=(rows, DIMENSIONS))


def threads() -> int:
    """Return the number of threads that this process may use."""
    return int(os.environ["OMP_NUM_THREADS"])


class Seconds(NamedTuple):
    """What something took, by the clock, and of all processors."""

    clock: float
    processor: float


@contextlib.contextmanager
def timed(taken: list[Seconds]) -> Iterator[None]:
    """Append the seconds that something took."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    taken.append(Seconds(time.perf_counter() - clock, time.process_time() - processor))


@contextlib.contextmanager
def memory() -> Iterator[list[float]]:
    """Give the most memory that was held beyond what was held before, in MiB, looked at every 5 ms."""
    held, stop = [0.0], threading.Event()
    before = _anonymous()

    def look() -> None:
        while not stop.wait(0.005):
            held[0] = max(held[0], _anonymous() - before)

    thread = threading.Thread(target=look)
    thread.start()
    yield held
    stop.set()
    thread.join()


def _anonymous() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise OSError("the kernel does not say RssAnon")


def tables(said: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        f"{said['documents']:,} documents x {said['dimensions']} dimensions, {said['queries']:,} queries; "
        "processor seconds, divided by the threads.",
        "",
        "| threads | k | faiss IndexFlatIP | embedfit top_k | ratio | product alone | GFLOP/s | reading the file |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for peer in said["peers"].values():
        for k in KS:
            row = peer[str(k)]
            theirs, ours, product, reading = row["seconds"].values()
            lines.append(
                f"| {peer['threads']} | {k} | {theirs:.2f} | {ours:.2f} | {row['ratio']:.2f} | {product:.2f} "
                f"| {row['GFLOP/s of the product']:.0f} | {reading:.2f} |"
            )
    lines += [
        "",
        "| documents | their vectors, MiB | search, s | memory beside, MiB | cache: write, s | memory beside the vectors, MiB "
        "| cache: read, s | memory beside the vectors, MiB | file / vectors |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for search, cache in zip(said["searches"], said["caches"], strict=True):
        size = search["documents"] * 4 * DIMENSIONS / 2**20
        lines.append(
            f"| {search['documents']:,} | {size:,.0f} | {search['seconds']:.2f} | {search['memory_MiB']:.0f} "
            f"| {cache['write_seconds']:.1f} | {max(0, cache['write_memory_MiB']):.0f} "
            f"| {cache['read_seconds']:.1f} | {max(0, cache['read_memory_MiB']):.0f} | {cache['file_over_vectors']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def plot(said: dict[str, Any], path: Path) -> None:
    """Draw time and memory over the number of documents."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    time_axis, memory_axis = figure.subplots(1, 2)
    documents = [one["documents"] for one in said["searches"]]
    lines = [("searches", "", f"search, {said['queries']:,} queries, k 100")]
    lines += [("caches", f"{name}_", f"cache, {name}") for name in ("write", "read")]
    for key, prefix, label in lines:
        time_axis.plot(documents, [one[f"{prefix}seconds"] for one in said[key]], "o-", label=label)
        # Under a MiB is noise of what is measured.
        memory_axis.plot(documents, [max(1, one[f"{prefix}memory_MiB"]) for one in said[key]], "o-", label=label)
    memory_axis.plot(documents, [4 * DIMENSIONS * count / 2**20 for count in documents], "k:", label="the vectors themselves")
    for axis, label in ((time_axis, "seconds"), (memory_axis, "MiB beside the vectors")):
        axis.set(xscale="log", yscale="log", xlabel="documents", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
