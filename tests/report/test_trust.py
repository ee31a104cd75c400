"""The page about answers that need no person."""

import numpy as np
import pytest

from embedfit.evaluation.calibrate import calibrate
from embedfit.report.pages import trust_axes, trust_html


def calibrated(queries, share_right, without_answer=0):
    rng = np.random.default_rng(0)
    scores = np.stack([rng.uniform(1, 6, queries), np.zeros(queries), np.zeros(queries)], axis=1)
    relevant = np.zeros(scores.shape, bool)
    relevant[np.arange(queries), np.where(rng.random(queries) < share_right, 0, 1)] = True
    relevant[:without_answer] = False
    assessed = calibrate(scores, relevant)
    return assessed.trust.threshold, assessed.evidence


def test_it_says_how_many_queries_need_no_person():
    threshold, evidence = calibrated(300, 0.99)
    page = trust_html("Trust", threshold, evidence)
    assert f"Of 100 queries, {100 * threshold.coverage:.0f} (" in page
    assert "at least 95 in 100 are right (with 95% confidence)" in page
    assert page.count('<circle class="chosen"') == 1
    assert page.count('<circle class="t"') == len(evidence.reliability.bins)
    assert "have no answer" not in page


def test_it_says_why_none_can_go_without_a_check_and_what_queries_without_an_answer_get():
    threshold, evidence = calibrated(40, 0.9, without_answer=4)
    page = trust_html("Trust", threshold, evidence)
    assert "No answer can go without a check yet: 95% precision cannot be promised" in page
    assert 'class="chosen"' not in page
    assert "4 queries have no answer. 0 of 100 such queries" in page


@pytest.mark.parametrize(("queries", "share_right"), [(2, 0.5), (60, 0.05), (60, 1)])
def test_everything_is_within_the_charts(queries, share_right):
    threshold, evidence = calibrated(queries, share_right)
    charts = trust_axes(threshold, evidence)
    for point in charts["curve"]:
        assert 66 <= charts["x"].at(point.coverage) <= 596
        for value in (point.low, point.precision, point.high):
            assert 40 <= charts["y"].at(value) <= 336
    assert trust_html("Trust", threshold, evidence)
