"""Two queries of one label belong together: a supervised-contrastive term among a batch's queries, and batches in which labels repeat.

The term is the softmax of `embedfit.tune.loss` between queries instead of between queries and documents: each query against its partners in
the batch, which share an answer with it, and the others (Khosla et al. 2020, without partners in the denominator). It is added to the
loss with a weight. In paired batches every query comes with another one of its label.

Cross-validated on training queries alone, all-MiniLM-L6-v2, bf16 where it is faster, one thread, the defaults otherwise:

- transactions: the 261 training queries in 3 folds, one with each seed; the category's name is the document
- BANKING77: for each seed 10 training queries of each intent, and 10 others held out
- WordNet: 80 glosses that have the most words; the words are the queries, for each seed 5 of each gloss to train and the others held out

The documents alone, and with the training queries as examples (weights of the two views fitted on other held-out queries). Differences from
the defaults are paired by query, with 95% bootstrap intervals over the queries of all seeds.

    python benchmarks/contrast.py measure [transactions banking77-10 wordnet] [--seeds 0 1 2]
    python benchmarks/contrast.py table

The first command appends to runs/contrast.jsonl and skips what stands there; the second prints it as a table.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import interval, rows_of

MODEL = "all-MiniLM-L6-v2"
RESULTS = Path("runs/contrast.jsonl")
SETS = ("transactions", "banking77-10", "wordnet")
WAYS: dict[str, tuple[float, bool]] = {
    "defaults": (0.0, False),
    "term 0.5": (0.5, False),
    "paired": (0.0, True),
    "paired, term 0.5": (0.5, True),
}
"""Way -> weight of the term, and whether batches are of pairs."""
KINDS = ("documents", "documents and examples")
METRICS = ("recall@1", "mrr@10")


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["measure", "table"])
    parser.add_argument("sets", nargs="*", default=list(SETS))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "bench")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table())
        return
    done = {(row["set"], row["way"], row["seed"]) for row in rows_of(RESULTS)}
    for name in arguments.sets:
        for seed in arguments.seeds:
            for way in arguments.ways:
                if (name, way, seed) not in done:
                    measure(name, arguments.data, seed, way)


def parts(name: str, data: Path, seed: int) -> tuple[Any, Any, str]:
    """Return the training queries and the held-out ones on the same documents, and the document template."""
    from embedfit.data.dataset import Dataset
    from embedfit.data.load import load
    from embedfit.data.split import split_dataset, split_folds
    from embedfit.samples import TRANSACTIONS

    if name == "transactions":
        whole = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
        whole = whole.select(split_dataset(whole, seed=0, dev=0).train)
        fold = split_folds(whole, 3, dev=0, seed=0)[seed % 3]
        return whole.select(fold.train), whole.select(fold.test), "{category}"
    each, most = {"banking77-10": (10, 20), "wordnet": (5, 12)}[name]
    whole = load(data / name.partition("-")[0])
    by_label: dict[str, list[str]] = {}
    for id in whole.parts["train"]:
        by_label.setdefault(min(whole.relevant(id)), []).append(id)
    labels = sorted(by_label, key=lambda label: (-len(by_label[label]), label))[: 80 if name == "wordnet" else None]
    rng = random.Random(seed)
    train, held_out = [], []
    for label in labels:
        drawn = rng.sample(by_label[label], min(most, len(by_label[label])))
        train, held_out = train + drawn[:each], held_out + drawn[each:]
    corpus = {label: whole.corpus[label] for label in labels}
    ids = [*train, *held_out]
    qrels = {id: {label: grade for label, grade in whole.qrels[id].items() if label in corpus} for id in ids}
    small = Dataset({id: whole.queries[id] for id in ids}, corpus, qrels)
    return small.select(train), small.select(held_out), "{text}"


def measure(name: str, data: Path, seed: int, way: str) -> None:
    """Train one way on one set, and append its figures for each held-out query."""
    from embedfit.config import TuneConfig
    from embedfit.encode.local import LocalEncoder
    from embedfit.tune import course, full

    train, held_out, template = parts(name, data, seed)
    weight, pairs = WAYS[way]
    loss, arguments = full.CandidateLoss, course.SentenceTransformerTrainingArguments
    started = time.process_time()
    try:
        full.CandidateLoss = contrasting(weight) if weight else loss
        course.SentenceTransformerTrainingArguments = with_pairs(train, seed) if pairs else arguments
        with tempfile.TemporaryDirectory() as folder:
            tuned = full.tune_model(LocalEncoder(MODEL, precision="auto"), train, None, folder, TuneConfig(seed=seed), template=template)
            seconds = time.process_time() - started
            found = scores(tuned.encoder, train, held_out, template)
    finally:
        full.CandidateLoss, course.SentenceTransformerTrainingArguments = loss, arguments
    line = {
        "set": name,
        "way": way,
        "seed": seed,
        "train": len(train.queries),
        "seconds": round(seconds, 1),
        "queries": list(held_out.queries),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps({**line, **found}) + "\n")
    print(name, seed, way, f"{seconds:.0f} s", {key: round(float(np.mean(value)), 3) for key, value in found.items()}, flush=True)


def contrasting(weight: float) -> type:
    """Return the loss with the term."""
    from embedfit.tune.loss import CandidateLoss

    class Contrasting(CandidateLoss):
        def _loss_of(self, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return super()._loss_of(vectors, labels) + weight * among_queries(vectors[: len(labels)], labels, self.scale)

    return Contrasting


def among_queries(queries: torch.Tensor, grades: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the mean cross-entropy of each partner against the queries that share no answer with it."""
    positive = (grades > 0).float()
    shares = positive @ positive.T > 0
    own = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
    logits = queries @ queries.T * scale
    negatives = logits.masked_fill(shares | own, -1e9).logsumexp(dim=1, keepdim=True)
    losses = torch.logaddexp(logits, negatives) - logits
    partners = shares & ~own
    counts = partners.sum(dim=1)
    return ((losses * partners).sum(dim=1) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


def with_pairs(train: Any, seed: int) -> Any:
    """Return the training arguments with batches of pairs: each query with another one of its label."""
    from sentence_transformers import SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import DefaultBatchSampler

    labels = np.array([min(train.relevant(id)) for id in train.queries])

    class Pairs(DefaultBatchSampler):
        def __iter__(self) -> Iterator[list[int]]:
            rng = np.random.default_rng([seed, self.epoch])
            pairs = []
            for label in np.unique(labels):
                rows = rng.permutation(np.flatnonzero(labels == label)).tolist()
                pairs += [rows[start : start + 2] for start in range(0, len(rows), 2)]
            order = [row for place in rng.permutation(len(pairs)) for row in pairs[place]]
            for start in range(0, len(order), self.batch_size):
                yield order[start : start + self.batch_size]

        def __len__(self) -> int:
            return -(-len(labels) // self.batch_size)

    def arguments(*given: Any, **named: Any) -> Any:
        return SentenceTransformerTrainingArguments(*given, **{**named, "batch_sampler": Pairs})

    return arguments


def scores(encoder: Any, train: Any, held_out: Any, template: str) -> dict[str, list[float]]:
    """Return "kind, metric" -> its value for each held-out query, in their order."""
    from embedfit.data.split import group_numbers
    from embedfit.encode.cache import CachedEncoder
    from embedfit.evaluation.score import score_run
    from embedfit.searcher.gather import Corpus, Examples, Views
    from embedfit.searcher.learn import cross_fitted, run_of_evidence

    base = CachedEncoder(encoder)
    corpus = Corpus.of(train, base, template)
    views = ("documents", "examples")
    evidence = Views.fit(corpus, Examples.of(train, base, corpus.ids), views).gather(held_out, base, corpus.ids)
    numbers = group_numbers(held_out)
    groups = np.array([numbers[id] for id in evidence.query_ids])
    ranked = {KINDS[0]: evidence.scores["documents"], KINDS[1]: cross_fitted(evidence, groups, views)}
    found = {}
    for kind, values in ranked.items():
        result = score_run(run_of_evidence(evidence, values, corpus.ids, 10), held_out.qrels, ks=(1, 10))
        place = {id: row for row, id in enumerate(result.query_ids)}
        for metric in METRICS:
            found[f"{kind}, {metric}"] = [round(float(result.values[metric][place[id]]), 4) for id in held_out.queries]
    return found


def table() -> str:
    """Return a Markdown table: a row for each set, kind and way, means over all seeds and differences from the defaults."""
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for row in rows_of(RESULTS):
        found.setdefault((row["set"], row["way"]), {})[row["seed"]] = row
    heads = [f"{metric} | difference" for metric in METRICS]
    lines = [f"| set, ranking | way | seeds | processor s | {' | '.join(heads)} |", "| --- " * (4 + 2 * len(METRICS)) + "|"]
    for name in SETS:
        for kind in KINDS:
            for way in WAYS:
                both = sorted(found.get((name, way), {}).keys() & found.get((name, "defaults"), {}).keys())
                if not both:
                    continue
                before, now = ([found[name, each][seed] for seed in both] for each in ("defaults", way))
                cells = [f"{name}, {kind}", way, str(len(both)), f"{np.mean([row['seconds'] for row in now]):.0f}"]
                for metric in METRICS:
                    key = f"{kind}, {metric}"
                    values, differences = (np.concatenate([row[key] for row in now]), None)
                    differences = values - np.concatenate([row[key] for row in before])
                    ids = np.concatenate([row["queries"] for row in now])
                    low, high = interval(differences, ids, 4000)
                    cells += [f"{values.mean():.3f}", "" if way == "defaults" else f"{differences.mean():+.3f} ({low:+.3f} to {high:+.3f})"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
