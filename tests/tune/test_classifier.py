import pytest

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.split import split_dataset
from embedfit.errors import DataError
from embedfit.evaluation.score import score_run
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.tune.classifier import VectorsClassifier, WordsClassifier, labels_repeat


def labelled(rows, corpus="abc"):
    queries = {f"q{number}": Query(f"q{number}", text) for number, (text, _) in enumerate(rows)}
    qrels = {f"q{number}": dict.fromkeys(labels, 1) for number, (_, labels) in enumerate(rows)}
    return Dataset(queries, {id: Document(id, f"document {id}") for id in corpus}, qrels)


FRUIT = [("red apple", "a"), ("green apple", "a"), ("yellow banana", "b"), ("ripe banana", "b")]


@pytest.mark.parametrize("kind", ["words", "vectors"])
def test_what_training_queries_asked_for_comes_first_and_the_rest_after(kind, word_encoder):
    train = labelled(FRUIT)
    classifier = WordsClassifier(train) if kind == "words" else VectorsClassifier(word_encoder, train)
    run = classifier.search(labelled([("an apple", "a"), ("a banana", "b")]), 3)
    assert [run.documents(id) for id in run.query_ids] == [["a", "b", "c"], ["b", "a", "c"]]  # nobody asked for c


def test_three_labels_and_a_query_with_two_of_them(word_encoder):
    train = labelled([*FRUIT, ("fast car", "c"), ("old car", "c"), ("apple car", "ac")])
    run = VectorsClassifier(word_encoder, train).search(labelled([("blue car", "c"), ("apple pie", "a")]), 1)
    assert [run.documents(id) for id in run.query_ids] == [["c"], ["a"]]


def test_no_more_is_found_than_asked_for(word_encoder):
    run = VectorsClassifier(word_encoder, labelled(FRUIT)).search(labelled(FRUIT[:1]), 2)
    assert run.ranked.shape == (1, 2)


def test_one_label_is_refused(word_encoder):
    with pytest.raises(DataError, match="has one label in its training queries"):
        WordsClassifier(labelled(FRUIT[:2]))


def test_labels_repeat_where_there_are_two_queries_for_each():
    assert labels_repeat(labelled(FRUIT))
    assert not labels_repeat(labelled([FRUIT[0], FRUIT[2], ("fast car", "c")]))
    assert not labels_repeat(labelled(FRUIT[:2]))  # one label


def test_words_beat_the_untrained_encoder_on_the_transactions(transactions, word_encoder):
    split = split_dataset(transactions, dev=0)
    test = transactions.select(split.test)
    words, dense = (
        score_run(retriever.search(test, 10), test.qrels).mean("recall@1")
        for retriever in (WordsClassifier(transactions.select(split.train)), DenseRetriever(word_encoder))
    )
    assert words > dense + 0.2
