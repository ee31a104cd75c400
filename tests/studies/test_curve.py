import json
from collections import Counter

import numpy as np
import pytest

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.split import Split, split_folds
from embedfit.errors import ConfigError, DataError, StorageError
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import Run
from embedfit.studies.curve import learning_curve, nested_order
from embedfit.studies.forecast import fit_curve

PAIRS = [0, 25, 50, 100, 200, 400]


def planted(pairs, *, start=0.4, top=0.9, middle=150, steepness=1.0, queries=400, noise=0.0, seed=0):
    """Return values (queries, points) of a metric that is 0 or 1, whose expectation is a Morgan-Mercer-Flodin curve."""
    rng = np.random.default_rng(seed)
    truth = top - (top - start) / (1 + (np.array(pairs) / middle) ** steepness)
    truth = truth + noise * rng.standard_normal(len(pairs))
    # Each query has its own difficulty, the same at every point, as test queries do.
    return (rng.random(queries)[:, None] < truth).astype(float)


def power_law(pairs, *, c=0.92, a=2.0, b=0.4, shift=20):
    return c - a * (np.array(pairs, float) + shift) ** -b


# Forecasts


def test_a_planted_power_law_is_recovered_within_the_interval():
    truth = power_law([500, 700, 1400])
    hits, found = np.zeros(3), []
    for seed in range(12):
        difficulty = np.random.default_rng(seed).random(1000)
        forecasts = fit_curve(PAIRS, (difficulty[:, None] < power_law(PAIRS)).astype(float), seed=seed).forecasts
        hits += [forecast.low <= right <= forecast.high for forecast, right in zip(forecasts, truth, strict=True)]
        found.append([forecast.value for forecast in forecasts])
    assert hits.min() >= 11
    np.testing.assert_allclose(np.mean(found, axis=0), truth, atol=0.02)


def test_queries_of_one_group_are_drawn_together():
    values = planted(PAIRS, queries=100)
    alone, together = (fit_curve(PAIRS, values.repeat(5, axis=0), groups=groups).points[-1] for groups in (None, np.arange(100).repeat(5)))
    once = fit_curve(PAIRS, values).points[-1]
    assert (together.low, together.high) == pytest.approx((once.low, once.high))
    assert together.high - together.low > 1.8 * (alone.high - alone.low)


def test_a_curve_that_starts_slowly_is_recovered_too():
    truth = 0.9 - 0.5 / (1 + (700 / 200) ** 1.8)
    found = [fit_curve(PAIRS, planted(PAIRS, middle=200, steepness=1.8, seed=seed, queries=1000)).forecasts[1] for seed in range(6)]
    assert sum(one.low <= truth <= one.high for one in found) >= 5
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=0.015)


@pytest.mark.parametrize("means", [[0.7, 0.8, 0.88, 0.94, 0.98], [0.5, 0.62, 0.61, 0.6, 0.59]])
def test_more_pairs_never_forecast_less_and_never_above_one(means):
    difficulty = np.random.default_rng(0).random(120)
    curve = fit_curve([0, 10, 20, 40, 80], (difficulty[:, None] < np.array(means)).astype(float), more=[10, 100, 1000, 100_000])
    for points in (curve.fitted, curve.forecasts):
        for name in ("value", "low", "high"):
            found = [getattr(point, name) for point in points]
            assert found == sorted(found)
            assert max(found) <= 1
    gains = [forecast.gain for forecast in curve.forecasts]
    assert gains == sorted(gains)


def test_the_gain_has_a_narrower_interval_than_the_score():
    [forecast] = fit_curve(PAIRS, planted(PAIRS, queries=100), more=[100]).forecasts
    assert forecast.low < forecast.value < forecast.high
    assert forecast.gain_high - forecast.gain_low < 0.6 * (forecast.high - forecast.low)


def test_farther_is_less_certain():
    curve = fit_curve(PAIRS, planted(PAIRS, noise=0.01))
    widths = [forecast.gain_high - forecast.gain_low for forecast in curve.forecasts]
    assert widths == sorted(widths)
    assert [forecast.pairs for forecast in curve.forecasts] == [500, 700, 1400]


def test_points_are_means_with_the_interval_of_the_queries():
    values = planted(PAIRS)
    curve = fit_curve(PAIRS, values)
    assert [point.pairs for point in curve.points] == PAIRS
    for point, column in zip(curve.points, values.T, strict=True):
        assert point.value == pytest.approx(column.mean())
        error = 1.96 * column.std() / np.sqrt(len(column))
        assert (point.low, point.high) == pytest.approx((column.mean() - error, column.mean() + error), abs=0.006)


@pytest.mark.parametrize(
    ("means", "says"),
    [
        ([0.5, 0.5, 0.5, 0.5, 0.5], "shows no gain over the untrained model yet"),
        ([0.6, 0.55, 0.5, 0.45, 0.4], "shows no gain over the untrained model yet"),
        ([0.2, 0.9, 0.2, 0.9, 0.6], "follow no learning curve"),
        ([0.2, 0.5, 0.6], "3 points are too few"),
    ],
)
def test_where_nothing_can_be_said_nothing_is_claimed(means, says):
    difficulty = np.random.default_rng(0).random(500)
    pairs = [0, 50, 100, 200, 400][: len(means)]
    curve = fit_curve(pairs, (difficulty[:, None] < np.array(means)).astype(float))
    assert says in curve.problem
    assert curve.forecasts == curve.fitted == ()
    assert curve.sentence.startswith(f"No forecast: {curve.problem}. MRR@10 is ")
    assert len(curve.to_frame()) == len(means)
    curve.plot()


def test_the_sentence_says_score_interval_and_what_it_is_now():
    curve = fit_curve(PAIRS, planted(PAIRS))
    then = curve.forecasts[1]
    assert curve.sentence == (
        f"With 300 more labelled pairs, MRR@10 would be about {then.value:.2f} ({then.low:.2f} to {then.high:.2f}), "
        f"{then.gain:.2f} more ({then.gain_low:.2f} to {then.gain_high:.2f}) than with the 400 there are."
    )


def test_a_curve_is_a_table_a_picture_and_json():
    curve = fit_curve(PAIRS, planted(PAIRS))
    frame = curve.to_frame()
    assert list(frame.kind) == ["measured"] * 6 + ["forecast"] * 3
    assert list(frame.columns) == ["kind", "metric", "pairs", "value", "low", "high"]
    said = json.loads(json.dumps(curve.to_dict()))
    assert said["forecasts"][0].keys() >= {"more", "pairs", "value", "low", "high", "gain"}
    assert curve.plot().axes[0].get_ylabel() == "MRR@10"


def test_the_same_seed_gives_the_same_forecast():
    values = planted(PAIRS)
    assert fit_curve(PAIRS, values) == fit_curve(PAIRS, values)


# Subsets


def labelled(counts, *, prefix="q"):
    """Return a data set with so many queries for each label."""
    queries, qrels = {}, {}
    for label, count in counts.items():
        for number in range(count):
            id = f"{prefix}-{label}-{number}"
            queries[id], qrels[id] = Query(id, f"{label} number{number}"), {label: 1}
    return Dataset(queries, {label: Document(label, label) for label in counts}, qrels)


def test_every_beginning_covers_all_labels_before_any_twice_and_then_in_proportion():
    data = labelled({"a": 60, "b": 30, "c": 9, "d": 1})
    order = nested_order(data, data.judged)
    assert sorted(order) == sorted(data.judged)
    assert {id.split("-")[1] for id in order[:4]} == {"a", "b", "c", "d"}
    for size in range(4, 101):
        counts = Counter(id.split("-")[1] for id in order[:size])
        for label, total in {"a": 60, "b": 30, "c": 9, "d": 1}.items():
            assert abs(counts[label] - size * total / 100) <= 2


def test_another_seed_is_another_order_and_the_same_seed_the_same():
    data = labelled({"a": 20, "b": 20})
    assert nested_order(data, data.judged, 1) == nested_order(data, data.judged, 1)
    assert nested_order(data, data.judged, 1) != nested_order(data, data.judged, 2)


# The whole way, with a stub for the training


class Learner:
    """Knows the words of the documents, and of each training query as often as it was trained on it."""

    def __init__(self, encoder):
        self.encoder, self.asked = encoder, []

    def __call__(self, train, test, folder):
        self.asked.append(tuple(train.queries))
        (folder / "weights").write_text("large")
        corpus = {
            id: Document(id, " ".join([id, *(train.queries[query].text for query in train.queries if id in train.qrels[query])]))
            for id in test.corpus
        }
        return DenseRetriever(self.encoder, "{text}").search(Dataset(test.queries, corpus, test.qrels), 10)


@pytest.fixture
def shop():
    rng = np.random.default_rng(0)
    queries, qrels = {}, {}
    labels = [f"label{number}" for number in range(6)]
    for number in range(240):
        label = int(rng.integers(6))
        words = [f"w{label}x{rng.integers(12)}" if rng.random() < 0.6 else f"w{rng.integers(6)}x{rng.integers(12)}" for _ in range(3)]
        queries[f"q{number:03}"], qrels[f"q{number:03}"] = Query(f"q{number:03}", " ".join(words)), {labels[label]: 1}
    return Dataset(queries, {label: Document(label, label) for label in labels}, qrels)


@pytest.fixture
def base(shop, word_encoder):
    return DenseRetriever(word_encoder, "{text}").search(shop, 10)


def test_subsets_are_nested_scored_on_the_same_queries_and_no_model_is_kept(shop, base, word_encoder, tmp_path):
    learner = Learner(word_encoder)
    split = Split(tuple(shop.queries)[:160], (), tuple(shop.queries)[160:])
    for name in ("10-0", "160-0"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "notes").write_text("mine")
    curve = learning_curve(shop, [split], learner, tmp_path, base=base, metric="recall@1")
    assert len(list(tmp_path.glob("work/*/notes"))) == 2  # somebody else's, with the names that subsets have
    assert [point.pairs for point in curve.points] == [0, 10, 20, 40, 80, 160]
    assert [len(asked) for asked in learner.asked] == [10, 20, 40, 80, 160]
    for smaller, larger in zip(learner.asked, learner.asked[1:], strict=False):
        assert set(smaller) < set(larger)
    assert set(learner.asked[-1]) == set(split.train)
    for asked in learner.asked:
        assert len({min(shop.qrels[id]) for id in asked}) == 6
    assert curve.queries == 80
    assert curve.points[-1].value > curve.points[0].value + 0.2
    assert not list(tmp_path.rglob("weights"))


def test_a_killed_curve_goes_on_where_it_was(shop, base, word_encoder, tmp_path):
    split = Split(tuple(shop.queries)[:160], (), tuple(shop.queries)[160:])
    whole = learning_curve(shop, [split], Learner(word_encoder), tmp_path / "whole", base=base)

    class Killed(Learner):
        def __call__(self, train, test, folder):
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().__call__(train, test, folder)

    with pytest.raises(KeyboardInterrupt):
        learning_curve(shop, [split], Killed(word_encoder), tmp_path / "killed", base=base)
    again = Learner(word_encoder)
    assert learning_curve(shop, [split], again, tmp_path / "killed", base=base) == whole
    assert [len(asked) for asked in again.asked] == [40, 80, 160]
    done = Learner(word_encoder)
    assert learning_curve(shop, [split], done, tmp_path / "killed", base=base) == whole
    assert done.asked == []


def test_a_folder_with_another_curve_is_refused(shop, base, word_encoder, tmp_path):
    split = Split(tuple(shop.queries)[:160], (), tuple(shop.queries)[160:])
    learning_curve(shop, [split], Learner(word_encoder), tmp_path, base=base, sizes=[20], identity="full")
    with pytest.raises(StorageError, match="holds a curve of other data or another training"):
        learning_curve(shop, [split], Learner(word_encoder), tmp_path, base=base, sizes=[20], identity="adapter")
    with pytest.raises(StorageError, match="holds a curve of other data or another training"):
        learning_curve(shop, [split], Learner(word_encoder), tmp_path, base=base, sizes=[20], identity="full", seed=1)


def test_with_folds_every_query_is_scored_by_a_model_that_never_saw_it(shop, base, word_encoder, tmp_path):
    class Honest(Learner):
        def __call__(self, train, test, folder):
            assert not set(train.queries) & set(test.queries)
            return super().__call__(train, test, folder)

    splits = split_folds(shop, 4, dev=0)
    learner = Honest(word_encoder)
    curve = learning_curve(shop, splits, learner, tmp_path, base=base, metric="recall@1")
    smallest = min(len(split.train) for split in splits)
    assert [point.pairs for point in curve.points] == [0, *(smallest // part for part in (16, 8, 4, 2, 1))]
    assert len(learner.asked) == 20
    assert curve.queries == 240
    # The point at 0 is the untrained model on the same queries, whatever their order.
    first = {id: row for row, id in enumerate(base.query_ids)}
    hits = [base.document_ids[base.ranked[first[id], 0]] in shop.qrels[id] for id in shop.queries]
    assert curve.points[0].value == pytest.approx(np.mean(hits))


def test_sizes_that_there_are_not_enough_queries_for_are_refused(shop, base, word_encoder, tmp_path):
    split = Split(tuple(shop.queries)[:160], (), tuple(shop.queries)[160:])
    with pytest.raises(ConfigError, match="expected numbers from 1 to 160"):
        learning_curve(shop, [split], Learner(word_encoder), tmp_path, base=base, sizes=[20, 200])
    few = Split(tuple(shop.queries)[:5], (), tuple(shop.queries)[160:])
    with pytest.raises(DataError, match="has 5 training queries; expected at least 8"):
        learning_curve(shop, [few], Learner(word_encoder), tmp_path, base=base)
    with pytest.raises(ConfigError, match="metric 'mrr' is unknown"):
        learning_curve(shop, [split], Learner(word_encoder), tmp_path, base=base, metric="mrr")


def test_a_training_that_searches_other_queries_is_refused(shop, base, word_encoder, tmp_path):
    split = Split(tuple(shop.queries)[:160], (), tuple(shop.queries)[160:])

    def wrong(train, test, folder):
        found = Learner(word_encoder)(train, test, folder)
        return Run(found.query_ids[::-1], found.document_ids, found.ranked, found.scores)

    with pytest.raises(ConfigError, match="must return a Run of the test queries"):
        learning_curve(shop, [split], wrong, tmp_path, base=base)


def test_a_curve_shows_itself_in_a_notebook():
    assert "<table" in fit_curve(PAIRS, planted(PAIRS))._repr_html_()
