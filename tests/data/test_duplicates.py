import itertools
import random
import tracemalloc
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from embedfit.data.duplicates import Duplicates, Said, _duplicates_among, copies_among, near_duplicates, nearly_same
from embedfit.words import words_of


def pairs_of(texts):
    return sorted(near_duplicates(texts).pairs())


def words(count, *, name="w"):
    """Return a text of so many words, each of its own."""
    return " ".join(f"{name}{number}" for number in range(count))


TWELVE = "I topped up my card with cash but the money is missing"


@pytest.mark.parametrize("copy", [TWELVE.upper(), f"  {TWELVE.replace(' ', '   ')}\n", f"{TWELVE}?!", TWELVE.replace(" but", ", but")])
def test_case_white_space_and_punctuation_make_no_difference(copy):
    assert near_duplicates([TWELVE, copy]) == Duplicates(same=((0, 1),), near=())


@pytest.mark.parametrize(
    "changed",
    [
        TWELVE.replace("cash", "coins"),
        TWELVE.replace("the money", "all the money"),
        TWELVE.replace("money", "cash"),
        f"Hi {TWELVE}",
    ],
)
def test_one_word_in_twelve_may_be_changed_or_added(changed):
    assert near_duplicates([TWELVE, changed]) == Duplicates(same=((0,), (1,)), near=((0, 1),))


def test_the_shorter_text_says_how_many_words_may_differ():
    assert pairs_of([TWELVE, TWELVE.removeprefix("I ")]) == []  # eleven words
    assert pairs_of([words(24), f"{words(24)} x y"]) == [(0, 1)]
    assert pairs_of([words(23), f"{words(23)} x y"]) == []
    assert pairs_of([words(24), f"x {words(23)} y"]) == [(0, 1)]
    assert pairs_of([words(24), f"x y z {words(24)}"]) == []


@pytest.mark.parametrize("question", ["How do I change my name?", "What do I have to do to change my PIN"])
def test_a_short_question_with_another_word_is_another_question(question):
    assert pairs_of([question, question.replace("change", "forget"), question.lower()]) == [(0, 2)]


def test_a_copy_of_a_copy_is_near_both():
    texts = [TWELVE, TWELVE.replace("cash", "coins"), TWELVE.upper()]
    assert near_duplicates(texts) == Duplicates(same=((0, 2), (1,)), near=((0, 1),))
    assert pairs_of(texts) == [(0, 1), (0, 2), (1, 2)]


def test_the_field_labels_of_a_form_make_no_two_records_near():
    def record(*values):
        return "\n".join(f"Field number {name}: {value}" for name, value in zip("abcdefghijkl", values, strict=True))

    rng = random.Random(0)
    records = [record(*(rng.choice("pqrstuvwxyz") for _ in range(12))) for _ in range(30)]
    first = [rng.choice("pqrstuvwxyz") for _ in range(12)]
    two_others = [*first[:-2], "other", "others"]
    # 48 words, so four might differ if the labels counted; but twelve values, so one may.
    assert pairs_of([*records, record(*first), record(*two_others)]) == []
    assert pairs_of([*records, record(*first), record(*first[:-1], "other")]) == [(30, 31)]
    # Two by themselves are no nearer, and the same on one line.
    assert pairs_of([record(*first), record(*two_others)]) == []
    assert pairs_of([record(*first).replace("\n", " | "), record(*two_others).replace("\n", "; ")]) == []
    # In running text a colon makes no field.
    assert pairs_of(["Note this: " + words(21), "Note that: " + words(21)]) == [(0, 1)]


def test_scripts_without_spaces_are_compared_by_character():
    assert words_of("如何激活卡?") == ("如", "何", "激", "活", "卡")
    assert pairs_of(["我想知道如何激活我的新银行卡", "我想知道如何激活你的新银行卡"]) == [(0, 1)]
    assert words_of("मेरा कार्ड, कहाँ है") == ("मेरा", "कार्ड", "कहाँ", "है")


def test_texts_of_punctuation_alone_are_told_apart():
    assert pairs_of(["?!", "...", "?!"]) == [(0, 2)]


BOOKING = "please book a table for 4 people at {} at seven in the evening on {}"


@pytest.mark.parametrize("others", [0, 19, 200])
def test_texts_of_one_form_are_near_however_many_there_are_of_it(others):
    rng = random.Random(0)
    form = [BOOKING.format(f"house{rng.randrange(10**6)} {rng.randrange(10**6)} {name}", f"day{name}") for name in range(others)]
    pair = [BOOKING.format("Casa Benigna", "Monday"), BOOKING.format("Casa Benigna", "Tuesday")]
    assert pairs_of([*form, *pair]) == [(others, others + 1)]


@st.composite
def short_texts(draw):
    """Texts of few words, in which the rules for accents, order and slips of the pen often meet."""
    vocabulary = ["cards", "card", "cadrs", "cárds", "café", "cafe", "money", "2.5", "25", "-5", "c#", "Name:", "\nTrip:", "| Memo:", "the"]
    return [" ".join(text) for text in draw(st.lists(st.lists(st.sampled_from(vocabulary), min_size=1, max_size=14), max_size=20))]


@settings(max_examples=60, deadline=None)
@given(short_texts(), st.lists(st.text(max_size=30), max_size=5), st.randoms(use_true_random=False))
def test_nothing_but_the_two_texts_decides_whether_they_are_near(texts, others, rng):
    for text in list(texts):
        changed = text.split()
        rng.shuffle(changed)
        texts.append(" ".join(changed[rng.randrange(2) :]))
    expected = [(i, j) for i, j in itertools.combinations(range(len(texts)), 2) if nearly_same(texts[i], texts[j])]
    assert pairs_of(texts) == expected
    assert [pair for pair in pairs_of([*texts, *others]) if max(pair) < len(texts)] == expected
    said = Said()
    for place, text in enumerate(texts):
        assert said.find(text) == min((i for i, j in expected if j == place), default=None)
        said.add(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I left my card at the café", "i left my card at the cafe"),  # accents
        ("résumé", "resume"),
        ("كِتَاب", "كتاب"),
        ("Why has my card payment been declined?", "My card payment has been declined. Why?"),  # order
        ("How do I activate my card?", "How do I actviate my card?"),  # two letters swapped
        ("activate my card", "activat my card"),
        ("How do I activate my card?", "How do I activatte my card?"),
        ("How do I activate my card?", "How do I actibate my card?"),
    ],
)
def test_accents_order_and_a_slip_of_the_pen_leave_short_texts_near(one, other):
    assert near_duplicates([one, other]) == Duplicates(same=((0,), (1,)), near=((0, 1),))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("send to me", "to me send"),  # three words in another order
        ("I lost my card", "I lost my care"),  # four letters
        ("my order a123456", "my order a123457"),  # digits are no letters
        ("order is 123456", "order is 123457"),
        ("How do I actibate my crad", "How do I activate my card"),  # two slips
        ("store", "stove"),  # words by themselves
        ("white out", "write out"),
        ("my store activate", "my store inactive"),
        ("मेरा कि कहाँ", "मेरा की कहाँ"),  # vowel signs are no accents
        ("がっこう", "かっこう"),
        ("take 2.5 mg", "take 25 mg"),
    ],
)
def test_other_short_texts_are_different(one, other):
    assert pairs_of([one, other]) == []
    assert not nearly_same(one, other)


def test_long_texts_are_found_by_their_runs_and_by_their_rare_words():
    rng = random.Random(0)
    common = [f"w{number}" for number in range(50)]
    page = rng.choices(common, k=300)

    def changed(text, times):
        text = list(text)
        for place in rng.sample(range(len(text)), times):
            text[place] = rng.choice(common) + "x"
        return text

    alike = [rng.choices(common, k=600) for _ in range(20)]  # no rare word
    paged = [[*page, *(f"t{number}n{place}" for place in range(240))] for number in range(20)]  # runs that all have
    texts = [*alike, *paged, changed(alike[3], 50), changed(alike[4], 51), changed(paged[5], 45), changed(paged[6], 46)]
    assert pairs_of([" ".join(text) for text in texts]) == [(3, 40), (25, 42)]


def test_the_one_piece_that_is_left_whole_is_enough():
    rng = random.Random(0)
    common = [f"w{number}" for number in range(30)]
    texts = [rng.choices(common, k=60) for _ in range(40)]
    changed = list(texts[0])
    for place in (5, 15, 29, 40, 50):  # of six pieces of ten words, the fourth is left
        changed[place] = common[(common.index(changed[place]) + 1) % 30]
    longer = [*rng.choices(common, k=2), *texts[1][:30], *rng.choices(common, k=3), *texts[1][30:]]
    assert pairs_of([" ".join(text) for text in [*texts, changed, longer]]) == [(0, 40), (1, 41)]


@pytest.fixture
def compared(monkeypatch):
    """The pairs of texts whose edit distance is computed, as they come."""
    pairs = []

    def counting(*texts, score_cutoff):
        pairs.append(texts)
        return Levenshtein.distance(*texts, score_cutoff=score_cutoff)

    monkeypatch.setattr("embedfit.data.duplicates.Levenshtein", SimpleNamespace(distance=counting))
    return pairs


def test_long_texts_of_common_words_are_not_all_compared(compared):
    rng = random.Random(0)
    texts = [" ".join(f"w{rng.randrange(1000)}" for _ in range(1000)) for _ in range(100)]
    assert pairs_of([*texts, f"{texts[0]} more"]) == [(0, 100)]
    assert len(compared) < 10


def test_many_copies_are_one_group():
    found = near_duplicates([TWELVE] * 20_000 + [TWELVE.replace("cash", "coins")] * 20_000)
    assert found == Duplicates(same=(tuple(range(20_000)), tuple(range(20_000, 40_000))), near=((0, 1),))


def test_no_texts_have_no_duplicates():
    assert near_duplicates([]) == Duplicates((), ())


def test_records_of_few_values_are_not_all_compared(compared):
    # Every word is in a tenth of the texts: by one or two rare words, each text would be compared with hundreds.
    rng = random.Random(0)
    texts = [" ".join(f"{field}{rng.randrange(10)}" for field in "abcdefghijklmno") for _ in range(6000)]
    assert pairs_of([*texts, f"{texts[0]} more"]) == [(0, 6000)]
    assert len(compared) < 6000 * 20


def distance(a, b):
    """Return the Levenshtein distance of two lists, by the textbook's table."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (one != other))
    return row[-1]


def by_comparing_all(texts):
    said = [text.casefold().split() for text in texts]

    def near(i, j):
        edits = min(len(said[i]), len(said[j])) // 12
        reordered = len(said[i]) >= 4 and sorted(said[i]) == sorted(said[j])
        return reordered or (abs(len(said[i]) - len(said[j])) <= edits and distance(said[i], said[j]) <= edits)

    return [(i, j) for i, j in itertools.combinations(range(len(texts)), 2) if near(i, j)]


@st.composite
def texts_with_copies(draw):
    """Texts of few different words, most of them an earlier one with some words changed, added or left out."""
    rng = draw(st.randoms(use_true_random=False))
    vocabulary = "abcdefghijklmnopqrstuvwxyz"[: draw(st.integers(2, 26))]
    label = draw(st.sampled_from(["", "L L ", "L " * 13]))
    texts = []
    for _ in range(draw(st.integers(1, 30))):
        if texts and rng.random() < 0.7:
            text = list(rng.choice(texts))
        else:
            text = rng.choices(vocabulary, k=rng.choice([3, 11, 12, 13, 23, 24, 25, 36, 48, 60, 73]))
        for _ in range(rng.randrange(4)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.randrange(2)] = rng.choices(vocabulary, k=rng.randrange(2))
        texts.append(text)
    return [f"{label}{' '.join(text).upper() if rng.random() < 0.3 else ' '.join(text)}" for text in texts]


@settings(max_examples=80, deadline=None)
@given(texts_with_copies())
def test_the_search_finds_what_comparing_all_texts_finds(texts):
    assert pairs_of(texts) == by_comparing_all(texts)


def test_copies_among_two_sets_of_texts_are_named_by_their_ids():
    long = "In spring the heron comes back to the pond and waits there for hours without a move"
    ours = {"a": "Open settings, then choose reset.", "b": long, "c": "something else"}
    theirs = {"x": "open settings then choose reset!", "y": long.replace("heron", "stork"), "z": "nothing of the kind"}
    assert copies_among(ours, theirs) == {"x": ["a"], "y": ["b"], "z": []}
    assert copies_among({}, theirs) == {"x": [], "y": [], "z": []}
    assert copies_among(ours, {}) == {}


def test_a_million_short_texts_would_take_hundreds_of_mebibytes_at_most():
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=7)) for _ in range(3000)]
    texts = [" ".join(rng.choices(vocabulary, k=7)) for _ in range(20_000)]
    tracemalloc.start()
    duplicates = near_duplicates([*texts, texts[7].replace(texts[7][2], "z", 1), texts[9]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert duplicates.chains == ((7, 20_000), (9, 20_001))
    assert peak / len(texts) < 600


@settings(max_examples=60, deadline=None)
@given(short_texts())
def test_the_number_of_passes_makes_no_difference(texts):
    with pytest.MonkeyPatch.context() as patch:
        expected = pairs_of(texts)
        patch.setattr("embedfit.data.wordings._KEYS", 3)
        patch.setattr("embedfit.data.wordings._BLOCK", 5)
        _duplicates_among.cache_clear()
        assert pairs_of(texts) == expected
