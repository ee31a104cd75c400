import numpy as np
import pytest

from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.retrieve.engine import LocalEngine
from embedfit.tune import mine as module
from embedfit.tune.candidates import BatchAndOthers, has_judged_negatives
from embedfit.tune.mine import Guards, MinedCandidates, mine, steps_between_minings


class Placed:
    """An encoder that puts each text on the unit circle, at an angle in degrees that the text itself says last."""

    name = fingerprint = "placed"

    def encode(self, texts, kind):
        angles = np.radians([float(text.split()[-1]) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def circle(degrees, qrels=None):
    """One query at 0 degrees, and documents at these."""
    corpus = {f"d{i}": Document(f"d{i}", f"text {i} at {angle}") for i, angle in enumerate(degrees)}
    return Dataset({"q": Query("q", "0")}, corpus, {"q": qrels or {"d0": 1}})


def found(degrees, qrels=None, count=2, **guards):
    return mine(Placed(), circle(degrees, qrels), "{text}", count=count, guards=Guards(**guards))[0].tolist()


def test_the_nearest_documents_that_are_not_right_are_the_hardest_first():
    assert found([5, 80, 30, 20, 60]) == [3, 2]


def test_a_document_nearer_than_the_right_one_may_be_an_unlabelled_answer():
    assert found([20, 10, 30]) == [2, -1]
    assert found([20, 10, 30], margin=2.0) == [1, 2]


def test_the_margin_is_a_share_of_the_least_similar_right_answer():
    # cos 60 is 0.5; nine tenths of it are 0.45, the cosine of 63.3 degrees.
    assert found([0, 60, 62, 64], {"d0": 1, "d1": 1}, margin=0.9) == [3, -1]
    assert found([0, 60, 62, 64], {"d0": 1, "d1": 1}) == [2, 3]
    # Of a right answer on the other side, the cosine is negative, and a margin must lie below it, not above.
    assert found([120, 121, 135], margin=0.9) == [2, -1]


def test_a_near_duplicate_of_the_right_answer_is_no_negative():
    words = "one two three four five six seven eight nine ten eleven twelve"
    corpus = {"a": Document("a", f"{words} 10"), "b": Document("b", f"{words.replace('two', '2')} 10"), "c": Document("c", "else 30")}
    data = Dataset({"q": Query("q", "0")}, corpus, {"q": {"a": 1}})
    assert mine(Placed(), data, "{text}", count=2, guards=Guards())[0].tolist() == [2, -1]


def test_a_judge_takes_out_what_it_finds_as_relevant_as_the_right_answer():
    def judge(pairs):
        return np.array([1.0 if "text 2" in document or "text 0" in document else 0.0 for _, document in pairs], np.float32)

    assert found([5, 20, 30]) == [1, 2]
    assert found([5, 20, 30], judge=judge) == [1, -1]


def test_what_may_answer_a_query_is_no_negative_and_the_next_ones_stay_in_order():
    asked = []

    def answers(pairs):
        asked.extend(pairs)
        return np.array(["text 2" in document for _, document in pairs])

    assert found([5, 40, 20, 60, 70], count=3, answers=answers) == [1, 3, -1]
    assert asked == [("0", "text 2 at 20"), ("0", "text 1 at 40"), ("0", "text 3 at 60")]
    assert found([5, 20], count=1, answers=lambda pairs: np.array([False])) == [1]


def test_a_judge_is_asked_of_each_querys_own_documents_and_only_of_those_that_other_guards_leave(monkeypatch):
    monkeypatch.setattr(module, "_JUDGED", 2)
    corpus = {f"d{angle}": Document(f"d{angle}", f"at {angle}") for angle in range(0, 120, 10)}
    queries = {f"q{angle}": Query(f"q{angle}", str(angle)) for angle in (0, 40, 80)}
    data = Dataset(queries, corpus, {"q0": {"d10": 1}, "q40": {"d40": 1}, "q80": {"d90": 1, "d70": 1}})
    seen = []

    def judge(pairs):  # an even number of tens is as good as a right answer
        seen.extend(pairs)
        return np.array(
            [float(document.split()[-1]) % 20 == 0 or document in ("at 10", "at 90", "at 70") for _, document in pairs], np.float32
        )

    found = mine(Placed(), data, "{text}", count=2, guards=Guards(judge=judge))
    names = [[list(corpus)[position] for position in row if position >= 0] for row in found]
    assert [sorted(row) for row in names] == [["d30", "d50"], ["d30", "d50"], ["d110", "d50"]]
    assert ("0", "at 0") not in seen  # nearer than the right answer, so it is out already
    assert ("80", "at 80") not in seen


def test_the_corpus_is_worked_through_in_slices(monkeypatch):
    rng = np.random.default_rng(0)
    degrees = rng.choice(180, 60, replace=False).tolist()
    whole = found(degrees, {"d7": 1, "d3": 1}, count=5)
    monkeypatch.setattr(LocalEngine, "at_once", 7)
    assert found(degrees, {"d7": 1, "d3": 1}, count=5) == whole


@pytest.fixture
def mined(tmp_path):
    """Candidates that are mined anew every two batches, and the numbers of the searches."""
    train = circle([0, 10, 20, 30, 40])
    searches = []

    def find(number):
        searches.append(number)
        return np.array([[1 + number % 3, -1]])

    source = BatchAndOthers(train, random=0, hard=1, seed=0)
    return (lambda: MinedCandidates(source, find, tmp_path / "mined", 2)), searches


def test_negatives_are_mined_anew_every_so_many_batches(mined):
    make, searches = mined
    candidates = make()
    assert [candidates.candidates([0]).documents.tolist() for _ in range(5)] == [[0, 1], [0, 1], [0, 2], [0, 2], [0, 3]]
    assert searches == [0, 1, 2]


def test_a_restart_goes_on_with_what_was_mined(mined):
    make, searches = mined
    first = make()
    for _ in range(3):
        first.candidates([0])
    again = make()
    again.batch = 3
    assert again.candidates([0]).documents.tolist() == [0, 2]
    assert again.candidates([0]).documents.tolist() == [0, 3]
    assert searches == [0, 1, 2]


def test_documents_judged_irrelevant_are_drawn_before_mined_ones():
    train = circle([0, 10, 20, 30, 40, 50], {"d0": 1, "d4": 0, "d5": 0})
    drawn = {}
    for hard in (0, 1, 2, 3):
        source = BatchAndOthers(train, random=0, hard=hard, seed=0)
        source.mined = np.array([[1, 4, -1]])
        candidates = source.candidates([0])
        assert candidates.documents.tolist() == source.candidates([0]).documents.tolist()  # a resumed training draws the same
        assert candidates.grades[0].tolist() == [1, *[0] * hard]
        drawn[hard] = candidates.documents.tolist()
    assert drawn[0] == [0]
    assert drawn[1] in ([0, 4], [0, 5])
    assert drawn[2] == [0, 4, 5]
    assert drawn[3] == [0, 1, 4, 5]
    assert [has_judged_negatives(data) for data in (train, circle([0, 10]))] == [True, False]


def test_a_document_judged_irrelevant_for_one_query_may_be_right_for_another_in_the_batch():
    corpus = {id: Document(id, id) for id in "abc"}
    data = Dataset({"q": Query("q", "0"), "r": Query("r", "1")}, corpus, {"q": {"a": 1, "b": 0}, "r": {"b": 2}})
    candidates = BatchAndOthers(data, random=0, hard=1, seed=0).candidates([0, 1])
    assert candidates.documents.tolist() == [0, 1]
    assert candidates.grades.tolist() == [[1, 0], [0, 2]]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [  # 4 epochs of 4 steps with 600 tokens; a quarter of a step is worth 450 tokens that are only encoded
        (1_600, 4),  # after each epoch
        (3_000, 8),  # would be due after 7 steps: half way
        (5_000, 16),  # after 12, for the last 4 alone: not again
        (1_000_000, 16),
    ],
)
def test_a_corpus_is_mined_again_when_training_has_cost_four_times_as_much(tokens, expected):
    config = TuneConfig(batch_size=10)
    assert steps_between_minings(config, 4, np.full(40, 20), np.full(tokens // 20, 20)) == expected
