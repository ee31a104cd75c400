"""The disk is full, or the database is away: no accepted pick is lost, and the server goes on afterwards."""

import contextlib
import os
import resource

import pytest
from loop_data import until
from serve_data import searcher, serving
from test_picker import buttons, posted, search_of

from embedfit.serve.feedback import Feedback
from embedfit.serve.labelling import Labelling


@contextlib.contextmanager
def full(path):
    """Let no file of this process grow beyond the largest one of a database, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(f"{path}-wal"), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["disk", "postgresql"])
def outage(request, tmp_path):
    """Where the feedback is, and a context in which it cannot be written."""
    if request.param == "disk":
        return str(tmp_path / "feedback.db"), lambda: full(tmp_path / "feedback.db")
    return request.getfixturevalue("postgres")(), request.getfixturevalue("databases").stopped


def test_a_pick_that_cannot_be_stored_is_refused_and_stored_once_when_it_is_sent_again(word_encoder, outage):
    location, out = outage
    with serving(searcher(word_encoder), feedback=location) as client:
        page = client.get("/")
        pick = {"search_id": client.post("/search", json={"query": "uber"}).json()["search_id"], "choice": "taxi"}
        assert client.post("/feedback", json=pick).json()["learned"]
        with out():
            for number in range(3):
                answer = client.post("/search", json={"query": f"zorbing number{number}"})
                assert answer.status_code == 200
            late = {"search_id": answer.json()["search_id"], "choice": "constructor"}
            sent = [client.post("/feedback", json=late), client.delete("/feedback", params={"person": "Ann"})]
            sent.append(posted(client, "undo", page, search=pick["search_id"]))
            for refused in sent:
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                assert refused.json()["error"]["message"] == "the feedback cannot be stored at the moment"
            assert client.post("/search", json={"query": "uber"}).json()["hits"][0]["id"] == "taxi"  # what was learned stays
        until(lambda: client.post("/feedback", json=late).status_code == 200)
        assert client.post("/feedback", json=late).json()["repeated"]
        assert client.post("/search", json={"query": "zorbing number2"}).json()["hits"][0]["id"] == "constructor"
        assert client.post("/feedback", json={**late, "search_id": "unknown"}).status_code == 404
        assert "embedfit_unrecorded_searches_total 0.0" in client.get("/metrics").text
    store = Feedback(location)
    assert [(row["query"], row["choice"]) for row in store.rows()] == [("uber", "taxi"), ("zorbing number2", "constructor")]
    assert sum(asked.query.startswith("zorbing") for asked in store.asked()) == 4
    store.close()


def test_an_item_that_cannot_be_saved_stays_open(word_encoder, tmp_path):
    output = tmp_path / "labels.jsonl"
    with serving(searcher(word_encoder), tmp_path, Labelling("items", ["uber", "dinner"], output)) as client:
        page = client.get("/")
        item = page.text.partition('name="item" value="')[2].partition('"')[0]
        fields = {"search": search_of(page), "choice": buttons(page)[0], "item": item}
        with full(tmp_path / "feedback.db"):
            assert posted(client, "pick", page, **fields).status_code == 503
            assert "0 of 2 labelled" in client.get("/").text
        assert "1 of 2 labelled" in posted(client, "pick", page, **fields).text
    assert len(output.read_text().splitlines()) == 1
