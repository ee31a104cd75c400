"""A bridge from a base model to a tuned one: quality beside the old model and beside embedding again, and going live under load.

    OMP_NUM_THREADS=1 python benchmarks/bridge.py quality scifact FOLDER_OF_A_TUNED_MODEL
    OMP_NUM_THREADS=1 python benchmarks/bridge.py live [--documents 100000] [--kills 5]

Quality: SciFact (test queries, all abstracts); BANKING77, whose documents are its training queries, all of the same intent right; tldr
(a sample of its test queries). Live: vectors of random clusters under two models, the second a turned and distorted space; a process
bridges them in Chroma and is killed again and again, while this process searches. Every answer's scores are compared with the exact ones.
A kill counts if it came before the end of the work.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from quality import BENCH, RESULTS

from embedfit.config import StoreConfig
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.load import load
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder
from embedfit.store.bridged import bridge_documents
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import index_documents
from embedfit.studies.bridged import measure_bridge
from embedfit.tune.bridging import fit_bridge

BASE = "all-MiniLM-L6-v2"


def data_of(name: str) -> tuple[Dataset, str, str]:
    """Return the test queries of a set over all documents, the template and the metric."""
    data = load(BENCH / name)
    if name == "scifact":
        return data.select(data.parts["test"]), "{title}. {text}", "ndcg@10"
    if name == "tldr":
        return data.select(data.parts["test"][::10]), "{text}", "mrr@10"
    by_label: dict[str, list[str]] = {}
    for id in data.parts["train"]:
        by_label.setdefault(min(data.relevant(id)), []).append(id)
    asked = data.parts["test"][::3]
    corpus = {id: Document(id, data.queries[id].text) for id in data.parts["train"]}
    qrels = {id: dict.fromkeys(by_label[min(data.relevant(id))], 1) for id in asked}
    return Dataset({id: data.queries[id] for id in asked}, corpus, qrels), "{text}", "mrr@10"


def quality(name: str, model: str) -> dict[str, Any]:
    """Return the measurement of a bridge from the base model to a tuned one."""
    data, template, metric = data_of(name)
    measured = measure_bridge(data, LocalEncoder(BASE), LocalEncoder(model), template, metric)
    print(name, measured.sentence, measured.to_dict()["fit"], flush=True)
    return {"set": name, **measured.to_dict()}


class Clusters:
    """Encodes 'doc 7' and 'query 7' as neighbours; the new model is the old one in a turned and distorted space."""

    def __init__(self, new: bool, count: int, width: int = 64) -> None:
        self.name = self.fingerprint = f"clusters-{new}-{count}-{width}"
        random = np.random.default_rng(0)
        centres = random.normal(size=(200, width)).astype(np.float32)
        vectors = centres[random.integers(200, size=count)] + 0.6 * random.normal(size=(count, width)).astype(np.float32)
        noise = 0.1 * random.normal(size=(count, width)).astype(np.float32)
        turn = np.linalg.qr(random.normal(size=(width, width)))[0].astype(np.float32)
        bent = (vectors @ turn + 0.3 * np.tanh(vectors)) if new else vectors
        self.table = {"document": unit(bent), "query": unit(bent + noise)}

    def encode(self, texts: Any, kind: str) -> Any:
        """Return the vectors of numbered texts."""
        return self.table[kind][[int(text.split()[-1]) for text in texts]]


def unit(vectors: Any) -> Any:
    """Return vectors of length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def numbered(count: int) -> Dataset:
    """Return numbered documents, and 200 queries."""
    corpus = {f"d{number}": Document(f"d{number}", f"doc {number}") for number in range(count)}
    queries = {f"q{number}": Query(f"q{number}", f"query {number}") for number in range(0, count, count // 200)}
    return Dataset(queries, corpus, {id: {f"d{id[1:]}": 1} for id in queries})


def bridge(folder: Path, count: int) -> None:
    """Bridge the index in a folder, as a process that is going to be killed."""
    old, new, path = Clusters(False, count), Clusters(True, count), folder / "bridge.safetensors"
    with open_store(StoreConfig(location=str(folder / "store"))) as store:
        if not path.exists():
            texts = [f"doc {number}" for number in range(0, count, max(1, count // 5000))]
            fit_bridge(old.encode(texts, "document"), new.encode(texts, "document"), old, new).bridge.save(path)
        bridge_documents(
            store, numbered(count), CachedEncoder(new), "{text}", lambda stamp: path, went_live=lambda: print("live", flush=True)
        )
    print("done", flush=True)


def live(count: int, kills: int) -> dict[str, Any]:
    """Return how many answers failed or were mixed, while an index was bridged and its process killed."""
    folder = Path(tempfile.mkdtemp())
    os.environ["EMBEDFIT_CACHE"] = str(folder / "cache")
    old, new, data = Clusters(False, count), Clusters(True, count), numbered(count)
    started = time.monotonic()
    with open_store(StoreConfig(location=str(folder / "store"))) as store:
        index_documents(store, data, CachedEncoder(old), "{text}", min_recall=0.8)
    filled = time.monotonic() - started
    counts = {"answers": 0, "failed": 0, "mixed": 0, "first": 0}
    states: set[str] = set()
    over = threading.Event()

    def search() -> None:
        random = np.random.default_rng(1)
        with open_store(StoreConfig(location=str(folder / "store"))) as store:
            index = LiveIndex(store, old, new)
            while not over.is_set():
                number = int(random.integers(count))
                try:
                    hits = index.find(f"query {number}", 10)
                except Exception as error:  # any failure counts
                    counts["failed"] += 1
                    print(type(error).__name__, error, flush=True)
                    continue
                counts["answers"] += 1
                ids = [hit.id for hit in hits]
                # All scores are on one side's scale: the old cosine, or the new one up to the error of the bridge.
                numbers = [int(id[1:]) for id in ids]
                errors = [
                    np.abs(model.table["document"][numbers] @ model.table["query"][number] - [hit.score for hit in hits]).max()
                    for model in (old, new)
                ]
                counts["mixed"] += int(len(set(ids)) < 10 or min(errors[0] / 0.002, errors[1] / 0.2) > 1)
                counts["first"] += ids[0] == f"d{number}"
                states.add(index.stamp().bridge or index.stamp().encoder)

    searching = threading.Thread(target=search)
    searching.start()
    started, hit = time.monotonic(), 0
    random = np.random.default_rng(2)
    for kill in range(kills + 1):
        command = [sys.executable, __file__, "bridge", str(folder), "--documents", str(count)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if kill < kills:
            time.sleep(random.uniform(0.7, 1.3) * count / 8000)
            process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        hit += process.returncode == -signal.SIGKILL and "done" not in out
        print("killed" if kill < kills else "ended", out.split(), f"{time.monotonic() - started:.0f} s", counts, flush=True)
    seconds = time.monotonic() - started
    over.set()
    searching.join()
    return {"documents": count, "kills": hit, "filled": filled, "seconds": seconds, "states": len(states), **counts}


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["quality", "live", "bridge"])
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    given = parser.parse_args()
    if given.part == "bridge":
        bridge(Path(given.arguments[0]), given.documents)
        return
    made = quality(*given.arguments) if given.part == "quality" else live(given.documents, given.kills)
    path = RESULTS / "bridge.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[" ".join([given.part, *given.arguments[:1]])] = made
    path.write_text(json.dumps(kept, indent=1))
    print(json.dumps(made))


if __name__ == "__main__":
    main()
