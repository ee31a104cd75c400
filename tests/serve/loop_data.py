"""Expenses whose kind depends on one word among many: what a few labels do not teach, and more labels do."""

import json
import random
import time

from embedfit.config import make_config
from embedfit.serve.feedback import Feedback, Search, new_id

KINDS = {
    "Travel": ("taxi", "flight", "hotel", "train"),
    "Meals": ("lunch", "coffee", "dinner", "bakery"),
    "Software": ("licence", "server", "domain", "cloud"),
    "Office": ("chairs", "paper", "printer", "desk"),
}
NOISE = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "ledge", "maple", "north"),
    *("ocean", "prism", "quartz", "ridge", "stone", "tower", "upper", "valley", "willow", "xenon", "yield", "zenith", "anchor"),
)


def expenses(count, seed):
    """Return (text, kind) of so many expenses."""
    random_one = random.Random(seed)
    rows = []
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        words = [random_one.choice(KINDS[kind]), *random_one.sample(NOISE, 7)]
        random_one.shuffle(words)
        rows.append((" ".join(words), kind))
    return rows


def kind_of(text):
    return next(kind for kind, words in KINDS.items() if set(words) & set(text.split()))


def settings_in(folder, model, labelled, **more):
    """Write a configuration over so many labelled expenses; return it."""
    documents = [{"id": kind, "text": f"{kind} expenses"} for kind in KINDS]
    queries = [{"id": f"q{number}", "query": text, "expected": kind} for number, (text, kind) in enumerate(expenses(labelled, 0))]
    for name, rows in {"documents": documents, "queries": queries}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_config(
        {
            "name": "loop",
            "output": str(folder / "runs"),
            "data": {name: str(folder / f"{name}.jsonl") for name in ("queries", "documents")},
            "model": {"name": str(model)},
            "tune": {"method": "adapter"},
            "general": {"measure": "off"},
            "evaluate": {"bm25": False},
            "searcher": {"views": ["documents", "examples", "terms"]},
            **more,
        }
    )


def pick(folder, rows):
    """Store picks in the feedback of a live folder."""
    feedback = Feedback(folder.path / "feedback.db")
    for text, kind in rows:
        search = Search(new_id(), text, None, "", "api", "model", [{"id": kind, "score": 1.0, "probability": 0.5, "because": []}])
        feedback.record([search])
        feedback.pick(search.id, kind)
    feedback.close()


def settings_file(config, folder, more=""):
    """Write a configuration as embedfit.toml."""
    (folder / "embedfit.toml").write_text(
        f"""
        name = "loop"
        output = {json.dumps(config.output)}
        data = {{ queries = {json.dumps(config.data.queries)}, documents = {json.dumps(config.data.documents)} }}
        model = {{ name = {json.dumps(config.model.name)} }}
        split = {{ folds = 2 }}
        tune = {{ method = "adapter" }}
        general = {{ measure = "off" }}
        evaluate = {{ bm25 = false }}
        searcher = {{ views = ["documents", "examples", "terms"] }}
        {more}
        """
    )
    return folder / "embedfit.toml"


def until(condition, seconds=60):
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
