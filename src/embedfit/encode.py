"""Texts to vectors: local sentence-transformers models, and a cache so that nothing is encoded twice."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import sqlite3
import sys
import time
import typing
import zlib
from collections import Counter
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
from embedfit.errors import ConfigError, ModelError, StorageError, shown
from embedfit.hub import file_sha256, model_folder, weights_of
from embedfit.tokens import Tokens, length_batches, tokenizer_suffices

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Vectors: TypeAlias = npt.NDArray[np.float32]
"""A matrix (texts, dimensions), each row of unit length."""
Kind: TypeAlias = Literal["query", "document"]
Precision: TypeAlias = Literal["auto", "bf16", "fp32"]
Pooling: TypeAlias = Literal["auto", "mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean"]
"""How the vectors of a text's tokens become one, by sentence-transformers' names; ``auto``: by what the model's folder says."""

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
        self._parts: dict[Kind, list[Truncation]] | None = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Warn of long texts once for all that is encoded within, and not of the first part alone."""
        parts = self._parts = {}
        try:
            yield
        finally:
            self._parts = None
        for kind, found in parts.items():
            self._warn(Truncation(np.concatenate([part.counts for part in found]), self._limit()), kind)

    def _warn(self, found: Truncation, kind: Kind) -> None:
        if kind not in self._to_warn_of:
            return
        if self._parts is not None:
            self._parts.setdefault(kind, []).append(found)
        elif found.cut.any():
            self._to_warn_of.remove(kind)
            console.note(f"Warning: {found.describe(kind)}")

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
                found = self._output(features, kind)[:, : self.model.truncate_dim].float()
                found = torch.nn.functional.normalize(found, dim=-1).cpu().numpy()
                if vectors is None:
                    vectors = np.empty((len(texts), found.shape[1]), np.float32)
                vectors[batch] = found
                done(len(batch))
        assert vectors is not None
        if not np.isfinite(vectors).all():
            raise ModelError('the model gives vectors that are not finite; fix: precision = "fp32", or another model')
        return vectors

    def _output(self, features: dict[str, Any], kind: Kind) -> Any:
        try:
            return self.model(features, task=kind)["sentence_embedding"]
        except KeyError as error:
            if error.args != ("sentence_embedding",):
                raise
            raise ModelError(
                "the model gives no vector for a whole text: its modules.json names no layer that pools token vectors; "
                "fix: put its Pooling layer in, or use another model"
            ) from None

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
        self._warn(Truncation(counts, limit), kind)
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
        pooling: How token vectors become one, for a folder that does not say so.

    Attributes:
        pooling: The pooling that is put in, where the folder does not say its own; else None.

    Raises:
        ModelError: The model cannot be found, has no safetensors weights, is of another type (a cross-encoder, a sparse encoder), or
            says another pooling.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        precision: Precision = "auto",
        pooling: Pooling = "auto",
    ) -> None:
        self.name = str(name)
        self.folder = model_folder(self.name, proof="modules.json" if pooling == "auto" else "config.json")
        self.precision = precision
        settings = _settings(self.folder)
        self.pooling = _missing_pooling(self.name, self.folder, settings, pooling)
        own = settings.get("prompts") or {}
        self.prompts: dict[Kind, str] = {
            "query": _first(own, "query") if query_prompt is None else query_prompt,
            "document": _first(own, "document") if document_prompt is None else document_prompt,
        }
        _note_changes(self.name, self.folder, settings, both_prompts=query_prompt is not None and document_prompt is not None)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights, tokenizer, pooling, prompts and precision, and of the library that applies them."""
        libraries = [version(name) for name in ("sentence-transformers", "transformers", "torch")]
        # What "auto" becomes depends on the device and the processor; asking torch for it would take seconds.
        where = [_processor(), Path("/dev/nvidia0").exists(), os.environ.get("CUDA_VISIBLE_DEVICES")]
        described = [*self._read_as, libraries, where, self.prompts, self.precision]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    @cached_property
    def identity(self) -> str:
        """A hash of weights, tokenizer, pooling and prompts alone, the same on every machine."""
        return hashlib.sha256(json.dumps([*self._read_as, self.prompts]).encode()).hexdigest()

    @property
    def _read_as(self) -> list[Any]:
        """The files, and what is put in beside them."""
        return [self._files, *([self.pooling] if self.pooling else [])]

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
        model = load_model(self.folder, self.prompts, self.pooling)
        return ModelEncoder(model, self.prompts, bf16=use_bf16(self.precision, model.device.type))

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions)."""
        return self.loaded.encode(texts, kind)

    def encode_parts(self, texts: Sequence[str], kind: Kind) -> Iterator[Part]:
        """Yield the vectors slice by slice, and warn of long texts when all of them are counted."""
        with self.loaded.together():
            for rows in slices(texts):
                yield Part(rows, self.encode([texts[row] for row in rows], kind))


def load_model(folder: Path, prompts: dict[Kind, str] | None = None, pooling: str | None = None) -> SentenceTransformer:
    """Return the sentence-transformers model of a folder, in fp32, set to what is measured of it.

    Saved again it says so: these prompts and no default one, cosine similarity, and unit vectors where it was made for another
    similarity, so that a client that takes the dot product ranks alike.

    Args:
        folder: Of the model.
        prompts: Its prompts from here on; None for those it has.
        pooling: Put in place of the library's guess, for a folder that does not say its own; None for none.

    Raises:
        ModelError: The library cannot load it, or it has no tokens to pool.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize

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
    model.default_prompt_name = None
    if pooling:
        _set_pooling(model, pooling, folder)
    if model.similarity_fn_name != "cosine":
        if not isinstance(model[-1], Normalize):
            model.append(Normalize())
        model.similarity_fn_name = "cosine"
    return model


def _set_pooling(model: SentenceTransformer, mode: str, folder: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

    include_prompt = _json(folder / _POOLING_CONFIG, dict).get("include_prompt", True)
    modes = mode if "+" not in mode else tuple(mode.split("+"))
    for place, module in enumerate(model):
        if isinstance(module, PoolingModule):
            model[place] = PoolingModule(module.embedding_dimension, modes, include_prompt)
            return
    if not _is_bare_transformer(folder):
        raise ModelError(f"model folder {folder} gives one vector for each text already; fix: leave model.pooling out")
    width = model[0].get_embedding_dimension()  # type: ignore[operator]
    model.insert(1, PoolingModule(width, modes, include_prompt))


def pooling_of(folder: Path) -> str | None:
    """Return the pooling that a model's folder says, modes joined by ``+``; None if it says none."""
    paths = [folder / str(module.get("path")) / "config.json" for module in _modules(folder) if _is_a(module, "Pooling")]
    if not pools_itself(folder) and (folder / _POOLING_CONFIG).exists():  # a copy may have lost modules.json alone
        paths.append(folder / _POOLING_CONFIG)
    for path in paths:
        said = _json(path, dict)
        mode = said.get("pooling_mode")
        # Up to sentence-transformers 5 each mode had a flag.
        modes = [name for flag, name in POOLING_FLAGS.items() if said.get(flag)] if mode is None else mode
        return modes if isinstance(modes, str) else "+".join(modes) or "mean"
    return None


def pools_itself(folder: Path) -> bool:
    """Return whether sentence-transformers finds out from ``modules.json`` how a model makes one vector of a text."""
    return (folder / "modules.json").exists() and not _is_bare_transformer(folder)


def _is_bare_transformer(folder: Path) -> bool:
    """Return whether ``modules.json`` names a transformer that gives token vectors, and no layer that pools them."""
    modules = _modules(folder)
    if not modules or not _is_a(modules[0], "Transformer") or not all(_is_a(module, "Normalize") for module in modules[1:]):
        return False
    settings = _json(folder / str(modules[0].get("path")) / "sentence_bert_config.json", dict)
    return bool(settings.get("module_output_name", "token_embeddings") == "token_embeddings")


def _is_a(module: dict[str, Any], name: str) -> bool:
    return str(module.get("type")).endswith(f".{name}")


_POOLING_CONFIG = Path("1_Pooling", "config.json")
"""Where sentence-transformers keeps the pooling of nearly every model."""


POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flag of sentence-transformers before 6 -> mode since then, in the order in which several are joined."""


def _missing_pooling(name: str, folder: Path, settings: dict[str, Any], asked: Pooling) -> str | None:
    """Return the pooling to put in where a folder does not say its own; None where it does.

    Raises:
        ModelError: It says another than was asked for, or the model is of another type.
    """
    kind = settings.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise ModelError(f"model {name!r} is a {kind}; expected a model that gives one vector for each text, a SentenceTransformer")
    own = pooling_of(folder)
    if asked not in (own, *typing.get_args(Pooling)):
        raise ConfigError(f"pooling {asked!r} is unknown; expected one of {', '.join(typing.get_args(Pooling))}")
    if own or pools_itself(folder):
        if asked not in ("auto", own):
            seen = f"says pooling {own!r}" if own else "has no layer that pools tokens"
            raise ModelError(f"model {name!r} {seen}, and model.pooling is {asked!r}; fix: leave model.pooling out")
        return None if pools_itself(folder) else own
    if asked != "auto":
        return asked
    config = _json(folder / "config.json", dict)
    # As the library guesses.
    last = str((config.get("architectures") or [""])[0]).endswith("ForCausalLM") and config.get("is_causal", True)
    mode = "lasttoken" if last else "mean"
    seen = "its modules.json does not say" if (folder / "modules.json").exists() else "the folder has no modules.json, which would say"
    _note_once(
        f"{name}: {seen} how token vectors become one; pooling {mode!r} is used; "
        'if the model was trained with another one, set model.pooling, such as pooling = "cls" in [model]'
    )
    return mode


def _note_changes(name: str, folder: Path, settings: dict[str, Any], *, both_prompts: bool) -> None:
    """Say what a model's folder asks for and is not done."""
    similarity = settings.get("similarity_fn_name") or "cosine"
    unit = any(str(module.get("type")).endswith(".Normalize") for module in _modules(folder)[-1:])
    if similarity not in ("cosine", "dot", "euclidean") or (similarity != "cosine" and not unit):
        _note_once(
            f"{name}: made for {similarity} similarity, and measured with cosine similarity, as everything here; "
            "a model tuned from it is saved so, with vectors of unit length"
        )
    default = settings.get("default_prompt_name")
    prompt = (settings.get("prompts") or {}).get(default)
    if prompt and not both_prompts and not any(default in names for names in _PROMPT_NAMES.values()):
        _note_once(
            f"{name}: its default prompt {default!r} stands before neither queries nor documents; "
            f"fix: query_prompt or document_prompt = {json.dumps(prompt, ensure_ascii=False)} in [model], if it should"
        )


_noted: set[str] = set()


def _note_once(line: str) -> None:
    """Say something of a model once, however often a command makes an encoder of it."""
    if line not in _noted:
        _noted.add(line)
        console.note(line)


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


def _settings(folder: Path) -> dict[str, Any]:
    """Return what sentence-transformers keeps of a model beside its modules."""
    return dict(_json(folder / "config_sentence_transformers.json", dict))


def _modules(folder: Path) -> list[dict[str, Any]]:
    return list(_json(folder / "modules.json", list))


def _json(path: Path, expected: type) -> Any:
    """Return what a JSON file holds; where there is none, nothing of the expected type."""
    if not path.exists():
        return expected()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, expected):
        raise ModelError(f"{path}: is a {type(content).__name__}; expected a {expected.__name__}")
    return content


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

    What is read is checked first: a vector that is damaged, or of another width, is encoded again. Where the disk is full, it
    goes on without remembering.

    Args:
        encoder: What to ask for texts not seen before.
        folder: Where the cache lives; one SQLite file for each fingerprint, safe to delete.
    """

    def __init__(self, encoder: Encoder, folder: Path | None = None) -> None:
        self.encoder, self.name = encoder, encoder.name
        self.path = (folder or cache_folder()) / f"{_file_name(encoder.fingerprint)}.sqlite"
        self.misses = 0

    @property
    def fingerprint(self) -> str:
        """The encoder's own."""
        return self.encoder.fingerprint

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, asking the encoder only for those not in the cache.

        Beside the vectors it needs 50 bytes for each text, and one slice.

        Raises:
            ModelError: The encoder gives something other than a vector for each text, or vectors of another width than before.
            StorageError: The cache's folder cannot be used.
        """
        if not texts:
            return self.encoder.encode(texts, kind)
        keys = _keys(texts, kind)
        same = _first_of_its_kind(keys)
        rows = np.flatnonzero(same == np.arange(len(texts)))
        vectors: Vectors | None = None
        with contextlib.closing(_VectorFile(self.path, self.name)) as file:
            known = np.zeros(len(texts), np.bool_)
            for some, found in file.read(keys, rows):
                vectors = np.empty((len(texts), found.shape[1]), np.float32) if vectors is None else vectors
                vectors[some], known[some] = found, True
            missing = rows[~known[rows]]
            if file.damaged:
                console.note(f"Warning: {file.damaged:,} of {len(rows):,} vectors in {self.path} are damaged; they are encoded again")
            self.misses += len(missing)
            with console.progress(f"encoding {kind} texts", len(missing)) as done:
                for part in _parts(self.encoder, [texts[row] for row in missing], kind):
                    some, found = missing[part.rows], np.asarray(part.vectors, np.float32)
                    _check_vectors(found, len(some), self.name)
                    width = file.width if vectors is None else vectors.shape[1]
                    if width not in (None, found.shape[1]):
                        raise _other_width(self.name, found.shape[1], width)
                    file.write(keys[some], found)
                    vectors = np.empty((len(texts), found.shape[1]), np.float32) if vectors is None else vectors
                    vectors[some] = found
                    done(len(some))
        assert vectors is not None
        again = np.flatnonzero(same != np.arange(len(texts)))
        for start in range(0, len(again), _SLICE):
            some = again[start : start + _SLICE]
            vectors[some] = vectors[same[some]]
        return vectors


def _check_vectors(vectors: Vectors, count: int, name: str) -> None:
    if vectors.ndim != 2 or len(vectors) != count:
        raise ModelError(f"{name} gave an array of shape {vectors.shape}; expected one vector for each of {count:,} texts")
    if not vectors.shape[1]:
        raise ModelError(f"{name} gave vectors of no dimensions")
    if not np.isfinite(vectors).all():
        raise ModelError(f"{name} gave a vector that is not finite")


def _other_width(name: str, width: int, before: int | None) -> ModelError:
    return ModelError(
        f"{name} gave vectors of {width:,} dimensions, and before of {before:,}: what is behind this name has changed; "
        f"fix: embedfit cache --clear {name}"
    )


def _file_name(fingerprint: str) -> str:
    """Return a file's name that no other fingerprint has."""
    if re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        return fingerprint[:32]
    if re.fullmatch(r"[A-Za-z0-9_-]{1,31}", fingerprint):
        return fingerprint
    return hashlib.sha256(fingerprint.encode("utf-8", "surrogatepass")).hexdigest()[:32]


_UNIT = 1e-3
"""By so much the length of a vector may differ from 1."""
_READ = 500
"""Rows looked up in one query."""
_ROW_BYTES = 64
"""Of the file, for each vector beside its own bytes."""
_SLACK = 65_536
"""Bytes of pages that are not full."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _VectorFile:
    """The vectors of one model on disk: a table of keys, vectors and checksums, and one of what is known of them.

    A file that SQLite cannot read, or that is another program's, is moved aside, and a new one begun.

    Args:
        path: Of the file.
        name: Of the model, for people.

    Attributes:
        width: Of the vectors; None before there are any.
        damaged: Vectors that were read and not given out.

    Raises:
        StorageError: The folder cannot be used.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.width: int | None = None
        self.damaged = 0
        self._limit = cache_limit()
        self._database: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._open()

    def read(self, keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], Vectors]]:
        """Yield rows whose keys are in the file, some at a time, and their vectors; those that are damaged are left out."""
        for start in range(0, len(rows), _READ):
            if self._database is None:
                return
            some = {keys[row].tobytes(): row for row in rows[start : start + _READ]}
            marks = ",".join("?" * len(some))
            try:
                found = self._database.execute(f"SELECT key, vector, checksum FROM vectors WHERE key IN ({marks})", list(some)).fetchall()
            except sqlite3.Error as error:
                self._after(error)
                return
            good = [(key, vector) for key, vector, checksum in found if _is_sound(key, vector, checksum, self.width)]
            self.damaged += len(found) - len(good)
            if good:
                vectors = np.frombuffer(b"".join(vector for _, vector in good), np.float32).reshape(len(good), -1)
                yield np.array([some[key] for key, _ in good]), vectors

    def write(self, keys: npt.NDArray[np.uint64], vectors: Vectors) -> None:
        """Put vectors in; safe once it returns. Where there is no room, that is said once, and nothing is put in from then on.

        Raises:
            ModelError: Another process put in vectors of another width.
        """
        for _ in range(2):
            if self._database is None:
                return
            try:
                with self._database as database:
                    if not self._make_room(database, vectors.nbytes + _ROW_BYTES * len(vectors) + _SLACK):
                        self._go_without(f"the limit of {in_bytes(self._limit)} (EMBEDFIT_CACHE_LIMIT)")
                        return
                    self._settle_width(database, vectors.shape[1])
                    rows = zip((key.tobytes() for key in keys), (vector.tobytes() for vector in vectors), strict=True)
                    database.executemany(
                        "INSERT OR REPLACE INTO vectors (key, vector, checksum) VALUES (?, ?, ?)",
                        ((key, vector, _checksum(key, vector)) for key, vector in rows),
                    )
                return
            except (sqlite3.Error, OSError) as error:
                self._after(error)

    def close(self) -> None:
        """Let go of the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _open(self) -> None:
        """Open the file, a new one if what is there cannot be used."""
        from filelock import FileLock

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Processes that train together come here at once, and SQLite does not wait for another that sets the journal up.
            with FileLock(self.path.with_suffix(".lock")):
                try:
                    self._database = self._connected()
                except (sqlite3.DatabaseError, _Foreign) as error:
                    if not _is_damage(error):
                        raise
                    self._move_aside(error)
                    self._database = self._connected()
                status = os.stat(self.path)
                self._file = status.st_dev, status.st_ino
                os.utime(self.path)  # what was used last is removed last
        except (sqlite3.Error, OSError) as error:
            if _is_full(error):
                self._go_without(str(error))
                return
            raise StorageError(
                f"{self.path}: the embedding cache cannot be used: {error}; fix: set EMBEDFIT_CACHE to another directory"
            ) from None

    def _connected(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=60)
        try:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            columns, described = _columns(database, "vectors"), _columns(database, "about")
            ours = columns - {("checksum", 0)} == {("key", 1), ("vector", 0)} and described in (set(), {("name", 1), ("value", 0)})
            if tables and not ours:
                raise _Foreign("it is another program's")
            # Rows in order of writing, an index of keys beside them, and pages that hold several vectors: in order of keys,
            # on pages of 4 KiB, vectors took three times the space, and nine times as long to write (docs/scale.md).
            database.execute("PRAGMA page_size = 16384")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            with database:
                database.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB, checksum INTEGER)")
                if columns and ("checksum", 0) not in columns:  # of an earlier version
                    database.execute("ALTER TABLE vectors ADD COLUMN checksum INTEGER")
                database.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT)")
                about = dict(database.execute("SELECT name, value FROM about"))
                if about.get("model") != self.name:
                    database.execute("INSERT OR REPLACE INTO about VALUES ('model', ?)", [self.name])
                self.width = _usual_width(database)
                if about.get("width", str(self.width)) != str(self.width):
                    database.execute("DELETE FROM about WHERE name = 'width'")  # damaged: no vector has it
        except BaseException:
            database.close()
            raise
        return database

    def _settle_width(self, database: sqlite3.Connection, width: int) -> None:
        database.execute("INSERT OR IGNORE INTO about VALUES ('width', ?)", [str(self.width or width)])
        [(settled,)] = database.execute("SELECT value FROM about WHERE name = 'width'")
        if settled != str(width):
            raise _other_width(self.name, width, int(settled))
        self.width = width

    def _make_room(self, database: sqlite3.Connection, needed: int) -> bool:
        """Remove the models used least recently, then this one's oldest vectors, until there is room; returns whether there is."""
        if needed > self._limit:
            return False
        room = self._limit - needed
        others = {path: _size(path) for path in _files(self.path.parent) if path != self.path}
        for path in list(others):  # the one used least recently comes first
            if _used(database) + sum(others.values()) <= room:
                break
            if _remove(path):
                del others[path]
        while (over := _used(database) + sum(others.values()) - room) > 0:
            [(count, mean)] = database.execute("SELECT count(*), avg(length(vector)) FROM (SELECT vector FROM vectors LIMIT 1000)")
            if not count:
                break
            oldest = math.ceil(over / (mean + _ROW_BYTES))
            database.execute("DELETE FROM vectors WHERE key IN (SELECT key FROM vectors NOT INDEXED LIMIT ?)", [oldest])
        return True

    def _after(self, error: Exception) -> None:
        """Go on after an error of a file that was open: with a new one if it is damaged, else with none."""
        self.close()
        if not _is_damage(error):
            self._go_without(str(error))
            return
        from filelock import FileLock

        with FileLock(self.path.with_suffix(".lock")), contextlib.suppress(OSError):
            status = os.stat(self.path)
            if (status.st_dev, status.st_ino) == self._file:  # else another process has moved it already
                self._move_aside(error)
        self._open()

    def _move_aside(self, error: Exception) -> None:
        numbers = (f"-{number}" if number > 1 else "" for number in range(1, sys.maxsize))
        aside = next(path for number in numbers if not (path := Path(f"{self.path}.damaged{number}")).exists())
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}{end}", f"{aside}{end}")
        console.note(f"Warning: {self.path} cannot be read ({error}); it is now {aside.name}, and its vectors are encoded again")

    def _go_without(self, why: str) -> None:
        self.close()
        folder = self.path.parent
        if self._limit and folder not in _not_kept:
            _not_kept.add(folder)
            console.note(f"Warning: {folder}: vectors cannot be kept ({why}); the run goes on, and they are encoded again next time")


_not_kept: set[Path] = set()
"""Folders of which it was said that they take no more."""


class _Foreign(Exception):
    """A file of another program."""


def _is_damage(error: Exception) -> bool:
    return isinstance(error, _Foreign) or _sqlite_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_full(error: Exception) -> bool:
    return _sqlite_code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) or getattr(error, "errno", None) in _NO_ROOM


def _sqlite_code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the rest of it only says more


def _checksum(key: bytes, vector: bytes) -> int:
    """Return 32 bits of a row; with its key, so that no row passes for another."""
    return zlib.crc32(vector, zlib.crc32(key))


def _is_sound(key: bytes, vector: Any, checksum: Any, width: int | None) -> bool:
    """Return whether a row is as it was written: by its checksum, or, of an earlier version, by its length."""
    if not isinstance(vector, bytes) or not width or len(vector) != 4 * width:
        return False
    return _is_unit(vector) if checksum is None else checksum == _checksum(key, vector)


def _is_unit(vector: bytes) -> bool:
    with np.errstate(all="ignore"):  # noise may hold any float there is
        return abs(float(np.linalg.norm(np.frombuffer(vector, np.float32).astype(np.float64))) - 1) < _UNIT


def _columns(database: sqlite3.Connection, table: str) -> set[tuple[str, int]]:
    """Return the names of a table's columns, each with its place in the primary key, or 0."""
    return {(row[1], row[5]) for row in database.execute(f"PRAGMA table_info({table})")}


def _usual_width(database: sqlite3.Connection) -> int | None:
    """Return the width of the first vector that is as it was written; without checksums, of most of the first ones; else None."""
    widths: Counter[int] = Counter()
    for key, vector, checksum in database.execute("SELECT key, vector, checksum FROM vectors NOT INDEXED LIMIT 1000"):
        if not isinstance(vector, bytes) or not vector or len(vector) % 4:
            continue
        if checksum is not None and _is_sound(key, vector, checksum, len(vector) // 4):
            return len(vector) // 4
        if checksum is None and _is_unit(vector):
            widths[len(vector) // 4] += 1
    return widths.most_common(1)[0][0] if widths else None


def _used(database: sqlite3.Connection) -> int:
    """Return the bytes of a file's pages that hold something."""
    pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)


# The cache as a whole


@dataclass(frozen=True)
class CachedModel:
    """The vectors of one model in the cache.

    Attributes:
        model: Its name; the file's where an earlier version did not keep it.
        path: The file.
        vectors: How many.
        bytes: On disk.
        used: When last, in seconds since 1970.
    """

    model: str
    path: Path
    vectors: int
    bytes: int
    used: float


def cached_models(folder: Path | None = None) -> list[CachedModel]:
    """Return what is in the cache, the model used last first; files of others are left out."""
    models = []
    for path in reversed(_files(folder or cache_folder())):
        with contextlib.suppress(sqlite3.Error, OSError), contextlib.closing(_read_only(path)) as database:
            [(count,)] = database.execute("SELECT count(key) FROM vectors")
            about = {}
            with contextlib.suppress(sqlite3.OperationalError):
                about = dict(database.execute("SELECT name, value FROM about"))
            models.append(CachedModel(about.get("model", path.stem), path, count, _size(path), path.stat().st_mtime))
    return models


def clear_cache(models: Sequence[CachedModel]) -> list[CachedModel]:
    """Remove models from the cache; returns those that are not removed, as another process uses them."""
    return [model for model in models if not _remove(model.path)]


def cache_limit() -> int:
    """Return how many bytes of vectors are kept: ``$EMBEDFIT_CACHE_LIMIT``, such as ``5 GiB``, else 20 GiB.

    Raises:
        ConfigError: The variable holds something else.
    """
    given = os.environ.get("EMBEDFIT_CACHE_LIMIT", "").strip() or "20 GiB"
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?", given, re.IGNORECASE | re.ASCII)
    if not match:
        raise ConfigError(f"the environment variable EMBEDFIT_CACHE_LIMIT is {shown(given)}; expected a size such as 5 GiB, or 0")
    number, power, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(power.lower() or " "))


def in_bytes(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} TiB"


def _files(folder: Path) -> list[Path]:
    """Return the files of vectors in a folder, the one used least recently first."""

    def used(path: Path) -> float:
        with contextlib.suppress(OSError):  # another process has just removed it
            return path.stat().st_mtime
        return 0.0

    return sorted(folder.glob("*.sqlite"), key=used)


def _size(path: Path) -> int:
    sizes = 0
    for end in ("", "-wal"):
        with contextlib.suppress(OSError):
            sizes += os.path.getsize(f"{path}{end}")
    return sizes


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)


def _remove(path: Path) -> bool:
    """Remove a file of vectors, unless it is another program's or another process has it open; returns whether it is gone."""
    from filelock import FileLock, Timeout

    lock = path.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=0), contextlib.closing(sqlite3.connect(path, timeout=0)) as database:
            columns = {row[1] for row in database.execute("PRAGMA table_info(vectors)")}
            if not {"key", "vector"} <= columns:
                return False
            # SQLite gives up the journal only if nobody else has the file open.
            if database.execute("PRAGMA journal_mode = DELETE").fetchone() != ("delete",):
                return False
            for name in (path, lock):
                name.unlink(missing_ok=True)
    except (sqlite3.Error, OSError, Timeout):
        return False
    return True


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
