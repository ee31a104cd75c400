"""Labels that mean nothing: does embedfit say "better" where there is nothing to learn?

The bundled transactions with their labels shuffled among the queries, so that whatever training finds is chance. Each
round has another shuffle, split and training seed, and goes the way that `embedfit run` takes by default for so few
queries: 5 folds, each scored by a model that was tuned on the others, and one comparison over all 326. A verdict of
"better" is a false alarm. ``--single`` holds one fifth of the queries out instead (65), and tunes once.

    python benchmarks/shuffled.py [--rounds 20] [--single]

Nothing is timed here, so rounds run beside each other, one on each core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from embedfit.config import TuneConfig
from embedfit.data.load import load
from embedfit.data.split import split_dataset, split_folds
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.score import score_run
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import DEPTH, joined
from embedfit.samples import TRANSACTIONS
from embedfit.tune.full import tune_model

FOLDS = 5
RESULTS = Path(__file__).parent / "results" / "shuffled.json"


def main() -> None:
    """Run each round, print the verdicts, and write results/shuffled.json after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--single", action="store_true", help="one held-out part instead of folds")
    arguments = parser.parse_args()
    name = "single" if arguments.single else "folds"
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows: list[dict[str, Any]] = []
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes below, which import torch anew
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        for row in pool.imap(partial(verdict, single=arguments.single), range(arguments.rounds)):
            rows.append(row)
            print(f"{row['seed']}: {row['sentence']}", flush=True)
            found[name] = {"verdicts": Counter(row["verdict"] for row in rows), "rounds": rows}
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(dict(found[name]["verdicts"]))


def verdict(seed: int, single: bool) -> dict[str, Any]:
    """Shuffle the labels, tune and compare; as often as there are folds."""
    data = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
    answers = list(data.qrels.values())
    random.Random(seed).shuffle(answers)
    shuffled = replace(data, qrels=dict(zip(data.qrels, answers, strict=True)))
    splits = [split_dataset(shuffled, seed=seed)] if single else split_folds(shuffled, FOLDS, seed=seed)
    base = LocalEncoder("all-MiniLM-L6-v2")
    runs = []
    for split in splits:
        with tempfile.TemporaryDirectory() as folder:
            tuned = tune_model(base, shuffled.select(split.train), None, folder, TuneConfig(seed=seed))
            runs.append(DenseRetriever(tuned.encoder).search(shuffled.select(split.test), DEPTH))
    test = shuffled.select([id for split in splits for id in split.test])
    before = DenseRetriever(CachedEncoder(base)).search(test, DEPTH)
    scores = (score_run(run, test.qrels, name=side) for run, side in ((before, "base"), (joined(runs), "tuned")))
    comparison = compare_scores(*scores, seed=seed, held_out=True)
    return {"seed": seed, "verdict": comparison.verdict, "sentence": comparison.sentence}


if __name__ == "__main__":
    main()
