"""The live index of a store behind a server: answers, picks and switches happen in the store."""

import json
import threading
from dataclasses import asdict

import httpx
import pytest
from loop_data import expenses, settings_file, until
from serve_data import serving

from embedfit.config import make_config
from embedfit.errors import ConfigError
from embedfit.pipeline.deploying import index
from embedfit.serve.feedback import Feedback
from embedfit.serve.live import LiveFolder, load
from embedfit.serve.places import read_picks
from embedfit.serve.refreshing import refresh, roll_back
from embedfit.serve.searching import Served
from embedfit.store.base import EXAMPLES
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store


@pytest.fixture(params=["chroma", "pgvector"])
def stored(request, world, tmp_path, monkeypatch):
    """A configuration with a store, its embedfit.toml, and a live folder whose first version is live in both."""
    config, _, first, _ = world
    location = str(tmp_path / "chroma")
    if request.param == "pgvector":
        monkeypatch.setenv("EMBEDFIT_TEST_STORE", request.getfixturevalue("postgres")())
        location = "env:EMBEDFIT_TEST_STORE"
    store = {"kind": request.param, "location": location}
    config = make_config({**config.model_dump(exclude_unset=True), "store": store})
    toml = settings_file(config, tmp_path, f"store = {{ kind = {json.dumps(request.param)}, location = {json.dumps(location)} }}")
    folder = LiveFolder(tmp_path / "live")
    Feedback(tmp_path / "none.db").close()
    refreshed = refresh(config, folder, [str(tmp_path / "none.db")], index=True)
    assert (refreshed.outcome, refreshed.live) == ("first", first.live)
    return config, toml, folder


def search(client, text, k=4):
    answer = client.post("/search", json={"query": text, "k": k})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_server_of_a_live_index_answers_learns_and_follows_a_refresh_under_load(stored, world, tmp_path, request):
    config, toml, folder = stored
    _, live, first, second = world
    queries = [text for text, _ in expenses(4, 2)]
    expected = {run: Served.load(run).searcher.search_many(queries, 4) for run in (first.live, second.live)}
    answers, stop = [], threading.Event()

    def ask(address):
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            while not stop.is_set():
                answers.append(client.post("/search", json={"queries": queries, "k": 4}))

    with serving(load(toml), tmp_path, served=str(toml)) as client:
        before = client.get("/info").json()["fingerprint"]
        for text, hits in zip(queries, expected[first.live], strict=True):
            found = search(client, text)["hits"]
            assert [hit["id"] for hit in found] == [hit.id for hit in hits]
            assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in hits], abs=1e-3)
        # A pick is an example in the index at once, for every process that searches it.
        answer = search(client, "zorbing voucher")
        if config.store.kind == "pgvector":
            with request.getfixturevalue("databases").stopped():
                refused = client.post("/search", json={"query": "zorbing voucher"})
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                assert refused.json()["error"]["message"] == "the index cannot be reached"
            assert search(client, "zorbing voucher")["hits"] == answer["hits"]  # the first search connects again
        assert client.post("/feedback", json={"search_id": answer["search_id"], "choice": "Office"}).json()["learned"]
        score = {hit["id"]: hit["score"] for hit in search(client, "zorbing voucher")["hits"]}["Office"]
        assert score > {hit["id"]: hit["score"] for hit in answer["hits"]}["Office"]
        with open_store(config.store) as store:
            [change] = LiveIndex(store).taught()
            assert (change.text, change.document, change.source) == ("zorbing voucher", "Office", "feedback")
            assert {hit.id: hit.score for hit in LiveIndex(store).find("zorbing voucher", 4)}["Office"] == pytest.approx(score, abs=1e-3)

        asker = threading.Thread(target=ask, args=[str(client.base_url)])
        asker.start()
        picks = read_picks([str(live.path)], config)
        (folder.path / "picks.jsonl").write_text("".join(json.dumps(asdict(pick)) + "\n" for pick in picks))
        assert refresh(config, folder, index=True).live == second.live
        until(lambda: client.get("/info").json()["fingerprint"] != before)
        after = client.get("/info").json()["fingerprint"]
        until(lambda: answers[-1].json()["answers"][0]["model"] == after)
        assert search(client, "zorbing voucher")["hits"][0]["because"][0]["text"] == "zorbing voucher"  # it was taken over
        back = roll_back(folder, config)
        assert back.live == first.live
        until(lambda: answers[-1].json()["answers"][0]["model"] == before)
        stop.set()
        asker.join()
        assert client.delete("/feedback", params={"search_id": answer["search_id"]}).json() == {"deleted": 2}
        with open_store(config.store) as store:
            assert [change.gone for change in LiveIndex(store).taught()] == [True]
            assert "zorbing" not in str(LiveIndex(store).taught())
            # A live index that is damaged gives 503 until it is indexed again.
            examples = store.live().current + EXAMPLES
            store.delete(examples, sorted(store.ids(examples)))
            refused = client.post("/search", json={"query": queries[0], "k": 4})
            assert (refused.status_code, refused.json()["error"]["message"]) == (503, "the index is damaged")
            index(config, str(first.live))
            assert [hit["id"] for hit in search(client, queries[0])["hits"]] == [hit.id for hit in expected[first.live][0]]
    orders = {}
    for one in answers:
        assert one.status_code == 200
        for text, found in zip(queries, one.json()["answers"], strict=True):
            orders.setdefault((found["model"], text), set()).add(tuple(hit["id"] for hit in found["hits"]))
    assert {model for model, _ in orders} == {before, after}
    assert all(len(order) == 1 for order in orders.values())  # each version always gives its own answer


def test_an_index_of_documents_alone_is_refused(world, tmp_path):
    config, *_ = world
    config = make_config({**config.model_dump(exclude_unset=True), "store": {"kind": "chroma", "location": str(tmp_path / "chroma")}})
    toml = settings_file(config, tmp_path, f"store = {{ kind = 'chroma', location = {json.dumps(str(tmp_path / 'chroma'))} }}")
    index(config)
    with pytest.raises(ConfigError, match="was made of a model alone; fix: 'embedfit index --model RUN', the searcher of a run"):
        load(toml)
