"""A static model distilled from a tuned one: token vectors, fewer dimensions, less weight for frequent tokens, then training.

The start is that of model2vec (github.com/MinishLab/model2vec): the model's vector of each token alone, principal components, and
SIF weights a / (a + p) (Arora, Liang and Ma 2017, "A simple but tough-to-beat baseline for sentence embeddings"), with probabilities p by
Zipf's law from the order of the vocabulary. Then the token vectors are trained so that texts have the similarities that the tuned model
gives them. The result is a space of its own: documents have to be embedded with it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Kind, Vectors
from embedfit.encode.local import LocalEncoder, load_model
from embedfit.encode.static import tokenizer_of
from embedfit.loading import portable

_DIMENSIONS = 256
_SIF = 1e-4
_BATCH_TOKENS = 1024
_STEPS, _BATCH, _LEARNING_RATE, _SCALE = 500, 256, 3e-3, 14.0


def distil(encoder: LocalEncoder, texts: Mapping[Kind, Sequence[str]], *, seed: int = 0) -> tuple[Vectors, Any]:
    """Return the token vectors of a static model, of shape (tokens, dimensions), and its tokenizer.

    Args:
        encoder: Model to distil.
        texts: Training queries and documents. No labels are needed.
        seed: Seed of the batches.
    """
    tokenizer = tokenizer_of(encoder.folder)
    rows = torch.from_numpy(_reduced(_token_vectors(encoder, tokenizer)))
    cached = CachedEncoder(encoder)
    vectors = torch.from_numpy(np.concatenate([cached.encode(list(texts[kind]), kind) for kind in texts]))
    encodings = tokenizer.encode_batch([text for kind in texts for text in texts[kind]], add_special_tokens=False)
    tokens = [torch.tensor(encoding.ids) for encoding in encodings]
    kept = [place for place, ids in enumerate(tokens) if len(ids)]
    _train(rows, [tokens[place] for place in kept], vectors[kept], seed)
    return rows.numpy(), tokenizer


def _token_vectors(encoder: LocalEncoder, tokenizer: Any) -> Vectors:
    """Return the model's vector of each token alone, between the tokens that it puts around a text."""
    model = load_model(encoder.folder, encoder.prompts, encoder.pooling, portable(encoder.loading)).to("cpu").eval()
    around = tokenizer.encode("a")
    first, last = (around.special_tokens_mask[::step].index(0) for step in (1, -1))
    before, after = around.ids[:first], around.ids[len(around.ids) - last :]
    parts = []
    for start in range(0, tokenizer.get_vocab_size(), _BATCH_TOKENS):
        ids = torch.tensor([[*before, id, *after] for id in range(start, min(start + _BATCH_TOKENS, tokenizer.get_vocab_size()))])
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            parts.append(model(features)["sentence_embedding"].float().numpy())
    return np.concatenate(parts)


def _reduced(vectors: Vectors) -> Vectors:
    """Return the principal components of token vectors, by SIF weights, with a mean length of 1."""
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    components = centred @ directions[:, ::-1][:, :_DIMENSIONS]
    chances = 1 / np.arange(2, len(vectors) + 2)
    weighted = components * (_SIF / (_SIF + chances / chances.sum()))[:, None]
    return np.ascontiguousarray(weighted / np.linalg.norm(weighted, axis=1).mean(), np.float32)


def _train(rows: torch.Tensor, tokens: Sequence[torch.Tensor], vectors: torch.Tensor, seed: int) -> None:
    """Change token vectors in place so that the texts of a batch are as similar to each other as the tuned model says."""
    generator = torch.Generator().manual_seed(seed)
    used = torch.unique(torch.cat(list(tokens)))
    place = torch.full((len(rows),), -1).index_put_((used,), torch.arange(len(used)))
    weights = rows[used].clone().requires_grad_(True)
    optimiser = torch.optim.Adam([weights], lr=_LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    size = min(_BATCH, len(tokens))
    own = torch.eye(size, dtype=torch.bool)
    for _ in range(_STEPS if size > 2 else 0):
        batch = torch.randperm(len(tokens), generator=generator)[:size]
        bags = [place[tokens[row]] for row in batch.tolist()]
        offsets = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
        means = torch.nn.functional.embedding_bag(torch.cat(bags), weights, offsets, mode="mean")
        students = torch.nn.functional.normalize(means, dim=1)
        wanted, given = ((_SCALE * units @ units.T).masked_fill(own, -1e4).log_softmax(dim=1) for units in (vectors[batch], students))
        optimiser.zero_grad()
        torch.nn.functional.kl_div(given, wanted, log_target=True, reduction="batchmean").backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    rows[used] = weights.detach()
