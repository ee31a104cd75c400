"""What people picked as training data: no leaks into held-out queries, and the newest picks as a test of their own."""

from hypothesis import given, settings
from hypothesis import strategies as st

from embedfit.config import make_config
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.duplicates import nearly_same
from embedfit.data.load import load
from embedfit.pipeline import parts
from embedfit.pipeline.picked import Pick, Picked
from embedfit.samples import TRANSACTIONS

DOCUMENTS = {id: Document(id, text) for id, text in {"taxi": "taxi rides", "food": "restaurants", "cloud": "servers"}.items()}
CONFIG = make_config({"data": {"queries": "queries.jsonl"}, "split": {"folds": 3}})
WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")


def labelled(texts, metadata=None):
    queries = {f"q{number}": Query(f"q{number}", text, (metadata or {}).get(number, {})) for number, text in enumerate(texts)}
    return Dataset(queries, DOCUMENTS, {id: {list(DOCUMENTS)[number % 3]: 1} for number, id in enumerate(queries)})


def picks(*texts, document="taxi", start=0):
    return [Pick(f"s{start + number}", text, document, float(start + number)) for number, text in enumerate(texts)]


def distinct(number, kind="pick"):
    return f"{kind} {' '.join(f'{WORDS[(number >> shift) % 8]}{number}{shift}' for shift in range(6))}"


def nearly(text):
    return " ".join(reversed(text.split()))


def test_which_picks_are_used_and_why_others_are_left_out():
    data = labelled(["a taxi to town", "lunch with guests", "a virtual machine"])
    given = [
        *picks("A  taxi to TOWN", document="food"),  # what a labelled query says, whatever was picked
        *picks("bus", document="bus", start=1),
        *picks("tram", start=2),
        *picks("TRAM", start=3),
        *picks("ferry", start=4),
        *picks("Ferry", document="food", start=5),
    ]
    picked = Picked.of(data, given, CONFIG)
    assert picked.ids == ("feedback/s2",)
    assert picked.left_out == {"of an unknown document": 1, "labelled already": 1, "repeated": 1, "in conflict": 2}
    assert picked.dataset.relevant("feedback/s2") == {"taxi": 1}
    assert not picked.today.queries


def test_a_near_copy_of_a_held_out_query_joins_only_the_folds_that_do_not_hold_it_out():
    texts = [distinct(number, "query") for number in range(12)]
    data = labelled(texts)
    near = nearly(texts[0])
    assert nearly_same(near, texts[0])
    picked = Picked.of(data, picks(near, "something else entirely"), CONFIG)
    for split in parts.splits_of(CONFIG, data):
        joined = picked.joined(split, CONFIG)
        assert ("feedback/s0" in joined.train) == ("q0" not in split.test)
        assert "feedback/s1" in joined.train
        assert (joined.dev, joined.test) == (split.dev, split.test)


def test_the_newest_picks_are_held_out_unless_they_repeat_something_older():
    data = labelled([distinct(number, "query") for number in range(6)])
    texts = [distinct(number) for number in range(100)]
    texts[95] = nearly(texts[3])  # near an older pick
    texts[96] = nearly(data.queries["q1"].text)  # near a labelled query
    picked = Picked.of(data, picks(*texts), CONFIG)
    expected = {f"feedback/s{number}" for number in range(80, 100)} - {"feedback/s95", "feedback/s96"}
    assert set(picked.today.queries) == expected
    assert set(picked.ids) == {f"feedback/s{number}" for number in range(100)} - expected
    assert not set(picked.dataset.queries) & expected
    few = Picked.of(data, picks(*texts[:45]), CONFIG)  # a fifth is under ten
    assert (len(few.ids), len(few.today.queries)) == (45, 0)


def test_a_group_or_an_answer_that_is_held_out_keeps_its_picks_out():
    data = labelled([distinct(number, "query") for number in range(12)], {number: {"shop": number % 4} for number in range(12)})
    config = make_config({"data": {"queries": "q"}, "split": {"test": 0.3, "group_by": "shop"}})
    shops = [Pick(f"s{shop}", distinct(shop), "taxi", 1.0, {"shop": shop}) for shop in range(4)]
    [split] = parts.splits_of(config, data)
    joined = Picked.of(data, shops, config).joined(split, config)
    held_out = {data.queries[id].metadata["shop"] for id in (*split.test, *split.dev)}
    assert held_out
    assert {id for id in joined.train if id.startswith("feedback/")} == {f"feedback/s{shop}" for shop in set(range(4)) - held_out}
    config = make_config({"data": {"queries": "q"}, "split": {"test": 0.3, "by": "documents"}})
    [split] = parts.splits_of(config, data)
    given = [Pick(document, distinct(number), document, 1.0) for number, document in enumerate(DOCUMENTS)]
    joined = Picked.of(data, given, config).joined(split, config)
    answers = {document for id in (*split.test, *split.dev) for document in data.relevant(id)}
    assert answers
    assert {id for id in joined.train if id.startswith("feedback/")} == {f"feedback/{id}" for id in set(DOCUMENTS) - answers}


TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(st.lists(TEXTS, min_size=12, max_size=20, unique=True), st.lists(TEXTS, min_size=50, max_size=80))
def test_whatever_people_pick_nothing_held_out_is_trained_on(queries, texts):
    data = labelled(queries)
    config = make_config({"data": {"queries": "q"}, "split": {"test": 0.25}})
    picked = Picked.of(data, picks(*texts), config)
    [split] = parts.splits_of(config, data)
    joined = picked.joined(split, config)
    assert joined.test == split.test
    trained = [picked.dataset.queries[id].text for id in joined.train]
    new = [picked.dataset.queries[id].text for id in joined.train if id.startswith("feedback/")]
    for id in split.test:
        assert not any(nearly_same(text, data.queries[id].text) for text in new)
    for query in picked.today.queries.values():
        assert not any(nearly_same(text, query.text) for text in trained)


def test_a_record_is_rendered_again_under_the_query_template():
    data = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
    config = make_config({"data": {"queries": "q", "record": "transaction"}})
    record = {"merchant_name": "Brand New", "memo": "a thing that nobody has bought"}
    picked = Picked.of(data, [Pick("s", "as it was searched once", next(iter(data.corpus)), 1.0, record)], config)
    assert picked.dataset.queries["feedback/s"].text.startswith("Name: Brand New\n")
