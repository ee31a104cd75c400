"""Labels that mean nothing: does embedfit say "better" where there is nothing to learn?

The bundled transactions with their labels shuffled among the queries, so that whatever training finds is chance. Each
round has another shuffle, split and training seed, and goes the whole way of ``embedfit run`` with the defaults, but
for one split instead of folds. A verdict of "better" is a false alarm.

    python benchmarks/shuffled.py [--rounds 20] [--output runs/shuffled]
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

from embedfit import load, make_config, run, write_jsonl
from embedfit.samples import TRANSACTIONS

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run each round, print the verdicts, and write results/shuffled.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/shuffled"))
    arguments = parser.parse_args()
    data = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
    found = []
    for seed in range(arguments.rounds):
        answers = list(data.qrels.values())
        random.Random(seed).shuffle(answers)
        folder = write_jsonl(replace(data, qrels=dict(zip(data.qrels, answers, strict=True))), arguments.output / "data" / str(seed))
        settings = {
            "name": f"shuffled-{seed}",
            "output": str(arguments.output),
            "data": {"queries": str(folder / "queries.jsonl"), "documents": str(folder / "documents.jsonl")},
            "model": {"name": "all-MiniLM-L6-v2"},
            "split": {"folds": 0, "seed": seed},
            "tune": {"seed": seed},
        }
        comparison = run(make_config(settings)).comparison
        found.append({"seed": seed, "verdict": comparison.verdict, "sentence": comparison.sentence})
        print(f"{seed}: {comparison.sentence}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    counts = Counter(row["verdict"] for row in found)
    (RESULTS / "shuffled.json").write_text(json.dumps({"verdicts": counts, "rounds": found}, indent=1) + "\n")
    print(dict(counts))


if __name__ == "__main__":
    main()
