"""A query adapter: one linear map on the vectors of queries, while the encoder and the documents' vectors stay.

    q' = (q W + b) / |q W + b|,    W = I and b = 0 to begin with

It is fitted on frozen vectors in seconds, so it works over anything that gives vectors, a closed API too, and no document
has to be encoded again. Over a local model the result is an ordinary sentence-transformers folder (`save_adapted`), over
anything else a small safetensors file (`Adapter.save`) and an `AdaptedEncoder`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from embedfit.data.dataset import Dataset
from embedfit.encode.adapted import AdaptedEncoder, Adapter, load_adapter, write_adapted
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.local import LocalEncoder
from embedfit.evaluation.score import Scores, score_run
from embedfit.files import writing
from embedfit.retrieve.exact import top_k
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import run_of
from embedfit.template import DOCUMENT_TEMPLATE
from embedfit.tune.frozen import STRENGTHS, AdapterConfig, judged, minimise, vectors_of
from embedfit.tune.result import Fitted, answer_keys, claim, keys_of


@dataclass(frozen=True, eq=False)
class FittedAdapter:
    """A query adapter and where it came from.

    Attributes:
        adapter: The map.
        strength: Of the pull towards the identity that it was fitted with; None if it is the identity.
        history: For each strength that was tried on the dev part, None first: strength, MRR@10 and recall@1.
        seconds: Spent fitting; encoding is not counted.
    """

    adapter: Adapter
    strength: float | None = None
    history: tuple[dict[str, float | None], ...] = ()
    seconds: float = 0.0


def query_adapter(
    encoder: Encoder, train: Dataset, dev: Dataset | None = None, template: str = DOCUMENT_TEMPLATE, config: AdapterConfig | None = None
) -> Fitted:
    """Fit a query adapter, and return the search with it.

    Args:
        encoder: Stays as it is. Cached, so that the search after it encodes only what is new.
        train: Queries to learn from.
        dev: Queries that choose the strength of the pull towards the identity, and the identity itself if nothing is better.
        template: What a document says.
        config: Settings.

    Raises:
        DataError: No training query is judged, or all have the same answer.
    """
    found = fit_adapter(encoder, train, dev, template, config)
    return Fitted(DenseRetriever(AdaptedEncoder(encoder, found.adapter), template), found.seconds)


def fit_adapter(
    encoder: Encoder, train: Dataset, dev: Dataset | None = None, template: str = DOCUMENT_TEMPLATE, config: AdapterConfig | None = None
) -> FittedAdapter:
    """Fit a query adapter; see `query_adapter`.

    Raises:
        DataError: Every training query has the same answer.
    """
    config = config or AdapterConfig()
    train = judged(train)
    queries, documents = map(torch.from_numpy, vectors_of(encoder, train, template))
    size = queries.shape[1]

    def fit(strength: float) -> Adapter:
        shift, bias = torch.zeros(size, size), torch.zeros(size)

        def cosines(rows: Tensor, positions: Tensor) -> Tensor:
            found = queries[rows]
            return torch.nn.functional.normalize(found + found @ shift + bias, dim=1) @ documents[positions].T

        minimise(cosines, [shift, bias], train, strength, config)
        return Adapter((torch.eye(size) + shift).numpy(), bias.numpy(), encoder.fingerprint, encoder.name)

    if dev is None or not dev.judged:
        started = time.monotonic()
        asked_for = {id for query in train.queries for id in train.relevant(query)}
        strength = config.strength * len(train.corpus) / len(asked_for)
        return FittedAdapter(fit(strength), strength, (), round(time.monotonic() - started, 3))
    scores = _dev_scores(encoder, dev, template)
    started = time.monotonic()
    kept = FittedAdapter(Adapter(np.eye(size, dtype=np.float32), np.zeros(size, np.float32), encoder.fingerprint, encoder.name))
    found = scores(kept.adapter)
    best, history = found.mean("mrr@10"), [_row(None, found)]
    for strength in STRENGTHS:
        adapter = fit(strength)
        found = scores(adapter)
        history.append(_row(strength, found))
        # The identity came first and the weakest pull comes last, so a tie goes to what changes less.
        if found.mean("mrr@10") > best:
            kept, best = FittedAdapter(adapter, strength), found.mean("mrr@10")
    return replace(kept, history=tuple(history), seconds=round(time.monotonic() - started, 3))


def _row(strength: float | None, scores: Scores) -> dict[str, float | None]:
    return {"strength": strength, **{metric: scores.mean(metric) for metric in ("mrr@10", "recall@1")}}


def _dev_scores(encoder: Encoder, dev: Dataset, template: str) -> Callable[[Adapter], Scores]:
    """Return how to score an adapter on the dev queries; their vectors are asked for once."""
    dev = dev.select(dev.judged)
    ids = tuple(sorted(dev.corpus))
    position = {id: index for index, id in enumerate(dev.corpus)}
    queries, documents = vectors_of(encoder, dev, template)
    documents = documents[[position[id] for id in ids]]

    def scores(adapter: Adapter) -> Scores:
        return score_run(run_of(dev, ids, lambda depth: top_k(adapter.apply(queries), documents, depth), 10), dev.qrels, ks=(1, 10))

    return scores


@dataclass(frozen=True, eq=False)
class TunedAdapter:
    """What `tune_adapter` leaves behind.

    Attributes:
        folder: Holds ``adapter.safetensors``, and ``model`` where the encoder is local.
        base: The encoder that it was fitted on.
        adapter: The map.
        strength: Of the pull towards the identity; None if the dev part chose the identity itself.
        history: For each strength that was tried on the dev part: strength, MRR@10 and recall@1.
        seconds: Spent fitting.
    """

    folder: Path
    base: Encoder
    adapter: Adapter
    strength: float | None
    history: tuple[dict[str, float | None], ...]
    seconds: float

    @property
    def encoder(self) -> Encoder:
        """The adapted model, from its own folder where the base is local."""
        local = complete(self.base).local
        return LocalEncoder(self.folder / "model", precision=local.precision) if local else AdaptedEncoder(self.base, self.adapter)


def tune_adapter(
    encoder: Encoder,
    train: Dataset,
    dev: Dataset | None,
    folder: str | Path,
    config: AdapterConfig | None = None,
    *,
    template: str = DOCUMENT_TEMPLATE,
) -> TunedAdapter:
    """Fit a query adapter and keep it. The same call again reads what the first one wrote.

    Args:
        encoder: What to adapt; it is left as it is.
        train: Queries to learn from.
        dev: Queries that choose the strength of the pull towards the identity; None for the default.
        folder: Where ``adapter.safetensors`` goes, and for a local encoder an ordinary sentence-transformers folder ``model``.
        config: Settings.
        template: What a document says.

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
    done, weights = folder / "tuned.json", folder / "adapter.safetensors"
    if not done.exists():
        found = fit_adapter(encoder, train, dev, template, config)
        found.adapter.save(weights)
        local = complete(encoder).local
        if local:
            write_adapted(local, found.adapter, folder / "model")
        with writing(done) as file:
            said = {"strength": found.strength, "history": found.history, "seconds": found.seconds}
            file.write(json.dumps(said, indent=1).encode())
    said = json.loads(done.read_text(encoding="utf-8"))
    return TunedAdapter(folder, encoder, load_adapter(weights), said["strength"], tuple(said["history"]), said["seconds"])
