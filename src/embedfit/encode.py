"""Texts to vectors: local sentence-transformers models, and a cache so that nothing is encoded twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit import console
from embedfit.data import writing
from embedfit.errors import ConfigError, ModelError, StorageError
from embedfit.hub import file_sha256, model_folder, weights_of
from embedfit.tokens import Tokens, length_batches, tokenizer_suffices

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Vectors: TypeAlias = npt.NDArray[np.float32]
"""A matrix (texts, dimensions), each row of unit length."""
Kind: TypeAlias = Literal["query", "document"]
Precision: TypeAlias = Literal["auto", "bf16", "fp32"]

_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
_BATCH_TOKENS = {"cpu": 1024}
_BATCH_TOKENS_ELSEWHERE = 32_768
"""Padded tokens in a batch: on a processor, what its caches hold (a fifth faster than 4,096); on a device, what fills it."""

_FEW = 16
"""Texts up to this number are left to the library whole."""
_TIMED_QUERIES, _TIMED_REMOTE = 64, 5


class Encoder(Protocol):
    """Anything that turns texts into unit vectors."""

    name: str

    @property
    def fingerprint(self) -> str:
        """A text that changes whenever the vectors could."""
        ...

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order."""
        ...


class ModelEncoder:
    """A sentence-transformers model in memory.

    Args:
        model: Loaded; it may be in the middle of its training.
        prompts: Put before each query and each document.
        bf16: Whether to run matrix products in bfloat16, under autocast.
        warns: Whether to say, once for each kind of text, that some are longer than the model reads.
    """

    def __init__(self, model: SentenceTransformer, prompts: dict[Kind, str], *, bf16: bool, warns: bool = True) -> None:
        self.model, self.prompts, self.bf16 = model, prompts, bf16
        self._to_warn_of: set[Kind] = {"query", "document"} if warns else set()

    def truncation(self, texts: Sequence[str], kind: Kind) -> Truncation:
        """Return how much of some texts the model does not read."""
        counts = self._token_counts(texts, kind)
        return Truncation(counts, self._limit())

    def _limit(self) -> int:
        """Return how many tokens the model reads of a text; a huge number if it has no limit, or one like transformers' 1e30."""
        return min(self.model.max_seq_length or sys.maxsize, sys.maxsize)

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions).

        Raises:
            ModelError: A vector is not finite.
        """
        import torch

        if not texts:
            return np.zeros((0, self.model.get_embedding_dimension() or 0), np.float32)
        device = self.model.device
        lengths, features_of = self._read(texts, kind)
        vectors: Vectors | None = None
        self.model.eval()
        with (
            torch.inference_mode(),
            autocast(device.type, self.bf16),
            without_cudnn_attention(device.type),
            console.progress(f"encoding {kind} texts", len(texts)) as done,
        ):
            for batch in length_batches(lengths, _BATCH_TOKENS.get(device.type, _BATCH_TOKENS_ELSEWHERE)):
                features = {key: value.to(device) if torch.is_tensor(value) else value for key, value in features_of(batch).items()}
                # The kind is the task that the library's own encode_query and encode_document name: a Router needs it.
                found = self.model(features, task=kind)["sentence_embedding"].float()
                found = torch.nn.functional.normalize(found, dim=-1).cpu().numpy()
                if vectors is None:
                    vectors = np.empty((len(texts), found.shape[1]), np.float32)
                vectors[batch] = found
                done(len(batch))
        assert vectors is not None
        if not np.isfinite(vectors).all():
            raise ModelError('the model gives vectors that are not finite; fix: precision = "fp32", or another model')
        return vectors

    def _read(self, texts: Sequence[str], kind: Kind) -> tuple[npt.NDArray[np.int64], Callable[[npt.NDArray[np.int64]], dict[str, Any]]]:
        """Return how many tokens of each text the model will read, and what makes the features of those at some positions.

        Texts that it will not read whole are warned of.
        """
        prompt, limit = self.prompts[kind], self._limit()

        def by_library(positions: npt.NDArray[np.int64]) -> dict[str, Any]:
            return dict(self.model.preprocess([texts[position] for position in positions], prompt=prompt or None, task=kind))

        if len(texts) > _FEW and tokenizer_suffices(self.model, texts, prompt, kind):
            tokens = Tokens(self.model, texts, prompt, kind, alone=True)
            lengths, features_of, counts = tokens.lengths, tokens.padded, tokens.lengths.copy()
            if kind in self._to_warn_of:
                full = np.flatnonzero(counts >= limit).tolist()  # the others have no more tokens than these
                counts[full] = self._token_counts([texts[position] for position in full], kind)
        else:
            counts = self._token_counts(texts, kind)
            lengths, features_of = np.minimum(counts, limit), by_library
        found = Truncation(counts, limit)
        if found.cut.any() and kind in self._to_warn_of:
            self._to_warn_of.remove(kind)
            console.note(f"Warning: {found.describe(kind)}")
        return lengths, features_of

    def _token_counts(self, texts: Sequence[str], kind: Kind) -> npt.NDArray[np.int64]:
        """Return the number of tokens of each text with its prompt, untruncated (of characters, without a tokenizer)."""
        if not texts:
            return np.zeros(0, np.int64)  # the tokenizer takes no empty list
        tokenizer = self.model.tokenizer
        whole = [self.prompts[kind] + text for text in texts]
        if not callable(tokenizer):
            return np.array([len(text) for text in whole], np.int64)
        # Not verbose, or the tokenizer would warn of every long text.
        encoded = tokenizer(whole, truncation=False, verbose=False, return_attention_mask=False)
        return np.array([len(ids) for ids in encoded["input_ids"]], np.int64)


@dataclass(frozen=True)
class Truncation:
    """How much of some texts a model reads.

    Attributes:
        counts: Tokens of each text.
        limit: Tokens that the model reads.
    """

    counts: npt.NDArray[np.int64]
    limit: int

    @property
    def cut(self) -> npt.NDArray[np.bool_]:
        """Which texts are longer than the limit."""
        return self.counts > self.limit

    @property
    def share_lost(self) -> float:
        """Tokens that are not read, of all tokens."""
        return float(np.maximum(self.counts - self.limit, 0).sum() / max(1, self.counts.sum()))

    def describe(self, kind: Kind) -> str:
        """Return one line on it."""
        return (
            f"{self.cut.sum():,} of {len(self.counts):,} {kind} texts are longer than the {self.limit} tokens the model reads: "
            f"{self.share_lost:.1%} of all their tokens are lost"
        )


class LocalEncoder:
    """A sentence-transformers model on this machine, loaded when first needed.

    Args:
        name: A folder, a Hub name, or ``all-MiniLM-L6-v2`` (offline).
        query_prompt: Put before each query; by default the model's own prompt, if it has one.
        document_prompt: Put before each document, likewise.
        precision: ``bf16`` runs matrix products in bfloat16 under autocast; ``auto`` does where that is faster.

    Raises:
        ModelError: The model cannot be found, or has no safetensors weights.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.name = str(name)
        self.folder = model_folder(self.name)
        self.precision = precision
        own = _prompts(self.folder)
        self.prompts: dict[Kind, str] = {
            "query": _first(own, "query") if query_prompt is None else query_prompt,
            "document": _first(own, "document") if document_prompt is None else document_prompt,
        }

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights, tokenizer, pooling, prompts and precision, and of the library that applies them."""
        libraries = [version(name) for name in ("sentence-transformers", "transformers", "torch")]
        # What "auto" becomes depends on the device and the processor; asking torch for it would take seconds.
        where = [_processor(), Path("/dev/nvidia0").exists(), os.environ.get("CUDA_VISIBLE_DEVICES")]
        return hashlib.sha256(json.dumps([self._files, libraries, where, self.prompts, self.precision]).encode()).hexdigest()

    @cached_property
    def identity(self) -> str:
        """A hash of weights, tokenizer, pooling and prompts alone, the same on every machine."""
        return hashlib.sha256(json.dumps([self._files, self.prompts]).encode()).hexdigest()

    @cached_property
    def _files(self) -> list[list[str]]:
        files = {*weights_of(self.folder), *(path for end in ("json", "txt", "model") for path in self.folder.rglob(f"*.{end}"))}
        files = {path for path in files if path.name != "embedfit.json"}  # what is published beside a model is no part of it
        return [[str(path.relative_to(self.folder)), file_sha256(path)] for path in sorted(files)]

    @cached_property
    def loaded(self) -> ModelEncoder:
        """The model in memory.

        Raises:
            ModelError: sentence-transformers cannot load the folder.
        """
        model = load_model(self.folder, self.prompts)
        return ModelEncoder(model, self.prompts, bf16=use_bf16(self.precision, model.device.type))

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions)."""
        return self.loaded.encode(texts, kind)


def load_model(folder: Path, prompts: dict[Kind, str] | None = None) -> SentenceTransformer:
    """Return the sentence-transformers model of a folder, in fp32, with these prompts as its own.

    Raises:
        ModelError: The library cannot load it.
    """
    from sentence_transformers import SentenceTransformer

    quiet_libraries()
    try:
        model = SentenceTransformer(
            str(folder), trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True, "dtype": "float32"}
        )
    except Exception as error:  # the library raises whatever its parts raise
        raise ModelError(f"model folder {folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    for kind, prompt in (prompts or {}).items():
        for alias in _PROMPT_NAMES[kind]:
            model.prompts.pop(alias, None)
            if model.default_prompt_name == alias:
                model.default_prompt_name = None
        # An empty one too, so that the saved model gives anybody the vectors that were measured.
        model.prompts[kind] = prompt
    return model


def seconds_alone(encoder: Encoder, texts: Sequence[str]) -> float:
    """Return the mean seconds that an encoder takes for one query, one at a time as they come in production."""
    # Behind an API each is paid for, and the way there is what takes the time.
    texts = texts[: _TIMED_QUERIES if isinstance(encoder, LocalEncoder) else _TIMED_REMOTE]
    encoder.encode(texts[:1], "query")
    start = time.perf_counter()
    for text in texts:
        encoder.encode([text], "query")
    return (time.perf_counter() - start) / len(texts)


def autocast(device: str, bf16: bool) -> contextlib.AbstractContextManager[object]:
    """Return a context that runs matrix products in bfloat16, or one that does nothing."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


@contextlib.contextmanager
def without_cudnn_attention(device: str) -> Iterator[None]:
    """Leave attention on a GPU to torch's own fused kernels.

    cuDNN's are planned anew for every shape, for tens of milliseconds, and here nearly every batch has a shape of its own
    (docs/decisions.md).
    """
    if device != "cuda":
        yield
        return
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def use_bf16(precision: Precision, device: str) -> bool:
    """Return whether to compute in bfloat16: asked for, or ``auto`` where it is faster.

    On a GPU that has it, it is. On a processor the flag says little: with AMX it is several times faster than fp32,
    with AVX-512 alone it was half as fast on the machine where this was measured (docs/decisions.md). So both are
    tried once for each kind of processor, and the answer is kept beside the embedding cache.

    Raises:
        ConfigError: The precision is unknown.
    """
    import torch

    if precision not in ("auto", "bf16", "fp32"):
        raise ConfigError(f"precision {precision!r} is unknown; expected auto, bf16 or fp32")
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and _bf16_pays_here()


def _bf16_pays_here() -> bool:
    import torch

    key = f"{_processor()} torch {torch.__version__}"
    path = cache_folder() / "bf16.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        single = matmul_seconds(torch.float32)
        # Where bfloat16 is emulated, a product can take a second.
        known[key] = single > 1.2 * matmul_seconds(torch.bfloat16, hopeless=5 * single)
        with writing(path) as file:
            file.write(json.dumps(known).encode())
    return bool(known[key])


def matmul_seconds(
    dtype: torch.dtype, size: tuple[int, int, int] = (1024, 384, 1536), *, device: str = "cpu", hopeless: float = math.inf
) -> float:
    """Return the seconds of one product (m, k) x (k, n) of a transformer's usual shape: the best of 20, or of 2 if that is hopeless."""
    import torch

    m, k, n = size
    # Of random numbers: with ones, a GPU needs less power and is faster.
    left, right = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (k, n)))
    best = float("inf")
    for tried in range(20):
        if tried == 2 and best > hopeless:
            break
        start = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                flags = [flag for flag in line.split() if flag.startswith(("avx", "amx"))]
                return f"{platform.machine()} {hashlib.sha256(' '.join(flags).encode()).hexdigest()[:8]}"
    return platform.processor() or platform.machine()


def quiet_libraries() -> None:
    """Keep transformers' own progress bars and notices off the terminal."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _prompts(folder: Path) -> dict[str, str]:
    path = folder / "config_sentence_transformers.json"
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8")).get("prompts") or {}


def _first(prompts: dict[str, str], kind: Kind) -> str:
    return next((prompts[name] for name in _PROMPT_NAMES[kind] if prompts.get(name)), "")


_SLICE = 1024
"""Texts encoded between two writes to the cache."""


class Part(NamedTuple):
    """Vectors of some of the texts: which, and shape (rows, dimensions)."""

    rows: npt.NDArray[np.int64]
    vectors: Vectors


def slices(texts: Sequence[str]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the texts' indices in slices, longest first: a killed process loses one slice, and padding stays small."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    for start in range(0, len(order), _SLICE):
        yield order[start : start + _SLICE]


def _parts(encoder: Encoder, texts: Sequence[str], kind: Kind) -> Iterator[Part]:
    """Yield vectors as an encoder has them ready; one that works on several parts at once has a method for it."""
    if hasattr(encoder, "encode_parts"):
        yield from encoder.encode_parts(texts, kind)
        return
    for rows in slices(texts):
        yield Part(rows, np.asarray(encoder.encode([texts[row] for row in rows], kind), np.float32))


class CachedEncoder:
    """An encoder that remembers every vector on disk, by fingerprint, kind and text.

    Args:
        encoder: What to ask for texts not seen before.
        folder: Where the cache lives; one SQLite file for each fingerprint, safe to delete.
    """

    def __init__(self, encoder: Encoder, folder: Path | None = None) -> None:
        self.encoder, self.name = encoder, encoder.name
        self.path = (folder or cache_folder()) / f"{encoder.fingerprint[:32]}.sqlite"
        self.misses = 0

    @property
    def fingerprint(self) -> str:
        """The encoder's own."""
        return self.encoder.fingerprint

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, asking the encoder only for those not in the cache.

        Beside the vectors it needs 50 bytes for each text, and one slice.

        Raises:
            StorageError: The cache cannot be written.
        """
        if not texts:
            return self.encoder.encode(texts, kind)
        keys = _keys(texts, kind)
        same = _first_of_its_kind(keys)
        rows = np.flatnonzero(same == np.arange(len(texts)))
        vectors: Vectors | None = None
        try:
            with contextlib.closing(self._open()) as database:
                known = np.zeros(len(texts), np.bool_)
                for some, found in _read(database, keys, rows):
                    vectors = np.empty((len(texts), found.shape[1]), np.float32) if vectors is None else vectors
                    vectors[some], known[some] = found, True
                missing = rows[~known[rows]]
                self.misses += len(missing)
                with console.progress(f"encoding {kind} texts", len(missing)) as done:
                    for part in _parts(self.encoder, [texts[row] for row in missing], kind):
                        some, found = missing[part.rows], part.vectors
                        with database:
                            database.executemany(
                                "INSERT OR REPLACE INTO vectors VALUES (?, ?)",
                                ((keys[row].tobytes(), vector.tobytes()) for row, vector in zip(some, found, strict=True)),
                            )
                        vectors = np.empty((len(texts), found.shape[1]), np.float32) if vectors is None else vectors
                        vectors[some] = found
                        done(len(some))
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"{self.path}: the embedding cache cannot be used: {error}; fix: set EMBEDFIT_CACHE to another directory"
            ) from None
        assert vectors is not None
        again = np.flatnonzero(same != np.arange(len(texts)))
        for start in range(0, len(again), _SLICE):
            some = again[start : start + _SLICE]
            vectors[some] = vectors[same[some]]
        return vectors

    def _open(self) -> sqlite3.Connection:
        from filelock import FileLock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Processes that train together come here at once, and SQLite does not wait for another that sets the journal up.
        with FileLock(self.path.with_suffix(".lock")):
            database = sqlite3.connect(self.path, timeout=60)
            # Rows in order of writing, an index of keys beside them, and pages that hold several vectors: in order of keys,
            # on pages of 4 KiB, vectors took three times the space, and nine times as long to write (docs/scale.md).
            database.execute("PRAGMA page_size = 16384")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB)")
        return database


def cache_folder() -> Path:
    """Return where embeddings are kept: ``$EMBEDFIT_CACHE``, else ``embedfit`` in the user's cache directory."""
    given = os.environ.get("EMBEDFIT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embedfit"


def _keys(texts: Sequence[str], kind: Kind) -> npt.NDArray[np.uint64]:
    """Return 16 bytes for each text that no other text has; shape (n, 2)."""
    keys = np.empty((len(texts), 2), np.uint64)
    for row, text in enumerate(texts):
        digest = hashlib.blake2b(f"{kind}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        keys[row] = np.frombuffer(digest, np.uint64)
    return keys


def _first_of_its_kind(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return, for each row, the first row that is the same."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of those that are equal, the first comes first
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    same = np.empty(len(keys), np.int64)
    same[order] = order[begins][np.cumsum(begins) - 1]
    return same


def _read(
    database: sqlite3.Connection, keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], Vectors]]:
    """Yield rows whose keys are in the cache, some at a time, and their vectors."""
    for start in range(0, len(rows), 500):
        some = {keys[row].tobytes(): row for row in rows[start : start + 500]}
        marks = ",".join("?" * len(some))
        found = database.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", list(some)).fetchall()
        if found:
            vectors = np.frombuffer(b"".join(vector for _, vector in found), np.float32).reshape(len(found), -1)
            yield np.array([some[key] for key, _ in found]), vectors
