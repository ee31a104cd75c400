"""A tuned reranker over a tuned retriever, beside that retriever alone, on SciFact with its official parts.

The retriever: the encoder of queries is tuned, the documents' vectors are the base model's (`documents = "frozen"`), defaults
otherwise. The reranker: the same model with a new head, tuned on what the retriever finds for a share of the training queries. Both from
all-MiniLM-L6-v2 (22 million parameters), one thread. Training queries that say what a test query says are left out. The reranker reads
the top of each test query over the whole corpus. Also measured: both rankings fused by their ranks (reciprocal rank fusion), and the
milliseconds of a query, asked alone, median of 20.

    python benchmarks/reranker.py [--work runs/reranker] [--train 200] [--negatives 2] [--epochs 2] [--top 10]

Everything is kept in the folder of --work, so that the same command continues after a stop. It writes results/reranker.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from passages import parts

MODEL, METRIC = "all-MiniLM-L6-v2", "ndcg@10"
RESULTS = Path(__file__).parent / "results"
_BLOCK = 256
"""Pairs that are scored between two writes to disk."""


def main() -> None:
    """Train both, measure, and write results/reranker.json."""
    from embedfit.config import TuneConfig
    from embedfit.encode.cache import CachedEncoder
    from embedfit.encode.local import LocalEncoder
    from embedfit.retrieve.retrievers import DenseRetriever
    from embedfit.tune.full import tune_model
    from embedfit.tune.reranker import tune_reranker
    from embedfit.tune.training import Training

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="scifact")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "bench")
    parser.add_argument("--work", type=Path, default=Path("runs/reranker"))
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--negatives", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--top", type=int, default=10)
    options = parser.parse_args()
    train, test = parts(argparse.Namespace(name=options.name, data=options.data, train=None))
    spent = time.process_time()
    retriever = tune_model(LocalEncoder(MODEL), train, None, options.work / "retriever", TuneConfig(documents="frozen"))
    print(f"retriever: {time.process_time() - spent:.0f} processor s", flush=True)
    encoder = CachedEncoder(retriever.encoder)
    some = train.select(random.Random(0).sample(list(train.queries), options.train))
    settings = TuneConfig(method="reranker", epochs=options.epochs, hard_negatives=options.negatives, batch_size=16)
    spent = time.process_time()
    training = Training(some, None, options.work / "reranker", settings)
    reranker = tune_reranker(encoder, training, start=LocalEncoder(MODEL).folder, top=options.top)
    print(f"reranker: {time.process_time() - spent:.0f} processor s", flush=True)
    dense = DenseRetriever(encoder)
    run = dense.search(test, max(10, options.top))
    spent = time.process_time()
    scores = scored(run, test, reranker.retriever.reranker, options.top, options.work / "scores")
    print(f"test pairs: {time.process_time() - spent:.0f} processor s", flush=True)
    found = compared(run, scores, test, train)
    timed = test.select(list(test.queries)[:20])
    read = {"retriever": dense.prepared(test), "with reranker": reranker.retriever.prepared(test)}
    for each in read.values():
        encoder.encode([f"first {each.name}"], "query")
    found["milliseconds"] = {name: milliseconds(timed, each) for name, each in read.items()}
    found["settings"] = {key: getattr(options, key) for key in ("name", "train", "negatives", "epochs", "top")}
    found["loss"] = [row["loss"] for row in reranker.history]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "reranker.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def scored(run: Any, test: Any, reranker: Any, top: int, folder: Path) -> Any:
    """Return the reranker's score of each query's top documents; shape (queries, top). Blocks of pairs are kept on disk."""
    texts = dict(zip(test.corpus, test.document_texts(), strict=True))
    head = run.ranked[:, :top]
    pairs = [(test.queries[id].text, texts[run.document_ids[place]]) for id, row in zip(run.query_ids, head, strict=True) for place in row]
    order = np.argsort([len(query) + len(document) for query, document in pairs], kind="stable")
    scores = np.empty(len(pairs), np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(pairs), _BLOCK):
        path, rows = folder / f"{start}.npy", order[start : start + _BLOCK]
        if not path.exists():
            np.save(folder / "part.npy", reranker.score([pairs[row] for row in rows]))
            (folder / "part.npy").rename(path)
        scores[rows] = np.load(path)
    return scores.reshape(head.shape)


def compared(run: Any, scores: Any, test: Any, train: Any) -> dict[str, Any]:
    """Return the figures of each ranking, and the comparison with the retriever's."""
    from embedfit.data.dataset import Dataset
    from embedfit.data.split import answers_seen
    from embedfit.evaluation.compare import compare_scores
    from embedfit.evaluation.score import score_run
    from embedfit.retrieve.run import Run

    top = scores.shape[1]
    head = run.ranked[:, :top]
    by_reranker = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    by_both = -(1 / (60 + np.arange(top)) + 1 / (60 + by_reranker))
    rankings = {"retriever": np.tile(np.arange(top), (len(head), 1)), "reranked": by_reranker, "fused": by_both}
    measured = {}
    for name, keys in rankings.items():
        order = np.argsort(keys, axis=1, kind="stable")
        values = np.tile(-np.arange(top, dtype=np.float32), (len(head), 1))
        ranked = Run(run.query_ids, run.document_ids, np.take_along_axis(head, order, axis=1), values)
        measured[name] = score_run(ranked, test.qrels, ks=(1, 10), name=name)
    whole = Dataset({**train.queries, **test.queries}, test.corpus, {**train.qrels, **test.qrels})
    seen = answers_seen(whole, train.queries, measured["retriever"].query_ids)
    found: dict[str, Any] = {
        name: {metric: each.mean(metric) for metric in ("recall@1", "mrr@10", METRIC)} for name, each in measured.items()
    }
    for name in ("reranked", "fused"):
        for metric in ("recall@1", METRIC):
            comparison = compare_scores(measured["retriever"], measured[name], metric=metric, seen=seen)
            found[f"{name}, {metric}"] = comparison.sentence
    return found


def milliseconds(queries: Any, retriever: Any) -> float:
    """Return the median time of a query that is asked alone, with another text than before, so that no cache has its vector."""
    from embedfit.data.dataset import Dataset

    times = []
    for id, query in queries.queries.items():
        one = Dataset({id: f"{query.text} ({retriever.name[-20:]})"}, queries.corpus, {})
        started = time.perf_counter()
        retriever.search(one, 10)
        times.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(times), 1)


if __name__ == "__main__":
    main()
