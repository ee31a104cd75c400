"""What a search costs with 100,000 examples: in memory, and in each store, against encoding the query and exact search.

The 77 intents of BANKING77, with 100,000 examples made of the vectors of 770 training queries of all-MiniLM-L6-v2: each is the sum of
one and half of another. The baseline is the time to encode the query and to find the nearest of as many vectors exactly. A searcher with
documents, examples, words, and linear models on the query's words and vector is searched in memory, then through PostgreSQL with
pgvector and Chroma in a folder. Baseline and searches take turns, so that other work on the machine slows all of them alike; the median
of their ratios is reported. So is how far the stores, which fetch the 400 nearest examples, agree with the searcher in memory: the
overlap of the first 10 documents, and the difference of the first probability. At last 1,000 examples are added to the live index.

Qdrant is left out: its client's local mode writes 30 vectors a second, and no server can be installed from a wheel.

    python benchmarks/many_examples.py [--examples 100000] [--stores pgvector chroma]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedfit.config import StoreConfig
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder
from embedfit.evaluation.calibration import Calibrator
from embedfit.searcher.fusion import Fusion
from embedfit.searcher.gather import Corpus, Examples, Views
from embedfit.searcher.parts import Parts
from embedfit.searcher.searcher import Searcher, SearchHit
from embedfit.searcher.views import CLASSES, DOCUMENTS, EXAMPLES, TERMS, WORDS, TermsView
from embedfit.store.changes import Change
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.version import SearcherVersion
from embedfit.store.versions import index_searcher
from embedfit.template import DOCUMENT_TEMPLATE

RESULTS = Path(__file__).parent / "results"
QUERIES, PER_LABEL, ADDED = 40, 10, 1000


def main() -> None:
    """Measure, print the table, and write results/many_examples.json and many_examples.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/bench/banking77"))
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--stores", nargs="*", choices=["chroma", "pgvector"], default=["pgvector", "chroma"])
    options = parser.parse_args()
    data = load(options.data)
    count: dict[str, int] = defaultdict(int)
    train = []
    for id in data.parts["train"]:
        label = next(iter(data.relevant(id)))
        count[label] += 1
        train += [id] if count[label] <= PER_LABEL else []
    searcher = made(data, train, options.examples)
    queries = [data.queries[id].text for id in list(data.parts["test"])[:: len(data.parts["test"]) // QUERIES]][:QUERIES]
    rows: list[dict[str, Any]] = [{"where": "in memory", **timed(searcher, queries, searcher.search)}]
    write(rows, options.examples)
    with tempfile.TemporaryDirectory() as folder:
        searcher.save(Path(folder) / "searcher")
        for kind in options.stores:
            with server(kind, Path(folder)) as config, open_store(config) as store:
                start = time.perf_counter()
                index_searcher(store, Path(folder) / "searcher", {str(n): text for n, text in enumerate(queries)}, min_recall=0)
                seconds = time.perf_counter() - start
                index = LiveIndex(store, searcher.parts.encoder)
                row = {"where": kind, "filling": round(seconds, 1), **timed(searcher, queries, index.find)}
                row |= agreement(searcher, queries, index)
                version = index.version()
                assert isinstance(version, SearcherVersion)
                vectors, document = searcher.parts.examples.vectors, searcher.parts.corpus.ids[0]
                changes = [Change("example", f"new {n}", vectors[n], "text", document, "person", row=f"{n:020d}-new") for n in range(ADDED)]
                version.changes.copy(changes)
                rows.append({**row, "taught": timed(searcher, queries, index.find)["ratio"]})
                write(rows, options.examples)
    write(rows, options.examples)


def write(rows: list[dict[str, Any]], examples: int) -> None:
    """Write the results so far beside those of other numbers of examples and other stores, and print their table."""
    path = RESULTS / "many_examples.json"
    found = {(row["where"], row["examples"]): row for row in (json.loads(path.read_text()) if path.exists() else [])}
    found |= {(row["where"], examples): {"examples": examples, **row} for row in rows}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(list(found.values()), indent=1) + "\n")
    (RESULTS / "many_examples.md").write_text(table(list(found.values())))
    print(table(list(found.values())), flush=True)


def made(data: Dataset, train: list[str], count: int) -> Searcher:
    """Return a searcher with so many examples."""
    rng = np.random.default_rng(0)
    encoder = LocalEncoder("all-MiniLM-L6-v2", precision="fp32")
    corpus = Corpus.of(data, CachedEncoder(encoder), DOCUMENT_TEMPLATE)
    few = Examples.of(data.select(train), CachedEncoder(encoder), corpus.ids)
    terms = TermsView.fit(few.texts, few.owners, len(corpus.ids))
    assert terms
    drawn = rng.integers(len(few.query_ids), size=(count, 2))
    vectors = few.vectors[drawn[:, 0]] + 0.5 * few.vectors[drawn[:, 1]]  # noise that stays among the real vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    owners = few.owners[np.argsort(few.members)][drawn[:, 0]]
    texts = tuple(few.texts[row] for row in drawn[:, 0])
    examples = Examples(tuple(f"q{n}" for n in range(count)), texts, vectors, owners, np.arange(count))
    linear = Views.fit(corpus, few, (CLASSES,)).views[CLASSES]
    views = Views.fit(corpus, examples, (DOCUMENTS, EXAMPLES, WORDS), given={CLASSES: linear, TERMS: terms})
    new = {DOCUMENTS: 8.0, EXAMPLES: 8.0, WORDS: 0.1}
    fusion = Fusion(
        {"warm": {**new, CLASSES: 0.4, TERMS: 0.4}, "new": new, "cold": {DOCUMENTS: 20.0, WORDS: 0.1}}, {"new": 0.0, "cold": 0.0}
    )
    right = np.arange(5) == rng.integers(0, 2, 200)[:, None]
    calibrator = Calibrator.fit(rng.normal(size=(200, 5)).astype(np.float32) + right, right)
    return Searcher(Parts(encoder, data.corpus, corpus, examples, views, fusion, DOCUMENT_TEMPLATE, calibrator=calibrator))


def timed(searcher: Searcher, queries: list[str], search: Callable[[str, int], Sequence[SearchHit]]) -> dict[str, float]:
    """Return milliseconds of a search and of the baseline, and the median of their ratios. They take turns."""
    vectors, encoder = searcher.parts.examples.vectors, searcher.parts.encoder
    search(queries[0], 5)
    seconds = []
    for query in queries:
        start = time.perf_counter()
        scores = encoder.encode([query], "query") @ vectors.T
        np.argpartition(-scores[0], 5)
        middle = time.perf_counter()
        search(query, 5)
        seconds.append((middle - start, time.perf_counter() - middle))
    baseline, searched = 1000 * np.median(seconds, axis=0)
    ratio = np.median([after / before for before, after in seconds])
    return {"baseline": round(float(baseline), 1), "milliseconds": round(float(searched), 1), "ratio": round(float(ratio), 2)}


def agreement(searcher: Searcher, queries: list[str], index: LiveIndex) -> dict[str, float]:
    """Return how far a store agrees with the searcher in memory: overlap of the first 10, and differences of the first probability."""
    shares, differences = [], []
    for query in queries:
        expected, hits = searcher.search(query, 10), index.find(query, 10)
        shares.append(len({hit.id for hit in expected} & {hit.id for hit in hits}) / 10)
        chance = {hit.id: hit.probability or 0.0 for hit in hits}
        differences.append(abs((expected[0].probability or 0.0) - chance.get(expected[0].id, 0.0)))
    return {"overlap": round(float(np.mean(shares)), 4), "mean": round(float(np.mean(differences)), 4), "most": round(max(differences), 4)}


@contextlib.contextmanager
def server(kind: str, folder: Path) -> Iterator[StoreConfig]:
    """Yield the settings of an empty store."""
    if kind == "chroma":
        yield StoreConfig(location=str(folder / "chroma"))
        return
    import pgserver

    postgres = pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    yield StoreConfig(kind="pgvector", location=postgres.get_uri())
    postgres.cleanup()


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| where | examples | a search, ms | baseline, ms | ratio | ratio with 1,000 more added live | overlap@10 with memory | "
        "difference of the first probability: mean, largest | filling, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [row["where"], f"{row['examples']:,}", f"{row['milliseconds']:.1f}", f"{row['baseline']:.1f}", f"{row['ratio']:.2f}"]
        if "taught" in row:
            cells += [f"{row['taught']:.2f}", f"{row['overlap']:.3f}", f"{row['mean']:.4f}, {row['most']:.4f}", f"{row['filling']:.0f}"]
        lines.append("| " + " | ".join(cells + [""] * (9 - len(cells))) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
