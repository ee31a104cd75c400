"""Forms to deploy: what ONNX, its 8-bit form and a static model cost in quality, and what they save, beside torch in fp32.

For each set, all-MiniLM-L6-v2 as it is and tuned with the defaults on the training part, on held-out queries: the bundled transactions
(every query for the model as it is, one split for the tuned one), BANKING77 (10 training queries for each intent; official test part)
and SciFact (official test part, all abstracts). A static model is distilled from a tuned model over the documents and training queries.
A form is called good if it loses no more than .01, or one query's worth if that is more.

    OMP_NUM_THREADS=1 python benchmarks/forms.py [--sets NAME ...] [--models base tuned] [--forms NAME ...] [--output runs/forms]
    OMP_NUM_THREADS=1 python benchmarks/forms.py --speed [--output runs/forms]

The first command trains, exports and measures quality. It needs no quiet machine: a row in results/forms.json is not measured again, nor
is a model trained or a form exported twice, so it goes on where it stopped. The second command measures the speed of the tuned models'
forms and of torch, one after the other in one process: 256 texts in batches, the better of two trials, and 32 queries one by one. It
takes three minutes on a quiet core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from quality import BENCH, RESULTS, few

from embedfit.config import make_config
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.data.write import write_jsonl
from embedfit.encode.encoder import Encoder
from embedfit.encode.export import export_onnx
from embedfit.encode.local import LocalEncoder
from embedfit.encode.onnx import FILES, OnnxEncoder
from embedfit.encode.static import StaticEncoder, write_static
from embedfit.hub import weights_of
from embedfit.pipeline.job import Job
from embedfit.pipeline.training import run_tune
from embedfit.samples import TRANSACTIONS
from embedfit.studies.deployable import TOLERANCE, measure_quality, measure_speed
from embedfit.tune.distil import distil

MODEL = "all-MiniLM-L6-v2"
METRICS = {"transactions": "recall@1", "banking77": "recall@1", "scifact": "ndcg@10"}
STATIC = "static"
FORMS = (*FILES, STATIC)
TRAINED = "model"
"""Folder of a tuned model. It is there once its training is complete."""


class Case:
    """A set and a model on it.

    Args:
        name: Name of the set.
        tuned: Whether the model is tuned on the training part.
        output: Folder of all models and forms.
    """

    def __init__(self, name: str, tuned: bool, output: Path) -> None:
        self.name, self.tuned, self.metric = name, tuned, METRICS[name]
        self.folder = output / (f"{name}-tuned" if tuned else name)

    @cached_property
    def job(self) -> Job:
        """The data and its parts."""
        return Job.of(make_config({"name": self.name, "model": {"name": MODEL, "precision": "fp32"}, **self._settings}))

    @property
    def _settings(self) -> dict[str, Any]:
        if self.name == "transactions":
            data = {"queries": str(TRANSACTIONS / "transactions.jsonl"), "documents": str(TRANSACTIONS / "categories.json")}
            template = "{category}: {sample_transactions}"
            folds = 0 if self.tuned else 5
            return {"data": {**data, "record": "transaction", "document_template": template}, "split": {"folds": folds}}
        if self.name == "banking77":
            write_jsonl(few(load(BENCH / self.name), 10), self.folder / "data")
            return {"data": {kind: str(self.folder / "data" / f"{kind}.jsonl") for kind in ("queries", "documents")}, **self._leaks}
        return {"data": {"queries": str(BENCH / self.name), "document_template": "{title}. {text}"}, **self._leaks}

    @property
    def _leaks(self) -> dict[str, Any]:
        return {"split": {"leaks": "drop"}}

    @cached_property
    def test(self) -> Dataset:
        """Labelled held-out queries and all documents."""
        return self.job.test.select(self.job.test.judged)

    @cached_property
    def model(self) -> LocalEncoder:
        """The model, trained if it has not been."""
        if not self.tuned:
            return LocalEncoder(MODEL, precision="fp32")
        trained = self.folder / TRAINED
        if not trained.is_dir():
            run_tune(self.job.config, self.folder)
        return LocalEncoder(trained, precision="fp32")

    def form(self, name: str) -> Encoder:
        """Return a form of the model, exported if it has not been."""
        folder = self.folder / "deploy" / name
        done = folder / "done"
        if not done.exists():
            if name == STATIC:
                [(train, _, _)] = self.job.parts
                rows, tokenizer = distil(self.model, {"query": train.query_texts(), "document": train.document_texts(self.job.template)})
                write_static(rows, tokenizer, folder)
            else:
                export_onnx(self.model, folder, name)
            done.touch()
        return StaticEncoder(folder) if name == STATIC else OnnxEncoder(folder, name)

    def quality(self, name: str) -> dict[str, Any]:
        """Return the quality and the size of a form."""
        form = self.form(name)
        difference, cosine = measure_quality(name, self.model, form, self.test, self.job.template, self.metric)
        files = weights_of(form.folder) if isinstance(form, StaticEncoder) else [form.folder / FILES[name]]  # type: ignore[attr-defined]
        return {
            "set": self.name,
            "tuned": self.tuned,
            "form": name,
            "queries": len(self.test.queries),
            "documents": len(self.test.corpus),
            "difference": vars(difference),
            "passed": difference.difference >= -max(TOLERANCE, 1 / len(self.test.queries)) - 1e-12,
            "cosine": cosine,
            "bytes": sum(file.stat().st_size for file in files),
            "model_bytes": sum(file.stat().st_size for file in weights_of(self.model.folder)),
        }

    def speeds(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return form -> texts a second and milliseconds for one query; torch is a form too."""
        forms: dict[str, Encoder] = {"torch": self.model, **{name: self.form(name) for name in names}}
        speeds = {name: measure_speed(form, self.test, self.job.template) for name, form in forms.items()}
        return {name: {"texts_per_second": texts, "query_milliseconds": query} for name, (texts, query) in speeds.items()}


def table(results: dict[str, Any]) -> str:
    """Return the measurements as a Markdown table."""
    head = "| set, model, form | metric | torch fp32 | form | difference, 95% interval | lowest cosine | MB | texts a second | one query |"
    lines = [head, "| --- " * 9 + "|"]
    for row in results["quality"]:
        change, speeds = row["difference"], results["speed"].get(row["set"], {})
        cosine = "another space" if row["cosine"] is None else f"{row['cosine']:.4f}"
        lines.append(
            f"| {row['set']}, {'tuned' if row['tuned'] else 'as it is'}, {row['form']} | {change['metric']} | {change['base']:.4f} | "
            f"{change['tuned']:.4f} | {change['difference']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f}) | {cosine} | "
            f"{row['bytes'] / 1e6:.0f} of {row['model_bytes'] / 1e6:.0f} | {_speed(row, speeds)} |"
        )
    return "\n".join(lines)


def _speed(row: dict[str, Any], speeds: dict[str, Any]) -> str:
    if not row["tuned"] or row["form"] not in speeds:  # the speed does not depend on the weights
        return "|"
    torch, form = speeds["torch"], speeds[row["form"]]
    texts, query = form["texts_per_second"], form["query_milliseconds"]
    return f"{texts:,.0f}, x {texts / torch['texts_per_second']:.2f} | {query:.2g} ms, x {torch['query_milliseconds'] / query:,.2f}"


def main() -> None:
    """Measure quality or speed, print the table, and keep it in results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--models", nargs="+", choices=["base", "tuned"], default=["base", "tuned"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--speed", action="store_true", help="measure the speed of tuned models' forms")
    parser.add_argument("--output", type=Path, default=Path("runs/forms"))
    given = parser.parse_args()
    path = RESULTS / "forms.json"
    results = json.loads(path.read_text()) if path.exists() else {"quality": [], "speed": {}}

    def keep() -> None:
        results["quality"].sort(key=lambda row: (list(METRICS).index(row["set"]), row["tuned"], FORMS.index(row["form"])))
        path.write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "forms.md").write_text(table(results) + "\n")

    for name in given.sets:
        if given.speed:
            results["speed"][name] = Case(name, True, given.output).speeds(given.forms)
            keep()
            print(name, results["speed"][name], flush=True)
            continue
        for tuned in [model == "tuned" for model in given.models]:
            case = Case(name, tuned, given.output)
            for form in given.forms if tuned else [form for form in given.forms if form != STATIC]:
                if not any((row["set"], row["tuned"], row["form"]) == (name, tuned, form) for row in results["quality"]):
                    row = case.quality(form)
                    results["quality"].append(row)
                    keep()
                    print(name, "tuned" if tuned else "as it is", form, row["difference"], row["cosine"], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
