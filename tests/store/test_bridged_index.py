"""A new model over an old index: it answers at once, at every moment, and gives way to an ordinary version."""

import json
from functools import partial

import numpy as np
import pytest
from store_data import TEMPLATE, Numbers, numbered

from embedfit.data.dataset import Dataset
from embedfit.encode.bridge import Bridge
from embedfit.errors import ConfigError, ModelError, StorageError
from embedfit.store import bridged, versions
from embedfit.store.base import Live
from embedfit.store.bridged import Plan, bridge_documents
from embedfit.store.live import LiveIndex
from embedfit.store.versions import index_documents, roll_back
from embedfit.tune.bridging import fit_bridge

COUNT = 220
SECONDS = [f"{word}{number}" for word in ("nest", "tail", "wing", "song", "path", "home") for number in range(5)]


class Turned(Numbers):
    """The numbered encoder in a space of more dimensions: nothing is lost."""

    def __init__(self):
        super().__init__()
        self.name = self.fingerprint = "turned"
        self.turn = np.linalg.qr(np.random.default_rng(1).normal(size=(24, 24)))[0][:16].astype(np.float32)

    def encode(self, texts, kind):
        return super().encode(texts, kind) @ self.turn


class Killed(BaseException):
    pass


class Steps:
    """Counts the writes of a store, and kills the caller before or after one of them."""

    def __init__(self, store, names):
        self.left, self.before = 0, False
        for name in names:
            setattr(store, name, partial(self.step, getattr(store, name)))

    def step(self, method, *arguments, **more):
        self.left -= 1
        if self.left < 0 and self.before:
            raise Killed
        result = method(*arguments, **more)
        if self.left < 0:
            raise Killed
        return result


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The file of a bridge from the one encoder to the other."""
    texts = [f"doc {number}" for number in range(120)]
    fitted = fit_bridge(Numbers().encode(texts, "document"), Turned().encode(texts, "document"), Numbers(), Turned())
    return fitted.bridge.save(tmp_path_factory.mktemp("bridges") / "bridge.safetensors")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(bridged, "_SMALLEST", 20)


def crossed(store, dataset, path):
    return bridge_documents(store, dataset, Turned(), TEMPLATE, lambda stamp: path)


def check_answers(store, dataset):
    """Check every document's place and score against the new model alone."""
    index = LiveIndex(store, Numbers(), Turned())
    number = int(next(iter(dataset.queries)).removeprefix("q"))
    hits = index.find(f"query {number}", len(dataset.corpus))
    assert sorted(hit.id for hit in hits) == sorted(dataset.corpus)
    query = Turned().encode([f"query {number}"], "query")[0]
    exact = Turned().encode([hit.text for hit in hits], "document") @ query
    np.testing.assert_allclose([hit.score for hit in hits], exact, atol=1e-3)
    assert (np.diff(exact) < 1e-3).all()
    odd = index.find(f"query {number}", 5, {"parity": "odd"})
    assert [hit.id for hit in odd] == [hit.id for hit in hits if hit.metadata["parity"] == "odd"][:5]


def test_a_bridge_answers_at_once_and_gives_way_part_by_part(store, path):
    data = numbered(COUNT)
    old = index_documents(store, data, Numbers(), TEMPLATE).collection
    states, switch = [], store.switch

    def seen(live):
        switch(live)
        stamp = store.stamp(live.current)
        states.append(len(Plan.of(stamp).parts) if stamp.bridge else -1)
        check_answers(store, data)

    store.switch = seen
    indexed = crossed(store, data, path)
    assert states == [0, 1, 2, 3, -1, -1]
    assert indexed.documents == COUNT
    assert store.live() == Live(indexed.collection, old)
    assert set(store.collections()) == {indexed.collection, old}
    store.switch = switch
    assert roll_back(store).fingerprint == Numbers().fingerprint


@pytest.mark.parametrize("config", ["chroma"], indirect=True)
def test_a_killed_call_goes_on_from_every_moment(store, path):
    data = numbered(COUNT)
    index_documents(store, data, Numbers(), TEMPLATE)
    steps = Steps(store, ("create", "add", "finish", "switch", "drop"))
    moment = done = 0
    while not done:
        moment += 1
        steps.left, steps.before = moment, bool(moment % 2)
        try:
            crossed(store, data, path)
            done = 1
        except Killed:
            check_answers(store, data)
    assert moment > 5
    assert store.stamp(store.live().current).fingerprint == "turned"
    assert len(store.collections()) == 2


@pytest.mark.parametrize("config", ["chroma"], indirect=True)
@pytest.mark.parametrize("ask", [LiveIndex.stamp, LiveIndex.version, LiveIndex.taught, lambda index: index.find("query 7", 1)])
def test_a_version_that_is_removed_while_it_is_read_is_left_for_the_next(store, ask, monkeypatch):
    index_documents(store, numbered(), Numbers(), TEMPLATE)
    stale = [Live("documents_" + "0" * 12)] * 2
    live = store.live
    monkeypatch.setattr(store, "live", lambda: stale.pop() if stale else live())
    ask(LiveIndex(store, Numbers()))
    assert not stale
    stale[:] = [Live("documents_" + "0" * 12)] * 99
    with pytest.raises(StorageError, match="is gone; fix: run 'embedfit index'"):
        ask(LiveIndex(store, Numbers()))


@pytest.mark.parametrize("config", ["chroma"], indirect=True)
def test_what_changed_since_the_old_version_is_embedded_first(store, path):
    before = numbered(COUNT)
    index_documents(store, before, Numbers(), TEMPLATE)
    fresh = numbered(COUNT + 30, year=2026).corpus
    corpus = {id: document for id, document in before.corpus.items() if id not in ("d1", "d2", "d3")}
    corpus |= {id: fresh[id] for id in ["d7", *(f"d{number}" for number in range(COUNT, COUNT + 30))]}
    after = Dataset(before.queries, corpus, {})
    switch, states = store.switch, []

    def stop(live):
        switch(live)
        states.append(Plan.of(store.stamp(live.current)))
        raise Killed

    store.switch = stop
    with pytest.raises(Killed):
        crossed(store, after, path)
    [plan] = states
    assert plan.gone == ("d1", "d2", "d3")
    assert len(store.ids(plan.parts[0])) == 31
    check_answers(store, after)
    [hit] = LiveIndex(store, Turned()).find("query 7", 1)
    assert (hit.id, hit.metadata["year"]) == ("d7", 2026)


@pytest.mark.parametrize("config", ["chroma"], indirect=True)
def test_what_queries_find_most_is_embedded_again_first_and_then_the_newest(store, path, monkeypatch):
    data = numbered(COUNT, queries=1)
    index_documents(store, data, Numbers(), TEMPLATE)
    parts, fill = [], bridged.fill

    def filled(store, collection, stamp, entries, vectors):
        parts.append([entry.id for entry in entries])
        return fill(store, collection, stamp, entries, vectors)

    monkeypatch.setattr(bridged, "fill", filled)
    crossed(store, data, path)
    found = Turned().encode([f"doc {number}" for number in range(COUNT)], "document") @ Turned().encode(["query 0"], "query")[0]
    searched = {f"d{number}" for number in np.argsort(-found)[:10]}
    assert searched == set(parts[0][:10])
    newest = [f"d{number}" for number in reversed(range(COUNT)) if f"d{number}" not in searched]
    assert [id for part in parts for id in part][10:] == newest[: sum(map(len, parts)) - 10]


@pytest.mark.parametrize("config", ["chroma"], indirect=True)
def test_a_bridge_that_is_refused_changes_nothing(store, path, tmp_path, searcher_folder):
    with pytest.raises(ConfigError, match="there is no index 'documents' to bridge"):
        crossed(store, numbered(COUNT), path)
    index_documents(store, numbered(COUNT), Numbers(), TEMPLATE)
    before = store.live(), store.collections()
    assert bridge_documents(store, numbered(COUNT), Turned(), TEMPLATE, lambda stamp: None) is None
    assert (store.live(), store.collections()) == before
    store.switch, switch = lambda live: (switch(live), exec("raise Killed", {"Killed": Killed})), store.switch
    with pytest.raises(Killed):
        crossed(store, numbered(COUNT), path)
    store.switch = switch
    assert roll_back(store).fingerprint == Numbers().fingerprint
    assert roll_back(store).bridge  # and forth again
    content = path.read_bytes()
    other = tmp_path / "other.safetensors"
    other.write_bytes(content)
    plan = Plan.of(store.stamp(store.live().current))
    bridge = Bridge("orthogonal", {"rotation": np.eye(24, 16, dtype=np.float32)}, 1.0, 0.0, "", "", "", "")
    try:
        bridge.save(plan.path)
        with pytest.raises(ModelError, match="is another bridge than the live index has"):
            LiveIndex(store, Turned()).find("query 7")
    finally:
        path.write_bytes(content)
    index_documents(store, numbered(COUNT), Numbers(), TEMPLATE)
    versions.index_searcher(store, searcher_folder, min_recall=0)
    with pytest.raises(ConfigError, match="is a run's searcher, and a bridge needs documents alone"):
        crossed(store, numbered(COUNT), path)


def test_the_command_measures_first_and_goes_live_only_if_nothing_is_lost(tmp_path, tiny_model, said):
    words = [f"{first} {second}" for first in ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen") for second in SECONDS]
    rows = [{"id": f"d{number}", "text": f"the {word} number {number}"} for number, word in enumerate(words)]
    (tmp_path / "documents.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = [{"query": f"a {word} number {number}", "expected": f"d{number}"} for number, word in enumerate(words)][::4]
    (tmp_path / "queries.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in asked))

    def write(prompt):
        (tmp_path / "embedfit.toml").write_text(
            f'[data]\nqueries = "queries.jsonl"\ndocuments = "documents.jsonl"\n[model]\nname = "{tiny_model}"\nprecision = "fp32"\n'
            f'document_prompt = "{prompt}"\n[store]\nmin_recall = 0.5\n'
        )

    write("")
    config = tmp_path / "embedfit.toml"
    assert said("index", config)[0] == 0
    code, out, err = said("index", config, "--bridge", "--rollback")
    assert (code, out) == (2, "")
    assert "--rollback and --bridge exclude each other" in err
    (tmp_path / "run" / "searcher").mkdir(parents=True)
    (tmp_path / "run" / "searcher" / "searcher.json").write_text("{}")
    code, out, err = said("index", config, "--bridge", "--model", tmp_path / "run")
    assert (code, out) == (2, "")
    assert f"is a run, and a bridge is for its model alone; fix: --model {tmp_path / 'run' / 'model'}" in err
    write("passage: ")
    code, out, err = said("index", config, "--bridge", "--tolerance", 0, "--json")
    measured = json.loads(out)["bridge"]
    assert code == (0 if measured["passed"] else 1)
    assert measured["documents"] == 120
    assert "embedding all documents again would give" in err
    code, out, err = said("index", config, "--bridge", "--tolerance", 1, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["index"]["documents"] == 240
    if not measured["passed"]:
        assert "The bridge answers searches" in err
        assert list((tmp_path / "runs" / "bridges").glob("*.safetensors"))
    code, out, _ = said("search", "a gnu number 200", config, "--json")
    assert code == 0
    assert len(json.loads(out)) == 10
