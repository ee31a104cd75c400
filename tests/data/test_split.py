import re
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedfit.data.check import check_leaks
from embedfit.data.dataset import Dataset, Document, Query, normalised
from embedfit.data.duplicates import connected
from embedfit.data.split import Split, answers_seen, query_groups, split_dataset, split_folds, without_leaks
from embedfit.errors import ConfigError, DataError


def labelled(rows, parts=None):
    """Return a data set from (text, label) or (text, label, metadata); ids are q0, q1 ..."""
    queries = {f"q{number}": Query(f"q{number}", row[0], row[2] if len(row) > 2 else {}) for number, row in enumerate(rows)}
    qrels = {f"q{number}": {row[1]: 1} for number, row in enumerate(rows)}
    return Dataset(queries, {row[1]: Document(row[1], row[1]) for row in rows}, qrels, parts or {})


def everything(split):
    return [*split.train, *split.dev, *split.test]


def labels_of(data, ids):
    return Counter(label for id in ids for label in data.relevant(id))


def test_the_same_seed_gives_the_same_split_and_another_seed_another(transactions):
    assert split_dataset(transactions, seed=3) == split_dataset(transactions, seed=3)
    assert set(split_dataset(transactions, seed=3).test) != set(split_dataset(transactions, seed=4).test)


def test_parts_are_whole_and_have_the_shares_asked_for(transactions):
    split = split_dataset(transactions, test=0.2, dev=0.1)
    assert sorted(everything(split)) == sorted(transactions.judged)
    assert (len(split.test), len(split.dev), len(split.train)) == (65, 26, 235)  # 326 * 0.2 = 65.2; 261 * 0.1 = 26.1


def test_dev_may_be_nothing(transactions):
    split = split_dataset(transactions, dev=0)
    assert split.dev == ()
    assert len(split.train) == 261


def test_every_label_with_five_queries_is_in_train_and_test_in_proportion(transactions):
    for seed in range(5):
        split = split_dataset(transactions, test=0.2, dev=0.1, seed=seed)
        whole, train, test = (labels_of(transactions, ids) for ids in (transactions.judged, split.train, split.test))
        for label, count in whole.items():
            if count >= 5:
                assert abs(test[label] - 0.2 * count) < 1
                assert train[label] >= 1


def test_exactly_five_of_each_label_give_one_of_each_to_test():
    data = labelled([(f"{label} {number}", label) for label in "abcdefg" for number in range(5)])
    for seed in range(10):
        assert labels_of(data, split_dataset(data, test=0.2, seed=seed).test) == dict.fromkeys("abcdefg", 1)


def test_labels_that_hardly_repeat_are_split_at_random():
    data = labelled([(f"text {number}", f"d{number}") for number in range(100)])
    tests = [set(split_dataset(data, seed=seed).test) for seed in range(20)]
    assert all(len(test) == 20 for test in tests)
    assert len(set.union(*tests)) > 90


def test_queries_that_say_the_same_are_never_in_two_parts():
    data = labelled([(text, label) for number in range(30) for text, label in [(f"Query {number}", "a"), (f" query  {number} ", "b")]])
    for seed in range(5):
        split = split_dataset(data, seed=seed)
        said = [{normalised(data.queries[id].text) for id in part} for part in (split.train, split.dev, split.test)]
        assert sum(map(len, said)) == len(set.union(*said)) == 30


LONG = "I topped up my card with cash but the money is missing"


@pytest.mark.parametrize("seed", range(10))
def test_queries_that_say_nearly_the_same_are_never_in_two_parts(seed):
    # Each is near the one before it, and the last is not near the first.
    chain = [LONG]
    for old, new in [("cash", "coins"), ("money", "sum"), ("card", "account")]:
        chain.append(chain[-1].replace(old, new))
    data = labelled([(text, "ab"[number % 2]) for number, text in enumerate(chain)] + [(f"text {number}", "a") for number in range(30)])
    for split in [split_dataset(data, dev=0.2, seed=seed), *split_folds(data, 5, dev=0.2, seed=seed)]:
        assert check_leaks(data, vars(split)) == []
        assert sum(bool({"q0", "q1", "q2", "q3"} & set(part)) for part in (split.train, split.dev, split.test)) == 1


def test_all_parts_are_dealt_by_one_search(transactions):
    from embedfit.data import duplicates

    duplicates._duplicates_among.cache_clear()
    split_folds(transactions, 5, dev=0.2)
    check_leaks(transactions, vars(split_dataset(transactions)))
    assert duplicates._duplicates_among.cache_info().misses == 1


def test_leaking_queries_are_dropped_from_train_and_dev_alone():
    texts = [LONG, LONG.upper(), LONG.replace("cash", "coins"), "four", "Four!", "six", "seven"]
    data = labelled([(text, "a") for text in texts])
    given = Split(train=("q1", "q3", "q5"), dev=("q2", "q4"), test=("q0", "q6"))
    split = without_leaks(given, check_leaks(data, vars(given)))
    assert split == Split(train=("q5",), dev=("q4",), test=("q0", "q6"))
    assert check_leaks(data, vars(split)) == []
    assert without_leaks(split, []) == split


def test_a_query_in_train_and_test_is_dropped_from_train():
    data = labelled([("one", "a"), ("two", "a")])
    given = Split(train=("q0", "q1"), dev=(), test=("q0",))
    assert without_leaks(given, check_leaks(data, vars(given))) == Split(("q1",), (), ("q0",))


def test_where_every_training_query_leaks_none_is_left():
    data = labelled([("one", "a"), ("One", "a")])
    given = Split(train=("q0",), dev=(), test=("q1",))
    with pytest.raises(DataError, match="no query is left for train"):
        without_leaks(given, check_leaks(data, vars(given)))


def test_group_by_keeps_connected_queries_together():
    # q0 and q1 share a customer, q1 and q2 a text, q2 and q3 a customer: all four belong together.
    chain = [("a", "x", {"customer": 1}), ("b", "x", {"customer": 1}), ("B", "x", {"customer": 2}), ("c", "x", {"customer": 2})]
    others = [(f"text {number}", "x", {"customer": None}) for number in range(20)]
    for seed in range(10):
        split = split_dataset(labelled(chain + others), group_by="customer", seed=seed)
        together = {"q0", "q1", "q2", "q3"}
        assert sum(bool(together & set(part)) for part in (split.train, split.dev, split.test)) == 1
        assert sorted(everything(split)) == sorted(f"q{number}" for number in range(24))


def test_group_by_an_unknown_field_names_the_nearest(transactions):
    with pytest.raises(ConfigError, match="group_by: no query has the field 'locatoin'; did you mean 'location'"):
        split_dataset(transactions, group_by="locatoin")
    with pytest.raises(ConfigError, match="no query has the field 'zzz'; known: amount, department"):
        split_folds(transactions, 3, group_by="zzz")


def test_official_parts_are_kept():
    ids = [f"q{number}" for number in range(10)]
    parts = {"train": tuple(ids[:6]), "dev": tuple(ids[6:8]), "test": tuple(ids[8:])}
    split = split_dataset(labelled([(f"text {number}", "a") for number in range(10)], parts))
    assert (split.train, split.dev, split.test) == (parts["train"], parts["dev"], parts["test"])


def test_a_dev_part_that_is_missing_is_dealt_from_the_official_train_part():
    parts = {"train": tuple(f"q{number}" for number in range(20)), "test": ("q20", "q21")}
    split = split_dataset(labelled([(f"text {number}", "a") for number in range(22)], parts), dev=0.1)
    assert split.test == ("q20", "q21")
    assert len(split.dev) == 2
    assert sorted(split.train + split.dev) == sorted(parts["train"])


def test_a_train_part_that_is_missing_is_what_is_left():
    split = split_dataset(labelled([(f"text {number}", "a") for number in range(12)], {"test": ("q0", "q1")}), dev=0.1)
    assert split.test == ("q0", "q1")
    assert sorted(split.train + split.dev) == sorted(f"q{number}" for number in range(2, 12))


def test_a_query_in_two_official_parts_is_not_trained_on():
    parts = {"train": tuple(f"q{number}" for number in range(10)), "dev": ("q1", "q2", "q3"), "test": ("q1", "q10")}
    split = split_dataset(labelled([(f"text {number}", "a") for number in range(11)], parts))
    assert split.test == ("q1", "q10")
    assert split.dev == ("q2", "q3")
    assert split.train == ("q0", "q4", "q5", "q6", "q7", "q8", "q9")


def test_official_queries_without_a_relevant_document_take_no_part():
    data = labelled([(f"text {number}", "a") for number in range(10)], {"test": ("q0", "q1", "q2")})
    data.qrels["q1"] = {"a": 0}
    assert split_dataset(data).test == ("q0", "q2")


def test_folds_cover_each_judged_query_exactly_once(transactions):
    folds = split_folds(transactions, 5, dev=0.1)
    assert len(folds) == 5
    assert sorted(id for fold in folds for id in fold.test) == sorted(transactions.judged)
    for fold in folds:
        assert sorted(everything(fold)) == sorted(transactions.judged)
        assert len(fold.test) in (65, 66)
        assert 24 <= len(fold.dev) <= 28


def test_folds_are_stratified_and_seeded():
    data = labelled([(f"{label} {number}", label) for label in "abc" for number in range(5)])
    folds = split_folds(data, 5)
    assert all(labels_of(data, fold.test) == dict.fromkeys("abc", 1) for fold in folds)
    assert folds == split_folds(data, 5)
    assert folds != split_folds(data, 5, seed=1)


def test_fewer_distinct_queries_than_folds_are_refused():
    data = labelled([("same", "a"), ("Same ", "a"), ("other", "b")])
    with pytest.raises(DataError, match="data: has 2 distinct queries for 3 folds; fix: use fewer folds, or add queries"):
        split_folds(data, 3)


@pytest.mark.parametrize("k", [-1, 0, 1])
def test_fewer_than_two_folds_are_refused(transactions, k):
    with pytest.raises(ConfigError, match=f"folds is {k}; expected 2 or more"):
        split_folds(transactions, k)


@pytest.mark.parametrize(("count", "part", "test", "dev"), [(1, "train", 0.9, 0.1), (2, "test", 0.2, 0), (4, "dev", 0.2, 0.1)])
def test_data_that_leave_a_part_empty_are_refused(count, part, test, dev):
    data = labelled([(f"text {number}", "a") for number in range(count)])
    with pytest.raises(DataError, match=rf"data: is too small: no query is left for {part} out of {count}; fix: add labelled queries"):
        split_dataset(data, test=test, dev=dev)


rows = st.lists(
    st.tuples(st.sampled_from("pqrstuvwxyzPQRS"), st.sampled_from("abc"), st.sampled_from([{}, {"g": 1}, {"g": 2}])), max_size=40
)


def test_group_by_may_name_a_field_that_only_the_test_part_has():
    rows = [("t", "a", {"customer": 1}), *((f"text {number}", "a") for number in range(20))]
    assert split_dataset(labelled(rows, {"test": ("q0",)}), group_by="customer").test == ("q0",)


@settings(max_examples=200, deadline=None)
@given(rows=rows, test=st.floats(0.05, 0.9), dev=st.floats(0, 0.9), seed=st.integers(0, 100), grouped=st.booleans())
def test_any_split_is_whole_disjoint_and_free_of_leaks(rows, test, dev, seed, grouped):
    data = labelled([*rows, ("anchor", "a", {"g": 3})])
    try:
        split = split_dataset(data, test=test, dev=dev, seed=seed, group_by="g" if grouped else None)
    except DataError as error:
        if "too small" not in str(error):
            raise
        return
    assert sorted(everything(split)) == sorted(data.judged)
    for text in {normalised(query.text) for query in data.queries.values()}:
        assert parts_of(split, data, lambda query, text=text: normalised(query.text) == text) == 1
    for value in (1, 2) if grouped else ():
        assert parts_of(split, data, lambda query, value=value: query.metadata.get("g") == value) <= 1


def parts_of(split, data, wanted):
    """Return in how many parts a wanted query stands."""
    return sum(any(wanted(data.queries[id]) for id in part) for part in (split.train, split.dev, split.test))


def test_the_dev_part_grows_no_further_than_is_needed_to_choose_an_epoch():
    queries = {f"q{i}": Query(f"q{i}", f"text {i}") for i in range(8000)}
    data = Dataset(queries, {"a": Document("a", "a"), "b": Document("b", "b")}, {id: {"ab"[i % 2]: 1} for i, id in enumerate(queries)})
    found = split_dataset(data, test=0.2, dev=0.1)
    assert len(found.dev) == 500
    assert len(found.train) == 8000 - 1600 - 500
    assert {len(fold.dev) for fold in split_folds(data, 2)} == {400}


def test_queries_of_no_part_are_learned_from_beside_official_ones():
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(100)]
    data = labelled(rows, parts={"train": tuple(f"q{number}" for number in range(20))})
    assert sorted(everything(split_dataset(data))) == sorted(data.queries)


def test_no_dev_part_is_no_dev_part_even_where_there_is_an_official_one():
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(10)]
    data = labelled(rows, parts={"train": ("q0", "q1", "q2"), "dev": ("q3", "q4"), "test": ("q5", "q6")})
    found = split_dataset(data, dev=0)
    assert found.dev == ()
    assert set(found.test) == {"q5", "q6"}


def test_the_groups_of_queries_are_chains_of_copies_and_of_the_named_field_in_the_order_given():
    rows = [
        ("a", "x", {"customer": 1}),
        ("b", "x", {"customer": 2}),
        ("B", "x", {"customer": 3}),
        ("c", "x", {"customer": "1"}),
        ("d", "x"),
    ]
    data = labelled(rows)
    assert query_groups(data, data.judged) == [("q0",), ("q1", "q2"), ("q3",), ("q4",)]
    assert query_groups(data, ["q4", "q3", "q2", "q1", "q0"], "customer") == [("q4",), ("q3", "q0"), ("q2", "q1")]
    assert query_groups(data, []) == []


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))) if n else st.just([]))
    )
)
def test_connected_groups_are_those_that_merging_sets_gives(case):
    count, pairs = case
    sets = [{number} for number in range(count)]
    for one, other in pairs:
        merged = next(group for group in sets if one in group) | next(group for group in sets if other in group)
        sets = [group for group in sets if not group & merged] + [merged]
    assert connected(count, pairs) == sorted(tuple(sorted(group)) for group in sets)


def test_official_parts_lose_what_shares_a_value_of_group_by_with_what_is_more_held_out():
    data = labelled([(f"text {number}", "xy"[number % 2], {"customer": number % 10}) for number in range(60)])
    names = list(data.queries)
    data = replace(data, parts={"test": tuple(names[:4]), "train": tuple(names[4:])})
    split = split_dataset(data, group_by="customer", dev=0.2)
    values = [{data.queries[id].metadata["customer"] for id in part} for part in (split.train, split.dev, split.test)]
    assert values[2] == {0, 1, 2, 3}
    assert all(values)
    assert sum(map(len, values)) == len(set.union(*values))
    assert len(split_dataset(data, dev=0).train) == 56


@pytest.mark.parametrize("nothing", [None, "", " ", float("nan")])
def test_queries_without_a_value_of_group_by_share_none(nothing):
    data = labelled([(f"text {number}", "x", {"customer": nothing if number % 2 else number}) for number in range(10)])
    assert len(query_groups(data, data.judged, "customer")) == 10


def test_a_whole_number_is_the_same_value_of_group_by_however_it_is_written():
    data = labelled([("one", "x", {"customer": 1}), ("two", "x", {"customer": 1.0}), ("three", "x", {"customer": "1"}), ("four", "x")])
    assert query_groups(data, data.judged, "customer") == [("q0", "q1", "q2"), ("q3",)]


def passages(answers, texts=None, parts=None):
    """Return a data set of queries q0, q1 ... from the ids of each one's right documents; a document says its id, or what ``texts`` has."""
    ids = sorted({document for documents in answers for document in documents})
    return Dataset(
        {f"q{number}": Query(f"q{number}", f"question number {number}") for number in range(len(answers))},
        {id: Document(id, (texts or {}).get(id, f"passage {id}")) for id in ids},
        {f"q{number}": dict.fromkeys(documents, 1) for number, documents in enumerate(answers)},
        parts or {},
    )


def test_an_answer_was_seen_if_any_one_of_several_was_right_for_a_training_query():
    data = passages(["ab", "bc", "d", "c"])
    assert answers_seen(data, ["q0"], ["q1", "q2", "q3"]) == (True, False, False)
    assert answers_seen(data, ["q0", "q1"], ["q3", "q2"]) == (True, False)
    assert answers_seen(data, [], ["q0"]) == (False,)


def test_a_document_that_is_not_relevant_was_not_seen():
    data = passages(["ab", "b"])
    data.qrels["q0"]["b"] = 0
    assert answers_seen(data, ["q0"], ["q1"]) == (False,)


PASSAGE = "In spring the heron comes back to the pond and waits there for hours without a move"


def test_a_copy_or_a_near_copy_of_a_seen_answer_was_seen_too():
    texts = {
        "a": PASSAGE,
        "b": PASSAGE.upper(),
        "c": PASSAGE.replace("heron", "stork"),
        "d": PASSAGE + " until one day it does not come at all",
    }
    data = passages(["a", "b", "c", "d"], texts)
    assert answers_seen(data, ["q0"], ["q1", "q2", "q3"]) == (True, True, False)


def test_documents_of_other_data_sets_may_have_been_seen():
    data = passages(["a", "b", "c"])
    assert answers_seen(data, ["q0"], ["q1", "q2"], more=["b"]) == (True, False)


def answers_in(data, ids):
    return {document for id in ids for document in data.relevant(id)}


def answers_are_apart(data, split):
    train, dev, test = (answers_in(data, part) for part in (split.train, split.dev, split.test))
    return not (test & (train | dev) or dev & train)


some_answers = st.lists(st.sets(st.sampled_from("abcdefghijklmnopqrst"), min_size=1, max_size=2), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(answers=some_answers, test=st.floats(0.1, 0.5), dev=st.sampled_from([None, 0, 0.2]), seed=st.integers(0, 50), k=st.integers(2, 4))
def test_split_by_documents_no_answer_is_in_two_parts_and_no_query_is_lost(answers, test, dev, seed, k):
    data = passages([sorted(documents) for documents in answers])
    splits = []
    for make in (
        lambda: [split_dataset(data, test=test, dev=dev, seed=seed, by="documents")],
        lambda: split_folds(data, k, dev=dev, seed=seed, by="documents"),
    ):
        try:
            splits += make()
        except DataError as error:
            if not re.search("hang together through common answers|no query is left|without a common answer", str(error)):
                raise
    for split in splits:
        assert sorted(everything(split)) == sorted(data.judged)
        assert answers_are_apart(data, split)
        assert not any(answers_seen(data, split.train + split.dev, split.test))


@settings(max_examples=150, deadline=None)
@given(
    answers=some_answers, where=st.lists(st.sampled_from(["train", "dev", "test", None]), min_size=40, max_size=40), seed=st.integers(0, 9)
)
def test_of_official_parts_by_documents_test_stays_and_what_shares_its_answers_goes(answers, where, seed):
    parts = {part: tuple(f"q{n}" for n in range(len(answers)) if where[n] == part) for part in ("train", "dev", "test")}
    data = passages([sorted(documents) for documents in answers], parts=parts)
    try:
        split = split_dataset(data, test=0.3, seed=seed, by="documents")
    except DataError:
        return
    assert answers_are_apart(data, split)
    if parts["test"]:
        assert split.test == parts["test"]
        held_out = answers_in(data, parts["test"])
        if parts["dev"]:
            assert set(split.dev) == {id for id in parts["dev"] if not held_out & data.relevant(id).keys()}
            held_out |= answers_in(data, split.dev)
            rest = set(data.judged) - set(parts["test"]) - set(parts["dev"])
            assert set(split.train) == {id for id in rest if not held_out & data.relevant(id).keys()}


def test_split_by_documents_copies_are_one_answer_and_near_queries_and_fields_stay_together():
    texts = {"a": PASSAGE, "b": PASSAGE.replace("heron", "stork")}
    data = passages(list("abcdefghijklmnopqrstuv"), texts)
    data.queries["q2"] = Query("q2", LONG)
    data.queries["q3"] = Query("q3", LONG.replace("cash", "coins"))
    for id in ("q4", "q5"):
        data.queries[id] = Query(id, f"a question {id}", {"customer": 7})
    for seed in range(10):
        for split in (
            split_dataset(data, dev=0.2, seed=seed, by="documents", group_by="customer"),
            *split_folds(data, 3, seed=seed, by="documents", group_by="customer"),
        ):
            for together in ({"q0", "q1"}, {"q2", "q3"}, {"q4", "q5"}):
                assert sum(bool(together & set(part)) for part in (split.train, split.dev, split.test)) == 1


def test_split_by_documents_whole_labels_are_held_out(transactions):
    split = split_dataset(transactions, test=0.2, dev=0.1, by="documents")
    assert answers_are_apart(transactions, split)
    assert 0.1 * 326 <= len(split.test) <= 0.3 * 326
    tests = [set(fold.test) for fold in split_folds(transactions, 5, by="documents")]
    assert all(0.1 * 326 <= len(test) <= 0.3 * 326 for test in tests)
    assert {split_dataset(transactions, by="documents", seed=seed).test for seed in range(2)} != {split.test}


def test_split_by_documents_keeps_the_share_where_groups_are_of_many_sizes():
    # One answer of 30 queries, ten of 4, and thirty of 1: none but the first is larger than twice the share.
    labels = ["big"] * 30 + [f"m{number % 10}" for number in range(40)] + [f"s{number}" for number in range(30)]
    data = labelled([(f"text {number}", label) for number, label in enumerate(labels)])
    for seed in range(10):
        assert 9 <= len(split_dataset(data, test=0.1, dev=0, seed=seed, by="documents").test) <= 11
        assert {len(fold.test) for fold in split_folds(data, 3, seed=seed, by="documents")} <= {33, 34}


def test_where_nearly_all_queries_hang_together_it_is_one_line_with_the_fix():
    data = passages(["ab", "bc", "cd", "de", "ef", "fg", "gh", "hi", "i", "z"])
    message = (
        r"data: 9 of 10 queries, such as 'q\d', hang together through common answers: 1 of 10 can be held out, where 50% are wanted; "
        r'fix: split\.by = "queries", which reports seen and new answers apart'
    )
    with pytest.raises(DataError, match=message):
        split_dataset(data, test=0.5, by="documents")
    with pytest.raises(DataError, match=r"9 of 10 queries, such as 'q0', hang together .* fewer than half of them can be trained on"):
        split_folds(data, 2, by="documents")
    with pytest.raises(DataError, match="data: has 2 groups of queries without a common answer for 3 folds"):
        split_folds(data, 3, by="documents")


def test_official_parts_with_the_same_answers_leave_nothing_to_train_on_by_documents():
    data = passages(["a", "b", "a", "b"], parts={"train": ("q0", "q1"), "test": ("q2", "q3")})
    with pytest.raises(
        DataError, match=r'no query is left for train out of 2; fix: add labelled queries with other answers, or split\.by = "queries"'
    ):
        split_dataset(data, by="documents")


def test_a_dev_part_that_cannot_be_had_by_documents_is_left_out_unless_it_was_asked_for():
    data = passages([letter for letter in "abcd" for _ in range(300)])
    split = split_dataset(data, test=0.25, by="documents")
    assert (len(split.train), len(split.dev), len(split.test)) == (900, 0, 300)
    with pytest.raises(DataError, match="hang together"):
        split_dataset(data, test=0.25, dev=0.1, by="documents")


def test_the_benchmark_of_passages_trains_on_no_query_that_the_gate_refuses(bench, monkeypatch):
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    parts = runpy.run_path(str(benchmarks / "passages.py"))["parts"]
    train, test = parts(SimpleNamespace(data=bench, name="scifact", train=None))
    both = Dataset({**train.queries, **test.queries}, {}, {})
    assert check_leaks(both, {"train": list(train.queries), "test": list(test.queries)}) == []
    assert len(test.queries) == 300
    assert 750 < len(train.queries) < 807
    assert not train.queries.keys() & test.queries.keys()


def test_small_groups_make_up_for_a_large_one_in_any_order():
    data = labelled([(f"text {number}", label) for number, label in enumerate(["a"] * 80 + ["b"] * 10 + ["c"] * 10)])
    for seed in range(12):
        assert labels_of(data, split_dataset(data, test=0.2, dev=0, seed=seed, by="documents").test) == {"b": 10, "c": 10}
