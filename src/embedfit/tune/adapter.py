"""A query adapter: one linear map of the query vectors. The encoder and the document vectors do not change.

    q' = (q W + b) / |q W + b|,    initially W = I and b = 0

Fitting takes seconds on frozen vectors, so it works over any encoder, closed APIs included, and no document is encoded
again. Over a local model the result is a plain sentence-transformers folder (`save_adapted`); over any other encoder it is
a small safetensors file (`Adapter.save`) and an `AdaptedEncoder`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedfit.data.dataset import Dataset
from embedfit.encode.adapted import AdaptedEncoder, Adapter, write_adapted
from embedfit.encode.encoder import Encoder
from embedfit.encode.local import local_of
from embedfit.evaluation.score import Scores, score_run
from embedfit.retrieve.exact import top_k
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import run_of
from embedfit.template import DOCUMENT_TEMPLATE
from embedfit.tune.frozen import STRENGTHS, AdapterConfig, minimise, vectors_of
from embedfit.tune.result import ADAPTER, DONE, MODEL, Tuned, answer_keys, claim, keys_of, read_tuned, write_fitted
from embedfit.tune.training import judged


def query_adapter(
    encoder: Encoder, train: Dataset, dev: Dataset | None = None, template: str = DOCUMENT_TEMPLATE, config: AdapterConfig | None = None
) -> Tuned:
    """Fit a query adapter in memory, and return the retriever with it.

    Args:
        encoder: Encoder to adapt; it is not changed. If it is cached, searching encodes only new texts.
        train: Training queries.
        dev: Dev queries, which choose the strength of the pull towards the identity, or the identity itself if no map is
            better; None for the default strength.
        template: Document template.
        config: Settings.

    Raises:
        DataError: No training query is judged, or all have the same answer.
    """
    config = config or AdapterConfig()
    train = judged(train)
    queries, documents = map(torch.from_numpy, vectors_of(encoder, train, template))
    size = queries.shape[1]

    def fit(strength: float) -> Adapter:
        shift, bias = torch.zeros(size, size), torch.zeros(size)

        def cosines(rows: Tensor, positions: Tensor) -> Tensor:
            vectors = queries[rows]
            return torch.nn.functional.normalize(vectors + vectors @ shift + bias, dim=1) @ documents[positions].T

        minimise(cosines, [shift, bias], train, strength, config)
        return Adapter((torch.eye(size) + shift).numpy(), bias.numpy(), encoder.fingerprint, encoder.name)

    def tuned(adapter: Adapter, strength: float | None, history: Sequence[dict[str, Any]], started: float) -> Tuned:
        seconds = round(time.monotonic() - started, 3)
        retriever = DenseRetriever(AdaptedEncoder(encoder, adapter), template)
        return Tuned(retriever, seconds, template=template, history=tuple(history), strength=strength)

    if dev is None or not dev.judged:
        started = time.monotonic()
        answers = {id for query in train.queries for id in train.relevant(query)}
        strength = config.strength * len(train.corpus) / len(answers)
        return tuned(fit(strength), strength, (), started)
    score = _dev_scores(encoder, dev, template)
    started = time.monotonic()
    kept = Adapter(np.eye(size, dtype=np.float32), np.zeros(size, np.float32), encoder.fingerprint, encoder.name)
    kept_strength, scores = None, score(kept)
    best, history = scores.mean("mrr@10"), [_row(None, scores)]
    for strength in STRENGTHS:
        adapter = fit(strength)
        scores = score(adapter)
        history.append(_row(strength, scores))
        # The identity comes first and the weakest pull last, so a tie goes to the smaller change.
        if scores.mean("mrr@10") > best:
            kept, kept_strength, best = adapter, strength, scores.mean("mrr@10")
    return tuned(kept, kept_strength, history, started)


def _row(strength: float | None, scores: Scores) -> dict[str, float | None]:
    return {"strength": strength, **{metric: scores.mean(metric) for metric in ("mrr@10", "recall@1")}}


def _dev_scores(encoder: Encoder, dev: Dataset, template: str) -> Callable[[Adapter], Scores]:
    """Return a function that scores an adapter on the dev queries; these are encoded once."""
    dev = dev.select(dev.judged)
    ids = tuple(sorted(dev.corpus))
    position = {id: index for index, id in enumerate(dev.corpus)}
    queries, documents = vectors_of(encoder, dev, template)
    documents = documents[[position[id] for id in ids]]

    def scores(adapter: Adapter) -> Scores:
        return score_run(run_of(dev, ids, lambda depth: top_k(adapter.apply(queries), documents, depth), 10), dev.qrels, ks=(1, 10))

    return scores


def tune_adapter(
    encoder: Encoder,
    train: Dataset,
    dev: Dataset | None,
    folder: str | Path,
    config: AdapterConfig | None = None,
    *,
    template: str = DOCUMENT_TEMPLATE,
) -> Tuned:
    """Fit a query adapter and save it. The same call again reads what the first one wrote.

    Args:
        encoder: Encoder to adapt; it is not changed.
        train: Training queries.
        dev: Dev queries, which choose the strength of the pull towards the identity; None for the default strength.
        folder: Folder for ``adapter.safetensors`` and, if the encoder is local, a sentence-transformers folder ``model``.
        config: Settings.
        template: Document template.

    Raises:
        DataError: No training query is judged, or all have the same answer.
        StorageError: The folder cannot be written, or holds another tuning.
    """
    folder, config = Path(folder), config or AdapterConfig()
    train = judged(train)
    dev = dev.select(dev.judged) if dev and dev.judged else None
    digests = [train.digest(), dev.digest() if dev else None]
    described = ["query adapter", encoder.fingerprint, *digests, template, asdict(config)]
    claim(folder, described, keys_of(train, dev), answer_keys(train, dev, template))
    local = local_of(encoder)
    if not (folder / DONE).exists():
        tuned = query_adapter(encoder, train, dev, template, config)
        adapter = tuned.encoder.adapter  # type: ignore[attr-defined]
        adapter.save(folder / ADAPTER)
        if local:
            write_adapted(local, adapter, folder / MODEL)
        write_fitted(tuned, folder)
    return read_tuned(folder, local or encoder, template)
