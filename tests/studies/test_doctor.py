import itertools
import json

import numpy as np
import pytest

from embedfit.config import make_config
from embedfit.data.check import Finding
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.encode.local import LocalEncoder
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.score import Scores
from embedfit.pipeline.doctoring import _changes
from embedfit.studies.doctor import Change, diagnose, power

SPOILT = "zebra quartz violin harbour lantern pepper " * 6


def comparison(gaps):
    ids = tuple(f"q{number}" for number in range(len(gaps)))
    base = np.full(len(gaps), 0.5)
    pair = [Scores(name, ids, {"mrr@10": values}, np.ones(len(gaps), int)) for name, values in (("base", base), ("tuned", base + gaps))]
    return compare_scores(*pair, metric="mrr@10")


@pytest.fixture(scope="module")
def words():
    documents = {f"d{number}": Document(f"d{number}", f"topic{number} one two") for number in range(30)}
    queries = {f"q{number}": Query(f"q{number}", f"about topic{number}") for number in range(30)}
    return Dataset(queries, documents, {f"q{number}": {f"d{number}": 1} for number in range(30)})


class Deaf:
    """Hears every query as the same word."""

    name = fingerprint = "deaf"

    def __init__(self, encoder):
        self.encoder = encoder

    def encode(self, texts, kind):
        return self.encoder.encode(["one" for _ in texts] if kind == "query" else texts, kind)


def test_a_change_that_helps_is_worth_it_and_one_that_does_nothing_is_not(words, word_encoder):
    spoilt = Change("as it is", Deaf(word_encoder), "{text}")
    changes = [Change("nothing", Deaf(word_encoder), "{text}"), Change("model.ears = true", word_encoder, "{text}")]
    found = diagnose(comparison(np.zeros(30)), (), words, spoilt, changes, seconds=60)
    assert [trial.difference.verdict for trial in found.trials] == ["no difference shown", "better"]
    assert found.worth_changing == ("model.ears = true",)
    assert found.sentence.startswith("Worth changing: model.ears = true.")
    none = diagnose(comparison(np.zeros(30)), (), words, spoilt, changes[:1], seconds=60)
    assert none.sentence == "None of 1 changes was shown to help. Settings of the training were not tried."


def test_what_there_is_no_time_for_is_named(words, word_encoder):
    clock = itertools.count(step=40).__next__
    base = Change("as it is", word_encoder, "{text}")
    changes = [Change(name, word_encoder, "{text}") for name in "abc"]
    found = diagnose(comparison(np.zeros(30)), (), words, base, changes, seconds=60, clock=clock)
    assert ([trial.setting for trial in found.trials], found.skipped) == (["a"], ("b", "c"))
    assert "Not tried, as the time was up: b." in found.lines


def test_findings_in_the_data_come_with_advice(words, word_encoder):
    findings = [Finding("warning", "truncated", "7 texts are cut"), Finding("note", "unjudged", "3 queries are left out")]
    found = diagnose(comparison(np.zeros(30)), findings, words, Change("as it is", word_encoder, "{text}"), [], seconds=60)
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith("7 texts are cut; fix: shorten data.document_template")
    assert found.sentence.startswith("No change could be tried without training; see the findings in the data.")


def test_the_number_of_queries_that_would_show_the_difference_is_estimated():
    gaps = np.array([0.2, -0.2, 0.1, -0.1, 0.1] * 8)
    compared = comparison(gaps)
    row = compared["mrr@10"]
    needed = 40 * (row.detectable / row.difference) ** 2
    assert row.verdict == "no difference shown"
    assert power(compared).endswith(f"if the difference of +0.020 is real, about {needed:,.0f} would be needed to show it.")
    assert "there was none on them" in power(comparison(np.zeros(40)))
    assert power(comparison(np.full(40, 0.4))) == "The 40 held-out queries were enough to show the difference of +0.400."


@pytest.mark.parametrize(
    ("prompt", "template", "cause"),
    [
        (SPOILT, "{category}: {sample_transactions}", 'model.query_prompt = ""'),
        ("", "{category}", "data.document_template"),
    ],
)
def test_a_planted_cause_is_named_with_a_real_model(tiny_model, transactions, prompt, template, cause):
    data, model = {"queries": "x.jsonl", "document_template": template}, {"name": str(tiny_model), "precision": "fp32"}
    config = make_config({"data": data, "model": {**model, "query_prompt": prompt}})
    train = transactions.select(transactions.judged[::2])
    base = LocalEncoder(tiny_model, query_prompt=prompt, precision="fp32")
    found = diagnose(comparison(np.zeros(30)), (), train, Change("as it is", base, template), _changes(config, base, train), seconds=600)
    assert found.worth_changing[0].startswith(cause)
    assert json.loads(json.dumps(found.to_dict()))["queries"] == len(train.queries)
