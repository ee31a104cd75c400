import itertools
from collections import Counter

import numpy as np
import pytest
from rapidfuzz import fuzz

from embedfit.data.dataset import Dataset, normalised
from embedfit.encode.local import LocalEncoder, ModelEncoder, load_model
from embedfit.errors import ConfigError, ModelError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.score import Scores, score_run
from embedfit.retrieve.retrievers import BM25Retriever, DenseRetriever
from embedfit.samples import GENERAL
from embedfit.studies.forgetting import Forgetting, Point, choose_weight, general_set, measure_forgetting, merged_runs
from embedfit.tune.merge import Merges


@pytest.fixture(scope="module")
def general():
    return general_set()


# The set


def test_every_query_is_judged_and_every_passage_asked_for(general):
    assert len(general.queries) >= 200
    assert general.judged == tuple(general.queries)
    assert {document for id in general.judged for document in general.relevant(id)} == set(general.corpus)
    assert all(len(general.relevant(id)) == 1 for id in general.judged)


def test_the_docstring_says_how_large_it_is(general):
    fields = {id.rpartition("-")[0] for id in general.corpus}
    said = f"{len(general.queries)} questions over {len(general.corpus)} short passages of {len(fields)} fields"
    assert said in general_set.__doc__
    assert Counter(id.rpartition("-")[0] for id in general.corpus).most_common()[-1][1] >= 3  # none stands alone in its field


def test_no_id_stands_twice_in_a_file():
    for name in ("corpus.jsonl", "queries.jsonl"):
        lines = (GENERAL / name).read_text(encoding="utf-8").splitlines()
        assert len({line.split('"')[3] for line in lines}) == len(lines)


def test_passages_are_short_and_no_two_texts_are_nearly_the_same(general):
    passages, questions = general.document_texts(), general.query_texts()
    assert all(30 <= len(text.split()) <= 60 for text in passages)
    assert all(text.endswith("?") for text in questions)
    for texts in (passages, questions):
        for one, other in itertools.combinations(map(normalised, texts), 2):
            assert fuzz.ratio(one, other) < 85, (one, other)


def test_words_alone_do_not_find_the_passages(general):
    found = score_run(BM25Retriever().search(general, 10), general.qrels)
    assert found.mean("recall@1") < 0.4


@pytest.mark.slow
def test_there_is_room_to_fall_and_to_rise_from_the_base_model(general):
    found = score_run(DenseRetriever(LocalEncoder("all-MiniLM-L6-v2")).search(general, 10), general.qrels)
    assert 0.75 <= found.mean("recall@1") <= 0.95


# Choosing


@pytest.mark.parametrize(
    ("curve", "keep", "expected"),
    [
        (lambda w: 1 - 0.1 * w, 0.89, 1.0),  # nothing to give up
        (lambda w: 1 - 0.1 * w, 0.9, 1.0),  # exactly enough
        (lambda w: 1 - 0.1 * w, 0.95, 0.5),
        (lambda w: 1 - 0.1 * w, 0.98, 0.2),  # between two of the weights given
        (lambda w: 1 - 0.1 * w, 0.941, 0.55),
        (lambda w: 1 - w, 1.0, 0.0),  # only the base model
        (lambda w: 0.8 + 0.4 * w * (1 - w) - 0.1 * w, 1.0, 0.75),  # better halfway than at either end
        (lambda w: 0.8 - 0.4 * w * (1 - w), 0.99, 1.0),  # worse halfway
        (lambda w: 0.0, 0.98, 1.0),
    ],
)
def test_the_largest_weight_that_keeps_the_share_is_chosen(curve, keep, expected):
    assert choose_weight(curve, (0, 0.25, 0.5, 0.75, 1), keep) == expected


def test_few_weights_are_scored_beyond_those_given():
    asked = []

    def score(weight):
        asked.append(weight)
        return 1 - 0.1 * weight

    choose_weight(score, (0, 0.25, 0.5, 0.75, 1), 0.98)
    assert set(asked) == {0, 0.25, 0.5, 0.75, 1, 0.2}
    assert choose_weight(lambda weight: 1 - 0.1 * weight, (0, 1), 0.98) == 0.2


# What is said


def scores(name, values):
    values = np.array(values, float)
    return Scores(name, tuple(f"q{i}" for i in range(len(values))), {"mrr@10": values}, (values > 0).astype(int))


def forgetting(tuned=0.5, keep=None, weight=1.0):
    """Twenty general queries that the base model answers all, and the tuned model with a score of ``tuned`` each."""
    points = (Point(0, 1.0, 0.4), Point(0.5, (1 + tuned) / 2, 0.7), Point(1, tuned, 0.8))
    return Forgetting(points, compare_scores(scores("base", [1.0] * 20), scores("tuned", [tuned] * 20)), keep, weight)


def test_a_loss_is_said_and_warned_of_with_its_figures():
    said = (
        "General retrieval fell: MRR@10 from 1.000 to 0.500 (50.0% kept; difference -0.500, 95% interval -0.585 to -0.245, p = 0.0002) "
        "on 20 queries that are unlike the task."
    )
    assert forgetting().sentence == said
    assert forgetting().warning.startswith(said)
    assert "--keep 0.98" in forgetting().warning


def test_the_chosen_merge_is_said_with_both_of_its_scores_and_needs_no_warning():
    found = forgetting(keep=0.7, weight=0.5)
    assert found.sentence.endswith(
        "The largest weight of the tuned model that keeps 70.0% is 0.5 (75.0% kept); "
        "on the task's held-out queries its MRR@10 is 0.700 (0.400 base, 0.800 tuned)."
    )
    assert found.warning is None


def test_a_loss_that_may_be_chance_needs_no_warning():
    base, tuned = scores("base", [1.0] * 20), scores("tuned", [1.0] * 15 + [0.5] * 5)
    found = Forgetting((Point(0, 1.0), Point(1, 0.875)), compare_scores(base, tuned))
    assert found.comparison.verdict == "no difference shown"  # with five losses and no win, p is at least 1 / 16
    assert found.comparison["mrr@10"].high >= 0
    assert found.warning is None


def test_no_loss_shown_needs_no_warning():
    found = forgetting(tuned=1.0)
    assert found.sentence.startswith("No change of general retrieval shown: MRR@10 is 1.000 before and 1.000 after (100.0% kept")
    assert found.warning is None


def test_it_is_warned_of_when_only_the_base_model_keeps_enough():
    assert "nothing of the tuning is left" in forgetting(keep=0.98, weight=0).warning


def test_the_frame_has_a_row_for_each_weight_and_marks_the_chosen_one():
    frame = forgetting(keep=0.7, weight=0.5).to_frame()
    assert frame.weight.tolist() == [0, 0.5, 1]
    assert frame.kept.tolist() == [1, 0.75, 0.5]
    assert frame.task.tolist() == [0.4, 0.7, 0.8]
    assert frame.chosen.tolist() == [False, True, False]


def test_the_plot_has_a_dot_for_each_weight_and_a_line_where_enough_is_kept(tmp_path):
    found = forgetting(keep=0.7, weight=0.5)
    axes = found.plot().axes[0]
    assert [tuple(offset) for offset in axes.collections[0].get_offsets()] == [(1.0, 0.4), (0.75, 0.7), (0.5, 0.8)]
    assert [text.get_text() for text in axes.texts] == ["base", "0.5", "tuned"]
    assert axes.lines[-1].get_xdata() == [0.7, 0.7]
    alone = Forgetting(tuple(Point(point.weight, point.general) for point in found.points), found.comparison)
    axes = alone.plot().axes[0]
    assert [tuple(offset) for offset in axes.collections[0].get_offsets()] == [(0, 1.0), (0.5, 0.75), (1, 0.5)]


# Measuring


@pytest.fixture(scope="module")
def moved(tiny_model, tmp_path_factory):
    """Two models like the tiny one that tuning has moved, by different ways."""
    import torch

    encoders = []
    for seed in range(2):
        model, generator = load_model(tiny_model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.transformers_model.encoder.parameters():
                parameter += 0.04 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path_factory.mktemp("moved") / "model"
        model.save_pretrained(str(folder), create_model_card=False)
        encoders.append(LocalEncoder(folder, precision="fp32"))
    return encoders


@pytest.fixture(scope="module")
def some(general):
    """The first 60 general queries, and the passages that are right for one of them."""
    asked = general.select(list(general.queries)[:60])
    corpus = {id: general.corpus[id] for query in asked.queries for id in asked.relevant(query)}
    return Dataset(asked.queries, corpus, asked.qrels)


@pytest.fixture(scope="module")
def base(tiny_model):
    return LocalEncoder(tiny_model, precision="fp32")


def test_out_of_fold_every_part_is_ranked_by_its_own_model(base, moved, some):
    ids = list(some.queries)
    parts = [some.select(ids[:10]), some.select(ids[10:30])]
    runs = merged_runs(base, list(zip(moved, parts, strict=True)), [0, 1], "{text}", 10)
    for weight, models in ((0, [base, base]), (1, moved)):
        assert runs[weight].query_ids == tuple(ids[:30])
        alone = [DenseRetriever(model, "{text}").search(part, 10).ranked for model, part in zip(models, parts, strict=True)]
        np.testing.assert_array_equal(runs[weight].ranked, np.concatenate(alone))


def test_both_axes_are_those_of_the_models_by_themselves(base, moved, some):
    ids = list(some.queries)
    asked, task = some.select(ids[:40]), some.select(ids[40:])
    found = measure_forgetting(base, moved[0], asked, held_out=[(moved[0], task)], weights=(0.5,))
    assert [point.weight for point in found.points] == [0, 0.5, 1]

    def mrr(encoder, dataset):
        return score_run(DenseRetriever(encoder).search(dataset, 10), dataset.qrels).mean("mrr@10")

    for point, encoder in ((found.base, base), (found.tuned, moved[0])):
        assert (point.general, point.task) == (mrr(encoder, asked), mrr(encoder, task))
    assert (found.keep, found.weight) == (None, 1.0)
    assert found.comparison.base.name == base.name


def test_by_default_base_and_tuned_are_scored_alone_and_encode_the_general_set_once(base, moved, some, monkeypatch):
    monkeypatch.setattr(Merges, "loaded", lambda *_: pytest.fail("merged"))
    asked, task = some.select(list(some.queries)[:40]), some.select(list(some.queries)[40:])
    first = measure_forgetting(base, moved[0], asked, held_out=[(moved[0], task)])
    assert [point.weight for point in first.points] == [0, 1]
    monkeypatch.setattr(ModelEncoder, "encode", lambda *_: pytest.fail("encoded"))
    assert measure_forgetting(base, moved[0], asked, held_out=[(moved[0], task)]).to_dict() == first.to_dict()


def test_the_task_has_no_say_in_the_choice(base, moved, some):
    ids = list(some.queries)
    asked = some.select(ids[:40])
    kept = [
        measure_forgetting(base, moved[0], asked, held_out=held_out, keep=0.98) for held_out in ([], [(moved[1], some.select(ids[50:]))])
    ]
    assert len({one.weight for one in kept}) == 1
    assert 0 < kept[0].weight < 1
    assert kept[0].kept(kept[0].chosen) >= 0.98
    above = [point for point in kept[0].points if point.weight > kept[0].weight]
    assert above
    assert all(kept[0].kept(point) < 0.98 for point in above)


@pytest.mark.parametrize("keep", [0, 1.1, -1])
def test_a_share_to_keep_that_is_none_is_refused(base, moved, some, keep):
    with pytest.raises(ConfigError, match="expected a share over 0 and at most 1"):
        measure_forgetting(base, moved[0], some, keep=keep)


def test_a_weight_that_is_none_and_an_unknown_metric_are_refused(base, moved, some):
    with pytest.raises(ConfigError, match="expected a number from 0"):
        measure_forgetting(base, moved[0], some.select(list(some.queries)[:5]), weights=(1.5,))
    with pytest.raises(ConfigError, match="metric 'mrr@7' is unknown"):
        measure_forgetting(base, moved[0], some, metric="mrr@7")


def test_a_model_that_is_not_the_tuned_base_is_refused(base, tiny_model, some):
    with pytest.raises(ModelError, match="cannot be merged"):
        measure_forgetting(base, LocalEncoder(tiny_model, query_prompt="query: ", precision="fp32"), some)
