"""Engines: the work is done in this process, or on a Ray cluster.

Ray Data sends parts of the work to workers, and sends them again when a worker dies. The parts are the same as on one machine, and
scores are sums in float64 rounded once, so the result is the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embedfit.encode.encoder import Encoder, Kind, Part, Precision, Vectors, WrappingEncoder, slices
from embedfit.encode.local import LocalEncoder
from embedfit.encode.precision import use_bf16
from embedfit.errors import EmbedfitError, require
from embedfit.retrieve.exact import merged, top_k
from embedfit.retrieve.rerank import LocalReranker, Reranker
from embedfit.retrieve.run import Ranked

_DOCUMENTS = 100_000
"""Document vectors searched by a worker at a time."""
_PAIRS = 4096
"""Pairs reranked by a worker at a time."""


class Engine(Protocol):
    """The machinery that encodes, reranks and searches exactly: this process, or a cluster."""

    def encoder(self, encoder: Encoder) -> Encoder:
        """Return an encoder that gives the same vectors."""
        ...

    def reranker(self, reranker: Reranker) -> Reranker:
        """Return a reranker that gives the same scores."""
        ...

    def top_k(self, queries: Vectors, documents: Vectors, k: int) -> Ranked:
        """Return the k nearest documents of each query, as `embedfit.retrieve.exact.top_k` does."""
        ...

    @property
    def at_once(self) -> int:
        """Number of documents to encode and search together where not all vectors are held: enough to keep all workers busy."""
        ...


class LocalEngine:
    """An engine that does everything in this process."""

    def encoder(self, encoder: Encoder) -> Encoder:
        """Return the encoder itself."""
        return encoder

    def reranker(self, reranker: Reranker) -> Reranker:
        """Return the reranker itself."""
        return reranker

    def top_k(self, queries: Vectors, documents: Vectors, k: int) -> Ranked:
        """Return the k nearest documents of each query."""
        return top_k(queries, documents, k)

    @property
    def at_once(self) -> int:
        """Number of documents that keeps one CPU or GPU busy."""
        return 8192


class RayEngine:
    """Encoding, reranking and search on a Ray cluster.

    This is the cluster that the process is connected to; otherwise the cluster of ``RAY_ADDRESS``, or one started on this machine with
    ``ray start``; otherwise a new one on this machine alone.

    Raises:
        EmbedfitError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self) -> None:
        ray = require("ray", extra="ray")
        if not ray.is_initialized():
            try:
                ray.init(logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                address = os.environ.get("RAY_ADDRESS", "this machine")
                reason = str(error).strip().splitlines()[0]
                raise EmbedfitError(f"no Ray cluster at {address}: {reason}; fix: see 'ray status', and docs/scale.md on tokens") from None

    def encoder(self, encoder: Encoder) -> Encoder:
        """Return an encoder that runs on the workers; an encoder that is not a local model stays in this process."""
        return RayEncoder(encoder) if isinstance(encoder, LocalEncoder) else encoder

    def reranker(self, reranker: Reranker) -> Reranker:
        """Return a reranker that runs on the workers; a reranker that is not a local model stays in this process."""
        return RayReranker(reranker) if isinstance(reranker, LocalReranker) else reranker

    def top_k(self, queries: Vectors, documents: Vectors, k: int) -> Ranked:
        """Return the k nearest documents of each query: the best of the best of each part."""
        parts = ({"first": first, "documents": documents[first : first + _DOCUMENTS]} for first in range(0, len(documents), _DOCUMENTS))
        rows = _mapped(_Searcher, {"queries": queries, "k": k}, list(parts), gpu=False)
        rankings = [(row["positions"], row["scores"]) for row in rows]
        if not rankings or not len(queries):
            return top_k(queries, documents, k)
        return merged(rankings, k)

    @property
    def at_once(self) -> int:
        """Enough documents that the seconds in which workers start hardly count: 600 MB of vectors with 384 dimensions."""
        return 4 * _DOCUMENTS


class RayEncoder(WrappingEncoder):
    """A local encoder that runs on the workers, each of which loads the model.

    It has the fingerprint of the local encoder, so both share one cache; the workers themselves keep none. The files of the model are
    sent to the workers, which need embedfit and not the folder.

    Args:
        encoder: Local encoder; its model is not loaded in this process.
    """

    encoder: LocalEncoder

    def __init__(self, encoder: LocalEncoder) -> None:
        super().__init__(encoder)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the local encoder; another one if either the workers or this machine have GPUs, and not both."""
        same = bool(_resource("GPU")) == Path("/dev/nvidia0").exists()
        return self.encoder.fingerprint if same else hashlib.sha256(f"Ray {self.encoder.fingerprint}".encode()).hexdigest()

    @property
    def identity(self) -> str:
        """The identity of the local encoder, which is the same on every machine."""
        return self.encoder.identity

    @property
    def is_same_model(self) -> bool:
        """True: the fingerprint may differ because of the device alone."""
        return True

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order."""
        if not texts:
            return self.encoder.encode(texts, kind)
        parts = list(self.encode_parts(texts, kind))
        vectors = np.empty((len(texts), parts[0].vectors.shape[1]), np.float32)
        for part in parts:
            vectors[part.rows] = part.vectors
        return vectors

    def encode_parts(self, texts: Sequence[str], kind: Kind) -> Iterator[Part]:
        """Yield the vectors of each part when a worker has finished it."""
        settings = {
            "files": self.files,
            "prompts": self.encoder.prompts,
            "precision": _precision(self.encoder.precision),
            "pooling": self.encoder.pooling or "auto",
            "loading": self.encoder.loading,
        }
        rows = list(slices(texts))
        parts = [{"part": number, "texts": [texts[row] for row in some], "kind": kind} for number, some in enumerate(rows)]
        for result in _mapped(_Encoder, settings, parts):
            yield Part(rows[result["part"]], result["vectors"])

    @cached_property
    def files(self) -> list[Any]:
        """Reference to the files of the model in Ray's object store."""
        return _sent(self.encoder.folder)


class RayReranker:
    """A local reranker that runs on the workers, each of which loads the model.

    Args:
        reranker: Local reranker; its model is not loaded in this process.
    """

    def __init__(self, reranker: LocalReranker) -> None:
        self.local, self.name = reranker, reranker.name

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Return the score of the model for each pair (query text, document text)."""
        scores = np.empty(len(pairs), np.float32)
        settings = {"files": self.files, "precision": _precision(self.local.precision)}
        parts = [
            {"first": first, "queries": [query for query, _ in some], "documents": [document for _, document in some]}
            for first, some in ((first, pairs[first : first + _PAIRS]) for first in range(0, len(pairs), _PAIRS))
        ]
        for row in _mapped(_Reader, settings, parts):
            scores[row["first"] : row["first"] + _PAIRS] = row["scores"]
        return scores

    @cached_property
    def files(self) -> list[Any]:
        """Reference to the files of the model in Ray's object store."""
        return _sent(self.local.folder)


class _Encoder:
    """Ray worker that loads the encoder once and encodes parts."""

    def __init__(self, files: Any, prompts: dict[Kind, str], precision: Any, pooling: Any, loading: dict[str, Any]) -> None:
        self.folder = _received(files)
        self.encoder = LocalEncoder(
            self.folder.name,
            query_prompt=prompts["query"],
            document_prompt=prompts["document"],
            precision=precision,
            pooling=pooling,
            model_kwargs=loading,
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"part": row["part"], "vectors": self.encoder.encode(list(row["texts"]), row["kind"])}


class _Reader:
    """Ray worker that loads the reranker once and scores pairs."""

    def __init__(self, files: Any, precision: Any) -> None:
        self.folder = _received(files)
        self.reranker = LocalReranker(self.folder.name, precision=precision)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"first": row["first"], "scores": self.reranker.score(list(zip(row["queries"], row["documents"], strict=True)))}


class _Searcher:
    """Ray worker that holds the query vectors and searches parts of the documents."""

    def __init__(self, queries: Vectors, k: int) -> None:
        self.queries, self.k = queries, k

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        positions, scores = top_k(self.queries, row["documents"], self.k)
        return {"positions": positions + row["first"], "scores": scores}


def _mapped(worker: type, settings: dict[str, Any], parts: list[dict[str, Any]], *, gpu: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the workers' results, in the order in which they are ready.

    Args:
        worker: Class of a worker.
        settings: Arguments of its constructor.
        parts: Arguments of its calls.
        gpu: Whether each worker gets a GPU, if the cluster has any.

    Raises:
        EmbedfitError: A worker failed with an error that would come again.
    """
    if not parts:
        return
    ray, data = require("ray", extra="ray"), require("ray.data", extra="ray")
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
    gpus = _resource("GPU") if gpu else 0
    count = min(len(parts), gpus or _resource("CPU"))
    # One part is one block: the part of a worker that dies goes to another worker.
    blocks = data.from_items(parts, override_num_blocks=len(parts))
    if gpus:
        pool = data.ActorPoolStrategy(size=count)
        results = blocks.map(worker, fn_constructor_kwargs=settings, compute=pool, num_cpus=1, num_gpus=1)
    else:
        # Ray keeps the processes of tasks, with what they imported. A process of an actor starts and ends with it.
        job = {"worker": worker, "settings": settings, "key": _key(worker, settings)}
        results = blocks.map(_called, fn_kwargs=job, compute=data.TaskPoolStrategy(size=count), num_cpus=1)
    try:
        yield from results.iter_rows()
    except ray.exceptions.RayError as error:
        # An error of a worker comes back as the text of its traceback.
        lines = str(error).strip().splitlines()
        ours = [line.partition(": ")[2] for line in lines if line.startswith("embedfit.errors.")]
        raise EmbedfitError(ours[-1] if ours else f"Ray: {lines[0]} {lines[-1]}") from error


_kept: dict[str, Any] = {}
"""The worker that was made last in this process of Ray's, by its key."""


def _key(worker: type, settings: dict[str, Any]) -> str:
    """Return the same text for the same worker with the same settings: other arrays or other files, another key."""
    digest = hashlib.sha256(worker.__qualname__.encode())
    for name, value in sorted(settings.items()):
        digest.update(name.encode() + (value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()))
    return digest.hexdigest()


def _called(row: dict[str, Any], *, worker: type, settings: dict[str, Any], key: str) -> dict[str, Any]:
    """Call a worker in a process of Ray's, which keeps the worker for the next call."""
    if key not in _kept:
        _kept.clear()
        _kept[key] = worker(**settings)
    result: dict[str, Any] = _kept[key](row)
    return result


def _resource(name: str) -> int:
    resources: dict[str, float] = require("ray", extra="ray").cluster_resources()
    return int(resources.get(name, 0))


def _precision(precision: Precision) -> Precision:
    """Return the precision of all workers. What ``auto`` means is decided here, so that no two workers differ."""
    if precision != "auto":
        return precision
    return "bf16" if _resource("GPU") or use_bf16(precision, "cpu") else "fp32"


def _sent(folder: Path) -> list[Any]:
    """Put the files of a model into Ray's object store, from which each machine fetches them once; returns the reference."""
    ray = require("ray", extra="ray")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return [ray.put(files)]


def _received(files: list[Any]) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder with the files of a model, which is removed with the last reference to it."""
    ray = require("ray", extra="ray")
    folder = tempfile.TemporaryDirectory(prefix="embedfit-")
    for name, content in ray.get(files[0]).items():
        path = Path(folder.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
