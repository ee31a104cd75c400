"""Labels that mean nothing: does embedfit say "better" where there is nothing to learn?

The bundled transactions with their labels shuffled among the queries, so that whatever training finds is chance. Each
round has another shuffle, split and training seed: split, tune with the defaults, measure both models on the held-out
queries, compare. A verdict of "better" is a false alarm.

    python benchmarks/shuffled.py [--rounds 20]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from embedfit import LocalEncoder, TuneConfig, compare_scores, load, measure, split_dataset, tune_model
from embedfit.samples import TRANSACTIONS

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run each round, print the verdicts, and write results/shuffled.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    data = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
    base = LocalEncoder("all-MiniLM-L6-v2")
    found = []
    for seed in range(arguments.rounds):
        answers = list(data.qrels.values())
        random.Random(seed).shuffle(answers)
        shuffled = replace(data, qrels=dict(zip(data.qrels, answers, strict=True)))
        split = split_dataset(shuffled, seed=seed)
        test = shuffled.select(split.test)
        with tempfile.TemporaryDirectory() as folder:
            tuned = tune_model(base, shuffled.select(split.train), None, folder, TuneConfig(seed=seed))
            comparison = compare_scores(measure(base, test), measure(tuned.encoder, test), seed=seed, held_out=True)
        found.append({"seed": seed, "verdict": comparison.verdict, "sentence": comparison.sentence})
        print(f"{seed}: {comparison.sentence}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    counts = Counter(row["verdict"] for row in found)
    (RESULTS / "shuffled.json").write_text(json.dumps({"verdicts": counts, "rounds": found}, indent=1) + "\n")
    print(dict(counts))


if __name__ == "__main__":
    main()
