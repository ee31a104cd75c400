"""embedfit's searcher beside what people use for few labelled texts, on the same queries, from all-MiniLM-L6-v2.

- TF-IDF with a linear support vector machine (scikit-learn)
- logistic regression on the model's vectors (scikit-learn)
- sentence-transformers: CachedMultipleNegativesRankingLoss, 3 epochs, then a vote of the 3 nearest training queries
- SetFit with its defaults for pairs: 20 iterations, one epoch, logistic regression as the head; needs ``pip install setfit``
- embedfit: ``run`` with its defaults, and the searcher that it deploys. Its seconds include measuring, the report and calibration.

Data: BANKING77 with 10 training queries for each intent (official test part), and the bundled transactions with the category's name
as the document (65 of 326 held out, one split for each seed). FastFit 1.2.1 does not import beside today's `datasets`
(`load_metric` is gone), so it is not among them.

Each method runs in a process of its own. Seconds are processor time; a query's milliseconds are the median of 50 queries one by one.

    python benchmarks/peers.py [--only METHOD ...] [--sets NAME ...] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality import BENCH, RESULTS, few

import embedfit
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.samples import TRANSACTIONS

MODEL = "all-MiniLM-L6-v2"
Predict = Callable[[Sequence[str]], list[str]]
"""Texts -> the label of each."""


def parts(name: str, seed: int) -> tuple[Dataset, Dataset, str]:
    """Return the training queries, the test queries and the document template of a set."""
    if name == "banking77-10":
        data, template = few(load(BENCH / "banking77"), 10, seed), "{text}"
        train, test = data.parts["train"], data.parts["test"]
    else:
        data = load(str(TRANSACTIONS / "transactions.jsonl"), str(TRANSACTIONS / "categories.json"), record="transaction")
        template, split = "{category}", embedfit.split_dataset(data, seed=seed, dev=0)
        train, test = split.train, split.test
    return data.select(train), data.select(test), template


def labelled(data: Dataset) -> tuple[list[str], list[str]]:
    """Return the texts and the label of each."""
    return data.query_texts(), [min(data.relevant(id)) for id in data.queries]


def words(train: Dataset, template: str) -> Predict:
    """TF-IDF with a linear support vector machine."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(make_union(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), pieces), LinearSVC())
    model.fit(*labelled(train))
    return lambda texts: list(model.predict(texts))


def vectors(train: Dataset, template: str) -> Predict:
    """Logistic regression on the model's vectors."""
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    encoder = SentenceTransformer(str(model_folder()))
    texts, labels = labelled(train)
    model = LogisticRegression(C=30, max_iter=1000).fit(encoder.encode(texts, normalize_embeddings=True), labels)
    return lambda texts: list(model.predict(encoder.encode(texts, normalize_embeddings=True)))


def neighbours(train: Dataset, template: str) -> Predict:
    """sentence-transformers' recipe, then the nearest training queries."""
    from datasets import Dataset as Rows
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.training_args import BatchSamplers
    from sklearn.neighbors import KNeighborsClassifier

    texts, labels = labelled(train)
    by_id = dict(zip(train.corpus, train.document_texts(template), strict=True))
    model = SentenceTransformer(str(model_folder()))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=3,
            per_device_train_batch_size=64,
            learning_rate=2e-5,
            warmup_steps=0.1,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        rows = Rows.from_dict({"anchor": texts, "positive": [by_id[label] for label in labels]})
        SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=rows, loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=32)
        ).train()
    nearest = KNeighborsClassifier(3, weights="distance", metric="cosine").fit(model.encode(texts), labels)
    return lambda texts: list(nearest.predict(model.encode(texts)))


def setfit(train: Dataset, template: str) -> Predict:
    """SetFit with 20 iterations."""
    import transformers.training_args

    if not hasattr(transformers.training_args, "default_logdir"):  # SetFit 1.2.0 imports what transformers 5 no longer has
        transformers.training_args.default_logdir = lambda: tempfile.mkdtemp()
    from datasets import Dataset as Rows
    from setfit import SetFitModel, Trainer, TrainingArguments

    texts, labels = labelled(train)
    model = SetFitModel.from_pretrained(str(model_folder()))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, num_iterations=20, num_epochs=1, report_to="none", save_strategy="no")
        Trainer(model=model, args=arguments, train_dataset=Rows.from_dict({"text": texts, "label": labels})).train()
    return lambda texts: [str(label) for label in model.predict(list(texts))]


def searcher(train: Dataset, template: str) -> Predict:
    """Embedfit's defaults. All training queries train; a fifth of them is held out to prove it, as in any run without a test part."""
    with tempfile.TemporaryDirectory() as folder:
        result = embedfit.run(
            train, model=MODEL, output=folder, data={"document_template": template}, split={"folds": 5}, general={"measure": "off"}
        )
        found = embedfit.Searcher.load(result.folder / "searcher")
        found.search("a query")
    return lambda texts: [hits[0].id for hits in found.search_many(list(texts), 1)]


METHODS: dict[str, Callable[[Dataset, str], Predict]] = {
    "TF-IDF, linear SVM": words,
    "logistic regression on vectors": vectors,
    "sentence-transformers, 3 nearest": neighbours,
    "SetFit": setfit,
    "embedfit": searcher,
}


def model_folder() -> Path:
    """Return the folder of the base model."""
    from embedfit.hub import model_folder as folder_of

    return Path(folder_of(MODEL))


def measured(method: str, name: str, seed: int) -> dict[str, Any]:
    """Train one method on one set, and measure it."""
    train, test, template = parts(name, seed)
    texts, labels = labelled(test)
    started = time.process_time()
    predict = METHODS[method](train, template)
    seconds = time.process_time() - started
    predicted = predict(texts)
    times = []
    for text in texts[:50]:
        start = time.perf_counter()
        predict([text])
        times.append(time.perf_counter() - start)
    right = float(np.mean([one == label for one, label in zip(predicted, labels, strict=True)]))
    return {
        "recall@1": right,
        "seconds": round(seconds, 1),
        "milliseconds": round(statistics.median(times) * 1000, 2),
        "queries": len(texts),
    }


def main() -> None:
    """Run every method on every set, and write results/peers.json and peers.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--sets", nargs="+", default=["transactions", "banking77-10"])
    parser.add_argument("--seeds", type=int, default=3, help="Splits of the transactions, and draws of BANKING77's training queries.")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        method, name, seed = arguments.measure
        print(json.dumps(measured(method, name, int(seed))))
        return
    path = RESULTS / "peers.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in arguments.sets:
        for seed in range(arguments.seeds if name == "transactions" else 1):
            for method in arguments.only:
                command = [sys.executable, __file__, "--measure", method, name, str(seed)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(f"{name}, {method}: {done.stderr.strip().splitlines()[-1]}")
                    continue
                results.setdefault(name, {}).setdefault(method, {})[str(seed)] = json.loads(done.stdout.splitlines()[-1])
                print(f"{name}, {method}, seed {seed}: {results[name][method][str(seed)]}", flush=True)
                path.write_text(json.dumps(results, indent=1) + "\n")
    lines = ["| set | method | recall@1 | training, processor s | one query, ms |", "| --- | --- | --- | --- | --- |"]
    for name, methods in results.items():
        for method, runs in methods.items():
            means = {key: statistics.mean(run[key] for run in runs.values()) for key in ("recall@1", "seconds", "milliseconds")}
            lines.append(f"| {name} | {method} | {means['recall@1']:.3f} | {means['seconds']:.0f} | {means['milliseconds']:.1f} |")
    (RESULTS / "peers.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
