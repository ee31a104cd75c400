"""Forms to deploy: what ONNX and its 8-bit form cost in quality, and what they save, beside torch in fp32 in the same process.

For each set, all-MiniLM-L6-v2 is exported and measured on the test queries: the bundled transactions (all of them), BANKING77 (official
test part) and SciFact (official test part, all abstracts). With --tune, it is first tuned with the defaults on the training part. One
thread throughout (set OMP_NUM_THREADS=1). Speed is a ratio to torch; each is timed in turn, the better of two trials.

    OMP_NUM_THREADS=1 python benchmarks/forms.py [--tune] [--documents N] [--only NAME ...] [--output runs/forms]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from quality import BENCH, RESULTS, few

from embedfit.config import make_config
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.data.write import write_jsonl
from embedfit.encode.export import export_onnx
from embedfit.encode.local import LocalEncoder
from embedfit.encode.onnx import FILES, OnnxEncoder
from embedfit.hub import weights_of
from embedfit.pipeline.job import Job
from embedfit.pipeline.training import run_tune
from embedfit.samples import TRANSACTIONS
from embedfit.studies.deployable import Deployable, measure_deployable

MODEL = "all-MiniLM-L6-v2"


def settings_of(name: str, folder: Path, *, tune: bool) -> dict[str, Any]:
    """Return the settings of a set, as embedfit.toml has them."""
    if name == "transactions":
        data = {"queries": str(TRANSACTIONS / "transactions.jsonl"), "documents": str(TRANSACTIONS / "categories.json")}
        template = "{category}: {sample_transactions}"
        return {"data": {**data, "record": "transaction", "document_template": template}, "split": {"folds": 0 if tune else 5}}
    if name == "banking77" and tune:  # 10 training queries for each intent
        write_jsonl(few(load(BENCH / name), 10), folder)
        return {"data": {kind: str(folder / f"{kind}.jsonl") for kind in ("queries", "documents")}, "split": {"leaks": "drop"}}
    template = "{title}. {text}" if name == "scifact" else "{text}"
    return {"data": {"queries": str(BENCH / name), "document_template": template}, "split": {"leaks": "drop"}}


def measured(name: str, folder: Path, *, tune: bool, documents: int | None) -> list[Deployable]:
    """Return the measurements of each form on the test queries of a set."""
    config = make_config({"name": name, "model": {"name": MODEL, "precision": "fp32"}, **settings_of(name, folder / "data", tune=tune)})
    job = Job.of(config)
    model = LocalEncoder(run_tune(config, folder / "tuned")[0].model if tune else MODEL, precision="fp32")
    test = smaller(job.test, documents)
    metric = "ndcg@10" if name == "scifact" else "recall@1"
    rows = []
    for form in FILES:
        path = export_onnx(model, folder / "deploy", form)
        size = sum(file.stat().st_size for file in weights_of(model.folder))
        files = [str(path.relative_to(folder / "deploy"))]
        encoder = OnnxEncoder(folder / "deploy", form)
        rows.append(measure_deployable(form, model, encoder, folder / "deploy", files, size, test, job.template, metric))
        print(name, rows[-1].sentence, flush=True)
    label = name if len(test.corpus) == len(job.test.corpus) else f"{name} ({len(test.corpus):,} documents)"
    return [replace(row, name=f"{label}, {row.name}") for row in rows]


def smaller(dataset: Dataset, documents: int | None) -> Dataset:
    """Return a data set with the documents that are right for a query, and others evenly spread, up to a number."""
    if documents is None or len(dataset.corpus) <= documents:
        return dataset
    right = {id for query in dataset.queries for id in dataset.relevant(query)}
    rest = [id for id in dataset.corpus if id not in right]
    kept = right | set(rest[:: max(1, len(rest) // max(1, documents - len(right)))])
    return Dataset(dataset.queries, {id: document for id, document in dataset.corpus.items() if id in kept}, dataset.qrels)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the measurements as a Markdown table."""
    head = "| set, form | metric | torch fp32 | form | difference, 95% interval | lowest cosine | MB | texts a second | one query |"
    lines = [head, "| --- " * 9 + "|"]
    for row in rows:
        change = row["difference"]
        lines.append(
            f"| {row['name']} | {change['metric']} | {change['base']:.4f} | {change['tuned']:.4f} | "
            f"{change['difference']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f}) | {row['cosine']:.4f} | "
            f"{row['bytes'] / 1e6:.0f} of {row['model_bytes'] / 1e6:.0f} | "
            f"{row['texts_per_second']:.0f}, x {row['texts_per_second'] / row['model_texts_per_second']:.2f} | "
            f"{row['query_milliseconds']:.1f} ms, x {row['model_query_milliseconds'] / row['query_milliseconds']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the sets, print the table, and keep it in results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["transactions", "banking77", "scifact"])
    parser.add_argument("--tune", action="store_true", help="tune the model first")
    parser.add_argument("--documents", type=int, help="largest number of documents")
    parser.add_argument("--output", type=Path, default=Path("runs/forms"))
    arguments = parser.parse_args()
    path = RESULTS / "forms.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    for name in arguments.only:
        rows = [row.to_dict() for row in measured(name, arguments.output / name, tune=arguments.tune, documents=arguments.documents)]
        kept = [row for row in kept if row["name"].split(",")[0].split(" (")[0] != name] + rows
        path.write_text(json.dumps(kept, indent=1))
        (RESULTS / "forms.md").write_text(table(kept) + "\n")
    print(table(kept))


if __name__ == "__main__":
    main()
