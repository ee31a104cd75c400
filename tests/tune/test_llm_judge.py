import functools
import json
import re

import pytest
from openai_server import Server, error

from embedfit.config import GenerateConfig, TuneConfig
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.encode.local import LocalEncoder
from embedfit.errors import EmbedfitError
from embedfit.generate import relevance
from embedfit.generate.endpoint import Limits
from embedfit.generate.relevance import RelevanceJudge, relevance_judge
from embedfit.hosts import Retries
from embedfit.tune.full import tune_model, tune_weights
from embedfit.tune.mine import Guards
from embedfit.tune.training import Training

PAIRS = [("find a rose", "a red rose"), ("find a rose", "green grass"), ("find the sea", "a red rose"), ("find a rose", "a red rose")]


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(relevance, "Limits", functools.partial(Limits, retries=Retries(first_wait=0.01)))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def words_in_common(body, draw, wrong=False):
    """Say yes where the last word of the query stands in the document."""
    query, document = re.search(r"Search query: (.+)\n\nDocument: (.+)", body["messages"][0]["content"]).groups()
    return {"content": json.dumps({"choice": "perhaps" if wrong else "yes" if query.split()[-1] in document else "no"})}


def judge(server, folder, **more):
    config = GenerateConfig.model_validate({"base_url": server.url, "model": "writer", "price": (1.0, 2.0), **more})
    return RelevanceJudge("rote", config, folder / "judge.ledger")


def test_each_pair_is_asked_and_paid_for_once_whatever_goes_wrong(tmp_path):
    with Server(answer=words_in_common, faults=0.4, kinds=("429", "500", "dropped", "wrong label")) as server:
        found = judge(server, tmp_path, judge_tries=10).answers(PAIRS)
        assert found.tolist() == [True, False, False, True]
        paid = len(server.paid)
        assert judge(server, tmp_path, judge_tries=10).answers(PAIRS[:2]).tolist() == [True, False]
        assert len(server.paid) == paid
        assert judge(server, tmp_path, judge_tries=10).answers([("find a rose", "blue sky")]).tolist() == [False]
        assert {body["model"] for body in server.bodies} == {"rote"}
    [ledger] = (tmp_path / "judge.ledger").glob("ledger-*.jsonl")
    assert sum(json.loads(line)["event"] == "reply" for line in ledger.read_text().splitlines()) == len(server.paid)


def test_a_budget_stops_the_judge_and_a_larger_one_continues(tmp_path):
    pairs = [("find a rose", f"document {number}") for number in range(40)]
    with Server(answer=words_in_common) as server:
        with pytest.raises(EmbedfitError, match=r"stopped before the budget of 0\.0028 would be exceeded"):
            judge(server, tmp_path, budget=0.0028, concurrency=1).answers(pairs)
        before = len(server.paid)
        assert 0 < before < len(pairs)
        assert not judge(server, tmp_path, budget=1.0).answers(pairs).any()
        assert len(server.paid) == len(set(server.paid)) == len(pairs)


def test_what_the_judge_refuses_to_read_or_never_answers_may_be_an_answer(tmp_path):
    def refused(number, body):
        if "grass" in body["messages"][0]["content"]:
            return 400, {}, error("content_filter", "caught by the filter")
        return None

    with Server(answer=functools.partial(words_in_common, wrong=True), respond=refused) as server:
        assert judge(server, tmp_path, judge_tries=2).answers(PAIRS).all()


def test_mined_negatives_are_judged_in_a_training_and_a_second_training_asks_nothing(tiny_model, tmp_path):
    names = ["rose", "tulip", "iris", "daisy", "lily", "poppy"]
    corpus = {name: Document(name, f"the {name} in a garden") for name in names}
    corpus |= {f"{name} 2": Document(f"{name} 2", f"one {name} of many") for name in names}  # unlabelled answers
    queries = {name: Query(name, f"show me a {name}") for name in names}
    data = Dataset(queries, corpus, {name: {name: 1} for name in names})
    base = LocalEncoder(tiny_model, precision="fp32")
    config = TuneConfig(epochs=1, batch_size=3, candidates="mined", mined_margin=2.0, judge="openai:rote", hard_negatives=1)
    with Server(answer=words_in_common) as server:
        generate = GenerateConfig(base_url=server.url, price=(1.0, 2.0))
        llm = relevance_judge(config.judge, generate, tmp_path)
        training = Training(data, None, tmp_path / "first", config, "{text}", llm=llm)
        tune_weights(base, training)
        paid = len(server.paid)
        assert paid
        guards = Guards.of(training, 2.0)
        assert guards.judge is None
        texts = [(query.text, document.text) for query in queries.values() for document in corpus.values()]
        assert guards.answers(texts).sum() == 12
        paid = len(server.paid)
        tune_weights(base, Training(data, None, tmp_path / "second", config, "{text}", llm=llm))
        assert len(server.paid) == paid
    assert relevance_judge("a/cross-encoder", generate, tmp_path) is None
    with pytest.raises(EmbedfitError, match="OPENAI_API_KEY is not set"):
        tune_model(base, data, None, tmp_path / "third", config, template="{text}")
