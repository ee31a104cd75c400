"""The searcher on the bundled transactions, with the vectors of a small real model."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.split import group_numbers
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ConfigError, DataError, ModelError, StorageError
from embedfit.evaluation.calibration import Calibrator
from embedfit.searcher.fusion import Evidence, Fusion, fit_fusion, folds_of
from embedfit.searcher.gather import Corpus, Examples, Views
from embedfit.searcher.learn import Learnt, cross_fitted, run_of_evidence
from embedfit.searcher.parts import Parts
from embedfit.searcher.searcher import Searcher
from embedfit.searcher.views import (
    BASE,
    CLASSES,
    DOCUMENTS,
    EXAMPLES,
    TERMS,
    WORDS,
    Asked,
    ExamplesView,
    TermsView,
    _piece_counter,
    _word_counter,
)
from embedfit.template import Template

TEMPLATE = "{category}"


@pytest.fixture(scope="module")
def model(tiny_model):
    return CachedEncoder(LocalEncoder(tiny_model, precision="fp32"))


@pytest.fixture(scope="module")
def folds(transactions):
    """Query ids, and the number of each one's fold and group."""
    ids = np.array(transactions.judged, dtype=object)
    numbers = group_numbers(transactions, None)
    groups = np.array([numbers[id] for id in ids])
    return ids, folds_of(groups, 0), groups


@pytest.fixture(scope="module")
def evidence(transactions, model, folds):
    """What the views say about each transaction, from the others."""
    ids, fold, _ = folds
    corpus = Corpus.of(transactions, model, TEMPLATE)
    parts = []
    for number in range(5):
        known, asked = transactions.select(ids[fold != number]), transactions.select(ids[fold == number])
        views = Views.fit(corpus, Examples.of(known, model, corpus.ids))
        parts.append(views.gather(asked, model, corpus.ids))
    return Evidence.joined(parts)


@pytest.fixture(scope="module")
def parts(transactions, model, evidence):
    learnt = Learnt.of(evidence)
    corpus = Corpus.of(transactions, model, TEMPLATE)
    examples = Examples.of(transactions, model, corpus.ids)
    views = Views.fit(corpus, examples, scale=learnt.scale)
    calibrator = Calibrator.fit(learnt.scores(evidence), evidence.relevant)
    template = Template("{merchant_name} {memo}", missing="unknown")
    return Parts(
        model, transactions.corpus, corpus, examples, views, learnt.fusion, TEMPLATE, query_template=template, calibrator=calibrator
    )


@pytest.fixture
def searcher(parts):
    return Searcher(parts)


def right_first(evidence, scores):
    return evidence.relevant[np.arange(len(evidence)), np.asarray(scores).argmax(axis=1)].mean()


def groups_of(transactions, evidence):
    numbers = group_numbers(transactions, None)
    return np.array([numbers[id] for id in evidence.query_ids])


# The views


def test_examples_are_a_soft_maximum_between_their_mean_and_the_nearest():
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    view = ExamplesView(vectors, np.array([2, 0, 2]), np.array([0, 1, 2]), 3, 10.0)
    [[first, second, third]] = view.scores(Asked(["q"], np.array([[1, 0]], np.float32)))
    assert first == pytest.approx(0.6, abs=1e-6)
    assert np.isnan(second)
    assert third == pytest.approx(np.log((np.exp(10) + 1) / 2) / 10, abs=1e-6)
    assert view.at(1e-3).scores(Asked(["q"], vectors[:1]))[0, 2] == pytest.approx(0.5, abs=1e-3)
    assert view.at(80).scores(Asked(["q"], vectors[:1]))[0, 2] == pytest.approx(1 - np.log(2) / 80, abs=1e-3)


def test_an_example_with_several_answers_speaks_for_each():
    data = Dataset({"a": "x", "b": "y"}, {"d1": "one", "d2": "two"}, {"a": {"d1": 1, "d2": 1}, "b": {"d2": 1}})
    encoder = np.eye(2, dtype=np.float32)

    class Plain:
        name = fingerprint = "plain"

        def encode(self, texts, kind):
            return encoder[[int(text == "y") for text in texts]]

    examples = Examples.of(data, Plain(), ["d1", "d2"])
    assert sorted(zip(examples.owners.tolist(), examples.members.tolist(), strict=True)) == [(0, 0), (1, 0), (1, 1)]
    view = ExamplesView(examples.vectors, examples.owners, examples.members, 2, 60.0)
    scores = view.scores(Asked(["x"], encoder[:1]))
    assert scores[0, 0] > scores[0, 1] > 0.9


def test_terms_read_as_scikit_learn_does_and_survive_their_parts(evidence, transactions):
    texts, labels = transactions.query_texts(), np.arange(len(transactions.queries)) % 3
    view = TermsView.fit(texts, labels, 5)
    again = TermsView(view.vocabularies, view.rarities, view.weights, view.biases, view.classes, 5)
    scores = view.scores(Asked(texts[:20], np.empty((20, 0), np.float32)))
    np.testing.assert_allclose(scores, again.scores(Asked(texts[:20], np.empty((20, 0), np.float32))), rtol=1e-5)
    np.testing.assert_allclose(np.exp(scores[:, :3]).sum(axis=1), 1, rtol=1e-5)
    assert np.isnan(scores[:, 3:]).all()
    assert TermsView.fit(["", " "], np.array([0, 1]), 2) is None


# The weights


def test_weights_of_a_known_model_are_found_again():
    rng = np.random.default_rng(0)
    n, m = 3000, 8
    cosines, examples = rng.normal(0, 0.2, (n, m)).astype(np.float32), rng.normal(0, 0.2, (n, m)).astype(np.float32)
    chances = softmax(6 * cosines + 12 * examples, axis=1)
    right = (chances.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    relevant = np.arange(m) == right[:, None]
    noise = rng.normal(size=(n, m)).astype(np.float32)
    scores = {DOCUMENTS: cosines, EXAMPLES: examples, WORDS: noise}
    evidence = Evidence(tuple(map(str, range(n))), np.tile(np.arange(m), (n, 1)), scores, examples, relevant)
    fusion = fit_fusion(evidence)
    assert fusion.weights["warm"][DOCUMENTS] == pytest.approx(6, abs=0.8)
    assert fusion.weights["warm"][EXAMPLES] == pytest.approx(12, abs=0.8)
    assert WORDS not in fusion.views  # it does not help
    assert Fusion.from_dict(json.loads(json.dumps(fusion.to_dict()))) == fusion


def test_without_queries_the_usual_weights_hold(evidence):
    fusion = fit_fusion(evidence.take(np.zeros(0, np.int64)))
    assert fusion.weights["warm"][DOCUMENTS] > 0
    assert right_first(evidence, fusion.scores(evidence.scores)) > right_first(evidence, evidence.scores[DOCUMENTS])


def test_views_together_are_better_than_the_documents_out_of_fold(transactions, evidence):
    groups = groups_of(transactions, evidence)
    scores = cross_fitted(evidence, groups)
    assert right_first(evidence, scores) > right_first(evidence, evidence.scores[DOCUMENTS]) + 0.3
    assert right_first(evidence, scores) >= right_first(evidence, np.nan_to_num(evidence.scores[TERMS], nan=-99)) - 0.02


def test_shuffled_labels_teach_nothing(transactions, evidence):
    rng = np.random.default_rng(0)
    shuffled = replace(evidence, relevant=evidence.relevant[rng.permutation(len(evidence))])
    scores = cross_fitted(shuffled, groups_of(transactions, evidence))
    assert right_first(shuffled, scores) < 0.12


def test_a_document_without_examples_does_not_starve(transactions, model, folds):
    ids, fold, _ = folds
    rng = np.random.default_rng(1)
    corpus = Corpus.of(transactions, model, TEMPLATE)
    cold = set(rng.choice(list(corpus.ids), 6, replace=False))
    is_cold = np.array([not cold.isdisjoint(transactions.relevant(id)) for id in ids])
    parts = []
    for number in range(5):
        known = transactions.select(ids[(fold != number) & ~is_cold])
        views = Views.fit(corpus, Examples.of(known, model, corpus.ids))
        parts.append(views.gather(transactions.select(ids[fold == number]), model, corpus.ids))
    everything = Evidence.joined(parts)
    labelled = np.array([cold.isdisjoint(transactions.relevant(id)) for id in everything.query_ids])
    learnt = Learnt.of(everything.take(labelled))
    unseen = everything.take(~labelled)
    by_documents, fused = right_first(unseen, unseen.scores[DOCUMENTS]), right_first(unseen, learnt.scores(unseen))
    assert fused >= by_documents - 2 * np.sqrt(by_documents * (1 - by_documents) / len(unseen))


def test_many_documents_are_searched_by_their_best_candidates(model):
    rng = np.random.default_rng(0)
    words = ["red", "green", "blue", "car", "boat", "bike", "house", "tree", "river", "stone"]
    corpus = {f"d{n:04}": " ".join(rng.choice(words, 4)) + f" {n}" for n in range(1200)}
    queries = {f"q{n}": f"{corpus[f'd{n * 7:04}']} please" for n in range(60)}
    data = Dataset(queries, corpus, {f"q{n}": {f"d{n * 7:04}": 1} for n in range(60)})
    documents = Corpus.of(data, model, "{text}")
    known = data.select([f"q{n}" for n in range(30)])
    views = Views.fit(documents, Examples.of(known, model, documents.ids))
    assert set(views.views) == {DOCUMENTS, EXAMPLES, WORDS}  # no label repeats
    evidence = views.gather(data.select([f"q{n}" for n in range(30, 60)]), model, documents.ids)
    assert evidence.candidates.shape[1] < 400
    learnt = Learnt.of(evidence)
    searcher = Searcher(Parts(model, data.corpus, documents, Examples.of(known, model, documents.ids), views, learnt.fusion, "{text}"))
    run = searcher.rank(data.select([f"q{n}" for n in range(30, 60)]), 10)
    same = run_of_evidence(evidence, learnt.scores(evidence), documents.ids, 10)
    assert np.mean([run.documents_at(row)[0] == same.documents_at(row)[0] for row in range(30)]) == 1
    assert np.mean([data.relevant(id).keys() <= set(run.documents(id)) for id in run.query_ids]) > 0.9


# The searcher


def test_a_hit_has_a_probability_and_says_why(searcher, transactions):
    text = transactions.query_texts()[0]
    hits = searcher.search(text, k=3)
    assert [hit.id for hit in hits] == [hit.id for hit in sorted(hits, key=lambda hit: -hit.score)]
    assert 0 < hits[2].probability <= hits[0].probability < 1
    reasons = {reason.kind: reason for reason in hits[0].because}
    assert reasons["example"].text == text
    assert reasons["example"].score == pytest.approx(1, abs=1e-5)
    assert reasons["document"].text == hits[0].text
    assert sum(hit.probability for hit in searcher.search(text, k=27)) == pytest.approx(1, abs=0.3)


def test_one_query_and_many_find_the_same_and_only_what_is_allowed(searcher, transactions):
    texts = transactions.query_texts()[:5]
    together = searcher.search_many(texts, k=4)
    for text, hits in zip(texts, together, strict=True):
        assert [(hit.id, round(hit.score, 3)) for hit in searcher.search(text, k=4)] == [(hit.id, round(hit.score, 3)) for hit in hits]
    worst = together[0][-1]
    [only] = searcher.search(texts[0], k=4, allowed=[worst.id])
    assert (only.id, round(only.probability, 4)) == (worst.id, round(worst.probability, 4))


def test_a_record_is_searched_as_its_template_says(searcher):
    record = {"merchant_name": "Uber", "memo": None, "amount": 12}
    assert searcher.text_of(record) == "Uber unknown"
    assert searcher.search(record)[0].id == searcher.search("Uber unknown")[0].id


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "a text that is not empty"),
        (" ", "not empty"),
        (5, "is 5"),
        ({}, "has none of the fields merchant_name, memo"),
        ({"x": 1}, "has none"),
        (
            {"merchant_name": "Uber", "Memo": "taxi"},
            "has no field 'memo', but 'Memo'; expected a record of the fields merchant_name, memo; fix",
        ),
    ],
)
def test_a_wrong_query_is_one_line(searcher, query, message):
    with pytest.raises(DataError, match=message):
        searcher.search(query)


def test_other_wrong_requests_are_one_line(searcher, transactions):
    with pytest.raises(ConfigError, match="k is 0"):
        searcher.search("x", k=0)
    with pytest.raises(DataError, match="known id"):
        searcher.search("x", allowed=["nowhere"])
    with pytest.raises(DataError, match="names the document"):
        searcher.add("x", "nowhere")
    with pytest.raises(DataError, match="is unknown"):
        searcher.remove("nothing")
    with pytest.raises(DataError, match="other documents"):
        searcher.rank(Dataset({"q": "x"}, {"d": "y"}, {}), 3)


def test_an_example_counts_at_the_next_search_and_can_be_taken_back(searcher):
    query = "quarterly zebra rental"
    before = [hit.id for hit in searcher.search(query, k=27)]
    last = before[-1]
    key = searcher.add(query, last)
    assert [hit.id for hit in searcher.search(query, k=27)].index(last) < 10
    searcher.remove(key)
    assert [hit.id for hit in searcher.search(query, k=27)] == before


def test_a_new_label_is_found_by_its_text_and_by_three_examples(searcher):
    searcher.add_document(Document("Zoo", "Zoo", metadata={"category": "Zoo animals and their food"}))
    assert searcher.search("food for zoo animals", k=1)[0].id == "Zoo"
    for text in ("zebra leasing 4471", "zebra leasing 9902", "zebra leasing annual"):
        searcher.add(text, "Zoo")
    assert searcher.search("zebra leasing 1234", k=1)[0].id == "Zoo"
    searcher.add_document(Document("Zoo", "Zoo", metadata={"category": "Menagerie"}))
    assert searcher.parts.corpus.texts[searcher.parts.corpus.ids.index("Zoo")] == "Menagerie"
    assert len(searcher.parts.documents) == 28


# The folder


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    return Searcher(parts).save(tmp_path_factory.mktemp("searchers") / "searcher")


def test_a_searcher_in_a_folder_answers_alike_in_a_fresh_process_wherever_it_stands(folder, searcher, transactions, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    texts = transactions.query_texts()[:3]
    program = """
import json, sys
from embedfit.searcher.searcher import Searcher
hits = Searcher.load(sys.argv[1]).search_many(json.loads(sys.argv[2]), k=3)
print(json.dumps([[(hit.id, round(hit.score, 3), round(hit.probability, 3), hit.because[0].text) for hit in some] for some in hits]))
"""
    done = subprocess.run([sys.executable, "-c", program, moved, json.dumps(texts)], capture_output=True, text=True, check=True)
    here = [
        [[hit.id, round(hit.score, 3), round(hit.probability, 3), hit.because[0].text] for hit in hits]
        for hits in searcher.search_many(texts, k=3)
    ]
    assert json.loads(done.stdout) == here


def test_without_texts_the_vectors_alone_are_kept(searcher, transactions, tmp_path):
    place = searcher.without_texts().save(tmp_path / "private")
    secret = transactions.query_texts()[0].splitlines()[0].removeprefix("Name: ")
    for path in place.glob("examples.parquet"):
        assert secret.encode() not in path.read_bytes()
    private = Searcher.load(place)
    hits = private.search(transactions.query_texts()[0])
    assert hits[0].id == searcher.search(transactions.query_texts()[0])[0].id
    assert {reason.text for hit in hits for reason in hit.because if reason.kind == "example"} == {""}


def test_a_damaged_folder_is_refused(folder, tmp_path):
    for change, error, message in [
        (lambda place: (place / "vectors.npz").unlink(), DataError, "missing or damaged"),
        (lambda place: (place / "pairs.parquet").write_bytes(b"x"), DataError, "missing or damaged"),
        (lambda place: (place / "searcher.json").write_text("{}"), DataError, "is no searcher"),
        (lambda place: shutil.rmtree(place), DataError, "is no searcher"),
        (lambda place: _changed(place / "model" / "config_sentence_transformers.json"), ModelError, "another model"),
    ]:
        place = tmp_path / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        change(place)
        with pytest.raises(error, match=message):
            Searcher.load(place)


def _changed(path):
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "prompts": {"query": "other: ", "document": ""}, "extra": 1}))


def test_a_folder_of_something_else_stays(searcher, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="something else"):
        searcher.save(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_an_encoder_of_ones_own_stays_in_memory(parts, word_encoder, tmp_path):
    with pytest.raises(ModelError, match="cannot be saved"):
        Searcher(replace(parts, encoder=word_encoder)).save(tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


def test_queries_without_an_answer_are_no_examples(model):
    data = Dataset({"a": Query("a", "x"), "b": Query("b", "y")}, {"d": "one", "e": "two"}, {"a": {"d": 1}, "b": {"d": 0}})
    assert Examples.of(data, model, ["d", "e"]).query_ids == ("a",)


def test_the_view_of_the_base_model_reads_its_own_vectors(transactions, model, word_encoder):
    corpus = Corpus.of(transactions, model, TEMPLATE)
    examples = Examples.of(transactions, model, corpus.ids, word_encoder)
    views = Views.fit(corpus, examples, (CLASSES, BASE))
    texts = transactions.query_texts()[:4]
    asked = Asked(texts, model.encode(texts, "query"), word_encoder.encode(texts, "query"))
    scores = views.scores(asked)
    assert views.views[BASE].weights.shape[1] == 64
    assert not np.allclose(scores[BASE], scores[CLASSES])


TERM_TEXTS = ["Uber: taxi to the AIRPORT", "coffee  at\tNobu's", "Straße ΑΣ İstanbul", "東京 タクシー", "servers and storage", "a b"]


@given(st.lists(st.one_of(st.sampled_from(TERM_TEXTS), st.text(max_size=80)), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_terms_are_counted_as_scikit_learn_counts_them(texts):
    from scipy.sparse import hstack

    view = TermsView.fit(TERM_TEXTS * 2, np.arange(6).repeat(2) % 3, 3)
    counters = [_word_counter(view.vocabularies[0]), _piece_counter(view.vocabularies[1])]
    for counter, rarity in zip(counters, view.rarities, strict=True):
        counter.idf_ = rarity
    logits = hstack([counter.transform(texts) for counter in counters]) @ view.weights.T + view.biases
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for _ in range(2):  # the second time, the terms of a word are known
        assert np.allclose(view.scores(Asked(texts, np.zeros((len(texts), 1), np.float32))), expected, atol=1e-4)
