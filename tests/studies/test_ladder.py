import json
from dataclasses import replace

import numpy as np
import pytest

from embedfit.config import make_config
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.split import split_dataset, split_folds
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ConfigError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.score import Scores
from embedfit.searcher.searcher import Searcher
from embedfit.studies.handed_over import recommended_searcher
from embedfit.studies.ladder import Ladder, Rung, climb, kept_run
from embedfit.studies.methods import METHODS, Setting, richer_template

FROZEN = ("bm25", "words", "base", "richer", "fused", "nearest", "centroids", "vectors", "searcher", "documents", "adapter")
NAMES, RICHER = "{category}", "{category}: {sample_transactions}"


@pytest.fixture(scope="module")
def setting(tiny_model):
    config = make_config({"data": {"queries": "-"}, "tune": {"epochs": 1}})
    return Setting(LocalEncoder(tiny_model), config, NAMES, RICHER)


@pytest.fixture(scope="module")
def some(transactions):
    """120 transactions of all labels."""
    return transactions.select(transactions.judged[:120])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ladder")


@pytest.fixture(scope="module")
def ladder(setting, some, folder):
    return climb(setting, some, split_folds(some, 2), folder, FROZEN)


def test_every_rung_is_measured_on_the_same_held_out_queries_in_order_of_cost(ladder, some):
    assert [rung.key for rung in ladder.rungs] == list(FROZEN)
    assert sorted(ladder.rungs[0].scores.query_ids) == sorted(some.judged)
    assert len({rung.scores.query_ids for rung in ladder.rungs}) == 1
    assert ladder.folds == 2


def test_each_rung_is_compared_with_the_one_below_and_p_values_are_adjusted(ladder):
    assert ladder.rungs[0].below is None
    for lower, upper in zip(ladder.rungs, ladder.rungs[1:], strict=False):
        plain = compare_scores(lower.scores, upper.scores, metric="mrr@10")["mrr@10"]
        assert upper.below.difference == pytest.approx(upper.scores.mean("mrr@10") - lower.scores.mean("mrr@10"))
        assert (upper.below.low, upper.below.high) == pytest.approx((plain.low, plain.high))
        assert upper.below.p >= plain.p


def test_learning_from_training_queries_pays_and_untrained_rungs_take_no_time(ladder):
    assert ladder["adapter"].scores.mean("mrr@10") > ladder["base"].scores.mean("mrr@10") + 0.05
    assert ladder["base"].seconds == ladder["bm25"].seconds == 0
    assert ladder["words"].seconds > 0
    # A query of BM25 is not encoded, one of the base model is.
    assert ladder["bm25"].query_milliseconds < ladder["base"].query_milliseconds


def test_the_same_ladder_again_measures_nothing(ladder, setting, some, folder, monkeypatch):
    monkeypatch.setattr("embedfit.studies.ladder.METHODS", {key: METHODS[key] for key in FROZEN})
    for name in ("retrieve.retrievers.BM25Retriever", "retrieve.retrievers.DenseRetriever", "searcher.fit.SearcherRetriever"):
        monkeypatch.setattr(f"embedfit.{name}.search", lambda *_: pytest.fail("searched"))
    again = climb(setting, some, split_folds(some, 2), folder, FROZEN)
    for rung, before in zip(again.rungs, ladder.rungs, strict=True):
        np.testing.assert_array_equal(rung.scores.values["mrr@10"], before.scores.values["mrr@10"])
        assert rung.seconds == before.seconds


def test_what_it_says_is_json_and_a_frame_with_a_row_for_each_rung(ladder):
    said = json.loads(json.dumps(ladder.to_dict(), default=float))
    assert [rung["key"] for rung in said["rungs"]] == list(FROZEN)
    assert said["recommended"] in FROZEN
    frame = ladder.to_frame()
    assert list(frame.key) == list(FROZEN)
    assert frame["difference"].isna().tolist() == [True] + [False] * 10
    assert ladder.sentence in ladder._repr_html_()
    assert ladder.plot().axes[0].get_yticklabels()[0].get_text().startswith("BM25")


def test_any_rung_can_be_handed_over_as_a_searcher_that_ranks_as_it_was_measured(setting, some, tmp_path):
    split = split_dataset(some)
    train, _, test = split.datasets(some)
    measured = climb(setting, some, [split], tmp_path, [key for key in FROZEN if key != "richer"])
    for rung in measured.rungs:
        searcher = recommended_searcher(replace(measured, recommended=rung.key), setting, some, [split], tmp_path)
        loaded = Searcher.load(searcher.save(tmp_path / "saved" / rung.key))
        kept, again = kept_run(tmp_path / f"{rung.key}.npz")[0], loaded.rank(test, 10)
        same = [again.documents(id)[:1] == kept.documents(id)[:1] for id in again.query_ids if kept.documents(id)]
        assert np.mean(same) >= (0.9 if rung.key == "adapter" else 1), rung.key  # its map is in the model then, which may compute in bf16
        [hit, *_] = loaded.search(next(iter(test.queries.values())).text, 3)
        assert 0 <= hit.probability <= 1
    assert len(loaded.parts.examples.query_ids) == len(train.queries)


def test_with_folds_what_is_handed_over_knows_every_query(ladder, setting, some, folder):
    for key in ("searcher", "centroids"):
        searcher = recommended_searcher(replace(ladder, recommended=key), setting, some, split_folds(some, 2), folder)
        assert len(searcher.parts.examples.query_ids) == len(some.judged)
        assert searcher.parts.threshold.precision == 0.95


def scores(name, values):
    values = np.array(values, float)
    return Scores(name, tuple(map(str, range(len(values)))), {"recall@1": values, "mrr@10": values}, values.astype(int))


def test_the_sentence_says_whether_the_recommended_rung_is_the_best_or_as_good():
    low, high = scores("low", [0, 1] * 20), scores("high", [1] * 40)
    rungs = (Rung("bm25", "BM25", "", low, 0, 1), Rung("full", "full fine-tuning", "", high, 9, 1))
    assert Ladder(rungs, "mrr@10", "full", {}, 1).sentence == (
        "Recommended: full fine-tuning (MRR@10 1.000), the best; every simpler one is worse by more than chance on these 40 queries."
    )
    assert "BM25 (MRR@10 0.500): the simplest that is not shown to be worse than the best, full fine-tuning (1.000)" in (
        Ladder(rungs, "mrr@10", "bm25", {}, 1).sentence
    )


def test_what_the_data_does_not_allow_is_left_out_with_the_reason(setting, tmp_path):
    words = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"]
    queries = {f"q{word}": Query(f"q{word}", f"where does the {word} live") for word in words}
    data = Dataset(queries, {word: Document(word, f"the {word} at home") for word in words}, {f"q{word}": {word: 1} for word in words})
    plain = Setting(setting.base, setting.config, "{text}", richer_template(data, "{text}"))
    found = climb(plain, data, [split_dataset(data, dev=0)], tmp_path, ("bm25", "words", "base", "richer"))
    assert [rung.key for rung in found.rungs] == ["bm25", "base"]
    assert found.skipped == {
        "TF-IDF classifier": "labels hardly repeat",
        "base, richer documents": "the documents have no other field of text",
    }


def test_an_unknown_rung_and_a_single_one_are_refused(setting, some, tmp_path):
    with pytest.raises(ConfigError, match=r"rung 'ful' is unknown; did you mean 'full'\?"):
        climb(setting, some, [split_dataset(some)], tmp_path, ("ful",))
    with pytest.raises(ConfigError, match="needs two rungs or more, there are 1"):
        climb(setting, some, [split_dataset(some)], tmp_path, ("bm25",))


def test_the_richer_template_adds_what_is_not_said_yet(transactions):
    assert richer_template(transactions, NAMES) == "{category}: {sample_transactions}. {departments}"
    assert richer_template(transactions, "{category} {sample_transactions} {departments}") is None


@pytest.mark.slow
def test_tuned_rungs_are_trained_once_for_each_fold_and_merged_from_the_full_one(setting, some, tmp_path):
    found = climb(setting, some, [split_dataset(some)], tmp_path, ("base", "queries", "lora", "full", "merged", "full-richer"))
    assert [rung.key for rung in found.rungs] == ["base", "queries", "lora", "full", "merged", "full-richer"]
    assert found["merged"].seconds == found["full"].seconds
    assert found["full"].scores.mean("mrr@10") != found["full-richer"].scores.mean("mrr@10")
    assert (tmp_path / "full" / "0" / "model" / "modules.json").exists()
    assert LocalEncoder(tmp_path / "queries" / "0" / "model").identity == setting.base.identity
