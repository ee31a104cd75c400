import pytest

import embedfit
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.split import split_dataset
from embedfit.errors import DataError
from embedfit.evaluation.score import score_run
from embedfit.searcher.fit import fit_searcher
from embedfit.searcher.gather import labels_repeat


def labelled(rows, corpus="abc"):
    queries = {f"q{number}": Query(f"q{number}", text) for number, (text, _) in enumerate(rows)}
    qrels = {f"q{number}": dict.fromkeys(labels, 1) for number, (_, labels) in enumerate(rows)}
    return Dataset(queries, {id: Document(id, f"document {id}") for id in corpus}, qrels)


FRUIT = [("red apple", "a"), ("green apple", "a"), ("yellow banana", "b"), ("ripe banana", "b")]


@pytest.mark.parametrize("view", ["terms", "classes"])
def test_with_a_classifier_alone_labels_come_first_and_the_rest_after(view, word_encoder):
    run = fit_searcher(labelled(FRUIT), word_encoder, views=[view]).rank(labelled([("an apple", "a"), ("a banana", "b")]), 3)
    assert [run.documents(id) for id in run.query_ids] == [["a", "b", "c"], ["b", "a", "c"]]  # nobody asked for c


def test_three_labels_and_a_query_with_two_of_them(word_encoder):
    known = labelled([*FRUIT, ("fast car", "c"), ("old car", "c"), ("apple car", "ac")])
    run = fit_searcher(known, word_encoder, views=["classes"]).rank(labelled([("blue car", "c"), ("apple pie", "a")]), 1)
    assert [run.documents(id) for id in run.query_ids] == [["c"], ["a"]]


def test_a_classifier_of_one_label_is_refused(word_encoder):
    with pytest.raises(DataError, match="has too few queries for each label, or too many labels, for the view 'terms'"):
        fit_searcher(labelled(FRUIT[:2]), word_encoder, views=["terms"])


def test_labels_repeat_where_there_are_two_queries_for_each():
    assert labels_repeat("aabb")
    assert not labels_repeat("abc")
    assert not labels_repeat("aa")  # one label


def test_without_any_label_it_searches_the_documents(word_encoder):
    data = labelled(FRUIT)
    nothing = Dataset({}, data.corpus, {})
    [hit] = fit_searcher(nothing, word_encoder).search("document b", 1)
    assert (hit.id, hit.probability) == ("b", None)


def test_words_alone_beat_the_encoder_alone_on_the_transactions_and_all_views_say_how_sure_they_are(transactions, word_encoder):
    split = split_dataset(transactions, dev=0)
    train, test = transactions.select(split.train), transactions.select(split.test)
    searchers = {views: embedfit.fit_searcher(train, word_encoder, views=views) for views in (("documents",), ("terms",))}
    recall = {views: score_run(searcher.rank(test, 10), test.qrels).mean("recall@1") for views, searcher in searchers.items()}
    assert recall[("terms",)] > recall[("documents",)] + 0.2
    sure = searchers[("terms",)].search_many(test.query_texts(), 1)
    right = [hit.id in test.relevant(id) for id, [hit] in zip(test.queries, sure, strict=True)]
    assert sum(hit.probability for [hit] in sure) / len(sure) == pytest.approx(sum(right) / len(right), abs=0.15)
