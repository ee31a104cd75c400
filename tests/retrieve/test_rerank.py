import json
import shutil

import numpy as np
import pytest

from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ConfigError, ModelError
from embedfit.evaluation.score import score_run
from embedfit.hub import model_folder
from embedfit.pipeline import measuring
from embedfit.pipeline.needs import check_method
from embedfit.retrieve.rerank import LocalReranker, RerankedRetriever, rerank
from embedfit.retrieve.retrievers import BM25Retriever, DenseRetriever, FusedRetriever
from embedfit.retrieve.run import Run
from embedfit.tune.full import tune_model


class Longest:
    """Prefers long documents, and counts what it reads."""

    name = "longest"

    def __init__(self):
        self.read = []

    def score(self, pairs):
        self.read += pairs
        return np.array([len(document) for _, document in pairs], np.float32)


def five():
    """Five documents, found in order of id with falling scores."""
    texts = {"a": "x", "b": "xxx", "c": "xx", "d": "xxx", "e": "xxxxx"}
    data = Dataset({"q": Query("q", "query")}, {id: Document(id, text) for id, text in texts.items()}, {"q": {"b": 1}})
    return data, Run(("q",), tuple("abcde"), np.arange(5)[None], np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], np.float32))


def test_the_top_is_in_the_rerankers_order_and_the_rest_stays_below_it():
    data, run = five()
    reranker = Longest()
    again = rerank(run, data, reranker, "{text}", top=4)
    assert again.documents("q") == ["b", "d", "c", "a", "e"]  # b and d are ties, in order of id; e was not read
    assert again.scores.tolist() == [[3, 3, 2, 1, 0]]
    assert reranker.read == [("query", "x"), ("query", "xxx"), ("query", "xx")]  # the text that stands twice was read once


@pytest.mark.parametrize("top", [5, 50])
def test_a_top_of_the_whole_ranking_reorders_all_of_it(top):
    data, run = five()
    assert rerank(run, data, Longest(), "{text}", top=top).documents("q") == ["e", "b", "d", "c", "a"]


def test_a_top_of_zero_is_refused():
    data, run = five()
    with pytest.raises(ConfigError, match="top is 0"):
        rerank(run, data, Longest(), top=0)


def test_the_reranker_reads_what_the_template_says():
    data, run = five()
    reranker = Longest()
    rerank(run, data, reranker, "{id}: {text}", top=1)
    assert reranker.read == [("query", "a: x")]


def test_any_retriever_is_reranked_deeper_than_the_number_asked_for(transactions):
    some = transactions.select(transactions.judged[:5])
    for retriever in (BM25Retriever(), FusedRetriever(BM25Retriever(), BM25Retriever("{category}"))):
        reranked = RerankedRetriever(retriever, Longest(), top=10)
        assert reranked.name == f"{retriever.name}, reranked by longest"
        run = reranked.search(some, 3)
        assert run.ranked.shape == run.scores.shape == (5, 3)
        found = retriever.search(some, 10)
        for id in some.queries:
            names = sorted(found.documents(id), key=lambda name: (-len(name), name))
            assert run.documents(id) == names[:3]


# A real one


THINGS = {
    "animal": "cat dog horse cow sheep goat lion tiger wolf bear fox mouse rabbit deer monkey elephant",
    "drink": "beer wine tea coffee milk juice water lemonade vodka whisky champagne cocoa cider rum gin soda",
    "tool": "hammer saw drill screwdriver axe shovel rake pliers chisel wrench file knife scissors ladder plane spade",
    "country": "france spain italy germany japan china brazil canada mexico egypt india russia greece norway peru kenya",
    "colour": "red blue green yellow black white orange purple pink brown grey violet turquoise beige crimson gold",
    "vehicle": "car bus train bicycle truck boat ship plane tram van motorcycle taxi tractor ferry ambulance helicopter",
}


def things(first, last):
    """A data set of things by number, each of one kind; no query has a word in common with a document."""
    kinds = {kind: Document(kind, f"a kind of {kind}") for kind in THINGS}
    pairs = [(thing, kind) for kind, names in THINGS.items() for thing in names.split()[first:last]]
    return Dataset(
        {f"{kind} {thing}": Query(f"{kind} {thing}", thing) for thing, kind in pairs}, kinds, {f"{b} {a}": {b: 1} for a, b in pairs}
    )


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """The folder of a cross-encoder: all-MiniLM-L6-v2's first two layers, trained for a few seconds."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    source = model_folder("all-MiniLM-L6-v2")
    folder = tmp_path_factory.mktemp("cross-encoder")
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, num_hidden_layers=2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, model_max_length=64).save_pretrained(folder)
    cross = CrossEncoder(str(folder), local_files_only=True, device="cpu")
    data, documents = things(0, 12), [document.text for document in things(0, 0).corpus.values()]
    optimizer = torch.optim.AdamW(cross.model.parameters(), lr=1e-3)
    cross.model.train()
    queries = np.array(list(data.queries))
    rng = np.random.default_rng(0)
    for _ in range(6):
        for ids in rng.permutation(queries).reshape(-1, 12):
            pairs = [(data.queries[id].text, document) for id in ids for document in documents]
            features = cross.tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
            right = torch.tensor([list(data.corpus).index(*data.qrels[id]) for id in ids])
            loss = torch.nn.functional.cross_entropy(cross.model(**features).logits.reshape(len(ids), -1), right)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    cross.model.eval()
    cross.save_pretrained(str(folder / "trained"))
    return folder / "trained"


@pytest.fixture(scope="module")
def held_out():
    return things(12, 16)


@pytest.mark.slow
def test_a_trained_cross_encoder_ranks_better_than_the_retriever(cross_encoder, held_out, word_encoder):
    dense = DenseRetriever(word_encoder)
    reranked = RerankedRetriever(dense, LocalReranker(cross_encoder, precision="fp32"), top=6)
    before, after = (score_run(retriever.search(held_out, 6), held_out.qrels).mean("recall@1") for retriever in (dense, reranked))
    assert before < 0.4  # no word in common: by chance
    assert after > 0.5


@pytest.mark.slow
def test_scores_are_the_librarys_logits_in_the_order_given(cross_encoder):
    import torch
    from sentence_transformers import CrossEncoder

    pairs = [("taxi to the airport", "Travel"), ("lunch", "Meals and entertainment, with a long name"), ("a", "b")]
    ours = LocalReranker(cross_encoder, precision="fp32").score(pairs)
    theirs = CrossEncoder(str(cross_encoder), local_files_only=True).predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_the_grid_shows_quality_and_price_of_vectors_words_both_and_a_reranker(cross_encoder, held_out, tiny_model):
    frame = measuring.evaluate(
        held_out,
        [LocalEncoder(tiny_model)],
        templates=["{text}"],
        ks=(1, 3),
        retrieval=("dense", "bm25", "hybrid"),
        rerankers=[LocalReranker(cross_encoder, precision="fp32")],
        rerank_top=3,
    )
    rows = frame[(frame.metric == "recall") & (frame.k == 3)].set_index(["retrieval", "reranker"])
    assert len(frame) == 3 * 2 * 6 * 2
    assert set(rows.loc["bm25"].model) == {"BM25"}
    assert set(rows.loc["hybrid"].model) == {str(tiny_model)}
    for way in ("dense", "bm25", "hybrid"):
        alone, reranked = rows.loc[(way, "")], rows.loc[(way, str(cross_encoder))]
        assert alone.value == reranked.value  # the same three documents, in another order
        if way != "bm25":  # finds nothing here, so that there is nothing to read
            assert reranked.seconds > alone.seconds + 0.0001
    assert rows.loc[("dense", "")].seconds > rows.loc[("bm25", "")].seconds  # a query of words is not encoded


def test_an_embedding_model_is_refused_as_a_reranker(tiny_model):
    with pytest.raises(ModelError, match="expected a cross-encoder"):
        LocalReranker(tiny_model)


@pytest.mark.slow
def test_a_cross_encoder_without_safetensors_or_with_several_labels_is_refused(cross_encoder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    shutil.copytree(cross_encoder, tmp_path / "unsafe")
    (tmp_path / "unsafe" / "model.safetensors").rename(tmp_path / "unsafe" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can run code"):
        LocalReranker(tmp_path / "unsafe")
    shutil.copytree(cross_encoder, tmp_path / "three")
    AutoModelForSequenceClassification.from_pretrained(cross_encoder, num_labels=3, ignore_mismatched_sizes=True).save_pretrained(
        tmp_path / "three"
    )
    with pytest.raises(ModelError, match="3 numbers for a pair"):
        LocalReranker(tmp_path / "three").score([("a", "b")])


@pytest.mark.slow
def test_evaluate_takes_rerankers_and_retrievers_from_options_and_settings(cross_encoder, tiny_model, tmp_path, capsys):
    from embedfit.cli import app

    rows = [{"query": text, "expected": label} for text, label in [("red wine", "drink"), ("rye bread", "food"), ("tea", "drink")]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "embedfit.toml").write_text(
        f'[data]\nqueries = "pairs.jsonl"\n[model]\nname = "{tiny_model}"\n[evaluate]\nk = [1]\nrerankers = ["cross"]\nrerank_top = 2\n'
        'metric = "mrr@1"\n'
    )
    shutil.copytree(cross_encoder, tmp_path / "cross")
    with pytest.raises(SystemExit):
        app(
            ["evaluate", str(tmp_path / "embedfit.toml"), "--retrieval", "dense", "--retrieval", "hybrid", "--csv", str(tmp_path / "t.csv")]
        )
    shown = capsys.readouterr().out
    assert "ms a query" in shown
    assert "hybrid" in shown
    assert str(tmp_path / "cross") in (tmp_path / "t.csv").read_text()
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1 + 2 * 2 * 6


@pytest.mark.slow
def test_a_cross_encoder_judges_mined_negatives(cross_encoder, tiny_model, tmp_path, monkeypatch):
    from embedfit.tune import full

    data, found = things(0, 6), []
    first, (right,) = next((id, data.relevant(id)) for id in data.queries)
    data.qrels[first] = {next(id for id in data.corpus if id != right): 1}  # the right answer of one query is not labelled

    def mine(*given, **named):
        found.append(full_mine(*given, **named))
        return found[-1]

    full_mine = full.mine
    monkeypatch.setattr(full, "mine", mine)
    documents = [document.text for document in data.corpus.values()]
    for judge in (None, str(cross_encoder)):
        config = TuneConfig(candidates="mined", judge=judge, mined_margin=9.0, epochs=1)
        tune_model(LocalEncoder(tiny_model, precision="fp32"), data, None, tmp_path / str(judge is None), config)
    scored = LocalReranker(cross_encoder, precision="fp32")
    passed = []
    for mined in found:
        passed.append([])
        for row, (id, query) in enumerate(data.queries.items()):
            known = [data.corpus[one].text for one in data.relevant(id)]
            limit = scored.score([(query.text, text) for text in known]).min()
            negatives = [(query.text, documents[position]) for position in mined[row] if position >= 0]
            passed[-1].extend(scored.score(negatives) < limit + 1e-6 if negatives else [])
    assert all(passed[1])
    assert len(passed[0]) - sum(passed[0]) > 0
    assert len(passed[1]) == sum(passed[0])


def test_a_missing_judge_is_refused_before_anything_is_measured(tiny_model):
    with pytest.raises(ModelError, match="nowhere"):
        check_method(LocalEncoder(tiny_model), TuneConfig(judge="./nowhere"))


def test_an_adapter_notes_unused_settings(tiny_model, capsys):
    check_method(LocalEncoder(tiny_model), TuneConfig(method="adapter", scale=20, seed=1))
    assert not capsys.readouterr().err
    check_method(LocalEncoder(tiny_model), TuneConfig(method="adapter", judge="./nowhere", epochs=9, scale=20))
    assert capsys.readouterr().err == "an adapter is fitted without tune.epochs, tune.judge\n"
