"""What each vector store loses against exact search, at its default settings, and what it takes.

all-MiniLM-L6-v2, 384 dimensions. Two sets of documents: the abstracts of SciFact, searched by its test claims; and the
training queries of BANKING77, searched by its test queries (its own 77 intents are too few for any store to miss one). Each
store is filled by `index_documents`, then asked for the 10 nearest documents of each query. Recall@10 is the share of the 10 documents of
exact search that it finds, ties being worth the same. Vectors come from the cache, so seconds are the store's own: writing,
building its graph, and the check on up to 1,000 queries.

Chroma runs embedded, PostgreSQL with pgvector as a real server on this machine (from the package pgserver), Qdrant in its
client's local mode, which compares with every vector: its recall says nothing of a Qdrant server's graph.

    python benchmarks/stores.py [--data ../shared/data/bench]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pgserver

from embedfit.config import StoreConfig
from embedfit.data.dataset import Dataset, Document
from embedfit.data.load import load
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import DEPTH
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import index_documents, overlap
from embedfit.template import DOCUMENT_TEMPLATE

RESULTS = Path(__file__).parent / "results"
K = 10


def main() -> None:
    """Measure each store on each set, print the table, and write results/stores.json and stores.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/bench"))
    data = parser.parse_args().data
    encoder = CachedEncoder(LocalEncoder("all-MiniLM-L6-v2"))
    sets = {"SciFact": scifact(data / "scifact"), "BANKING77": banking(data / "banking77")}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        postgres = pgserver.get_server(Path(folder) / "postgres")
        stores = {
            f"Chroma {version('chromadb')}": StoreConfig(kind="chroma", location=f"{folder}/chroma"),
            "pgvector 0.6.2": StoreConfig(kind="pgvector", location=postgres.get_uri()),
            f"Qdrant local mode {version('qdrant-client')}": StoreConfig(kind="qdrant", location=f"{folder}/qdrant"),
        }
        for name, dataset in sets.items():
            exact = DenseRetriever(encoder, DOCUMENT_TEMPLATE).search(dataset, K + DEPTH)
            for store_name, config in stores.items():
                rows.append({"set": name, "store": store_name, **measured(config, dataset, encoder, exact)})
                print(rows[-1], flush=True)
        postgres.cleanup()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "stores.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "stores.md").write_text(table(rows))
    print(table(rows))


def measured(config: StoreConfig, dataset: Dataset, encoder: CachedEncoder, exact) -> dict[str, float]:
    """Fill one store with one set, and return what it loses and takes."""
    with open_store(config) as store:
        started = time.perf_counter()
        index_documents(store, dataset, encoder, DOCUMENT_TEMPLATE, k=K, min_recall=0)
        seconds = time.perf_counter() - started
        version = LiveIndex(store, encoder).version()
        recall = overlap(version.search(dataset, K), exact, K)
        vectors = encoder.encode(dataset.query_texts()[:200], "query")
        started = time.perf_counter()
        for vector in vectors:
            store.nearest(version.collection, vector[None], K, {})
        milliseconds = (time.perf_counter() - started) / len(vectors) * 1000
    return {
        "documents": len(dataset.corpus),
        "queries": len(dataset.queries),
        "recall@10": recall,
        "seconds": seconds,
        "milliseconds": milliseconds,
    }


def scifact(folder: Path) -> Dataset:
    """Return the abstracts, and the test claims."""
    data = load(folder)
    return data.select(data.parts["test"])


def banking(folder: Path) -> Dataset:
    """Return the training queries as documents, and the test queries; each is right for itself alone, as only overlap counts."""
    data = load(folder)
    corpus = {id: Document(id, data.queries[id].text) for id in data.parts["train"]}
    test = data.select(data.parts["test"])
    first = next(iter(corpus))
    return replace(test, corpus=corpus, qrels={id: {first: 1} for id in test.queries})


def table(rows: list[dict[str, float]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| documents | store | recall@10 against exact | filling, s | a query, ms |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        where = f"{row['set']}, {row['documents']:,}; {row['queries']:,} queries"
        lines.append(f"| {where} | {row['store']} | {row['recall@10']:.4f} | {row['seconds']:.1f} | {row['milliseconds']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
