"""What the defaults reach: the same settings for every data set, and nothing chosen on a test query.

- the bundled transactions, out of fold (5 folds), with the category's name as the document, and with "name: samples"
- BANKING77 (official test part), with 10 training queries for each intent, and with all of them; read from
  ``../shared/data/bench``, skipped where that is not there

All from all-MiniLM-L6-v2.

    python benchmarks/quality.py [--only NAME ...] [--output runs/quality]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from embedfit.config import Config, make_config
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.data.write import write_jsonl
from embedfit.pipeline.experiment import run
from embedfit.samples import TRANSACTIONS

RESULTS = Path(__file__).parent / "results"
BENCH = Path(__file__).resolve().parents[2] / "shared" / "data" / "bench"
LEAKS = {"split": {"leaks": "drop"}}  # some official training queries say what test queries say, and are not trained on
METRICS = ("recall@1", "recall@3", "recall@5", "mrr@10")


def transactions(document: str) -> Callable[[Path], dict[str, Any]]:
    """Return how to configure the bundled transactions with a document template."""

    def settings(folder: Path) -> dict[str, Any]:
        data = {
            "queries": str(TRANSACTIONS / "transactions.jsonl"),
            "documents": str(TRANSACTIONS / "categories.json"),
            "record": "transaction",
        }
        return {"data": {**data, "document_template": document}, "split": {"folds": 5}}

    return settings


def banking77(per_label: int | None) -> Callable[[Path], dict[str, Any]]:
    """Return how to configure BANKING77 with some or all of its training queries."""

    def settings(folder: Path) -> dict[str, Any]:
        data = load(BENCH / "banking77")
        if per_label:
            write_jsonl(few(data, per_label), folder)
            return {"data": {"queries": str(folder / "queries.jsonl"), "documents": str(folder / "documents.jsonl")}, **LEAKS}
        return {"data": {"queries": str(BENCH / "banking77")}, **LEAKS}

    return settings


def few(data: Dataset, per_label: int, seed: int = 0) -> Dataset:
    """Return a data set with this many training queries for each label, and its test part whole."""
    by_label: dict[str, list[str]] = {}
    for id in data.parts["train"]:
        by_label.setdefault(min(data.relevant(id)), []).append(id)
    rng = random.Random(seed)
    train = tuple(id for label in sorted(by_label) for id in rng.sample(by_label[label], per_label))
    chosen = data.select([*train, *data.parts["test"]])
    return Dataset(chosen.queries, chosen.corpus, chosen.qrels, {"train": train, "test": data.parts["test"]})


SETS = {
    "transactions-names": transactions("{category}"),
    "transactions-samples": transactions("{category}: {sample_transactions}"),
    "banking77-10": banking77(10),
    "banking77-all": banking77(None),
}


def configurations(description: str, names: Sequence[str], output: str) -> Iterator[tuple[str, Config]]:
    """Yield (name, configuration) of each set that the command line asks for and that is there."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", nargs="+", choices=list(names), default=list(names))
    parser.add_argument("--output", type=Path, default=Path(output))
    arguments = parser.parse_args()
    for name in arguments.only:
        if name.startswith("banking77") and not BENCH.is_dir():
            print(f"{name}: skipped, no {BENCH}")
            continue
        settings = SETS[name](arguments.output / "data" / name)
        yield name, make_config({**settings, "name": name, "output": str(arguments.output), "model": {"name": "all-MiniLM-L6-v2"}})


def main() -> None:
    """Run each set, print a table, and write results/quality.json and quality.md."""
    path = RESULTS / "quality.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, config in configurations(__doc__.splitlines()[0], list(SETS), "runs/quality"):
        start = time.perf_counter()
        result = run(config)
        comparison = result.comparison
        found[name] = {
            "queries": len(comparison.base.query_ids),
            "seconds": round(time.perf_counter() - start, 1),
            "training_seconds": round(sum(one["seconds"] for one in result.manifest["tuning"]), 1),
            "epochs": [one["epoch"] for one in result.manifest["tuning"]],
            "sentence": comparison.sentence,
            **{metric: {key: round(getattr(comparison[metric], key), 4) for key in ("base", "tuned", "low", "high")} for metric in METRICS},
        }
        print(f"{name}: {comparison.sentence}")
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "| set | test queries | recall@1 | recall@3 | recall@5 | MRR@10 | training, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in found.items():
        figures = " | ".join(f"{row[metric]['base']:.3f} → **{row[metric]['tuned']:.3f}**" for metric in METRICS)
        lines.append(f"| {name} | {row['queries']:,} | {figures} | {row['training_seconds']:.0f} |")
    (RESULTS / "quality.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
