import numpy as np
import pytest
import torch
from chunks import chunks_of
from torch import nn

from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.encode.local import LocalEncoder
from embedfit.encode.tokens import Tokens
from embedfit.tune.batches import Collator
from embedfit.tune.candidates import AllDocuments
from embedfit.tune.full import tune_model
from embedfit.tune.loss import CandidateLoss
from embedfit.tune.remembered import ROWS, Remembered, some_of


def test_a_batch_is_due_as_a_whole_until_all_its_texts_have_vectors():
    remembered = Remembered(5, 2, 0.2)
    weight = torch.tensor([3.0, 0.9, 1.1])
    rows = torch.tensor([4, 0, 2])

    unit = 5 * 2**0.5  # a row of ones has the gradient's length 2 ** 0.5

    def loss(vectors):
        return (weight[:, None] * vectors).sum()

    assert remembered.due(rows, loss, unit).tolist() == [True, True, True]
    remembered.vectors[rows[:2]] = torch.ones(2, 2)
    assert remembered.due(rows, loss, unit).tolist() == [True, True, True]
    remembered.vectors[rows] = torch.ones(3, 2)
    with torch.no_grad():
        assert remembered.due(rows, loss, unit).tolist() == [True, False, True]
        assert remembered.due(rows, loss, 100 * unit).tolist() == [True, False, False]  # never none


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_chunk_of_some_texts_has_no_column_that_is_padding_to_all(side):
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    mask = mask.flip(1) if side == "left" else mask
    chunk = {"attention_mask": mask, "input_ids": torch.arange(12).view(3, 4), "states": torch.rand(3, 4, 2), ROWS: torch.arange(3)}
    found = some_of({**chunk, "task": "query"}, torch.tensor([False, True, True]))
    columns = slice(1, 4) if side == "left" else slice(0, 3)
    assert {key: value.shape for key, value in found.items() if torch.is_tensor(value)} == {
        "attention_mask": (2, 3),
        "input_ids": (2, 3),
        "states": (2, 3, 2),
        ROWS: (2,),
    }
    assert torch.equal(found["input_ids"], chunk["input_ids"][1:, columns])
    assert found["task"] == "query"


class Once(nn.Module):
    """An encoder that counts the texts it encodes."""

    def __init__(self, model):
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, features):
        self.count += len(features["input_ids"])
        return self.model(features)


def test_the_vectors_of_learnt_texts_stand_in_and_all_others_have_their_gradient(tiny_model):
    model = LocalEncoder(tiny_model, precision="fp32").loaded.model.eval()
    data = Dataset(
        {f"q{i}": Query(f"q{i}", f"a query with the number {i}") for i in range(8)},
        {f"d{i}": Document(f"d{i}", f"document {i}") for i in range(4)},
        {f"q{i}": {f"d{i % 4}": 1} for i in range(8)},
    )
    queries, documents = Tokens(model, data.query_texts(), ""), Tokens(model, data.document_texts(), "")
    collator = Collator(queries, documents, AllDocuments(data), chunk_tokens=16)
    encoder, remembered = Once(model), Remembered(12, model.get_embedding_dimension(), 1.0)
    loss = CandidateLoss(encoder, 20.0, [4], remembered=remembered)
    plain = CandidateLoss(model, 20.0, [4])

    def batch():
        inputs = collator([{"row": row} for row in range(8)])
        return chunks_of(inputs, model), inputs["label"].to(model.device)

    loss.to(model.device)
    first = loss(*batch())
    torch.testing.assert_close(first, plain(*batch()))
    assert (encoder.count, remembered.left_out) == (12, 0)
    features, labels = batch()
    vectors = torch.cat([model({k: v for k, v in chunk.items() if k != ROWS})["sentence_embedding"] for chunk in features]).detach()
    (wanted,) = torch.autograd.grad(loss._over_dimensions(vectors.requires_grad_(), labels), vectors)
    norms = wanted.norm(dim=1) / (20.0 / 8)
    remembered.least = float(norms.sort().values[5:7].mean())
    due = norms >= remembered.least
    # The weights are the same, so the vectors that stand in are those of an encoding, and the loss is too.
    encoder.count = 0
    second = loss(*batch())
    torch.testing.assert_close(second, first)
    assert encoder.count == due.sum() == 6
    assert 0 < remembered.left_out < queries.lengths.sum() + documents.lengths.sum()
    # Each text has the gradient of the whole batch, or none.
    second.backward()
    found = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    model.zero_grad()
    partly = torch.cat([model({k: v for k, v in chunk.items() if k != ROWS})["sentence_embedding"] for chunk in features])
    (partly * torch.where(due[:, None], wanted, 0)).sum().backward()
    torch.testing.assert_close(found, torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))


def test_fewer_tokens_are_trained_on_from_the_second_epoch(tiny_model, tmp_path):
    words = np.random.default_rng(0).permutation(64)
    data = Dataset(
        {f"q{i}": Query(f"q{i}", f"word {words[i]} kind {i % 4}") for i in range(64)},
        {f"d{i}": Document(f"d{i}", f"kind {i}") for i in range(4)},
        {f"q{i}": {f"d{i % 4}": 1} for i in range(64)},
    )
    tokens = {}
    for least in (0, 0.5):
        settings = TuneConfig(epochs=2, min_gradient=least)
        tokens[least] = tune_model(LocalEncoder(tiny_model), data, None, tmp_path / str(least), settings, template="{text}").tokens
    assert tokens[0] / 2 < tokens[0.5] < tokens[0]


def test_every_text_is_encoded_where_candidates_are_drawn():
    found = [TuneConfig().min_gradient_with(kind) for kind in ("all", "mined", "batch", "corpus")]
    assert found[0] > 0
    assert found[1:] == [0, 0, 0]
    assert TuneConfig(teacher="data").min_gradient_with("all") == 0
    assert "min_gradient" not in TuneConfig(min_gradient=0).identity()  # as before the setting
    for settings in ({"documents": "frozen"}, {"method": "adapter"}, {"method": "reranker"}, {"teacher": "data"}):
        assert "min_gradient" not in TuneConfig(**settings).identity()
