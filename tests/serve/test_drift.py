"""Drift and position bias: shown where they are, and not by chance."""

import random

import numpy as np
import pytest
from loop_data import expenses
from scipy import stats
from serve_data import searcher

from embedfit.evaluation.shift import shift
from embedfit.serve.drift import drift_of, likeness
from embedfit.serve.feedback import Feedback, Search, new_id
from embedfit.serve.metering import Meters
from embedfit.serve.service import Service
from embedfit.serve.settings import Settings
from embedfit.serve.summary import summarise


def test_queries_of_the_same_source_raise_no_alarm_and_those_of_another_do(words):
    alarms = 0
    for seed in range(100):
        rows = [text for text, _ in expenses(100, seed)]
        known, today = words.encode(rows[:50], "query"), words.encode(rows[50:], "query")
        before = likeness(known, known, [[place] for place in range(50)])  # each is held out once
        alarms += shift("x", before, likeness(today, known), seed=seed).shown
    assert alarms <= stats.binom.ppf(0.999, 100, 0.05)
    other = words.encode([f"order {number} of zorbing vouchers for the staff party" for number in range(50)], "query")
    assert shift("x", before, likeness(other, known)).shown


def search(store, text, *, probability, place=1, model="m", hits=5):
    shown = [{"id": f"d{n}", "score": -n, "probability": probability if n == 0 else 0.0, "because": []} for n in range(hits)]
    asked = Search(new_id(), text, None, "", "api", model, shown, 1.0, probability < 0.3)
    store.record([asked])
    store.pick(asked.id, f"d{place - 1}")


def test_answers_that_get_worse_are_drift(tmp_path):
    store = Feedback(tmp_path / "f.db")
    random_one = random.Random(0)
    for number in range(120):
        old = number < 60
        search(
            store,
            f"text {number}",
            probability=random_one.uniform(0.2, 1.0) if old else random_one.uniform(0.0, 0.5),
            place=1 if old else 3,
        )
        search(store, f"text {number}", probability=0.0, place=5)  # the same text again says nothing new
    summary = summarise(store, drift_of(store, None))
    assert {one.name: one.shown for one in summary.drift} == {"no answer": True, "probability": True, "1 / place": True}
    place = summary.drift[2]
    assert (place.before, round(place.after, 2), place.counts) == (1.0, 0.33, (60, 60))
    assert "Drift is shown: '1 / place' was 1.00 and is 0.33 (p = 0.0015)." in summary.sentences
    search(store, "by another version", probability=0.5, model="n")
    assert drift_of(store, None) == ()  # too few searches by the newest version
    store.close()


def asked_often(words, tmp_path, share, times):
    """Return (document ids as shown, recorded probability) of answers to one query."""
    service = Service(searcher(words), Settings("x", explore=share), Meters(), None)
    service._random = random.Random(0)
    [hits] = service.searcher.search(service.searcher.searcher.encode(["uber"]), 3)
    shown = []
    for _ in range(times):
        answer, probability = service._answer(service.searcher, "uber", list(hits))
        shown.append((tuple(hit.id for hit in answer.hits), probability))
    return tuple(hit.id for hit in hits), shown


def test_each_order_is_shown_as_often_as_its_recorded_probability_says(words, tmp_path):
    for share in (0.1, 0.5, 1.0):
        ranked, shown = asked_often(words, tmp_path, share, 6000)
        probability = dict(shown)
        assert len(set(shown)) == len(probability) == 6  # one probability for each order
        assert sum(probability.values()) == pytest.approx(1)
        assert probability[ranked] == max(probability.values())
        counts = np.array([sum(order == one for one, _ in shown) for order in probability])
        expected = np.array(list(probability.values())) * len(shown)
        assert stats.chisquare(counts, expected).pvalue > 0.001
    assert {probability for _, probability in asked_often(words, tmp_path, 0.0, 5)[1]} == {1.0}


def test_picks_of_the_first_place_whatever_stands_there_are_seen_in_random_orders(tmp_path):
    alarms = []
    for biased in (True, False):
        store = Feedback(tmp_path / f"{biased}.db")
        random_one = random.Random(1)
        for number in range(60):
            order = [f"d{place}" for place in range(5)]
            random_one.shuffle(order)
            shown = [{"id": id, "score": 0.0, "probability": 0.2, "because": []} for id in order]
            one = Search(new_id(), f"text {number}", None, "", "api", "m", shown, 0.01, False)
            store.record([one])
            store.pick(one.id, order[0] if biased and number % 2 else "d0")
        explored = summarise(store).explored
        assert (explored.picks, round(explored.expected, 3)) == (60, 0.2)
        alarms.append(explored.p < 0.01)
        store.close()
    assert alarms == [True, False]
