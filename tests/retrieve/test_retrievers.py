import gzip
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.errors import DataError, ModelError
from embedfit.evaluation.score import score_run
from embedfit.retrieve import exact
from embedfit.retrieve.exact import best_of, merged, top_k
from embedfit.retrieve.retrievers import BM25Retriever, DenseRetriever, FusedRetriever
from embedfit.retrieve.run import Run, joined


def sorted_whole(queries, documents, k):
    """Return positions and scores by sorting the whole score matrix: best first, equal ones in order of position."""
    scores = queries @ documents.T
    positions = np.broadcast_to(np.arange(len(documents)), scores.shape)
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def whole_numbers(rows, columns, seed, high=3):
    """Return a matrix of small whole numbers: products are exact in any order, and ties are many."""
    return np.random.default_rng(seed).integers(-high, high + 1, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 100, 300])
@pytest.mark.parametrize(("documents_at_a_time", "queries_at_a_time", "spare"), [(2048, 1024, 2**17), (64, 5, 0), (3, 1, 10)])
def test_top_k_equals_sorting_all_scores(k, documents_at_a_time, queries_at_a_time, spare, monkeypatch):
    monkeypatch.setattr(exact, "_DOCUMENTS", documents_at_a_time)
    monkeypatch.setattr(exact, "_QUERIES", queries_at_a_time)
    monkeypatch.setattr(exact, "_SPARE", spare)
    monkeypatch.setattr(exact, "_CHUNK", min(64, documents_at_a_time))
    queries, documents = whole_numbers(31, 4, seed=1), whole_numbers(300, 4, seed=2)
    positions, scores = top_k(queries, documents, k)
    expected_positions, expected_scores = sorted_whole(queries, documents, k)
    np.testing.assert_array_equal(positions, expected_positions)
    np.testing.assert_array_equal(scores, expected_scores)
    assert (scores < 0).any() == (k > 100)


@pytest.mark.parametrize("order", ["as drawn", "best first", "best last"])
def test_top_k_is_exact_over_several_blocks_of_documents(order):
    queries, documents = whole_numbers(3, 4, seed=1), whole_numbers(40_000, 4, seed=2)
    if order != "as drawn":
        documents = documents[np.argsort(documents @ queries[0] * (-1 if order == "best first" else 1), kind="stable")]
    positions, scores = top_k(queries, documents, 50)
    expected_positions, expected_scores = sorted_whole(queries, documents, 50)
    np.testing.assert_array_equal(positions, expected_positions)
    np.testing.assert_array_equal(scores, expected_scores)


def unit(rows, columns, seed):
    vectors = np.random.default_rng(seed).standard_normal((rows, columns), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("nearly_equal", [False, True])
def test_a_score_is_the_double_precision_product_rounded_once(nearly_equal):
    queries, documents = unit(20, 384, seed=1), unit(5_000, 384, seed=2)
    if nearly_equal:  # products in float32 have errors as large as the differences
        documents = documents[0] + 1e-7 * documents
    positions, scores = top_k(queries, documents, 10)
    exact = (queries.astype(np.float64) @ documents.T.astype(np.float64)).astype(np.float32)
    expected = np.lexsort((np.broadcast_to(np.arange(5_000), exact.shape), -exact), axis=1)[:, :10]
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(exact, expected, axis=1))


def test_equal_vectors_have_equal_scores_in_order_of_position():
    # In float32 the last bits of a product depend on where in a block the vector stands, and how large the block is.
    queries, documents = unit(7, 384, seed=1), unit(9_001, 384, seed=2)
    copies = np.sort(np.random.default_rng(3).permutation(9_001)[:200])
    documents[copies] = queries.mean(axis=0) * 3
    positions, scores = top_k(queries, documents, 150)
    np.testing.assert_array_equal(positions, np.tile(copies[:150], (7, 1)))
    assert (scores == scores[:, :1]).all()


def test_blocks_and_other_queries_change_no_bit_of_the_result(monkeypatch):
    queries, documents = unit(50, 96, seed=1), unit(3_000, 96, seed=2)
    positions, scores = top_k(queries, documents, 20)
    alone = [top_k(queries[row : row + 1], documents, 20) for row in range(len(queries))]
    np.testing.assert_array_equal(np.concatenate([found[0] for found in alone]), positions)
    np.testing.assert_array_equal(np.concatenate([found[1] for found in alone]), scores)
    monkeypatch.setattr(exact, "_DOCUMENTS", 192)
    np.testing.assert_array_equal(top_k(queries, documents, 20)[1], scores)


def test_documents_may_be_a_memory_map(tmp_path):
    queries, documents = unit(5, 16, seed=1), unit(5_000, 16, seed=2)
    documents.tofile(tmp_path / "vectors")
    from_file = top_k(queries, np.memmap(tmp_path / "vectors", np.float32, "r", shape=documents.shape), 9)
    np.testing.assert_array_equal(from_file[0], top_k(queries, documents, 9)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_vectors_that_are_not_finite_are_refused(bad, where):
    vectors = [unit(3, 4, seed=1), unit(3, 4, seed=2)]
    vectors[where][1, 2] = bad
    with pytest.raises(ModelError, match="not finite"):
        top_k(*vectors, 2)


def test_a_k_above_the_number_of_documents_returns_all():
    positions, scores = top_k(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 10)
    assert positions.tolist() == [[0, 1], [1, 0]]
    assert scores.tolist() == [[1, 0], [1, 0]]


def test_no_queries_give_no_rows():
    positions, scores = top_k(np.zeros((0, 2), np.float32), np.eye(2, dtype=np.float32), 1)
    assert positions.shape == scores.shape == (0, 1)


@settings(max_examples=200, deadline=None)
@given(scores=arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.sampled_from(
    [0.0, 1.0, -1.0, 1e-45, -1e-45, 0.1, 0.1000001, -0.1, -0.1000001, 3e38, -3e38]
)), k=st.integers(1, 12))  # fmt: skip
def test_scores_of_any_sign_and_size_are_ordered_and_kept(scores, k):
    # Documents that are the axes have exactly these scores.
    documents = np.eye(scores.shape[1], dtype=np.float32)
    positions, found = top_k(scores, documents, k)
    expected_positions, expected = sorted_whole(scores, documents, k)
    np.testing.assert_array_equal(positions, expected_positions)
    np.testing.assert_array_equal(found, expected)


def test_minus_zero_equals_zero():
    keys = exact._keys(np.array([[-0.0, 0.0, -0.0, 1.0]], np.float32), 0)
    assert exact._unpacked(exact._best(keys, 4))[0].tolist() == [[3, 0, 1, 2]]


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize(("n", "m"), [(200, 50_000), (400, 100_000)])
def test_memory_is_bounded_by_the_blocks_and_not_by_queries_times_documents(n, m, alike, monkeypatch):
    monkeypatch.setattr(exact, "_SPARE", 2**12)
    monkeypatch.setattr(exact, "_DOCUMENTS", 256)
    queries, documents = unit(n, 8, seed=1), unit(m, 8, seed=2)
    if alike:  # so many documents are as good as the best that no product can tell them apart
        documents[: m // 5] = documents[0]
        queries[: n // 5] = documents[0]
    tracemalloc.start()
    top_k(queries, documents, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20  # all scores would be 38 and 153 MiB


# Retrievers


def cafe(order=("tea", "coffee", "bus", "copy")):
    texts = {"tea": "green tea leaves", "coffee": "black coffee beans", "bus": "bus to the airport", "copy": "black coffee beans"}
    queries = {"q1": Query("q1", "coffee beans"), "q2": Query("q2", "airport bus"), "q3": Query("q3", "zzz qqq")}
    return Dataset(queries, {id: Document(id, texts[id]) for id in order}, {id: {"coffee": 1} for id in queries})


@pytest.fixture(params=["dense", "bm25"])
def retriever(request, word_encoder):
    return DenseRetriever(word_encoder) if request.param == "dense" else BM25Retriever()


def test_the_nearest_document_is_first_and_ties_are_in_order_of_id(retriever):
    run = retriever.search(cafe(), 3)
    assert run.document_ids[:4] == ("bus", "coffee", "copy", "tea")
    assert run.documents("q1")[:2] == ["coffee", "copy"]
    assert run.documents("q2")[0] == "bus"
    assert run.scores[0, 0] == run.scores[0, 1] > run.scores[0, 2]


def test_the_order_of_the_corpus_file_does_not_change_the_run(retriever):
    one, other = retriever.search(cafe(), 4), retriever.search(cafe(("copy", "bus", "coffee", "tea")), 4)
    assert one.document_ids == other.document_ids
    np.testing.assert_array_equal(one.ranked, other.ranked)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_document_texts_follow_the_template(word_encoder):
    data = Dataset(
        {"q": Query("q", "lunch")},
        {"a": Document("a", "x", metadata={"samples": ["lunch"]}), "b": Document("b", "lunch", metadata={"samples": []})},
        {},
    )
    for make in (lambda template: DenseRetriever(word_encoder, template), BM25Retriever):
        assert make("{id} {samples}").search(data, 1).documents("q") == ["a"]
        assert make("{text}").search(data, 1).documents("q") == ["b"]


def test_bm25_scores_follow_the_published_formula():
    # Documents of 1, 2 and 3 words; "wine" is in two of three. bm25s' default: idf = ln(1 + (N - n + 0.5) / (n + 0.5)),
    # k1 = 1.5, b = 0.75, without the constant factor k1 + 1 (Lucene's variant).
    texts = {"a": "wine", "b": "wine glass", "c": "three other words"}
    data = Dataset({"q": Query("q", "Wine?")}, {id: Document(id, text) for id, text in texts.items()}, {})
    run = BM25Retriever().search(data, 3)
    idf = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    assert run.documents("q") == ["a", "b"]
    np.testing.assert_allclose(run.scores[0, :2], [idf / (1 + 1.5 * (0.25 + 0.75 * length / 2)) for length in (1, 2)], rtol=1e-6)
    assert run.scores[0, 2] == -1  # "c" has no word of the query: the place is empty


def test_bm25_finds_nothing_for_a_query_of_unknown_words():
    run = BM25Retriever().search(cafe(), 4)
    assert run.scores[2].tolist() == [-1] * 4
    assert run.documents("q3") == []
    assert run.documents("q2") == ["bus"]
    assert run.empty.sum(axis=1).tolist() == [2, 3, 4]
    words = ["tea", "bus", "cat", "sun", "oak", "ink", "map", "jam"]
    data = Dataset(
        {str(n): Query(str(n), f"zzz{n}") for n in range(8)},
        {word: Document(word, word) for word in words},
        {str(n): {word: 1} for n, word in enumerate(words)},
    )
    scores = score_run(BM25Retriever().search(data, 10), data.qrels, ks=(10,))
    assert {metric: scores.mean(metric) for metric in scores.values} == dict.fromkeys(scores.values, 0.0)


def test_rank_fusion_ignores_documents_that_bm25_did_not_find(word_encoder):
    data = cafe()
    data.corpus["zzz"] = Document("zzz", "night flight")
    dense = DenseRetriever(word_encoder)
    fused = FusedRetriever(dense, BM25Retriever()).search(data, 5)
    assert fused.documents("q3") == dense.search(data, 5).documents("q3")
    np.testing.assert_allclose(fused.scores[2], [1 / (60 + rank) for rank in range(1, 6)], rtol=1e-6)
    neither = FusedRetriever(BM25Retriever(), BM25Retriever()).search(data, 3)
    assert neither.documents("q3") == []
    assert neither.documents("q2") == ["bus"]


@pytest.mark.parametrize(
    ("query", "document"), [("税", "消費税"), ("车", "汽车"), ("猫", "猫が好き"), ("돈", "돈을 돌려"), ("iPhone壳", "苹果手机壳")]
)
def test_bm25_finds_a_word_of_one_character_in_a_script_without_spaces(query, document):
    data = Dataset({"q": Query("q", query)}, {"a": Document("a", "别的东西 다른 것"), "z": Document("z", document)}, {})
    assert BM25Retriever().search(data, 2).documents("q") == ["z"]


def test_pairs_of_adjacent_characters_count_and_single_characters_do_not():
    texts = {"a": "車税のこと", "b": "税車のこと"}
    data = Dataset({"q": Query("q", "車税")}, {id: Document(id, text) for id, text in texts.items()}, {})
    assert BM25Retriever().search(data, 2).documents("q") == ["a"]


def test_bm25_takes_documents_without_a_word():
    data = Dataset({"q": Query("q", "A")}, {"d0": Document("d0", "!"), "d1": Document("d1", "?")}, {})
    run = BM25Retriever().search(data, 2)
    assert run.documents("q") == []
    assert run.scores.tolist() == [[-1, -1]]


IN_SEVERAL_SCRIPTS = {
    "Chinese": {"怎么激活我的新银行卡？": "银行卡激活步骤", "明天北京会下雨吗": "北京天气预报：明天有雨", "如何退货": "退货和退款的政策"},
    "Japanese": {
        "新しいカードを有効にするには": "カードの有効化について",
        "明日の東京の天気": "東京は明日晴れるでしょう",
        "返品したい": "返品の方法と返金",
    },
    "Korean": {"카드를 활성화하고 싶어요": "카드 활성화 방법", "내일 서울의 날씨": "서울은 내일 비가 옵니다", "반품하려면": "반품 및 환불"},
    "Thai": {"เปิดใช้งานบัตรใหม่อย่างไร": "การเปิดใช้งานบัตร", "พรุ่งนี้ฝนตกไหม": "พยากรณ์อากาศ ฝนตกพรุ่งนี้", "คืนสินค้า": "นโยบายการคืนสินค้า"},
    "Hindi": {"मेरा कार्ड कैसे चालू करें": "कार्ड चालू करना", "कल बारिश होगी क्या": "मौसम: कल बारिश", "पैसा कब मिलेगा": "पैसा वापस मिलना"},
    "Arabic": {"كيف أفعّل بطاقة جديدة": "تفعيل بطاقة جديدة", "هل سيكون طقس الغد ممطرا": "طقس الغد", "متى أسترد مبلغ الشراء": "مبلغ مسترد"},
    "signs": {
        "loops in C++": "C++",
        "loops in C#": "C#",
        "loops in C": "C",
        "loops in R": "R",
        "is it any good with .NET": ".NET",
        "5G?": "5G",
    },
}


@pytest.mark.parametrize("script", IN_SEVERAL_SCRIPTS)
def test_bm25_finds_documents_with_shared_words_in_every_script(script):
    pairs = IN_SEVERAL_SCRIPTS[script]
    queries = {text: Query(text, text) for text in pairs}
    data = Dataset(queries, {text: Document(text, text) for text in pairs.values()}, {})
    run = BM25Retriever().search(data, 2)
    assert {query: run.documents(query)[0] for query in queries} == pairs
    assert (run.scores[:, 0] > run.scores[:, 1]).all()


def test_bm25_uses_the_commonest_english_words_only_if_there_are_no_others():
    texts = {"a": "where there is a will", "b": "a plain", "c": "to be or not to be"}
    data = Dataset({"q": Query("q", "There is a storm")}, {id: Document(id, text) for id, text in texts.items()}, {})
    assert BM25Retriever().search(data, 3).documents("q") == []
    whole = Dataset({"q": Query("q", "To be, or not?")}, data.corpus, {})
    assert BM25Retriever().search(whole, 1).documents("q") == ["c"]


def test_the_frame_of_a_run_has_a_row_for_each_document_found():
    frame = BM25Retriever().search(cafe(), 2).to_frame()
    assert frame.query_id.tolist() == ["q1", "q1", "q2"]
    assert frame["rank"].tolist() == [1, 2, 1]
    assert frame.document_id.tolist() == ["coffee", "copy", "bus"]


def test_runs_with_and_without_empty_places_are_joined():
    data = cafe()
    run = joined([BM25Retriever().search(data.select([id]), 2) for id in ("q1", "q3")])
    assert run.document_ids == ("bus", "coffee", "copy", "tea", "")
    assert [run.documents(id) for id in ("q1", "q3")] == [["coffee", "copy"], []]


def test_runs_of_different_queries_are_joined_in_order():
    data, whole = cafe(), BM25Retriever().search(cafe(), 2)
    run = joined([BM25Retriever().search(data.select([id]), 2) for id in ("q2", "q1")])
    assert run.query_ids == ("q2", "q1")
    assert run.documents("q1") == whole.documents("q1")
    assert run.documents("q2") == whole.documents("q2")


class Ranking:
    """Finds what it is told to, best first."""

    def __init__(self, name, *found):
        self.name, self.found = name, found

    def search(self, dataset, k):
        ids = tuple(sorted(dataset.corpus))
        ranked = np.array([[ids.index(id) for id in self.found[:k]]])
        return Run(tuple(dataset.queries), ids, ranked, np.zeros(ranked.shape, np.float32))


def test_rank_fusion_adds_one_over_sixty_plus_the_rank():
    data = Dataset({"q": Query("q", "text")}, {id: Document(id, id) for id in "abcd"}, {"q": {"a": 1}})
    fused = FusedRetriever(Ranking("one", "a", "b", "c"), Ranking("two", "c", "a", "d"))
    run = fused.search(data, 4)
    assert fused.name == "one + two"
    # a: 1/61 + 1/62, c: 1/63 + 1/61, b: 1/62, d: 1/63
    assert run.documents("q") == ["a", "c", "b", "d"]
    np.testing.assert_allclose(run.scores[0], [1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62, 1 / 63], rtol=1e-6)
    assert fused.search(data, 2).documents("q") == ["a", "c"]


def test_merged_rankings_equal_the_ranking_of_all_documents_in_any_order():
    queries, documents = whole_numbers(9, 4, seed=1), whole_numbers(70, 4, seed=2)
    whole = top_k(queries, documents, 12)
    for starts in ((0, 30, 65), (65, 0, 30)):
        parts = [top_k(queries, documents[start:end], 12) for start, end in ((s, {0: 30, 30: 65, 65: 70}[s]) for s in starts)]
        ranked, scores = merged([(found[0] + start, found[1]) for start, found in zip(starts, parts, strict=True)], 12)
        np.testing.assert_array_equal(ranked, whole[0])
        np.testing.assert_array_equal(scores, whole[1])


def test_merged_rankings_of_few_documents_are_all_of_them():
    left = (np.array([[3, 1]]), np.array([[0.5, 0.2]], np.float32))
    right = (np.array([[0]]), np.array([[0.5]], np.float32))
    ranked, scores = merged([left, right], 10)
    assert ranked.tolist() == [[0, 3, 1]]
    assert scores.tolist() == [[0.5, 0.5, np.float32(0.2)]]


def test_best_of_orders_equal_scores_by_position():
    ranked, scores = best_of(np.array([[0.5, 1.0, 0.5, -1.0]], np.float32), 3)
    assert ranked.tolist() == [[1, 0, 2]]
    assert scores.tolist() == [[1.0, 0.5, 0.5]]


# Runs from elsewhere


def test_a_run_from_a_dict_is_ranked_by_score_with_ties_in_order_of_id():
    run = Run.from_dict({"q1": {"b": 0.5, "c": 2, "a": 0.5}, "q2": {"c": -3.0}, "q3": {}})
    assert run.query_ids == ("q1", "q2", "q3")
    assert run.document_ids == ("a", "b", "c", "")
    assert [run.documents(id) for id in run.query_ids] == [["c", "a", "b"], ["c"], []]
    np.testing.assert_array_equal(run.scores, np.array([[2, 0.5, 0.5], [-3, -1, -1], [-1, -1, -1]], np.float32))
    assert run.empty.sum(axis=1).tolist() == [0, 2, 3]


def test_scores_that_differ_in_double_precision_alone_keep_their_order():
    assert Run.from_dict({"q": {"a": 0.1, "b": 0.1 + 1e-12}}).documents("q") == ["b", "a"]


def test_a_run_as_a_dict_is_best_first_and_has_the_scores_that_were_given():
    rankings = {"q1": {"c": 0.9, "a": 0.1, "b": 0.1}, "q2": {"c": -3.0}, "q3": {}}
    back = Run.from_dict(rankings).to_dict()
    assert back == rankings
    assert list(back["q1"]) == ["c", "a", "b"]
    assert Run.from_dict({}).to_dict() == {}


def test_a_run_becomes_a_dict_and_the_same_run_again(retriever):
    run = retriever.search(cafe(), 3)
    again = Run.from_dict(run.to_dict())
    assert again.query_ids == run.query_ids
    assert again.to_dict() == run.to_dict()
    width = again.scores.shape[1]  # there may be no documents in the last columns
    np.testing.assert_array_equal(again.scores, run.scores[:, :width])
    assert run.empty[:, width:].all()
    assert [again.documents(id) for id in run.query_ids] == [run.documents(id) for id in run.query_ids]


def test_a_run_file_of_trec_is_ranked_by_its_scores_and_comes_back(tmp_path):
    path = tmp_path / "bm25.run"
    path.write_bytes(b"\xef\xbb\xbfq1 Q0 d2 1 3.5 bm25\r\nq1 Q0 d1 2 12.25 bm25\r\n\r\nq 2\tQ0\td 1\t1\t-1e-3\tmine\r\n")
    run = Run.from_trec(path)
    assert run.to_dict() == {"q1": {"d1": 12.25, "d2": 3.5}, "q 2": {"d 1": -0.001}}
    with pytest.raises(DataError, match=r"run: has 'q 2'; expected ids without white space; fix: Run\.to_dict keeps all ids"):
        run.to_trec(tmp_path / "again.run")
    first = Run.from_dict({"q1": run.to_dict()["q1"]})
    first.to_trec(tmp_path / "again.run", "mine")
    assert (tmp_path / "again.run").read_text() == "q1 Q0 d1 1 12.25 mine\nq1 Q0 d2 2 3.5 mine\n"
    assert Run.from_trec(tmp_path / "again.run").to_dict() == first.to_dict()
    with gzip.open(tmp_path / "again.run.gz", "wb") as file:
        file.write((tmp_path / "again.run").read_bytes())
    assert Run.from_trec(str(tmp_path / "again.run.gz")).to_dict() == first.to_dict()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("q1 0 d1 1", "bad.run:2: is 'q1 0 d1 1'; expected query id, Q0, document id, rank, score, name of the run"),
        ("q1 Q0 d2 2 high mine", "bad.run:2: is 'q1 Q0 d2 2 high mine'; expected query id, Q0"),
        ("q1 Q0 d2 2 nan mine", "bad.run:2: is 'q1 Q0 d2 2 nan mine'; expected query id, Q0"),
        ("q1 Q0 d1 2 0.5 mine", "bad.run:2: ranks document 'd1' a second time for query 'q1'"),
        ("caf\xe9", "bad.run:2: is not UTF-8"),
    ],
)
def test_a_bad_line_of_a_run_file_is_named(tmp_path, line, problem):
    (tmp_path / "bad.run").write_bytes(f"q1 Q0 d1 1 2.5 mine\n{line}\n".encode("latin-1"))
    with pytest.raises(DataError, match=re.escape(problem)):
        Run.from_trec(tmp_path / "bad.run")


def test_a_run_file_that_is_missing_or_empty_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"no\.run: cannot be read: No such file"):
        Run.from_trec(tmp_path / "no.run")
    (tmp_path / "empty.run").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.run: is empty"):
        Run.from_trec(tmp_path / "empty.run")


def test_a_foreign_ranking_is_scored_even_if_it_lacks_the_right_document():
    run = Run.from_dict({"q1": {"a": 3.0, "b": 2.0}, "q2": {"a": 1.0}, "q3": {}})
    scores = score_run(run, {"q1": {"b": 1}, "q2": {"z": 1}, "q3": {"a": 1}}, ks=(1, 10))
    assert scores.values["mrr@10"].tolist() == [0.5, 0, 0]
    assert scores.values["recall@10"].tolist() == [1, 0, 0]
    assert scores.values["recall@1"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("rankings", "message"),
    [
        ({"q": {"a": float("nan")}}, "ranking of query 'q': gives document 'a' the score nan; expected a finite number"),
        ({"q": {"a": float("inf")}}, "the score inf"),
        ({"q": {"a": 1e39}}, "the score 1e\\+39"),
        ({"q": {"a": "0.5"}}, "the score '0.5'"),
        ({1: {"a": 1.0}}, "has the query id 1; expected a text"),
        ({"q": {7: 1.0}}, "has the document id 7"),
        ({"q": {"": 1.0}}, "has the document id ''"),
        ({"q": ["a", "b"]}, "is \\['a', 'b'\\]; expected {document id: score}"),
        (["q"], "expected {query id: {document id: score}}"),
    ],
)
def test_a_malformed_ranking_is_refused(rankings, message):
    with pytest.raises(DataError, match=message):
        Run.from_dict(rankings)
