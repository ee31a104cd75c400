"""Whether enough is labelled: measured on items that were drawn at random, without their own labels, and never in the way of a pick."""

import asyncio
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from serve_data import documents, searcher, serving
from test_picker import item_of, posted, search_of

from embedfit.searcher.fusion import Fusion
from embedfit.searcher.views import Asked
from embedfit.serve.enough import FIRST, Labelled, learn, next_size
from embedfit.serve.labelling import Labelling
from embedfit.serve.picker import Item

IDS = sorted(documents().corpus)


def labelled(encoder, n, seed=0, *, learnable=True, random=3):
    """Return items of a word of their own and a word that tells the document, or with labels by chance."""
    rng = np.random.default_rng(seed)
    places = rng.integers(len(IDS), size=n)
    words = [f"kind{place if learnable else ''} number{row}" for row, place in enumerate(places)]
    return Labelled(Asked(words, encoder.encode(words, "query"), None), places, np.arange(n) % random == 0)


def parts(encoder):
    return searcher(encoder).without_feedback()


def test_what_can_be_learnt_is_learnt_and_forecast(word_encoder):
    progress = learn(parts(word_encoder), labelled(word_encoder, 96, random=1))
    curve, threshold = progress.outlook.curve, progress.outlook.threshold
    assert [point.pairs for point in curve.points] == [0, 12, 24, 48, 96]
    assert curve.points[0].value < 0.5 < 0.95 < curve.points[-1].value
    assert curve.queries == 96
    assert threshold.coverage > 0.9
    assert progress.outlook.is_enough
    now, then = curve.points[-1], curve.forecasts[0]
    assert progress.outlook.sentences == [
        f"First answer right: {now.value:.0%} ({now.low:.0%} to {now.high:.0%}), on 96 random items.",
        f"With 100 more labels: about {then.value:.0%} ({then.low:.0%} to {then.high:.0%}). More labels bring little: enough is labelled.",
        f"Without a person, at 95% precision: {threshold.coverage:.0%} of the items.",
    ]
    assert progress.outlook.line.split()[-1] == f"100.0,{100 - 100 * now.value:.1f}"
    assert progress.parts.calibrator is not None


def test_no_item_is_measured_with_its_own_label(word_encoder):
    """Labels by chance: whoever looks at an item's own label is right each time."""
    outlook = learn(parts(word_encoder), labelled(word_encoder, 100, learnable=False, random=1)).outlook
    assert outlook.curve.points[-1].value < 0.4
    assert outlook.threshold.value is None
    assert outlook.sentences[1:] == ["It is too early for a forecast.", "Without a person, at 95% precision: none yet."]


def test_without_enough_random_items_nothing_is_said_and_weights_are_learnt_all_the_same(word_encoder):
    few = labelled(word_encoder, 30)
    progress = learn(parts(word_encoder), few)
    assert progress.outlook is None
    assert progress.parts.fusion != parts(word_encoder).fusion
    nothing = replace(few, documents=np.full(30, -1))
    assert learn(parts(word_encoder), replace(nothing, random=np.ones(30, bool))).outlook.curve.points[-1].value == 0


def test_a_runs_weights_stay(word_encoder):
    class Same:
        def probabilities(self, scores):
            return np.full(scores.shape, 1 / scores.shape[1])

    fusion = Fusion({"warm": {"documents": 1.0, "examples": 9.0}, "new": {"documents": 1.0, "examples": 9.0}, "cold": {"documents": 2.0}})
    run = replace(parts(word_encoder), calibrator=Same(), fusion=fusion)
    progress = learn(run, labelled(word_encoder, 60))
    assert progress.parts.fusion is fusion
    assert progress.parts.calibrator is run.calibrator
    assert progress.outlook.curve.points[-1].value > progress.outlook.curve.points[0].value


def test_the_sizes_at_which_it_is_measured():
    sizes = [FIRST]
    while sizes[-1] < 200:
        sizes.append(next_size(sizes[-1]))
    assert sizes == [20, 30, 45, 68, 102, 153, 230]


def test_the_page_shows_it_and_no_pick_waits_for_it(word_encoder, tmp_path, monkeypatch):
    free, started = threading.Event(), threading.Event()

    def slow(*arguments):
        started.set()
        assert free.wait(30)
        return learn(*arguments)

    monkeypatch.setattr("embedfit.serve.labelling.learn", slow)
    items = [f"kind{number % 3} number{number}" for number in range(60)]
    with serving(searcher(word_encoder), tmp_path, Labelling("items", items, tmp_path / "l.jsonl")) as client:
        page = client.get("/")
        for done in range(60):
            text = re.search(r'class="item"[^>]*>(.*?)</div>', page.text)[1].strip()
            page = posted(client, "pick", page, search=search_of(page), choice=("taxi", "food", "cloud")[int(text[4])], item=item_of(page))
            assert f"{done + 1} of 60 labelled" in page.text
        assert started.is_set()
        assert "random items" not in page.text
        free.set()
        deadline = time.monotonic() + 60
        while "random items" not in page.text:
            assert time.monotonic() < deadline
            page = client.get("/")
        assert "Learning curve" in page.text
        assert "Without a person, at 95% precision: " in page.text


def test_one_item_in_three_is_drawn_at_random_and_a_restart_draws_the_same(word_encoder, tmp_path):
    items = [f"item{number}" for number in range(90)]
    drawn = []
    for people in (1, 2):
        with serving(searcher(word_encoder), tmp_path, labelling := Labelling("items", items, tmp_path / "l.jsonl", people)):
            drawn.append(dict(labelling._drawn))

            async def first(count, labelling=labelling):
                shown = []
                for _ in range(count):
                    item = await labelling.next("Ann")
                    assert isinstance(item, Item)
                    shown.append(item.number)
                    labelling._by[item.number].add("Ann")
                return shown

            labelling._service.batcher.call = lambda function, *arguments: asyncio.to_thread(function, *arguments)
            shown = asyncio.run(first(30))
    assert drawn[0] == drawn[1]
    assert 15 < len(drawn[0]) < 45
    assert sum(number in drawn[0] for number in shown) == pytest.approx(10, abs=1)
