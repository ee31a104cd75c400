from collections import Counter

import pytest

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.mix import mixed, rendered


def of(count, name="", documents="ab"):
    queries = {f"q{i}": Query(f"q{i}", f"{name} question {i}") for i in range(count)}
    corpus = {id: Document(id, f"{name} text {id}", title=f"title {id}") for id in documents}
    return Dataset(queries, corpus, {f"q{i}": {documents[i % len(documents)]: 1 + i % 2} for i in range(count)})


def shares(found):
    return Counter(query.text.split()[0] for query in found.queries.values())


def test_every_query_comes_once_and_keeps_its_answer():
    found = mixed([(of(5, "one"), "{title}: {text}"), (of(3, "two"), "{text}")])
    assert shares(found) == {"one": 5, "two": 3}
    assert {document.text for document in found.corpus.values()} == {
        "title a: one text a",
        "title b: one text b",
        "two text a",
        "two text b",
    }
    for id, query in found.queries.items():
        [(document, grade)] = found.relevant(id).items()
        name, _, number = query.text.split()
        assert found.corpus[document].text.endswith(f"{name} text {'ab'[int(number) % 2]}")
        assert grade == 1 + int(number) % 2


def test_a_document_judged_irrelevant_stays_so_unless_a_copy_of_it_is_right():
    one = of(1, "one")
    judged = Dataset(one.queries, {**one.corpus, "c": Document("c", "one text a", title="title a")}, {"q0": {"a": 1, "b": 0, "c": 0}})
    [grades] = mixed([(judged, "{title}: {text}")]).qrels.values()
    assert grades == {"0/a": 1, "0/b": 0}


def test_a_temperature_gives_small_sets_more():
    sets = [(of(100, "large"), "{text}"), (of(4, "small"), "{text}")]
    # 100 ** 0.5 to 4 ** 0.5 is 10 to 2: of 104 in all, 86.7 and 17.3.
    found = mixed(sets, temperature=2)
    assert shares(found) == {"large": 87, "small": 17}
    assert set(Counter(query.text for query in found.queries.values() if "small" in query.text).values()) == {4, 5}
    assert list(mixed(sets, temperature=2).queries) == list(found.queries)
    assert list(mixed(sets, temperature=2, seed=1).queries) != list(found.queries)


def test_documents_that_say_the_same_are_one():
    one, two = of(2, "same"), of(2, "same")
    found = mixed([(one, "{text}"), (two, "{text}")])
    assert len(found.corpus) == 2
    assert len(found.queries) == 4


def test_a_query_of_two_documents_that_say_the_same_has_the_better_grade():
    data = Dataset({"q": Query("q", "?")}, {"a": Document("a", "Same"), "b": Document("b", "same ")}, {"q": {"a": 1, "b": 2}})
    assert list(mixed([(data, "{text}")]).qrels.values()) == [{"0/a": 2}]


def test_a_rendered_data_set_says_the_same_under_the_default_template():
    data = of(2)
    assert rendered(data, "{title} - {text}").document_texts() == data.document_texts("{title} - {text}")


@pytest.mark.parametrize("temperature", [1, 3, 100])
def test_no_set_is_lost(temperature):
    assert set(shares(mixed([(of(900, "large"), "{text}"), (of(1, "small"), "{text}")], temperature=temperature))) == {"large", "small"}
