"""What the defaults reach: the same settings for every data set, and nothing chosen on a test query.

- the bundled transactions, out of fold (5 folds), with the category's name as the document, and with "name: samples"
- BANKING77 (official test part), with 10 or 50 training queries for each intent, and with all of them
- SciFact (official test part), tldr and WordNet with 2,000 training queries and 1,000 test queries drawn at random

All but the first are read from ``../shared/data/bench``, and skipped where that is not there. All from all-MiniLM-L6-v2.
The table has three figures for each metric: the base model, the tuned model alone, and the searcher that is deployed. The last two are
compared with each other too. A set that was measured before is kept, unless it is asked for by name.

    python benchmarks/quality.py [--only NAME ...] [--output runs/quality]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from embedfit import compare_scores
from embedfit.config import Config, make_config
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.data.write import write_jsonl
from embedfit.evaluation.score import Scores
from embedfit.pipeline.experiment import run
from embedfit.pipeline.result import Result
from embedfit.pipeline.searching import ALONE, UNTUNED
from embedfit.samples import TRANSACTIONS

RESULTS = Path(__file__).parent / "results"
BENCH = Path(__file__).resolve().parents[2] / "shared" / "data" / "bench"
LEAKS = {"split": {"leaks": "drop"}}  # some official training queries say what test queries say, and are not trained on
METRICS = ("recall@1", "recall@3", "recall@5", "mrr@10", "ndcg@10")
SHOWN = ("recall@1", "recall@5", "mrr@10", "ndcg@10")


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


def official(name: str, choose: Callable[[Dataset], Dataset] | None = None) -> Callable[[Path], dict[str, Any]]:
    """Return how to configure a public set with its official parts, or with some of their queries."""

    def settings(folder: Path) -> dict[str, Any]:
        if choose is None:
            return {"data": {"queries": str(BENCH / name)}, **LEAKS}
        write_jsonl(choose(load(BENCH / name)), folder)
        return {"data": {"queries": str(folder / "queries.jsonl"), "documents": str(folder / "documents.jsonl")}, **LEAKS}

    return settings


def few(data: Dataset, per_label: int, seed: int = 0) -> Dataset:
    """Return a data set with this many training queries for each label, and its test part whole."""
    by_label: dict[str, list[str]] = {}
    for id in data.parts["train"]:
        by_label.setdefault(min(data.relevant(id)), []).append(id)
    rng = random.Random(seed)
    train = tuple(id for label in sorted(by_label) for id in rng.sample(by_label[label], min(per_label, len(by_label[label]))))
    return of_parts(data, train, data.parts["test"])


def drawn(data: Dataset, train: int, test: int, seed: int = 0) -> Dataset:
    """Return a data set with this many training and test queries, drawn at random, and all documents."""
    rng = random.Random(seed)
    return of_parts(data, *(tuple(rng.sample(data.parts[part], count)) for part, count in (("train", train), ("test", test))))


def of_parts(data: Dataset, train: tuple[str, ...], test: tuple[str, ...]) -> Dataset:
    """Return a data set with these training and test queries, and all documents."""
    chosen = data.select([*train, *test])
    return Dataset(chosen.queries, chosen.corpus, chosen.qrels, {"train": train, "test": test})


SETS = {
    "transactions-names": transactions("{category}"),
    "transactions-samples": transactions("{category}: {sample_transactions}"),
    "banking77-10": official("banking77", partial(few, per_label=10)),
    "banking77-50": official("banking77", partial(few, per_label=50)),
    "banking77-all": official("banking77"),
    "scifact": official("scifact"),
    "tldr-2000": official("tldr", partial(drawn, train=2000, test=1000)),
    "wordnet-2000": official("wordnet", partial(drawn, train=2000, test=1000)),
}


def configurations(description: str, names: Sequence[str], output: str, known: Sequence[str] = ()) -> Iterator[tuple[str, Config]]:
    """Yield (name, configuration) of each set that the command line asks for and that is there; by default all but the known ones."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", nargs="+", choices=list(names), default=[name for name in names if name not in known])
    parser.add_argument("--output", type=Path, default=Path(output))
    arguments = parser.parse_args()
    for name in arguments.only:
        if not name.startswith("transactions") and not BENCH.is_dir():
            print(f"{name}: skipped, no {BENCH}")
            continue
        settings = SETS[name](arguments.output / "data" / name)
        yield name, make_config({**settings, "name": name, "output": str(arguments.output), "model": {"name": "all-MiniLM-L6-v2"}})


def measured(result: Result) -> dict[str, Any]:
    """Return the row of a finished run: means of each method, and the searcher against the base and against the tuned model alone."""
    others = {scores.name: scores for scores in result.others}
    methods: dict[str, Scores] = {
        "base": result.comparison.base,
        "untuned": others[UNTUNED],
        "tuned": others[ALONE],
        "searcher": result.comparison.tuned,
    }
    metric = result.comparison.metric
    beside = compare_scores(methods["tuned"], methods["searcher"], metric=metric)
    first = beside["recall@1"]
    return {
        "queries": len(result.comparison.base.query_ids),
        "models": len(result.manifest["tuning"]),
        "sentence": result.comparison.sentence,
        "beside_tuned": beside.sentence,
        "gain@1": {key: round(getattr(first, key), 4) for key in ("difference", "low", "high")},
        **{name: {method: round(scores.mean(name), 4) for method, scores in methods.items()} for name in METRICS},
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        f"| set | test queries | {' | '.join(SHOWN)} | recall@1, searcher less tuned alone |",
        f"| --- | --- | {'--- | ' * len(SHOWN)}--- |",
    ]
    for name, row in rows.items():
        figures = " | ".join("{base:.3f} → {tuned:.3f} → **{searcher:.3f}**".format(**row[metric]) for metric in SHOWN)
        gain = "{difference:+.3f} ({low:+.3f} to {high:+.3f})".format(**row["gain@1"])
        lines.append(f"| {name} | {row['queries']:,} | {figures} | {gain} |")
    return "\n".join(lines)


def main() -> None:
    """Run each set, print a table, and write results/quality.json and quality.md."""
    path = RESULTS / "quality.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    for name, config in configurations(__doc__.splitlines()[0], list(SETS), "runs/quality", list(rows)):
        result = run(config)
        rows[name] = measured(result)
        print(f"{name}: {rows[name]['sentence']}\n  beside the tuned model alone: {rows[name]['beside_tuned']}")
        RESULTS.mkdir(exist_ok=True)
        rows = {name: rows[name] for name in SETS if name in rows}
        path.write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "quality.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
