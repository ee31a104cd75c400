import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from embedfit.config import TuneConfig, make_config
from embedfit.data.check import Finding, check_dataset
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.split import group_numbers
from embedfit.encode.named import encoder_of
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.families import compare_all
from embedfit.evaluation.score import Scores, score_run
from embedfit.pipeline import ablating
from embedfit.pipeline.doctoring import Patient, diagnose_run
from embedfit.pipeline.experiment import run
from embedfit.pipeline.job import Job
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.studies.ablations import Resolved, ablations
from embedfit.studies.doctor import Change, Stage, diagnose, power
from embedfit.studies.symptoms import causes_in, limits_of, unrelated

SPOILT = "zebra quartz violin harbour lantern pepper " * 6


def comparison(gaps, base=0.5):
    ids = tuple(f"q{number}" for number in range(len(gaps)))
    before = np.full(len(gaps), base)
    pair = [Scores(name, ids, {"mrr@10": values}, np.ones(len(gaps), int)) for name, values in (("base", before), ("tuned", before + gaps))]
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


def measured(data, encoder):
    return lambda: score_run(DenseRetriever(encoder, "{text}").search(data, 10), data.qrels, ks=(10,))


def change(data, encoder, key):
    return Change({key: True}, measured(data, encoder))


def diagnosed(gaps, stages=(), findings=(), causes=(), **settings):
    return diagnose(comparison(gaps), findings, causes, stages, **{"seconds": 60, "queries": 30, **settings})


def test_a_change_that_helps_is_worth_it_and_one_that_does_nothing_is_not(words, word_encoder):
    base = [measured(words, Deaf(word_encoder))]
    changes = [change(words, Deaf(word_encoder), "model.nothing"), change(words, word_encoder, "model.ears")]
    found = diagnosed(np.zeros(30), [Stage("without tuning", base, changes)])
    assert [trial.difference.verdict for trial in found.trials] == ["no difference shown", "better"]
    assert found.worth_changing == ("model.ears = true",)
    assert found.sentence.startswith("Worth changing: model.ears = true.")
    assert found.lines[-3:] == ["In embedfit.toml:", "[model]", "ears = true"]
    none = diagnosed(np.zeros(30), [Stage("without tuning", base, changes[:1])])
    assert none.sentence == "None of 1 changes was shown to help."
    assert "In embedfit.toml:" not in none.lines


def test_what_there_is_no_time_for_is_named(words, word_encoder):
    clock = itertools.count(step=20).__next__
    changes = [change(words, word_encoder, f"model.{name}") for name in "abc"]
    found = diagnosed(np.zeros(30), [Stage("without tuning", [measured(words, word_encoder)], changes)], seconds=110, clock=clock)
    assert ([trial.setting for trial in found.trials], found.skipped) == (["model.a = true"], ("model.b = true", "model.c = true"))
    assert "Not tried, as the time was up: model.b = true." in found.lines
    assert diagnosed(np.zeros(30), [Stage("without tuning", [measured(words, word_encoder)], changes)], seconds=-1).trials == ()


def test_findings_in_the_data_come_with_advice():
    findings = [Finding("warning", "truncated", "7 texts are cut"), Finding("note", "unjudged", "3 queries are left out")]
    found = diagnosed(np.zeros(30), findings=findings)
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith("7 texts are cut; fix: shorten data.document_template")
    assert found.sentence.startswith("No change could be tried; see the findings in the data.")
    many = diagnosed(np.zeros(30), findings=[Finding("warning", "copy", f"copy {number}") for number in range(5)])
    assert [remark.partition(";")[0] for remark in many.remarks] == ["copy 0", "copy 1", "copy 2", "... and 2 more of the kind 'copy'"]


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
    ("gaps", "base", "cause"),
    [(np.tile([0.4, -0.3], 9), 0.5, ["too few queries"]), (np.zeros(40), 0.97, ["ceiling"]), (np.full(40, 0.4), 0.5, [])],
)
def test_held_out_queries_that_could_show_nothing_are_a_cause(gaps, base, cause):
    assert [found.name for found in limits_of(comparison(gaps, base))] == cause


# Flaws of the data, planted


def topics(*, labels="own", texts="own", seed=0):
    """Return queries of eight topics, with shuffled labels or shuffled texts of the documents if asked for."""
    rng = random.Random(seed)
    documents = {f"d{topic}": Document(f"d{topic}", f"topic{topic} thing{topic}") for topic in range(8)}
    queries, qrels = {}, {}
    for number in range(120):
        topic = number % 8
        text = f"what is topic{topic} number{number} {rng.choice(['thing', 'item'])}{topic} word{rng.randrange(9)}"
        queries[f"q{number}"], qrels[f"q{number}"] = Query(f"q{number}", text), {f"d{topic}": 1}
    if labels == "shuffled":
        answers = list(qrels.values())
        rng.shuffle(answers)
        qrels = dict(zip(qrels, answers, strict=True))
    if texts == "shuffled":
        documents = {id: replace(documents[f"d{(number + 1) % 8}"], id=id) for number, id in enumerate(documents)}
    return Dataset(queries, documents, qrels)


@pytest.mark.parametrize(("planted", "cause"), [({}, []), ({"labels": "shuffled"}, ["labels"]), ({"texts": "shuffled"}, ["documents"])])
def test_labels_and_documents_that_belong_to_nothing_are_told_apart(planted, cause, word_encoder):
    for seed in range(3):
        data = topics(seed=seed, **planted)
        run = DenseRetriever(word_encoder, "{text}").search(data, 10)
        assert [found.name for found in unrelated(data, run, word_encoder, group_numbers(data), seed=seed)] == cause


def conflicting(data):
    again = {f"{id}-2": Query(f"{id}-2", query.text) for id, query in list(data.queries.items())[::4]}
    return Dataset({**data.queries, **again}, data.corpus, {**data.qrels, **{id: {"d7": 1} for id in again}})


def copied(data):
    return Dataset(data.queries, {**data.corpus, "e0": Document("e0", data.corpus["d0"].text)}, data.qrels)


def prompted(data):
    return Dataset({id: Query(id, f"query: {query.text}") for id, query in data.queries.items()}, data.corpus, data.qrels)


@pytest.mark.parametrize(
    ("plant", "cause"),
    [
        (topics, []),
        (conflicting, ["conflicting labels"]),
        (copied, ["duplicate documents"]),
        (prompted, ["doubled prompt"]),
    ],
)
def test_flaws_of_the_data_are_counted(plant, cause):
    data = topics() if plant is topics else plant(topics())
    found = causes_in(check_dataset(data), data, {"query": "query: "})
    assert [row.name for row in found] == cause
    assert found or not cause
    leak = causes_in([Finding("problem", "leak", "a copy", ("q1", "q2"))], topics(), {})
    assert [(row.name, row.fix) for row in leak] == [("leaks", 'split.leaks = "drop"')]


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
    patient = Patient(Job(config, transactions.select(transactions.judged[::2]), encoder_of(config.model)), None)
    found = diagnosed(np.zeros(30), [patient.untuned], seconds=600, queries=len(patient.train.queries))
    assert found.worth_changing[0].startswith(cause)
    assert json.loads(json.dumps(found.to_dict()))["queries"] == len(patient.train.queries)


# Which settings are tried


def tried(config, candidates="all", usual="all", **more):
    return [
        change.values
        for change in ablations(
            Resolved(TuneConfig(**config), candidates, usual, **{"layers": 6, "frozen": 3, "usually_frozen": 3, **more})
        )
    ]


def test_settings_of_the_user_are_tried_with_their_defaults_first_and_the_cheapest_of_a_kind_first():
    assert tried({}) == [
        {"tune.epochs": 2},
        {"tune.learning_rate": 0.0008},
        {"tune.learning_rate": 5e-05},
        {"tune.freeze": 0},
        {"tune.epochs": 8},
    ]
    found = tried({"learning_rate": 0.1, "dropout": 0.5, "epochs": 40})
    assert {"tune.learning_rate": 2e-4} in found[:3]
    assert {"tune.dropout": 0.0} in found[:3]
    assert found[0] == {"tune.epochs": 4}
    assert found[3:] == [{"tune.freeze": 0}]
    assert tried({"freeze": 0}, frozen=0)[0] == {"tune.freeze": "auto"}
    assert tried({"candidates": "batch"}, "batch", "all", frozen=0)[0] == {"tune.candidates": "all"}
    assert {"tune.mined_margin": 0.95} in tried({}, "mined", "mined", frozen=0)
    assert tried({"method": "adapter", "scale": 1.0}) == [{"tune.scale": 14.0}, {"tune.method": "full"}]
    # Other candidates bring the epochs and the learning rate that go with them.
    [other] = [row for row in ablations(Resolved(TuneConfig(candidates="batch"), "batch", "all")) if "tune.candidates" in row.values]
    assert (other.config.epochs, other.config.learning_rate) == (4, 2e-4)


# False alarms


def trained(rng, queries, folds, noise):
    """Return the scores of a training that differs from others by chance alone."""
    offsets = rng.normal(0, noise, folds.max() + 1)[folds]
    values = np.clip(0.6 + queries + offsets + rng.normal(0, 0.1, len(queries)), 0, 1)
    return Scores("", tuple(map(str, range(len(queries)))), {"mrr@10": values}, np.ones(len(queries), int))


def test_of_eight_settings_that_do_nothing_one_is_named_in_at_most_one_case_of_forty():
    rng, folds = np.random.default_rng(0), np.arange(60) % 3
    counted = naive = 0
    for _ in range(100):
        queries = rng.normal(0, 0.2, 60)
        base = [trained(rng, queries, folds, 0.05) for _ in range(3)]
        others = [trained(rng, queries, folds, 0.05) for _ in range(8)]
        counted += any(row.verdict == "better" for row in compare_all(base, others, metric="mrr@10", family=8, folds=folds))
        naive += any(row.verdict == "better" for row in compare_all(base[:1], others, metric="mrr@10", family=1))
    assert scipy.stats.binomtest(counted, 100, 0.025, alternative="greater").pvalue > 0.01
    assert naive > 20  # as it would be without counting settings and trainings


# A whole run


THINGS = {
    "fruit": "apple banana cherry grape lemon mango melon orange peach pear",
    "tools": "hammer saw drill wrench screwdriver pliers chisel axe shovel rake",
    "animals": "dog cat horse cow sheep goat rabbit mouse lion tiger",
    "weather": "rain snow storm wind sun fog hail thunder lightning cloud",
    "clothes": "shirt jacket trousers skirt hat scarf gloves shoes socks coat",
    "music": "piano guitar violin trumpet drums flute harp cello saxophone clarinet",
    "countries": "france germany italy spain japan china brazil canada egypt india",
    "vehicles": "car truck bus train bicycle motorcycle boat airplane tram van",
}


@pytest.fixture(scope="module")
def spoilt(tiny_model, tmp_path_factory):
    """A run with a template that leaves out what documents are about, and a learning rate that changes nothing."""
    pairs = [(f"about the {thing}", kind) for kind, things in THINGS.items() for thing in things.split()]
    queries = {f"q{number}": Query(f"q{number}", text) for number, (text, _) in enumerate(pairs)}
    documents = {kind: Document(kind, f"entry {number}", metadata={"about": kind}) for number, kind in enumerate(THINGS)}
    return run(
        Dataset(queries, documents, {f"q{number}": {kind: 1} for number, (_, kind) in enumerate(pairs)}),
        model={"name": str(tiny_model), "precision": "fp32"},
        output=str(tmp_path_factory.mktemp("runs")),
        split={"test": 0.2},
        tune={"learning_rate": 1e-7, "epochs": 12, "batch_size": 16},
        evaluate={"bm25": False},
        searcher={"views": ["documents"]},
        general={"measure": "off"},
    )


def test_planted_settings_are_named_after_small_trainings_and_a_diagnosis_goes_on_where_it_stopped(spoilt, said, monkeypatch):
    monkeypatch.setattr(ablating, "_FOLDS", 2)
    monkeypatch.setattr(ablating, "_SEEDS", 2)
    nothing = diagnose_run(spoilt.folder, minutes=0)
    assert nothing.trials == ()
    found = diagnose_run(spoilt.folder, minutes=5)
    assert "tune.learning_rate = 0.0002" in found.worth_changing, found.lines
    assert 'data.document_template = "{title} {text}: {about}"' in found.worth_changing
    assert {trial.how for trial in found.trials} == {"without tuning", "after tuning"}
    assert json.loads(json.dumps(found.to_dict()))["queries"] == found.queries == 80 - len(spoilt.comparison.base.query_ids)
    [kept] = [path for path in (spoilt.folder / "doctor").iterdir() if path.is_dir()]
    files = {path: path.stat().st_mtime_ns for path in kept.glob("*.json")}
    assert not list(kept.glob("trainings/*"))
    code, out, _ = said("doctor", spoilt.folder, "--minutes", "5", "--json")
    assert (code, json.loads(out)) == (0, json.loads(json.dumps(found.to_dict())))
    assert {path: path.stat().st_mtime_ns for path in kept.glob("*.json")} == files
