"""A label that nobody had: its queries before and after its document and three examples are added to a live index.

BANKING77 with 10 training queries for each intent, all-MiniLM-L6-v2 without tuning. In each of 4 draws, 5 intents are hidden: a searcher is
built over the other 72, with weights that are learnt out of fold, and goes live in Chroma. Then the hidden intents are added to the
live index: first the documents, then three examples for each, drawn from their training queries. After each step the live index
answers the test queries of the hidden intents, and those of the others (5 for each).

    python benchmarks/new_labels.py [--data ../shared/data/bench/banking77]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from embedfit.config import StoreConfig
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder
from embedfit.searcher.fusion import Evidence, folds_of
from embedfit.searcher.gather import Corpus, Examples, Views
from embedfit.searcher.learn import Learnt
from embedfit.searcher.parts import Parts
from embedfit.searcher.searcher import Searcher
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import index_searcher
from embedfit.template import DOCUMENT_TEMPLATE

RESULTS = Path(__file__).parent / "results"
DRAWS, HIDDEN, PER_LABEL, ADDED, OTHERS = 4, 5, 10, 3, 5
VIEWS = ("documents", "examples", "words", "classes", "terms")
STEPS = ("before", "with the document", "with the document and three examples")


def main() -> None:
    """Measure all draws, print the table, and write results/new_labels.json and new_labels.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/bench/banking77"))
    data = load(parser.parse_args().data)
    encoder = CachedEncoder(LocalEncoder("all-MiniLM-L6-v2"))
    label = {id: next(iter(data.relevant(id))) for id in data.judged}
    order = np.random.default_rng(0).permutation(sorted(data.corpus)).tolist()
    found: dict[str, list[float]] = defaultdict(list)
    for draw in range(DRAWS):
        hidden = order[draw * HIDDEN : (draw + 1) * HIDDEN]
        with tempfile.TemporaryDirectory() as folder:
            for name, values in measured(data, label, hidden, encoder, Path(folder), draw).items():
                found[name] += values
    means = {name: round(float(np.mean(values)), 4) for name, values in found.items()}
    counts = {group: len(found[f"{group}, before, 1"]) for group in ("hidden", "others")}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "new_labels.json").write_text(json.dumps({"labels": DRAWS * HIDDEN, "queries": counts, "recall": means}, indent=1) + "\n")
    (RESULTS / "new_labels.md").write_text(table(means, counts))
    print(table(means, counts))


def measured(
    data: Dataset, label: dict[str, str], hidden: list[str], encoder: CachedEncoder, folder: Path, seed: int
) -> dict[str, list[float]]:
    """Return "group, step, k" -> whether the answer is among the first k, for each query of the group."""
    rng = np.random.default_rng(seed)
    train = drawn(data.parts["train"], label, PER_LABEL, rng)
    test = {"hidden": [id for id in data.parts["test"] if label[id] in hidden]}
    test["others"] = drawn([id for id in data.parts["test"] if label[id] not in hidden], label, OTHERS, rng)
    corpus = {id: document for id, document in data.corpus.items() if id not in hidden}
    known = [id for id in train if label[id] not in hidden]
    labelled = Dataset({id: data.queries[id] for id in known}, corpus, {id: {label[id]: 1} for id in known})
    searcher_of(labelled, encoder).save(folder / "searcher")
    queries = {id: data.queries[id] for ids in test.values() for id in ids}
    asked = Dataset(queries, corpus, {})
    found: dict[str, list[float]] = {}
    with open_store(StoreConfig(location=str(folder / "store"))) as store:
        index_searcher(store, folder / "searcher", {id: query.text for id, query in queries.items()})
        index = LiveIndex(store)
        for step in STEPS:
            if step == STEPS[1]:
                for id in hidden:
                    index.add_document(data.corpus[id])
            elif step == STEPS[2]:
                for id in hidden:
                    for query in [query for query in train if label[query] == id][:ADDED]:
                        index.add(data.queries[query].text, id)
            run = index.search(asked, 3)
            for group, ids in test.items():
                for k in (1, 3):
                    found[f"{group}, {step}, {k}"] = [float(label[id] in run.documents(id)[:k]) for id in ids]
    return found


def drawn(ids: list[str], label: dict[str, str], count: int, rng: np.random.Generator) -> list[str]:
    """Return some random queries of each label."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for id in rng.permutation(list(ids)).tolist():
        if len(by_label[label[id]]) < count:
            by_label[label[id]].append(id)
    return [id for name in sorted(by_label) for id in by_label[name]]


def searcher_of(data: Dataset, encoder: CachedEncoder) -> Searcher:
    """Return a searcher over an untuned model, with weights that are learnt out of fold."""
    corpus = Corpus.of(data, encoder, DOCUMENT_TEMPLATE)
    ids = np.array(data.judged, dtype=object)
    folds = folds_of(np.arange(len(ids)), 0)
    parts = []
    for fold in np.unique(folds):
        views = Views.fit(corpus, Examples.of(data.select(ids[folds != fold]), encoder, corpus.ids), VIEWS)
        parts.append(views.gather(data.select(ids[folds == fold]), encoder, corpus.ids))
    learnt = Learnt.of(Evidence.joined(parts), VIEWS)
    examples = Examples.of(data, encoder, corpus.ids)
    views = Views.fit(corpus, examples, learnt.fusion.views, scale=learnt.scale)
    return Searcher(Parts(encoder, data.corpus, corpus, examples, views, learnt.fusion, DOCUMENT_TEMPLATE))


def table(means: dict[str, float], counts: dict[str, int]) -> str:
    """Return the means as a table in Markdown."""
    names = {"hidden": "the 20 new labels", "others": "other labels"}
    lines = ["| queries of | " + " | ".join(f"{step}: recall@1, @3" for step in STEPS) + " |", "| --- | --- | --- | --- |"]
    for group, count in counts.items():
        cells = [f"{means[f'{group}, {step}, 1']:.3f}, {means[f'{group}, {step}, 3']:.3f}" for step in STEPS]
        lines.append(f"| {names[group]} ({count:,}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
