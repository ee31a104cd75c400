"""An endpoint that serves MiniLM with a mistake, written with transformers alone; the mistake is named."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from servers import Embeddings, running

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.encode.local import LocalEncoder
from embedfit.encode.remote import RemoteEncoder
from embedfit.studies.serving import compare_served

PROMPTS = {"query": "query: ", "document": "passage: "}
QUERIES = {
    "a": ("Where is my Receipt from PARIS?", "receipt"),
    "b": ("I was charged twice", "twice"),
    "c": ("Please stop the Subscription", "stop"),
    "d": ("How do I change my Password?", "password"),
    "e": ("The parcel never arrived in Berlin", "parcel"),
    "f": ("Which cards do you take", "cards"),
}
DOCUMENTS = {
    "receipt": "Receipts are sent by e-mail after each Purchase.",
    "twice": "A payment that was taken twice is returned within five days.",
    "stop": "To cancel a Subscription, open Settings and choose Cancel.",
    "password": "Reset the Password on the Login page. " + "The link in the message is valid for one hour, and only once. " * 4,
    "parcel": "Parcels to Germany take three to five days.\nAsk the carrier for a parcel that is late.",
    "cards": "Visa, Mastercard and American Express are accepted.",
}


@pytest.fixture(scope="module")
def dataset():
    queries = {id: Query(id, text) for id, (text, _) in QUERIES.items()}
    documents = {id: Document(id, text) for id, text in DOCUMENTS.items()}
    return Dataset(queries, documents, {id: {answer: 1} for id, (_, answer) in QUERIES.items()})


@pytest.fixture(scope="module")
def measured():
    return LocalEncoder("all-MiniLM-L6-v2", query_prompt=PROMPTS["query"], document_prompt=PROMPTS["document"], precision="fp32")


@pytest.fixture(scope="module")
def hugging(measured, tiny_model):
    """Folder -> model and tokenizer of transformers; the tokenizer with its case too."""
    from transformers import AutoModel, AutoTokenizer

    def load(folder):
        cased = AutoTokenizer.from_pretrained(str(folder))
        content = json.loads(cased.backend_tokenizer.to_str())
        cased._tokenizer = type(cased.backend_tokenizer).from_str(json.dumps({**content, "normalizer": None}))
        return AutoModel.from_pretrained(str(folder)).eval(), AutoTokenizer.from_pretrained(str(folder)), cased

    return {"tuned": load(measured.folder), "other": load(tiny_model)}


def cls(tokens, mask):
    return tokens[:, 0]


def mean(tokens, mask):
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@dataclass
class Mistaken(Embeddings):
    """A server of MiniLM. What it should do is its defaults."""

    models: dict | None = None
    model: str = "tuned"
    text: Callable = str
    pooling: Callable = mean
    length: int = 256
    unit: bool = True
    ends: bool = True
    cased: bool = False
    bf16: bool = False
    mask: bool = True
    order: int = 1
    width: int = 384

    def vectors(self, texts, dimensions):
        import torch

        model, plain, cased = self.models[self.model]
        texts = [self.text(text) for text in texts]
        rows = (cased if self.cased else plain)(texts, truncation=True, max_length=self.length)["input_ids"]
        rows = [row if self.ends else row[:-1] for row in rows]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0 if self.mask else 1] * (width - len(row)) for row in rows])
        if self.bf16:
            import copy

            model = copy.deepcopy(model).to(torch.bfloat16)
        with torch.inference_mode():
            vectors = self.pooling(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask).float()
        vectors = torch.nn.functional.normalize(vectors) if self.unit else vectors
        return vectors.numpy()[:: self.order, :dimensions].copy()


MISTAKES = {
    "prompt missing": ({"text": lambda text: re.sub("^(query|passage): ", "", text)}, r"prompt: the prompt is missing"),
    "prompt doubled": ({"text": lambda text: re.sub("^(query|passage): ", r"\1: \1: ", text)}, r"prompt: the prompt is there twice"),
    "prompt of the other kind": ({"text": lambda text: "query: " + text}, r"documents: prompt: it adds the prompt 'query: ' to every text"),
    "pooling": ({"pooling": cls}, r"pooling: it pools by 'cls', not by 'mean'"),
    "normalisation": ({"unit": False}, r"normalisation: the vectors have lengths from [\d.]+ to [\d.]+, not 1"),
    "truncation": ({"length": 32}, r"documents: truncation: it cuts texts at 32 tokens, not at 256"),
    "truncation at an odd length": ({"length": 45}, r"documents: truncation: it cuts texts at 45 tokens, not at 256"),
    "end token": ({"ends": False}, r"end token: the end token is missing"),
    "lower-casing": ({"cased": True}, r"lower-casing: it does not lower-case texts"),
    "precision": ({"bf16": True}, r"precision: its weights are in bfloat16"),
    "another model": ({"model": "other"}, r"another model: it serves the one-layer model"),
    "order": ({"order": -1}, r"order: the vectors are those of other texts"),
    "padding": ({"mask": False}, r"batching: a text alone has another vector than in a batch"),
    "dimensions": ({"width": 128}, r"dimensions: the endpoint gives 128 dimensions, the measured model 384: its first ones"),
    "two at once": ({"pooling": cls, "ends": False}, r"pooling: it pools by 'cls'.*; and end token: the end token is missing"),
}


@pytest.fixture
def compare(measured, dataset, hugging, tiny_model):
    def call(**mistake):
        with running(Mistaken(models=hugging, **mistake)) as server:
            endpoint = RemoteEncoder(
                f"openai:m@{server.address}/v1", query_prompt=PROMPTS["query"], document_prompt=PROMPTS["document"], unit=False
            )
            others = {"the one-layer model": LocalEncoder(tiny_model, query_prompt="query: ", document_prompt="passage: ")}
            return compare_served(measured, endpoint, dataset, "{text}", "mrr@10", others=others)

    return call


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_of_a_server_is_named(compare, name):
    mistake, expected = MISTAKES[name]
    served = compare(**mistake)
    assert not served.same
    assert served.explained
    assert re.search(expected, "\n".join(map(str, served.causes)))
    assert len(served.causes) <= 2


def test_a_server_without_a_mistake_serves_what_was_measured(compare):
    served = compare()
    assert (served.same, served.lost, served.causes, served.differing) == (True, False, (), {"query": 0, "document": 0})
    assert served.cosine > 0.99999
    assert served.comparison["mrr@10"].difference == 0
    assert served.sentence.endswith("serves what was measured.")
    assert json.loads(json.dumps(served.to_dict()))["same"] is True


def test_a_server_that_reads_texts_whole_is_named(dataset, hugging, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path, copy_function=os.link, dirs_exist_ok=True)
    settings = tmp_path / "sentence_bert_config.json"
    content = json.loads(settings.read_text())
    settings.unlink()  # it is a link
    settings.write_text(json.dumps({**content, "max_seq_length": 24}))
    with running(Mistaken(models=hugging, model="other")) as server:
        endpoint = RemoteEncoder(f"openai:m@{server.address}/v1", unit=False)
        served = compare_served(LocalEncoder(tmp_path, precision="fp32"), endpoint, dataset, "{text}", "mrr@10")
    [cause] = served.causes
    assert re.fullmatch(r"documents: truncation: it reads texts of \d+ tokens whole, where the model cuts them at 24; fix: .*", str(cause))


def test_what_no_mistake_explains_is_not_explained(compare):
    served = compare(text=lambda text: text[::-1])
    assert not served.explained
    assert served.lost
    for cause in served.causes:
        assert re.match(r"not explained: \d+ mistakes were tried, and pairs of them; nearest: ", cause.text), cause
        assert re.search(r"; the vectors differ most for '.+'; it may be another model", cause.text), cause


def test_a_mistake_without_a_loss_is_named_and_passes(compare):
    truncated = compare(length=32)
    assert not truncated.same
    assert not truncated.lost  # the answer is still found


def test_vectors_without_unit_length_are_judged_by_dot_product_too(dataset, measured):
    class Long:
        name, fingerprint = "long", "long"

        def encode(self, texts, kind):
            lengths = np.where([text.startswith("Visa") for text in texts], 9.0, 0.1) if kind == "document" else np.ones(len(texts))
            return measured.encode(texts, kind) * lengths[:, None].astype(np.float32)

    served = compare_served(measured, Long(), dataset, "{text}", "mrr@10")
    assert not any(served.differing.values())
    assert served.comparison["mrr@10"].difference == 0
    assert served.by_dot.difference < -0.3
    assert served.lost


def test_fewer_dimensions_are_compared_with_all_that_were_measured(word_encoder):
    class Cut:
        name, fingerprint = "cut", "cut"

        def encode(self, texts, kind):
            return word_encoder.encode(texts, kind)[:, :2]

    documents = {f"d{number}": Document(f"d{number}", f"word{number}") for number in range(50)}
    queries = {f"q{number}": Query(f"q{number}", f"word{number}") for number in range(50)}
    data = Dataset(queries, documents, {f"q{number}": {f"d{number}": 1} for number in range(50)})
    whole = compare_served(word_encoder, word_encoder, data, "{text}", "mrr@10").comparison["mrr@10"]
    served = compare_served(word_encoder, Cut(), data, "{text}", "mrr@10")
    assert str(served.causes[-1]) == "dimensions: the endpoint gives 2 dimensions, the measured model 64: its first ones; fix: ask for all"
    assert served.comparison["mrr@10"].base == whole.base
    assert served.lost


def test_only_the_documents_that_matter_are_sent(dataset, word_encoder):
    documents = {f"d{number:03}": Document(f"d{number:03}", f"word{number} text") for number in range(300)}
    queries = {"q1": Query("q1", "word7"), "q2": Query("q2", "word299")}
    many = Dataset(queries, documents, {"q1": {"d007": 1}, "q2": {"d299": 1}})
    sent = []

    class Counting:
        name, fingerprint = "counting", "counting"

        def encode(self, texts, kind):
            sent.append((kind, list(texts)))
            return word_encoder.encode(texts, kind)

    served = compare_served(word_encoder, Counting(), many, "{text}", "mrr@10", documents=50)
    assert served.same
    assert served.texts == {"query": 2, "document": 50}
    assert {"word7 text", "word299 text"} <= set(sent[1][1])
