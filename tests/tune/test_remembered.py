import numpy as np
import pytest
import torch
from chunks import chunks_of
from torch import nn

from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.encode.local import LocalEncoder
from embedfit.encode.tokens import Tokens
from embedfit.errors import EmbedfitError
from embedfit.tune.batches import Collator
from embedfit.tune.candidates import AllDocuments
from embedfit.tune.full import tune_model
from embedfit.tune.loss import CandidateLoss
from embedfit.tune.remembered import ROWS, Remembered, largest, some_of


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.01, [2]), (0.4, [2]), (0.41, [0, 2]), (0.7, [0, 2]), (0.9, [0, 1, 2]), (0.91, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])],
)
def test_the_fewest_values_that_hold_a_share_of_the_sum(share, expected):
    mask = largest(torch.tensor([3.0, 2.0, 4.0, 1.0, 0.0], dtype=torch.float64), share)
    assert mask.nonzero().flatten().tolist() == expected


def test_values_without_a_sum_leave_one():
    assert largest(torch.zeros(3, dtype=torch.float64), 0.9).tolist() == [True, False, False]


def test_a_batch_is_due_as_a_whole_until_all_its_texts_have_vectors():
    remembered = Remembered(5, 2, 0.9)
    weight = torch.tensor([3.0, 0.1, 2.0])
    rows = torch.tensor([4, 0, 2])

    def loss(vectors):
        return (weight[:, None] * vectors).sum()

    assert remembered.due(rows, loss).tolist() == [True, True, True]
    remembered.vectors[rows[:2]] = torch.ones(2, 2)
    assert remembered.due(rows, loss).tolist() == [True, True, True]
    remembered.vectors[rows] = torch.ones(3, 2)
    with torch.no_grad():
        assert remembered.due(rows, loss).tolist() == [True, False, True]


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
    encoder, remembered = Once(model), Remembered(12, model.get_embedding_dimension(), 0.5)
    loss = CandidateLoss(encoder, 20.0, [4], remembered=remembered)
    plain = CandidateLoss(model, 20.0, [4])

    def batch():
        inputs = collator([{"row": row} for row in range(8)])
        return chunks_of(inputs, model), inputs["label"].to(model.device)

    loss.to(model.device)
    first = loss(*batch())
    torch.testing.assert_close(first, plain(*batch()))
    assert (encoder.count, remembered.left_out) == (12, 0)
    # The weights are the same, so the vectors that stand in are those of an encoding, and the loss is too.
    encoder.count = 0
    second = loss(*batch())
    torch.testing.assert_close(second, first)
    assert 0 < encoder.count < 12
    assert 0 < remembered.left_out < queries.lengths.sum() + documents.lengths.sum()
    # Each text has the gradient of the whole batch, or none.
    features, labels = batch()
    vectors = torch.cat([model({k: v for k, v in chunk.items() if k != ROWS})["sentence_embedding"] for chunk in features]).detach()
    (wanted,) = torch.autograd.grad(loss._over_dimensions(vectors.requires_grad_(), labels), vectors)
    rows = torch.cat([chunk[ROWS] for chunk in features])
    due = remembered.due(rows, lambda vectors: loss._over_dimensions(vectors, labels))
    assert due.sum() == encoder.count
    assert wanted[due].square().sum() >= 0.5 * wanted.square().sum()
    assert wanted[due].norm(dim=1).min() >= wanted[~due].norm(dim=1).max()
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
    for share in (1, 0.9):
        settings = TuneConfig(epochs=2, gradient_share=share)
        tokens[share] = tune_model(LocalEncoder(tiny_model), data, None, tmp_path / str(share), settings, template="{text}").tokens
    assert tokens[1] / 2 < tokens[0.9] < tokens[1]


def test_the_default_is_less_than_all_where_every_document_is_a_candidate():
    shares = [TuneConfig().gradient_share_with(kind) for kind in ("all", "mined", "batch", "corpus")]
    assert shares[0] < 1
    assert shares[1:] == [1, 1, 1]
    assert "gradient_share" not in TuneConfig(gradient_share=1).identity()  # as before the setting
    assert TuneConfig(gradient_share=0.8).gradient_share_with("all") == 0.8
    for settings in ({"documents": "frozen"}, {"method": "adapter"}, {"method": "reranker"}):
        assert "gradient_share" not in TuneConfig(**settings).identity()


@pytest.mark.parametrize("value", [0, 1.5, True, "half", None])
def test_a_share_that_is_none_gets_one_line(value):
    with pytest.raises((EmbedfitError, ValueError), match="expected 'auto' or a share above 0, at most 1"):
        TuneConfig(gradient_share=value)
