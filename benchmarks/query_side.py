"""Training of the encoder of queries alone, cross-validated on training queries: rate, epochs, frozen layers, and weight of the merge.

For each set, some documents are kept out: their queries are held out and have answers that training never saw. A quarter of the
other queries is held out too; their answers are seen. Near duplicates stay on one side. No test query is read. Each way is trained
once on the rest, and measured with the trained weights merged with the base model's at several weights. all-MiniLM-L6-v2, one
thread, seconds of processor time for the training alone; differences from the base model have paired 95% bootstrap intervals by
query.

    python benchmarks/query_side.py measure [scifact tldr banking77 transactions] [--seed 0] [--ways ...]
    python benchmarks/query_side.py table

The first command appends to results/query_side.jsonl and skips what stands there; the second prints it as a table.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from paired import interval, rows_of

MODEL = "all-MiniLM-L6-v2"
RESULTS = Path(__file__).parent / "results" / "query_side.jsonl"
SIZES = {"scifact": (300, 250, 700), "tldr": (300, 250, 800), "banking77": (300, 300, 77), "transactions": (200, 200, 27)}
"""Most training queries, held-out queries of each kind, and documents."""
FROZEN: dict[str, Any] = {"documents": "frozen"}
WAYS: dict[str, dict[str, Any]] = {
    "1 x 1e-4": {**FROZEN, "epochs": 1, "learning_rate": 1e-4},
    "2 x 1e-4": {**FROZEN, "epochs": 2, "learning_rate": 1e-4},
    "4 x 2e-4": {**FROZEN, "epochs": 4, "learning_rate": 2e-4},
    "2 x 1e-4, half frozen": {**FROZEN, "epochs": 2, "learning_rate": 1e-4, "freeze": 3},
    "4 x 2e-4, half frozen": {**FROZEN, "epochs": 4, "learning_rate": 2e-4, "freeze": 3},
    "full": {},
    "adapter": {"method": "adapter"},
}
LABELS = ("banking77", "transactions")
MERGES = (0.5, 0.75, 1.0)
METRICS = ("ndcg@10", "recall@1")


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["measure", "table"])
    parser.add_argument("sets", nargs="*", default=list(SIZES))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "bench")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table())
        return
    done = {(row["set"], row["way"], row["seed"]) for row in rows_of(RESULTS)}
    for name in arguments.sets:
        ways = [way for way in arguments.ways if name in LABELS or "full" not in way]  # on passages, full tuning takes an hour
        missing = [way for way in ways if (name, way, arguments.seed) not in done]
        if missing:
            measure(name, arguments.data, arguments.seed, missing)


def parts(name: str, data: Path, seed: int) -> tuple[Any, Any, list[bool]]:
    """Return the training queries, the held-out ones on the same documents, and whether training saw an answer of each held-out one."""
    from embedfit.data.dataset import Dataset
    from embedfit.data.load import load
    from embedfit.data.split import answers_seen, group_numbers
    from embedfit.samples import TRANSACTIONS

    if name == "transactions":
        whole = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
    else:
        whole = load(data / name)
        whole = whole.select(whole.parts["train"])
    most, of_each, documents = SIZES[name]
    rng = random.Random(seed)
    ids = list(whole.judged)
    rng.shuffle(ids)
    whole = whole.select(ids[: 3 * (most + of_each)] if name != "scifact" else list(ids))
    answers = [document for id in whole.queries for document in whole.relevant(id)]
    asked = list(Counter(answers))
    rng.shuffle(asked)
    apart, new, kept = set(asked[: round(0.3 * len(asked))]), [], []
    for id in whole.queries:
        (new if apart & set(whole.relevant(id)) else kept).append(id)
    groups = group_numbers(whole)
    with_new = {groups[id] for id in new}
    kept = [id for id in kept if groups[id] not in with_new]
    numbers = sorted({groups[id] for id in kept})
    rng.shuffle(numbers)
    held = set(numbers[: len(numbers) // 4])
    train = [id for id in kept if groups[id] not in held][:most]
    out = [id for id in kept if groups[id] in held]
    seen = [id for id, is_seen in zip(out, answers_seen(whole, train, out), strict=True) if is_seen][:of_each]
    unseen = [id for id, is_seen in zip(new, answers_seen(whole, train, new), strict=True) if not is_seen][:of_each]
    needed = {document for id in (*train, *seen, *unseen) for document in whole.relevant(id)}
    others = [id for id in whole.corpus if id not in needed]
    rng.shuffle(others)
    chosen = needed | set(others[: max(0, documents - len(needed))])
    corpus = {id: document for id, document in whole.corpus.items() if id in chosen}
    qrels = {id: {document: grade for document, grade in whole.qrels[id].items() if document in corpus} for id in whole.queries}
    small = Dataset(dict(whole.queries), corpus, qrels)
    return small.select(train), small.select([*seen, *unseen]), [True] * len(seen) + [False] * len(unseen)


def measure(name: str, data: Path, seed: int, ways: list[str]) -> None:
    """Train and measure some ways on one set."""
    from embedfit.config import TuneConfig
    from embedfit.encode.cache import CachedEncoder
    from embedfit.encode.local import LocalEncoder
    from embedfit.tune.adapter import query_adapter
    from embedfit.tune.full import tune_model

    train, held_out, seen = parts(name, data, seed)
    base = CachedEncoder(LocalEncoder(MODEL))
    local = base.encoder
    started = time.process_time()
    vectors = base.encode(train.document_texts(), "document")
    print(f"{name}: {len(train.queries)} train, {seen.count(True)} seen, {seen.count(False)} unseen, {len(vectors)} documents", flush=True)
    print(f"documents encoded in {time.process_time() - started:.0f} s", flush=True)
    queries = held_out.query_texts()
    before = scores(held_out, base.encode(queries, "query"), vectors)
    groups = groups_of(held_out)
    for way in ways:
        started = time.process_time()
        line = {"set": name, "way": way, "seed": seed, "train": len(train.queries)}
        if way == "adapter":
            after = {1.0: scores(held_out, query_adapter(base, train).encoder.encode(queries, "query"), vectors)}
            seconds = time.process_time() - started
        else:
            with tempfile.TemporaryDirectory() as folder:
                settings = TuneConfig(**WAYS[way], seed=seed, merge=1.0)
                tuned = tune_model(local, train, None, folder, settings)
                seconds = time.process_time() - started
                encoded = merged(local, tuned.model, settings, queries, train.document_texts())
            after = {weight: scores(held_out, own, vectors if texts is None else texts) for weight, (own, texts) in encoded.items()}
        for weight, now in after.items():
            for stratum, is_seen in (("seen", True), ("unseen", False)):
                chosen = np.array(seen) == is_seen
                for metric in METRICS:
                    figures = compared(before[metric][chosen], now[metric][chosen], groups[chosen])
                    row = {**line, "merge": weight, "stratum": stratum, "metric": metric, "seconds": round(seconds, 1), **figures}
                    with RESULTS.open("a") as file:
                        file.write(json.dumps(row) + "\n")
        print(f"{way}: {seconds:.0f} s", flush=True)


def merged(base: Any, folder: Path, settings: Any, queries: list[str], documents: list[str]) -> dict[float, tuple[Any, Any]]:
    """Return the vectors of the queries, and of the documents unless they are frozen, by weight of the merge."""
    import torch

    from embedfit.encode.local import ModelEncoder, load_model
    from embedfit.encode.precision import use_bf16
    from embedfit.encode.sides import side_of

    before = dict(load_model(base.folder).state_dict())
    model = side_of(load_model(folder), "query")
    after = {key: value.clone() for key, value in model.state_dict().items()}
    encoder = ModelEncoder(model, base.prompts, bf16=use_bf16(base.precision, "cpu"), warns=False)
    found = {}
    for weight in MERGES:
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.lerp(before[key], after[key], weight))
        found[weight] = (
            encoder.encode(queries, "query"),
            None if settings.documents == "frozen" else encoder.encode(documents, "document"),
        )
    return found


def groups_of(dataset: Any) -> Any:
    """Return the group number of each query."""
    from embedfit.data.split import group_numbers

    numbers = group_numbers(dataset)
    return np.array([numbers[id] for id in dataset.queries])


def scores(dataset: Any, queries: Any, documents: Any) -> dict[str, Any]:
    """Return each metric of each query."""
    from embedfit.evaluation.score import score_run
    from embedfit.retrieve.exact import top_k
    from embedfit.retrieve.run import run_of

    ids = tuple(dataset.corpus)
    order = np.argsort(ids)
    run = run_of(dataset, tuple(sorted(ids)), lambda depth: top_k(queries, documents[order], depth), 10)
    found = score_run(run, dataset.qrels, ks=(1, 10))
    place = {id: index for index, id in enumerate(found.query_ids)}
    rows = [place[id] for id in dataset.queries]
    return {metric: found.values[metric][rows] for metric in METRICS}


def compared(before: Any, after: Any, groups: Any, draws: int = 2000) -> dict[str, float]:
    """Return both means, and the difference with its bootstrap interval over groups of queries."""
    difference = after - before
    low, high = interval(difference, groups, draws)
    figures = {"base": before.mean(), "value": after.mean(), "difference": difference.mean(), "low": low, "high": high}
    return {key: round(float(value), 4) for key, value in figures.items()} | {"queries": len(before)}


def table() -> str:
    """Return a Markdown table: a row for each way and weight, differences from the base model on seen and unseen answers."""
    found: dict[tuple[str, str, float], dict[str, list[Any]]] = {}
    for row in rows_of(RESULTS):
        if row["metric"] == "ndcg@10":
            found.setdefault((row["set"], row["way"], row["merge"]), {}).setdefault(row["stratum"], []).append(row)
    lines = ["| set | way | merge | processor s | seen answers | unseen answers |", "| --- | --- | --- | --- | --- | --- |"]
    for (name, way, weight), strata in found.items():
        cells = []
        for stratum in ("seen", "unseen"):
            some = strata[stratum]
            mean = {key: sum(row[key] for row in some) / len(some) for key in ("base", "value", "difference", "low", "high")}
            cells.append(
                f"{mean['base']:.3f} to {mean['value']:.3f}, {mean['difference']:+.3f} ({mean['low']:+.3f} to {mean['high']:+.3f})"
            )
        seconds = sum(row["seconds"] for row in strata["seen"]) / len(strata["seen"])
        lines.append(f"| {name} | {way} | {weight:g} | {seconds:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
