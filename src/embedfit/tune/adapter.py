"""A query adapter: one linear map on the vectors of queries, while the encoder and the documents' vectors stay.

    q' = (q W + b) / |q W + b|,    W = I and b = 0 to begin with

It is fitted on frozen vectors in seconds, so it works over anything that gives vectors, a closed API too, and no document
has to be encoded again. Over a local model the result is an ordinary sentence-transformers folder (`save_adapted`), over
anything else a small safetensors file (`Adapter.save`) and an `AdaptedEncoder`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from embedfit.data import DOCUMENT_TEMPLATE, Dataset, writing
from embedfit.encode import CachedEncoder, Encoder, Kind, LocalEncoder, Vectors, load_model
from embedfit.errors import DataError, ModelError, StorageError
from embedfit.retrieve import DenseRetriever, run_of, top_k
from embedfit.score import Scores, score_run
from embedfit.tune.candidates import AllDocuments, BatchAndOthers, CandidateSource
from embedfit.tune.loss import multi_positive_softmax
from embedfit.tune.result import Fitted, answer_keys, claim, keys_of, save_in_place, why_not_written

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

STRENGTHS = (100.0, 30.0, 10.0, 3.0, 1.0)
"""Pulls towards the identity that a dev part chooses among, the strongest first."""
_ALL_DOCUMENTS = 2048
"""A corpus of up to this many documents is scored whole in every step; of a larger one, the batch's and random ones."""
_FORMAT = "embedfit query adapter 1"


@dataclass(frozen=True)
class AdapterConfig:
    """How something is fitted to frozen vectors. The defaults are the same for every data set (docs/decisions.md).

    Attributes:
        strength: Pull towards the start, shared by the training queries: the more of them, the less each is held back.
            A query adapter divides it by the share of the documents that have a training query, as what it learns from
            them it does to the queries of the others too; or lets a dev part choose instead.
        scale: What cosine similarities are multiplied by in the loss (1 / temperature).
        steps: Of Adam; 0 leaves everything as it was.
        batch_size: Queries per step.
        learning_rate: At the start; it falls to 0 along a half cosine.
        negatives: Random documents per step, where the corpus is large.
        seed: Of the order of the queries and of the random documents.
    """

    strength: float = 5.0
    scale: float = 14.0
    steps: int = 200
    batch_size: int = 256
    learning_rate: float = 3e-3
    negatives: int = 512
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Adapter:
    """A linear map for the query vectors of one encoder.

    Attributes:
        weight: W; float32, shape (dimensions, dimensions).
        bias: b; float32, shape (dimensions,).
        base: Fingerprint of the encoder that it was fitted on.
        base_name: That encoder's name, for messages.
        path: The file that it was read from, if it was.
    """

    weight: Vectors
    bias: Vectors
    base: str
    base_name: str
    path: Path | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of the map and of what it was fitted on."""
        return hashlib.sha256(self.weight.tobytes() + self.bias.tobytes() + self.base.encode()).hexdigest()

    def apply(self, queries: Vectors) -> Vectors:
        """Return the adapted vectors, of unit length.

        Args:
            queries: Unit vectors of the base encoder; shape (n, dimensions).
        """
        moved = queries @ self.weight + self.bias
        unit: Vectors = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        return unit

    def save(self, path: str | Path) -> Path:
        """Write it as a safetensors file, whole or not at all.

        Raises:
            StorageError: The file cannot be written.
        """
        from safetensors.numpy import save

        metadata = {"format": _FORMAT, "base": self.base, "base_name": self.base_name}
        with writing(Path(path)) as file:
            file.write(save({"weight": self.weight, "bias": self.bias}, metadata))
        return Path(path)


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter that `Adapter.save` wrote.

    Raises:
        ModelError: It is not there, or not an adapter.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ModelError(f"{path}: is no query adapter; expected a file that embedfit wrote, marked {_FORMAT!r}")
            return Adapter(file.get_tensor("weight"), file.get_tensor("bias"), metadata["base"], metadata["base_name"], Path(path))
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{path}: cannot be read as a query adapter: {str(error).splitlines()[0]}") from None


class AdaptedEncoder:
    """An encoder whose queries go through an adapter; documents have the vectors that they had.

    Args:
        encoder: The one that the adapter was fitted on. If it is cached, adapting costs no new encoding.
        adapter: The map.

    Raises:
        ModelError: The adapter was fitted on another encoder.
    """

    def __init__(self, encoder: Encoder, adapter: Adapter) -> None:
        if encoder.fingerprint != adapter.base:
            raise ModelError(
                f"the adapter was fitted on {adapter.base_name!r} (fingerprint {adapter.base[:12]}), not on {encoder.name!r} "
                f"({encoder.fingerprint[:12]}); fix: use that encoder, or fit an adapter on this one"
            )
        self.encoder, self.adapter = encoder, adapter
        self.name = f"{encoder.name}, query adapter"

    @property
    def fingerprint(self) -> str:
        """The adapter's, which holds the encoder's."""
        return self.adapter.fingerprint

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order."""
        vectors = self.encoder.encode(texts, kind)
        return self.adapter.apply(vectors) if kind == "query" else vectors


def save_adapted(encoder: LocalEncoder, adapter: Adapter, folder: str | Path) -> Path:
    """Write a local model with its adapter as an ordinary sentence-transformers folder.

    A Router behind the model's own modules sends queries through the map and documents past it, so the transformer is
    stored once. ``SentenceTransformer(folder)`` loads it without embedfit: ``encode_query`` applies the map,
    ``encode_document`` does not, nor does ``encode``, which knows no task.

    Raises:
        ModelError: The adapter was fitted on another encoder.
        StorageError: The folder cannot be written, or holds something already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder}: is there already; fix: give another folder, or move it away")
    return _save_adapted(encoder, adapter, folder)


def _save_adapted(encoder: LocalEncoder, adapter: Adapter, folder: Path) -> Path:
    """Write what `save_adapted` writes; a model that is there is replaced."""
    AdaptedEncoder(encoder, adapter)  # refuses another encoder's
    model = _routed(load_model(encoder.folder, encoder.prompts, encoder.pooling), adapter)
    try:
        save_in_place(partial(model.save_pretrained, create_model_card=False), folder)
    except Exception as error:
        reason = why_not_written(error)
        if reason is None:
            raise
        raise StorageError(f"{folder}: cannot be written: {reason}; fix: make room, or give another folder") from None
    return folder


def _routed(model: SentenceTransformer, adapter: Adapter) -> SentenceTransformer:
    from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    size = len(adapter.bias)
    if model.truncate_dim:  # the map was fitted on the cut vectors, so they are cut before it
        sizes = [module.get_embedding_dimension() for module in model.children() if isinstance(module, (Dense, Pooling, Transformer))]
        whole = sizes[-1]
        model.append(Dense(whole, size, bias=False, activation_function=None, init_weight=torch.eye(size, whole)))
    weight = torch.from_numpy(np.ascontiguousarray(adapter.weight.T))
    dense = Dense(size, size, activation_function=None, init_weight=weight, init_bias=torch.from_numpy(adapter.bias.copy()))
    # Not every model ends in unit vectors, and those are what the adapter was fitted on.
    model.append(Router.for_query_document([Normalize(), dense, Normalize()], [Normalize()], default_route="document"))
    return model


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


def minimise(
    cosines: Callable[[Tensor, Tensor], Tensor], shifts: Sequence[Tensor], train: Dataset, strength: float, config: AdapterConfig
) -> None:
    """Change some tensors, zero at the start, in place so that training queries find their documents.

    What is minimised is the mean over the n queries of `multi_positive_softmax`, and strength / n times the sum of
    squares of the tensors: a normal prior around the start that the data outgrow.

    Args:
        cosines: From positions of queries and of documents to similarities, shape (queries, documents).
        shifts: What changes.
        train: Each of its queries must be judged.
        strength: Of the pull back to zero.
        config: The other settings.
    """
    few = len(train.corpus) <= _ALL_DOCUMENTS
    source: CandidateSource = AllDocuments(train) if few else BatchAndOthers(train, random=config.negatives, seed=config.seed)
    count = len(train.queries)
    generator = torch.Generator().manual_seed(config.seed)
    for shift in shifts:
        shift.requires_grad_(True)
    optimiser = torch.optim.Adam(shifts, lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, config.steps))
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(config.steps):
        if len(left) < min(config.batch_size, count):
            left = torch.randperm(count, generator=generator)
        rows, left = left[: config.batch_size], left[config.batch_size :]
        found = source.candidates(rows.tolist())
        logits = config.scale * cosines(rows, torch.from_numpy(found.documents))
        prior = strength / count * torch.stack([shift.square().sum() for shift in shifts]).sum()
        optimiser.zero_grad()
        (multi_positive_softmax(logits, torch.from_numpy(found.grades)) + prior).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    for shift in shifts:
        shift.requires_grad_(False)


def judged(train: Dataset) -> Dataset:
    """Return the judged queries to learn from.

    Raises:
        DataError: There are none, or all have the same answer.
    """
    train = train.select(train.judged)
    answers = {tuple(sorted(train.relevant(id))) for id in train.queries}
    if not answers:
        raise DataError("data", "has no judged query to learn from", fix="add labelled queries")
    if len(answers) == 1:
        raise DataError(
            "data", f"all {len(train.queries):,} training queries have the one answer {min(answers)}", fix="add queries with other labels"
        )
    return train


def vectors_of(encoder: Encoder, dataset: Dataset, template: str) -> tuple[Vectors, Vectors]:
    """Return the vectors of a data set's queries and of its documents, each in order."""
    texts = dataset.document_texts(template)
    return np.array(encoder.encode(dataset.query_texts(), "query"), np.float32), np.array(encoder.encode(texts, "document"), np.float32)


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
        local = _local(self.base)
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
        local = _local(encoder)
        if local:
            _save_adapted(local, found.adapter, folder / "model")
        with writing(done) as file:
            said = {"strength": found.strength, "history": found.history, "seconds": found.seconds}
            file.write(json.dumps(said, indent=1).encode())
    said = json.loads(done.read_text(encoding="utf-8"))
    return TunedAdapter(folder, encoder, load_adapter(weights), said["strength"], tuple(said["history"]), said["seconds"])


def _local(encoder: Encoder) -> LocalEncoder | None:
    """Return the local model that an encoder is, under its cache if it has one."""
    inner = encoder.encoder if isinstance(encoder, CachedEncoder) else encoder
    inner = getattr(inner, "local", inner)  # of an engine's encoder
    return inner if isinstance(inner, LocalEncoder) else None
