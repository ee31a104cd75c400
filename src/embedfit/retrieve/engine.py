"""Where the work is done: in this process, or on a Ray cluster.

Ray Data hands out parts of the work, and hands them out again when a worker dies. Texts go out and vectors come back in
the same parts as on one machine, and scores are sums in float64 rounded once, so the result is the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
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
"""Document vectors that a worker searches at a time."""
_PAIRS = 4096
"""Pairs that a worker reranks at a time."""


class Engine(Protocol):
    """What a pipeline asks for: an encoder, a reranker, and exact search."""

    def encoder(self, encoder: Encoder) -> Encoder:
        """Return an encoder that gives the same vectors."""
        ...

    def reranker(self, reranker: Reranker) -> Reranker:
        """Return a reranker that gives the same scores."""
        ...

    def top_k(self, queries: Vectors, documents: Vectors, k: int) -> Ranked:
        """Return what `embedfit.retrieve.top_k` returns."""
        ...

    @property
    def at_once(self) -> int:
        """Documents to encode and search together where not all vectors are to be held: enough to keep everybody busy."""
        ...


class LocalEngine:
    """Everything in this process."""

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
        """What one processor or device is kept busy with."""
        return 8192


class RayEngine:
    """Encoding, reranking and search on a Ray cluster.

    It is the cluster that this process is connected to; else that of ``RAY_ADDRESS``, or one that was started on this
    machine with ``ray start``; else one of its own, on this machine alone.

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
                said = str(error).strip().splitlines()[0]
                raise EmbedfitError(f"no Ray cluster at {address}: {said}; fix: see 'ray status', and docs/scale.md on tokens") from None

    def encoder(self, encoder: Encoder) -> Encoder:
        """Return an encoder whose texts are encoded by the workers; one that is no local model is asked from here."""
        return RayEncoder(encoder) if isinstance(encoder, LocalEncoder) else encoder

    def reranker(self, reranker: Reranker) -> Reranker:
        """Return a reranker whose pairs are read by the workers; one that is no local model reads them here."""
        return RayReranker(reranker) if isinstance(reranker, LocalReranker) else reranker

    def top_k(self, queries: Vectors, documents: Vectors, k: int) -> Ranked:
        """Return the k nearest documents of each query: the best of each part's best."""
        parts = ({"first": first, "documents": documents[first : first + _DOCUMENTS]} for first in range(0, len(documents), _DOCUMENTS))
        found = [(row["positions"], row["scores"]) for row in _mapped(_Searcher, {"queries": queries, "k": k}, list(parts), gpu=False)]
        if not found or not len(queries):
            return top_k(queries, documents, k)
        return merged(found, k)

    @property
    def at_once(self) -> int:
        """So many that the workers' start, some seconds, hardly counts: 600 MB of vectors with 384 dimensions."""
        return 4 * _DOCUMENTS


class RayEncoder(WrappingEncoder):
    """A local encoder, its model held by each of the workers.

    Its fingerprint is the local encoder's, so both share one cache; the workers themselves keep none. The model's files
    are sent to the workers: they need embedfit, not the folder.

    Args:
        encoder: Its model is not loaded in this process.
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
    def local(self) -> LocalEncoder:
        """The local encoder."""
        return self.encoder

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
        """Yield vectors as the workers have them ready."""
        said = {
            "files": _sent(self.encoder.folder),
            "prompts": self.encoder.prompts,
            "precision": _precision(self.encoder.precision),
            "pooling": self.encoder.pooling or "auto",
            "kind": kind,
        }
        rows = list(slices(texts))
        parts = [{"part": number, "texts": [texts[row] for row in some]} for number, some in enumerate(rows)]
        for found in _mapped(_Encoder, said, parts):
            yield Part(rows[found["part"]], found["vectors"])


class RayReranker:
    """A local reranker, its model held by each of the workers.

    Args:
        reranker: Its model is not loaded in this process.
    """

    def __init__(self, reranker: LocalReranker) -> None:
        self.local, self.name = reranker, reranker.name

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Return the model's score of each pair of a query's and a document's text."""
        scores = np.empty(len(pairs), np.float32)
        said = {"files": _sent(self.local.folder), "precision": _precision(self.local.precision)}
        parts = [
            {"first": first, "queries": [query for query, _ in some], "documents": [document for _, document in some]}
            for first, some in ((first, pairs[first : first + _PAIRS]) for first in range(0, len(pairs), _PAIRS))
        ]
        for row in _mapped(_Reader, said, parts):
            scores[row["first"] : row["first"] + _PAIRS] = row["scores"]
        return scores


class _Encoder:
    """What a worker is that encodes."""

    def __init__(self, files: Any, prompts: dict[Kind, str], precision: Any, pooling: Any, kind: Kind) -> None:
        self.folder = _received(files)
        query, document = prompts["query"], prompts["document"]
        self.encoder = LocalEncoder(self.folder.name, query_prompt=query, document_prompt=document, precision=precision, pooling=pooling)
        self.kind: Kind = kind

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"part": row["part"], "vectors": self.encoder.encode(list(row["texts"]), self.kind)}


class _Reader:
    """What a worker is that reranks."""

    def __init__(self, files: Any, precision: Any) -> None:
        self.folder = _received(files)
        self.reranker = LocalReranker(self.folder.name, precision=precision)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"first": row["first"], "scores": self.reranker.score(list(zip(row["queries"], row["documents"], strict=True)))}


class _Searcher:
    """What a worker is that searches."""

    def __init__(self, queries: Vectors, k: int) -> None:
        self.queries, self.k = queries, k

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        positions, scores = top_k(self.queries, row["documents"], self.k)
        return {"positions": positions + row["first"], "scores": scores}


def _mapped(worker: type, given: dict[str, Any], parts: list[dict[str, Any]], *, gpu: bool = True) -> Iterator[dict[str, Any]]:
    """Yield what workers make of each part, in the order in which they are ready.

    Args:
        worker: A class; each worker is one of it.
        given: What it is made with.
        parts: What it is called with.
        gpu: Whether each should have a GPU, if the cluster has any.

    Raises:
        EmbedfitError: A worker failed, and would again.
    """
    if not parts:
        return
    ray, data = require("ray", extra="ray"), require("ray.data", extra="ray")
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
    gpus = _resource("GPU") if gpu else 0
    count = min(len(parts), gpus or _resource("CPU"))
    # One part is one block: what a worker that dies had in hand is handed to another.
    made = data.from_items(parts, override_num_blocks=len(parts)).map(
        worker,
        fn_constructor_kwargs=given,
        compute=data.ActorPoolStrategy(size=count),
        num_cpus=1,
        num_gpus=1 if gpus else None,
    )
    try:
        yield from made.iter_rows()
    except ray.exceptions.RayError as error:
        # What a worker raised comes back as the text of its traceback.
        lines = str(error).strip().splitlines()
        ours = [line.partition(": ")[2] for line in lines if line.startswith("embedfit.errors.")]
        raise EmbedfitError(ours[-1] if ours else f"Ray: {lines[0]} {lines[-1]}") from error


def _resource(name: str) -> int:
    resources: dict[str, float] = require("ray", extra="ray").cluster_resources()
    return int(resources.get(name, 0))


def _precision(asked: Precision) -> Precision:
    """Return what all workers compute in: what ``auto`` comes to here, so that it is not different from one to the next."""
    if asked != "auto":
        return asked
    return "bf16" if _resource("GPU") or use_bf16(asked, "cpu") else "fp32"


def _sent(folder: Path) -> list[Any]:
    """Return a model's files as workers get them: by reference, once for each machine."""
    ray = require("ray", extra="ray")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return [ray.put(files)]


def _received(files: list[Any]) -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a model's files, which is gone when nothing holds it any longer."""
    ray = require("ray", extra="ray")
    folder = tempfile.TemporaryDirectory(prefix="embedfit-")
    for name, content in ray.get(files[0]).items():
        path = Path(folder.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
