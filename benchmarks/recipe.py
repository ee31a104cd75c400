"""embedfit beside the recipe that people copy today, on the bundled transactions.

The plain recipe: sentence-transformers' trainer and MultipleNegativesRankingLoss with their defaults, batch 8, each
training pair twice with each of 4 random negative labels (8 rows a pair), 3 epochs, 100 warm-up steps. Its
evaluation: a Chroma collection of the documents, and each query searched by its text, one by one, again for every k.

embedfit: the defaults. Both start from all-MiniLM-L6-v2, with the same split, threads and machine; each side runs in
a process of its own, alternating, so that memory is its own and neither finds a warm cache. Each round has another
split: 65 test queries alone say little about recall. The plain recipe has no
dev part and trains on train and dev; embedfit holds dev out. Seconds are processor time over the number of threads, which other
work on the machine disturbs little. Those of training leave out loading the base model; those of evaluation are from texts to
recall@1/3/5/10, documents included.

The floor is what the arithmetic alone would take: 6 x non-embedding parameters x tokens trained on (padding not
counted), over this machine's measured rate of matrix products in the dtype used; for parameters of frozen layers 2 x the
tokens of the training texts, each encoded once; and for evaluation 2 x all these parameters x the tokens of test queries and
documents, each encoded once.

    python benchmarks/recipe.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from floor import clock, matmul_rate, parameters

KS = (1, 3, 5, 10)
MODEL = "all-MiniLM-L6-v2"
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run both sides, alternating, and write results/recipe.json and recipe.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["plain", "embedfit"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"plain": plain, "embedfit": embedfit}[arguments.side](arguments.seed)))
        return
    found: dict[str, list[dict[str, Any]]] = {"embedfit": [], "plain": []}
    for seed in range(arguments.rounds):
        for side in found:
            found[side].append(in_own_process(side, seed))
            print(f"round {seed + 1} {side}: {json.dumps(found[side][-1])}", file=sys.stderr)
    write(found)


def in_own_process(side: str, seed: int) -> dict[str, Any]:
    """Run one side in a fresh process with an empty embedding cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "EMBEDFIT_CACHE": folder, "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "False"}
        command = [sys.executable, __file__, "--side", side, "--seed", str(seed)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def parts(seed: int) -> tuple[Any, Any, Any]:
    """Return the train, dev and test data sets."""
    from embedfit.data.load import load
    from embedfit.data.split import split_dataset
    from embedfit.samples import TRANSACTIONS

    data = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
    split = split_dataset(data, seed=seed)
    return data.select(split.train), data.select(split.dev), data.select(split.test)


def embedfit(seed: int) -> dict[str, Any]:
    """Tune and evaluate with embedfit's defaults."""
    import torch

    from embedfit.config import TuneConfig
    from embedfit.encode.local import LocalEncoder
    from embedfit.pipeline.measuring import measure
    from embedfit.tune.full import tune_model

    train, dev, test = parts(seed)
    base = LocalEncoder(MODEL)
    model = base.loaded.model
    with tempfile.TemporaryDirectory() as folder:
        start = clock()
        tuned = tune_model(base, train, dev, folder, TuneConfig(seed=seed))
        tune_seconds = clock() - start
        encoder = tuned.encoder
        _ = encoder.loaded
        start = clock()
        scores = measure(encoder, test, ks=KS)
        evaluate_seconds = clock() - start
    dtype = torch.bfloat16 if base.loaded.bf16 else torch.float32
    rate = matmul_rate(dtype)

    def count(data: Any) -> int:
        texts = [*data.query_texts(), *data.document_texts()]
        return sum(len(ids) for ids in model.tokenizer(texts, truncation=True)["input_ids"])

    evaluated, frozen = count(test), tuned.frozen / model.transformers_model.config.num_hidden_layers
    return {
        "tune_seconds": tune_seconds,
        "evaluate_seconds": evaluate_seconds,
        "peak_mib": peak_mib(),
        **{f"recall@{cut}": scores.mean(f"recall@{cut}") for cut in KS},
        "tokens": tuned.tokens,
        "epochs": len(tuned.history),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "matmul_gflops": rate / 1e9,
        "frozen": frozen,
        "floor_seconds": parameters(model) * (6 * (1 - frozen) * tuned.tokens + 2 * frozen * count(train)) / rate,
        "evaluate_floor_seconds": 2 * parameters(model) * evaluated / rate,
    }


def plain(seed: int) -> dict[str, Any]:
    """Tune and evaluate by the recipe."""
    import chromadb
    import torch
    from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from embedfit.hub import model_folder

    train, dev, test = parts(seed)
    rng = random.Random(seed)
    labels = list(train.corpus)
    rows = []
    for part in (train, dev):
        for id, query in part.queries.items():
            right = next(iter(part.relevant(id)))
            for _ in range(2):
                wrong = rng.sample([label for label in labels if label != right], 4)
                rows += [{"anchor": query.text, "positive": right, "negative": label} for label in wrong]
    rng.shuffle(rows)
    model = SentenceTransformer(str(model_folder(MODEL)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=3,
                per_device_train_batch_size=8,
                warmup_steps=100,
                seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            loss=MultipleNegativesRankingLoss(model),
        )
        start = clock()
        trainer.train()
        tune_seconds = clock() - start
        model.save_pretrained(folder, create_model_card=False)
        function = SentenceTransformerEmbeddingFunction(model_name=folder)
        start = clock()
        collection = chromadb.EphemeralClient().create_collection(
            "labels", embedding_function=function, configuration={"hnsw": {"space": "cosine"}}
        )
        collection.add(ids=labels, documents=test.document_texts())
        recall = {}
        for k in KS:
            hits = 0
            for id, query in test.queries.items():
                found = collection.query(query_texts=[query.text], n_results=k)["ids"][0]
                hits += any(label in test.relevant(id) for label in found)
            recall[f"recall@{k}"] = hits / len(test.queries)
        evaluate_seconds = clock() - start
    return {
        "tune_seconds": tune_seconds,
        "evaluate_seconds": evaluate_seconds,
        "peak_mib": peak_mib(),
        **recall,
        "rows": len(rows),
        "steps": trainer.state.global_step,
        "threads": torch.get_num_threads(),
    }


def peak_mib() -> float:
    """Return this process' largest resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print and keep the table, with ratios beside the times."""
    middle = {side: {key: statistics.fmean(run[key] for run in runs) for key in runs[0] if key != "dtype"} for side, runs in found.items()}
    ours, theirs = middle["embedfit"], middle["plain"]

    def row(name: str, key: str, form: str) -> tuple[str, ...]:
        return name, format(ours[key], form), format(theirs[key], form), f"{theirs[key] / ours[key]:.1f} x"

    rows = [
        row("tuning, s", "tune_seconds", ".1f"),
        row("evaluation, s", "evaluate_seconds", ".2f"),
        row("peak memory, MiB", "peak_mib", ".0f"),
        *((key, f"{ours[key]:.3f}", f"{theirs[key]:.3f}", f"{ours[key] - theirs[key]:+.3f}") for key in (f"recall@{k}" for k in KS)),
    ]
    dtype = found["embedfit"][0]["dtype"]
    lines = ["| | embedfit | plain recipe | |", "| --- | --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += [
        "",
        f"Mean of {len(found['plain'])} rounds, each with another split; {ours['threads']:.0f} thread(s), torch {version('torch')}.",
        f"embedfit trained on {ours['tokens']:,.0f} tokens in {dtype}; matrix products here run at {ours['matmul_gflops']:.0f} GFLOP/s,",
        f"so the floor is {ours['floor_seconds']:.1f} s, and tuning took {ours['tune_seconds'] / ours['floor_seconds']:.1f} times that.",
        f"The floor of evaluation is {ours['evaluate_floor_seconds']:.2f} s, and it took",
        f"{ours['evaluate_seconds'] / ours['evaluate_floor_seconds']:.1f} times that; the loop took",
        f"{theirs['evaluate_seconds'] / ours['evaluate_floor_seconds']:.0f} times that.",
    ]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "recipe.json").write_text(json.dumps({"mean": middle, "rounds": found}, indent=1) + "\n")
    (RESULTS / "recipe.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
