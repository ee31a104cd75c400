"""Does the doctor find the cause? Runs that were spoilt on purpose, and sound ones.

Ten intents of BANKING77, 16 queries each, and all-MiniLM-L6-v2 cut to two layers; 30% of the queries are held out. Each run is
spoilt in one way, or in two, and `embedfit doctor` must name it among its causes and settings. Sound runs, with other intents and
seeds, must not be blamed: a setting that is named there is a false alarm, unless it helps on queries that nobody has seen.

    python benchmarks/doctor.py FOLDER-OF-BANKING77 [--only NAME ...] [--minutes 10] [--sound 4]

Writes results/doctor.json after each run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.load import load
from embedfit.data.write import write_jsonl
from embedfit.encode.local import load_model
from embedfit.hub import model_folder
from embedfit.pipeline.doctoring import diagnose_run
from embedfit.pipeline.experiment import run

RESULTS = Path(__file__).parent / "results" / "doctor.json"
INTENTS, QUERIES, LAYERS = 10, 16, 2
GARBAGE = "zebra quartz violin harbour lantern pepper " * 4


def same(data: Dataset, seed: int) -> Dataset:
    """Return the data as it is."""
    return data


@dataclass(frozen=True)
class Spoilt:
    """A run that is spoilt in one way.

    Attributes:
        names: Texts of which one must begin a cause or a setting that the doctor names.
        settings: Sections of embedfit.toml.
        data: Function from the data and a seed to the spoilt data.
        length: Maximum number of tokens that the model is set to; None for its own.
    """

    names: tuple[str, ...]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: Callable[[Dataset, int], Dataset] = same
    length: int | None = None


def shuffled_labels(data: Dataset, seed: int) -> Dataset:
    """Deal the answers out anew."""
    answers = list(data.qrels.values())
    random.Random(seed).shuffle(answers)
    return Dataset(data.queries, data.corpus, dict(zip(data.qrels, answers, strict=True)))


def shuffled_documents(data: Dataset, seed: int) -> Dataset:
    """Give each id the text of another document."""
    ids = list(data.corpus)
    texts = [data.corpus[id] for id in ids]
    texts = texts[1:] + texts[:1]
    return Dataset(data.queries, {id: replace(document, id=id) for id, document in zip(ids, texts, strict=True)}, data.qrels)


def conflicting(data: Dataset, seed: int) -> Dataset:
    """Repeat three in ten queries with another answer."""
    rng, documents = random.Random(seed), list(data.corpus)
    queries, qrels = dict(data.queries), dict(data.qrels)
    for id in rng.sample(list(data.queries), len(data.queries) * 3 // 10):
        queries[f"{id}-again"] = Query(f"{id}-again", data.queries[id].text)
        qrels[f"{id}-again"] = {rng.choice([other for other in documents if other not in data.qrels[id]]): 1}
    return Dataset(queries, data.corpus, qrels)


def with_copies(data: Dataset, seed: int) -> Dataset:
    """Repeat half of the documents under other ids, which no query is judged with."""
    copies = {f"{id}-2": Document(f"{id}-2", document.text) for id, document in list(data.corpus.items())[::2]}
    return Dataset(data.queries, {**data.corpus, **copies}, data.qrels)


def uninformative(data: Dataset, seed: int) -> Dataset:
    """Put the name of the intent into a field that the template leaves out."""
    corpus = {
        id: Document(id, f"entry {number}", metadata={"name": document.text}) for number, (id, document) in enumerate(data.corpus.items())
    }
    return Dataset(data.queries, corpus, data.qrels)


def with_prompt(data: Dataset, seed: int) -> Dataset:
    """Put the prompt into the texts of the queries."""
    queries = {id: Query(id, f"search query: {query.text}") for id, query in data.queries.items()}
    return Dataset(queries, data.corpus, data.qrels)


def few(data: Dataset, seed: int) -> Dataset:
    """Keep 40 queries."""
    ids = list(data.queries)
    return data.select(random.Random(seed).sample(ids, 40))


SPOILT: dict[str, Spoilt] = {
    "learning rate too high": Spoilt(("tune.learning_rate",), {"tune": {"learning_rate": 0.5}}),
    "learning rate too low": Spoilt(("tune.learning_rate",), {"tune": {"learning_rate": 1e-7}}),
    "weight decay": Spoilt(("tune.weight_decay",), {"tune": {"weight_decay": 1000.0}}),
    "dropout": Spoilt(("tune.dropout",), {"tune": {"dropout": 0.95}}),
    "too few steps": Spoilt(("tune.epochs", "tune.batch_size"), {"tune": {"epochs": 1, "batch_size": 128}}),
    "negatives": Spoilt(
        ("tune.candidates", "tune.negatives", "tune.batch_size"), {"tune": {"candidates": "batch", "negatives": 0, "batch_size": 2}}
    ),
    "merge": Spoilt(("# remove general.keep",), {"general": {"keep": 1.0, "measure": "ends"}}),
    "prompt": Spoilt(("model.query_prompt",), {"model": {"query_prompt": GARBAGE}}),
    "doubled prompt": Spoilt(("doubled prompt",), {"model": {"query_prompt": "search query: "}}, with_prompt),
    "template": Spoilt(("data.document_template", "documents"), {}, uninformative),
    "truncation": Spoilt(("max_seq_length",), {}, same, 5),
    "conflicting labels": Spoilt(("conflicting labels",), {}, conflicting),
    "duplicate documents": Spoilt(("duplicate documents",), {}, with_copies),
    "shuffled labels": Spoilt(("labels",), {}, shuffled_labels),
    "wrong documents": Spoilt(("documents",), {}, shuffled_documents),
    "too few queries": Spoilt(("too few queries",), {}, few),
}

PAIRS = (("prompt", "duplicate documents"), ("conflicting labels", "truncation"), ("doubled prompt", "too few queries"))
"""Causes that are planted together. At least one must be named; what else is named is kept, to be judged by hand."""


def both(first: Spoilt, second: Spoilt) -> Spoilt:
    """Return a run that is spoilt in two ways."""
    settings = {name: {**first.settings.get(name, {}), **second.settings.get(name, {})} for name in {**first.settings, **second.settings}}
    return Spoilt(
        (*first.names, *second.names),
        settings,
        lambda data, seed: second.data(first.data(data, seed), seed),
        first.length or second.length,
    )


SPOILT |= {" and ".join(pair): both(*(SPOILT[name] for name in pair)) for pair in PAIRS}


def main() -> None:
    """Run each case and print what the doctor named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("banking77", type=Path)
    parser.add_argument("--only", nargs="*", default=list(SPOILT))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--sound", type=int, default=4, help="number of sound runs")
    arguments = parser.parse_args()
    whole = load(arguments.banking77)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.only:
        found[name] = row = examined(intents(whole, 0), SPOILT[name], 0, arguments.minutes, intents(whole, 1))
        row["right"] = any(named.startswith(start) for named in row["named"] for start in SPOILT[name].names)
        _report(name, found)
    for number in range(arguments.sound):
        name = f"sound {number}"
        found[name] = examined(intents(whole, number), Spoilt(()), number, arguments.minutes, intents(whole, number + 1))
        _report(name, found)
    print(f"{sum(row.get('right', False) for row in found.values())} of {sum('right' in row for row in found.values())} causes named")


def _report(name: str, found: dict[str, Any]) -> None:
    row = found[name]
    print(f"{name}: {row['verdict']}; named {row['named']} {'RIGHT' if row.get('right') else ''} {row['seconds']} s", flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def intents(whole: Dataset, number: int) -> Dataset:
    """Return the queries of ten intents, which differ from number to number."""
    labels = list(whole.corpus)
    chosen = [labels[(number * INTENTS + place) % len(labels)] for place in range(INTENTS)]
    ids: list[str] = []
    for label in chosen:
        own = [id for id in whole.judged if label in whole.relevant(id)]
        ids += random.Random(number).sample(own, QUERIES)
    part = whole.select(ids)
    return Dataset(part.queries, {label: whole.corpus[label] for label in chosen}, part.qrels)


def examined(data: Dataset, spoilt: Spoilt, seed: int, minutes: float, other: Dataset) -> dict[str, Any]:
    """Run, and ask the doctor. The times are of the processor; ``other`` is a general set."""
    with tempfile.TemporaryDirectory() as folder:
        model = cut_model(Path(folder) / "model", spoilt.length)
        settings: dict[str, Any] = {
            "split": {"test": 0.3, "seed": seed},
            "general": {"measure": "off"},
            "searcher": {"views": ["documents"]},
            "evaluate": {"bm25": False},
            **spoilt.settings,
        }
        if "keep" in settings["general"]:
            write_jsonl(other, Path(folder) / "general")
            files = {name: str(Path(folder) / "general" / f"{name}.jsonl") for name in ("queries", "documents")}
            settings["general"] = {**settings["general"], **files}
        named = {**settings.pop("model", {}), "name": str(model), "precision": "fp32"}
        started = time.process_time()
        result = run(spoilt.data(data, seed), model=named, output=str(Path(folder) / "runs"), **settings)
        ran = time.process_time()
        diagnosis = diagnose_run(result.folder, minutes=minutes)
        seconds = [round(ran - started), round(time.process_time() - ran)]
    return {
        "verdict": result.alone.sentence,
        "named": diagnosis.named,
        "seconds": seconds,
        "trials": {f"{trial.how}: {trial.setting}": trial.line for trial in diagnosis.trials},
        "skipped": diagnosis.skipped,
        "causes": [str(cause) for cause in diagnosis.causes],
    }


def cut_model(folder: Path, length: int | None) -> Path:
    """Return the folder of all-MiniLM-L6-v2 cut to its first layers."""
    model = load_model(model_folder("all-MiniLM-L6-v2"))
    transformer: Any = model.transformers_model
    transformer.encoder.layer = transformer.encoder.layer[:LAYERS]
    transformer.config.num_hidden_layers = LAYERS
    if length:
        model.max_seq_length = length
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


if __name__ == "__main__":
    main()
