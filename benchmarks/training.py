"""Training and mining as the data grow: seconds, tokens per second, the share of the device's peak, and memory.

WordNet's words are queries and its glosses documents. Training (one epoch, each batch with random documents, none mined) with more
and more queries, and mining for the same queries in larger and larger corpora. Each measurement is a process of its own, on a
GPU if there is one.

The share of the peak is that of the arithmetic that cannot be left out (6 x non-embedding parameters x tokens trained on, 2 x for
tokens encoded; padding and attention's own products not counted) in the rate of large matrix products that this device reaches in
the precision used. Memory is the most that the process held, and its growth from the smallest corpus on stands beside what the
further documents' vectors would take, which mining does not hold.

    python benchmarks/training.py [--queries 250 1000 4000] [--documents 1000 10000 100000] [--data ../shared/data/bench]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

MODEL = "all-MiniLM-L6-v2"
CORPUS, ASKED = 10_000, 500
"""Documents that training is measured with, and queries that mining is measured with."""
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, print, and write results/training.json, .md and .png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, nargs="+", default=[250, 1000, 4000])
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "bench")
    parser.add_argument("--side", choices=["tune", "mine"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = {"tune": tuning, "mine": mining}[options.side]
        found = side(part(options.data / "wordnet", options.queries[0], options.documents[0]))
        print(json.dumps({**found, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    said = {
        "tune": [measured("tune", queries, CORPUS, options.data) for queries in options.queries],
        "mine": [measured("mine", ASKED, documents, options.data) for documents in options.documents],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps(said, indent=1) + "\n")
    (RESULTS / "training.md").write_text(tables(said))
    plot(said, RESULTS / "training.png")
    print(tables(said))


def measured(side: str, queries: int, documents: int, data: Path) -> dict[str, Any]:
    """Return what a process of its own measured."""
    command = [sys.executable, __file__, "--side", side, "--queries", str(queries), "--documents", str(documents), "--data", str(data)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}: {queries:,} queries, {documents:,} documents: {found}", file=sys.stderr, flush=True)
    return {"queries": queries, "documents": documents, **found}


def part(folder: Path, queries: int, documents: int) -> Any:
    """Return so many training queries at most, and so many documents, those that they ask for first."""
    from embedfit.data.load import load

    data = load(folder)
    drawn = random.Random(0).sample(list(data.parts["train"]), queries)
    wanted = list(dict.fromkeys(document for id in drawn for document in data.relevant(id)))[:documents]
    held = set(wanted)
    others = random.Random(1).sample([id for id in data.corpus if id not in held], documents - len(wanted))
    corpus = {id: data.corpus[id] for id in [*wanted, *others]}
    chosen = data.select([id for id in drawn if all(document in corpus for document in data.relevant(id))])
    return replace(chosen, corpus=corpus)


def tuning(train: Any) -> dict[str, Any]:
    """Train for one epoch."""
    from embedfit.config import TuneConfig
    from embedfit.encode.local import LocalEncoder
    from embedfit.tune.full import tune_model

    base, config = LocalEncoder(MODEL), TuneConfig(epochs=1, candidates="batch")
    with tempfile.TemporaryDirectory() as folder:
        tune_model(base, train.select(list(train.queries)[:64]), None, f"{folder}/first", config)  # a device's first steps take seconds
        tuned = tune_model(base, train, None, f"{folder}/measured", config)
    return {"seconds": tuned.seconds, "tokens": tuned.tokens, **rates(base, 6 * tuned.tokens, tuned.seconds)}


def mining(train: Any) -> dict[str, Any]:
    """Mine once, with nothing in the cache."""
    from embedfit.encode.local import LocalEncoder
    from embedfit.template import DOCUMENT_TEMPLATE
    from embedfit.tune.mine import Guards, mine

    base = LocalEncoder(MODEL)
    _ = base.loaded
    texts = [*train.query_texts(), *train.document_texts()]
    tokenizer, tokens = base.loaded.model.tokenizer, 0
    for start in range(0, len(texts), 1024):  # all at once they would be what takes the memory
        tokens += sum(len(ids) for ids in tokenizer(texts[start : start + 1024], truncation=True)["input_ids"])
    start = time.perf_counter()
    mine(base, train, DOCUMENT_TEMPLATE, count=8, guards=Guards())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": tokens, **rates(base, 2 * tokens, seconds)}


def rates(base: Any, per_parameter: int, seconds: float) -> dict[str, Any]:
    """Return the device, its peak, and the share of it that so many operations for each parameter were."""
    import torch
    from floor import matmul_rate, parameters

    model, bf16 = base.loaded.model, base.loaded.bf16
    dtype, device = torch.bfloat16 if bf16 else torch.float32, model.device.type
    peak = matmul_rate(dtype, device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    done = per_parameter * parameters(model) / seconds
    return {"device": name, "dtype": str(dtype).removeprefix("torch."), "peak_gflops": peak / 1e9, "share": done / peak}


def tables(said: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    first = said["tune"][0]
    lines = [
        f"Training on {first['documents']:,} glosses, one epoch; {first['device']}, {first['dtype']}, "
        f"matrix products reach {first['peak_gflops']:,.0f} GFLOP/s.",
        "",
        "| training queries | s | tokens/s | share of the peak | peak memory, MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in said["tune"]:
        lines.append(
            f"| {row['queries']:,} | {row['seconds']:.1f} | {row['tokens'] / row['seconds']:,.0f} | {row['share']:.1%} "
            f"| {row['peak_mib']:,.0f} |"
        )
    smallest = said["mine"][0]
    lines += [
        "",
        f"Mining for {smallest['queries']:,} queries.",
        "",
        "| documents | s | tokens/s | share of the peak | peak memory, MiB | more than with the smallest "
        "| vectors of the further documents, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in said["mine"]:
        more = row["peak_mib"] - smallest["peak_mib"]
        vectors = (row["documents"] - smallest["documents"]) * 384 * 4 / 2**20
        lines.append(
            f"| {row['documents']:,} | {row['seconds']:.1f} | {row['tokens'] / row['seconds']:,.0f} | {row['share']:.1%} "
            f"| {row['peak_mib']:,.0f} | {more:,.0f} | {vectors:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def plot(said: dict[str, Any], path: Path) -> None:
    """Draw time and memory over training queries and over documents."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axis, side, key in zip(figure.subplots(1, 2), ("tune", "mine"), ("queries", "documents"), strict=True):
        sizes = [row[key] for row in said[side]]
        memory = axis.twinx()
        axis.plot(sizes, [row["seconds"] for row in said[side]], "o-", label="seconds")
        memory.plot(sizes, [row["peak_mib"] for row in said[side]], "s--", color="C1", label="peak memory")
        axis.set(xscale="log", yscale="log", xlabel={"queries": "training queries", "documents": "documents"}[key], ylabel="seconds")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set_xticks([], minor=True)
        axis.set_title({"tune": "training, one epoch", "mine": "mining"}[side])
        memory.set(ylim=(0, None), ylabel="MiB")
        axis.grid(alpha=0.3)
        axis.legend(handles=[*axis.get_lines(), *memory.get_lines()], frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
