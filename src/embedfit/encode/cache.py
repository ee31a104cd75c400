"""The embedding cache: vectors kept on disk, so that no text is encoded twice."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedfit import console, progress
from embedfit.encode.encoder import SLICE, Encoder, Kind, Vectors, WrappingEncoder, complete
from embedfit.encode.vector_file import VectorFile, file_size, open_read_only, other_width, remove_file, vector_files
from embedfit.errors import ModelError
from embedfit.files import cache_folder


class CachedEncoder(WrappingEncoder):
    """An encoder with a cache on disk, keyed by fingerprint, kind and text.

    Vectors are checked when they are read: the text of a damaged vector, or of one of another width, is encoded again. When the
    disk is full, encoding goes on without the cache.

    Args:
        encoder: Encoder of the texts that are not in the cache.
        folder: Folder of the cache, with one SQLite file for each fingerprint; safe to delete.

    Attributes:
        path: File of this encoder's vectors. Those of documents are in another file if the encoder has them from another model.
        misses: Number of texts that were not in the cache.
    """

    def __init__(self, encoder: Encoder, folder: Path | None = None) -> None:
        super().__init__(encoder)
        folder = folder or cache_folder()
        self.path = folder / f"{_file_name(encoder.fingerprint)}.sqlite"
        self._paths: dict[Kind, Path] = {
            "query": self.path,
            "document": folder / f"{_file_name(complete(encoder).document_fingerprint)}.sqlite",
        }
        self.misses = 0

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text. Only texts that are not in the cache are encoded.

        Memory beyond the vectors is 50 bytes per text, and one slice.

        Raises:
            ModelError: The encoder returns something other than one vector per text, or vectors of another width than before.
            StorageError: The folder of the cache cannot be used.
        """
        if not texts:
            return self.encoder.encode(texts, kind)
        keys = _keys(texts, kind)
        same = _first_rows(keys)
        rows = np.flatnonzero(same == np.arange(len(texts)))
        vectors: Vectors | None = None
        with contextlib.closing(VectorFile(self._paths[kind], self.name)) as file:
            is_cached = np.zeros(len(texts), np.bool_)
            for some, cached in file.read(keys, rows):
                vectors = np.empty((len(texts), cached.shape[1]), np.float32) if vectors is None else vectors
                vectors[some], is_cached[some] = cached, True
            missing = rows[~is_cached[rows]]
            if file.damaged:
                console.note(f"Warning: {file.damaged:,} of {len(rows):,} vectors in {file.path} are damaged; they are encoded again")
            self.misses += len(missing)
            with progress.bar(f"encoding {kind} texts", len(rows), len(rows) - len(missing)) as done:
                for part in complete(self.encoder).encode_parts([texts[row] for row in missing], kind):
                    some, encoded = missing[part.rows], np.asarray(part.vectors, np.float32)
                    _check_vectors(encoded, len(some), self.name)
                    width = file.width if vectors is None else vectors.shape[1]
                    if width not in (None, encoded.shape[1]):
                        raise other_width(self.name, encoded.shape[1], width)
                    file.write(keys[some], encoded)
                    vectors = np.empty((len(texts), encoded.shape[1]), np.float32) if vectors is None else vectors
                    vectors[some] = encoded
                    done(len(some))
        assert vectors is not None
        repeated = np.flatnonzero(same != np.arange(len(texts)))
        for start in range(0, len(repeated), SLICE):
            some = repeated[start : start + SLICE]
            vectors[some] = vectors[same[some]]
        return vectors


def _check_vectors(vectors: Vectors, count: int, name: str) -> None:
    if vectors.ndim != 2 or len(vectors) != count:
        raise ModelError(f"{name} gave an array of shape {vectors.shape}; expected one vector for each of {count:,} texts")
    if not vectors.shape[1]:
        raise ModelError(f"{name} gave vectors of no dimensions")
    if not np.isfinite(vectors).all():
        raise ModelError(f"{name} gave a vector that is not finite")


def _file_name(fingerprint: str) -> str:
    """Return a file name that no other fingerprint has."""
    if re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        return fingerprint[:32]
    if re.fullmatch(r"[A-Za-z0-9_-]{1,31}", fingerprint):
        return fingerprint
    return hashlib.sha256(fingerprint.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class CachedModel:
    """The vectors of one model in the cache.

    Attributes:
        model: Name of the model; the name of the file if an earlier version of embedfit wrote it.
        path: File of the vectors.
        vectors: Number of vectors.
        bytes: Size on disk.
        used: Time of last use, in seconds since 1970.
    """

    model: str
    path: Path
    vectors: int
    bytes: int
    used: float


def cached_models(folder: Path | None = None) -> list[CachedModel]:
    """Return the models in the cache, the most recently used first; files of other programs are left out."""
    models = []
    for path in reversed(vector_files(folder or cache_folder())):
        with contextlib.suppress(sqlite3.Error, OSError), contextlib.closing(open_read_only(path)) as database:
            [(count,)] = database.execute("SELECT count(key) FROM vectors")
            about = {}
            with contextlib.suppress(sqlite3.OperationalError):
                about = dict(database.execute("SELECT name, value FROM about"))
            models.append(CachedModel(about.get("model", path.stem), path, count, file_size(path), path.stat().st_mtime))
    return models


def clear_cache(models: Sequence[CachedModel]) -> list[CachedModel]:
    """Remove models from the cache; returns those that could not be removed because another process uses them."""
    return [model for model in models if not remove_file(model.path)]


def _keys(texts: Sequence[str], kind: Kind) -> npt.NDArray[np.uint64]:
    """Return 16 bytes for each text, different for different texts; shape (n, 2)."""
    keys = np.empty((len(texts), 2), np.uint64)
    for row, text in enumerate(texts):
        digest = hashlib.blake2b(f"{kind}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        keys[row] = np.frombuffer(digest, np.uint64)
    return keys


def _first_rows(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return, for each row, the first row with the same key."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: the first of equal rows comes first
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    same = np.empty(len(keys), np.int64)
    same[order] = order[begins][np.cumsum(begins) - 1]
    return same
