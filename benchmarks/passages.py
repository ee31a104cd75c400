"""embedfit beside sentence-transformers' own best practice, on retrieval of passages with official train and test parts.

Sides: embedfit's defaults (`full`), also for a single epoch, the encoder of queries alone (`queries`: documents = "frozen"), a linear
map of the query vector (`adapter`), and the peer.

The peer: hard negatives mined once with the base model (`mine_hard_negatives`: one for each pair, from the ranks after the
10th, at most 0.95 times as similar as the positive), then CachedMultipleNegativesRankingLoss with NO_DUPLICATES batches of 64, a
learning rate of 2e-5, a tenth of warm-up, and 3 epochs, the library's default. embedfit: the defaults. To see how long it
takes to the peer's quality, it also trains for a single epoch. All start from all-MiniLM-L6-v2 and run in bf16 where embedfit's
rule says that it pays, in processes of their own with an empty embedding cache, one after the other. Seconds are processor time over the
number of threads (on a GPU, time by the clock): mining and training, without imports; the peer's without loading the
model, embedfit's with it.

Training queries that say what a test query says, or nearly, are left out on all sides, as `leaks = "drop"` does. All are measured by
embedfit on the whole test part; differences have paired 95% intervals. Test queries with an answer that a training query had too are also
compared apart from those with new answers.

    python benchmarks/passages.py [scifact | tldr] [--data ../shared/data/bench] [--train 2000] [--side SIDE ...]

What each side found is kept in runs/passages/NAME/SIDE.json. A side that stands there is not run again, and `--side` runs some alone;
the table has the sides that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from floor import clock

MODEL = "all-MiniLM-L6-v2"
METRIC = "ndcg@10"
SIDES = {
    "base": "base",
    "full": "full",
    "full_1": "full, 1 epoch",
    "queries": "queries alone",
    "adapter": "adapter",
    "peer": "mined + CachedMNRL",
}
PAIRS = (
    *(("base", side) for side in ("full", "queries", "adapter", "peer")),
    *(("peer", side) for side in ("full", "full_1", "queries", "adapter")),
    ("full", "queries"),
)
"""What is compared, before and after."""
EACH_QUERY = ("queries", "values")
"""What a side says of each query, and is not kept."""
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the sides that are not there yet, and write results/passages_NAME.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="scifact")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "bench")
    parser.add_argument("--train", type=int, help="Only so many training queries, drawn at random; by default all.")
    parser.add_argument("--side", choices=list(SIDES), nargs="+", default=list(SIDES), help="Sides to run; by default all.")
    parser.add_argument("--alone", choices=list(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        side, _, epochs = arguments.alone.partition("_")
        run = {"base": base, "full": tuned, "queries": queries, "adapter": adapter, "peer": peer}[side]
        found = run(*parts(arguments), *([int(epochs)] if epochs else []))
        print(json.dumps({**found, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    folder = Path("runs/passages") / arguments.name
    folder.mkdir(parents=True, exist_ok=True)
    for side in arguments.side:
        path = folder / f"{side}.json"
        if not path.exists():
            row = {"train": arguments.train, **in_own_process(side, arguments)}
            path.with_suffix(".part").write_text(json.dumps(row) + "\n")
            path.with_suffix(".part").rename(path)
    sides = {side: json.loads(path.read_text()) for side in SIDES if (path := folder / f"{side}.json").exists()}
    sizes = {row["train"] for row in sides.values()}
    if sizes != {arguments.train}:
        raise SystemExit(f"{folder}: holds sides with other numbers of training queries ({sizes}); fix: move it away")
    write(arguments.name, sides, parts(arguments))


def in_own_process(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a fresh process with an empty embedding cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "EMBEDFIT_CACHE": folder, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, arguments.name, "--alone", side, "--data", str(arguments.data)]
        command += ["--train", str(arguments.train)] if arguments.train else []
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    print(side, kept(found), file=sys.stderr, flush=True)
    return found


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """Return what is printed and written of a side."""
    return {key: value for key, value in found.items() if key not in EACH_QUERY}


def parts(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return the official train and test parts; what leaks is left out of the train part."""
    from embedfit.data.check import check_leaks
    from embedfit.data.load import load
    from embedfit.data.split import Split, without_leaks

    data = load(arguments.data / arguments.name)
    official = Split(tuple(data.parts["train"]), (), tuple(data.parts["test"]))
    train = list(without_leaks(official, check_leaks(data, vars(official))).train)
    if arguments.train:
        train = random.Random(0).sample(train, arguments.train)
    return data.select(train), data.select(official.test)


def measured(encoder: Any, test: Any) -> dict[str, Any]:
    """Return the means, and nDCG@10 of each query."""
    from embedfit.pipeline.measuring import measure

    scores = measure(encoder, test)
    means = {name: scores.mean(name) for name in ("recall@1", "recall@10", "mrr@10", METRIC)}
    return {**means, "queries": list(scores.query_ids), "values": scores.values[METRIC].tolist()}


def base(train: Any, test: Any) -> dict[str, Any]:
    """Measure the model as it is."""
    from embedfit.encode.local import LocalEncoder

    return measured(LocalEncoder(MODEL), test)


def queries(train: Any, test: Any) -> dict[str, Any]:
    """Tune the encoder of queries alone. Encoding the documents once is part of its seconds."""
    return tuned(train, test, documents="frozen")


def adapter(train: Any, test: Any) -> dict[str, Any]:
    """Fit a linear map of the query vector. Encoding the documents once is part of its seconds."""
    from embedfit.encode.cache import CachedEncoder
    from embedfit.encode.local import LocalEncoder
    from embedfit.tune.adapter import query_adapter

    start = clock()
    result = query_adapter(CachedEncoder(LocalEncoder(MODEL)), train)
    return {"seconds": clock() - start, **measured(result.encoder, test)}


def tuned(train: Any, test: Any, epochs: int | None = None, **settings: Any) -> dict[str, Any]:
    """Tune with embedfit's defaults."""
    from embedfit.config import TuneConfig
    from embedfit.encode.local import LocalEncoder
    from embedfit.tune.full import tune_model

    encoder, config = LocalEncoder(MODEL), TuneConfig(epochs=epochs, **settings)
    with tempfile.TemporaryDirectory() as folder:
        start = clock()
        result = tune_model(encoder, train, None, folder, config)
        seconds = clock() - start
        found = {"seconds": seconds, "tokens": result.tokens, "candidates": result.candidates, "epochs": result.epoch}
        return {**found, **measured(result.encoder, test)}


def peer(train: Any, test: Any, epochs: int = 3) -> dict[str, Any]:
    """Tune by the library's best practice."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers
    from sentence_transformers.util import mine_hard_negatives

    from embedfit.encode.local import LocalEncoder
    from embedfit.encode.precision import use_bf16
    from embedfit.hub import model_folder

    model = SentenceTransformer(str(model_folder(MODEL)))
    texts = dict(zip(train.corpus, train.document_texts(), strict=True))
    pairs = [{"anchor": query.text, "positive": texts[id]} for key, query in train.queries.items() for id in train.relevant(key)]
    bf16 = use_bf16("auto", model.device.type)
    start = clock()
    rows = mine_hard_negatives(
        Dataset.from_list(pairs),
        model,
        corpus=list(dict.fromkeys(texts.values())),
        range_min=10,
        range_max=50,
        relative_margin=0.05,
        num_negatives=1,
        sampling_strategy="random",
        batch_size=128,
        verbose=False,
    )
    mined = clock() - start
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=64,
                learning_rate=2e-5,
                warmup_steps=0.1,
                bf16=bf16,
                use_cpu=model.device.type == "cpu",
                batch_sampler=BatchSamplers.NO_DUPLICATES,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows,
            loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=32),
        )
        trainer.train()
        seconds = clock() - start
        model.save_pretrained(folder, create_model_card=False)
        return {"seconds": seconds, "mining_seconds": mined, "rows": len(rows), **measured(LocalEncoder(folder), test)}


def write(name: str, sides: dict[str, dict[str, Any]], both: tuple[Any, Any]) -> None:
    """Print and keep the table."""
    import numpy as np

    from embedfit.data.dataset import Dataset
    from embedfit.data.split import answers_seen
    from embedfit.evaluation.compare import compare_scores
    from embedfit.evaluation.score import Scores

    train, test = both
    whole = Dataset({**train.queries, **test.queries}, test.corpus, {**train.qrels, **test.qrels})
    seen = answers_seen(whole, train.queries, test.queries)

    def scores(side: str) -> Scores:
        found = sides[side]
        values = np.array(found["values"])
        return Scores(side, tuple(found["queries"]), {METRIC: values}, np.ones(len(values)))

    def stratum(side: str, is_seen: bool) -> float:
        values = dict(zip(sides[side]["queries"], sides[side]["values"], strict=True))
        return float(np.mean([values[id] for id, each in zip(test.queries, seen, strict=True) if each == is_seen] or [np.nan]))

    lines = [
        "| | " + " | ".join(SIDES[side] for side in sides) + " |",
        "| --- |" + " --- |" * len(sides),
        *(
            f"| {key} | " + " | ".join(f"{sides[side][key]:.3f}" for side in sides) + " |"
            for key in ("recall@1", "recall@10", "mrr@10", METRIC)
        ),
        *(
            f"| {METRIC}, {kind} answers | " + " | ".join(f"{stratum(side, is_seen):.3f}" for side in sides) + " |"
            for kind, is_seen in (("seen", True), ("unseen", False))
        ),
        "| mining and training, processor s | " + " | ".join(f"{sides[side].get('seconds', 0):.0f}" for side in sides) + " |",
        "| peak memory, MiB | " + " | ".join(f"{sides[side]['peak_mib']:,.0f}" for side in sides) + " |",
        "",
        f"{name}: {len(train.queries):,} training queries, {len(test.queries):,} test queries.",
    ]
    for before, after in (pair for pair in PAIRS if {*pair} <= sides.keys()):
        comparison = compare_scores(scores(before), scores(after), metric=METRIC, seen=seen)
        lines.append(f"{SIDES[after]} against {SIDES[before]}: {comparison.sentence}")
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"passages_{name}.json").write_text(json.dumps({side: kept(found) for side, found in sides.items()}, indent=1) + "\n")
    (RESULTS / f"passages_{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
