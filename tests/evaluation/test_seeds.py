"""Several seeds of one training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from comparisons import scores_of, three_seeds, trained
from matplotlib.container import ErrorbarContainer

from embedfit.errors import EmbedfitError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison


def test_one_seed_in_a_list_is_that_seed_alone():
    base, [tuned, *_] = three_seeds(0.1)
    alone, listed = compare_scores(base, tuned), compare_scores(base, [tuned])
    assert listed.differences == alone.differences
    assert listed.tuned is tuned
    assert listed.seeds is None


def test_seeds_are_averaged_for_each_query_before_anything_is_counted():
    # The first query is won by one seed and lost by the other, the second won by one alone, the third lost by both.
    found = compare_scores(trained([0.5, 0.5, 0.5]), [trained([1, 1, 0]), trained([0, 0.5, 0])])
    assert (found["mrr@10"].wins, found["mrr@10"].ties, found["mrr@10"].losses) == (1, 1, 1)
    assert found.tuned.values["mrr@10"] == pytest.approx([0.5, 0.75, 0])
    assert found.seeds.count == 2
    assert found.seeds.means["mrr@10"] == (2 / 3, 0.5 / 3)
    assert found.seeds.spread["mrr@10"] == pytest.approx(0.5 / np.sqrt(2))
    # The gaps of the mean are 0, 1/4 and -1/2.
    assert found.seeds.query_error["mrr@10"] == pytest.approx(np.std([0, 0.25, -0.5], ddof=1) / np.sqrt(3))


def test_a_querys_rank_is_the_median_of_the_seeds_and_of_two_middle_ones_the_worse():
    ranks = [[1, 1, 0, 2], [1, 3, 0, 0], [5, 2, 1, 1]]
    runs = [trained([0.5] * 4, row) for row in ranks]
    assert compare_scores(runs[0], runs).tuned.ranks.tolist() == [1, 2, 0, 2]
    assert compare_scores(runs[0], runs[:2]).tuned.ranks.tolist() == [1, 3, 0, 0]


def test_the_interval_covers_the_choice_of_seeds():
    widths, ps = [], []
    for spread in (0, 0.02, 0.1):
        found = compare_scores(*three_seeds(spread))["mrr@10"]
        assert found.difference == pytest.approx(0.1, abs=0.01)
        widths.append(found.high - found.low)
        ps.append(found.p)
    assert widths[0] < widths[1] < widths[2]
    assert ps[0] < 0.001
    assert ps[2] > 0.05
    # Seeds of 0, -0.1 and 0.1 alone, with two degrees of freedom: the error of the queries is under a tenth of theirs.
    assert widths[2] / 2 == pytest.approx(scipy.stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3), rel=0.06)


def test_seeds_that_agree_change_nothing():
    base, runs = three_seeds(0)
    alone, found = compare_scores(base, runs[0])["mrr@10"], compare_scores(base, runs)["mrr@10"]
    assert (found.low, found.high, found.detectable) == pytest.approx((alone.low, alone.high, alone.detectable))


def test_the_sentence_says_what_seeds_and_queries_come_to():
    base, runs = three_seeds(0.02)
    sentence = compare_scores(base, runs, held_out=True).sentence
    assert "on 200 held-out queries, mean of 3 seeds: " in sentence
    assert sentence.endswith(" worse. Standard deviation over seeds 0.020, standard error over queries 0.003.")


def test_a_comparison_of_seeds_is_read_back_from_json():
    base, runs = three_seeds(0.02)
    for found in (compare_scores(base, runs, metric="recall@1", held_out=True), compare_scores(base, runs[0])):
        read = Comparison.from_dict(json.loads(json.dumps(found.to_dict())), found.base, found.tuned)
        assert replace(read, base=found.base, tuned=found.tuned) == found
        assert read.sentence == found.sentence


def test_a_comparison_of_another_version_is_refused_in_one_line():
    found = compare_scores(scores_of([0, 0.5]), scores_of([1, 0.5]))
    said = found.to_dict()
    del said["differences"][0]["detectable"]
    with pytest.raises(
        EmbedfitError, match="the comparison has no key 'detectable': another version of embedfit wrote it; fix: run the comparison again"
    ):
        Comparison.from_dict(said, found.base, found.tuned)


def test_seeds_of_other_queries_and_no_seed_at_all_are_refused():
    with pytest.raises(EmbedfitError, match="only scores of the same queries"):
        compare_scores(trained([1, 1]), [trained([1, 1]), trained([1, 1, 1])])
    with pytest.raises(EmbedfitError, match="there are no scores to compare with"):
        compare_scores(trained([1, 1]), [])


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_whisker_spans_the_interval_over_the_bases_level(seeds):
    base, runs = three_seeds(0.02)
    found = compare_scores(base, runs[:seeds])
    axes = found.plot().axes[0]
    [bars] = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    [whisker] = bars.lines[2][0].get_segments()
    recall = found["recall@1"]
    assert whisker[:, 1] == pytest.approx([recall.base + recall.low, recall.base + recall.high])
    dots = [line for line in axes.lines if line.get_label() == "one seed"]
    assert [sorted(line.get_ydata()) for line in dots] == ([sorted(found.seeds.means["recall@1"])] if seeds > 1 else [])
