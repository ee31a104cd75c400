"""Every method on the same held-out queries: the tables of the README.

- the bundled transactions, out of fold (5 folds), with the category's name as the document
- BANKING77 with 10 training queries for each intent, on its official test part; read from ``../shared/data/bench``, skipped
  where that is not there

The settings are the defaults, the model is all-MiniLM-L6-v2. ``embedfit ladder`` does the same for a configuration of yours.

    python benchmarks/ladder.py [--only NAME ...] [--output runs/ladder]
"""

from __future__ import annotations

import json
import time

from quality import RESULTS, configurations

from embedfit.pipeline.experiment import ladder as run_ladder

NAMES = {"transactions-names": "Card transactions", "banking77-10": "BANKING77, 10 training queries per intent"}


def main() -> None:
    """Run each ladder, print its table, and write results/ladder.json and ladder.md."""
    path = RESULTS / "ladder.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, config in configurations(__doc__.splitlines()[0], list(NAMES), "runs/ladder"):
        start = time.perf_counter()
        ladder = run_ladder(config)
        found[name] = {"seconds": round(time.perf_counter() - start, 1), **ladder.to_dict()}
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "ladder.md").write_text("\n".join(line for one in found for line in table(one, found[one])) + "\n")
        print("\n".join(table(name, found[name])))


def table(name: str, ladder: dict) -> list[str]:
    """Return a ladder as lines of Markdown."""
    how = f"out of fold, {ladder['folds']} folds" if ladder["folds"] > 1 else "official test part"
    lines = [
        f"{NAMES[name]}: {ladder['queries']:,} queries, {how}; {ladder['seconds'] / 60:.0f} minutes.",
        "",
        "| | recall@1 | recall@3 | recall@5 | MRR@10 | against the one above, 95% interval | training, s | query, ms | deployed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rung in ladder["rungs"]:
        below = rung["below"]
        interval = f"{below['difference']:+.3f} ({below['low']:+.3f} to {below['high']:+.3f})" if below else ""
        mark = "**" if rung["key"] == ladder["recommended"] else ""
        figures = " | ".join(f"{rung[metric]:.3f}" for metric in ("recall@1", "recall@3", "recall@5", "mrr@10"))
        seconds = f"{rung['seconds']:.1f}" if rung["seconds"] else ""
        lines.append(
            f"| {mark}{rung['name']}{mark} | {figures} | {interval} | {seconds} | {rung['query_milliseconds']:.2f} | {rung['deploys']} |"
        )
    return [*lines, "", ladder["sentence"], ""]


if __name__ == "__main__":
    main()
