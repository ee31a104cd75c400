"""Encoders in this process: a sentence-transformers model, loaded or named."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedfit import console, progress
from embedfit.encode.encoder import PROMPT_NAMES, BaseEncoder, Encoder, Kind, Part, Precision, Vectors, WrappingEncoder, complete, slices
from embedfit.encode.pooling import Pooling, missing_pooling, note_changes, set_pooling, settings_of
from embedfit.encode.precision import autocast, processor, use_bf16, without_cudnn_attention
from embedfit.encode.sides import documents_read_as, other_side_of
from embedfit.encode.tokens import Tokens, input_module, length_batches, tokenizer_suffices
from embedfit.errors import ModelError
from embedfit.files import digest, file_sha256
from embedfit.hub import model_folder, weights_of
from embedfit.loading import another_model, changing_vectors, is_half, loading_options, why_no_attention

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BATCH_TOKENS = {"cpu": 1024}
_BATCH_TOKENS_ELSEWHERE = 32_768
"""Padded tokens in a batch: on a CPU, what its caches hold (a fifth faster than 4,096); on a GPU, what keeps it busy."""
_FEW = 16
"""Up to this many texts, the library does all the work."""


class ModelEncoder:
    """A sentence-transformers model in memory.

    Args:
        model: Loaded model; it may be in training.
        prompts: Texts put before each query and each document.
        bf16: Whether matrix products run in bfloat16, under autocast.
        warns: Whether to warn, once for each kind of text, that some texts are longer than the model reads.
    """

    def __init__(self, model: SentenceTransformer, prompts: dict[Kind, str], *, bf16: bool, warns: bool = True) -> None:
        self.model, self.prompts, self.bf16 = model, prompts, bf16
        self._to_warn_of: set[Kind] = {"query", "document"} if warns else set()
        self._parts: dict[Kind, list[Truncation]] | None = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Warn of long texts once, about all texts encoded in this context and not about the first part alone."""
        parts = self._parts = {}
        try:
            yield
        finally:
            self._parts = None
        for kind, truncations in parts.items():
            self._warn(Truncation(np.concatenate([part.counts for part in truncations]), self._limit(kind)), kind)

    def _warn(self, truncation: Truncation, kind: Kind) -> None:
        if kind not in self._to_warn_of:
            return
        if self._parts is not None:
            self._parts.setdefault(kind, []).append(truncation)
        elif truncation.cut.any():
            self._to_warn_of.remove(kind)
            console.note(f"Warning: {truncation.describe(kind)}")

    @property
    def dimension(self) -> int | None:
        """Number of dimensions of the vectors; None if the library cannot tell."""
        return self.model.get_embedding_dimension()

    def truncation(self, texts: Sequence[str], kind: Kind) -> Truncation:
        """Return how much of the texts the model does not read."""
        counts = self._token_counts(texts, kind)
        return Truncation(counts, self._limit(kind))

    def _limit(self, kind: Kind) -> int:
        """Return the number of tokens that the model reads of a text; a huge number if it has no limit, or one like transformers' 1e30."""
        return min(getattr(input_module(self.model, kind), "max_seq_length", None) or sys.maxsize, sys.maxsize)

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions).

        Raises:
            ModelError: A vector is not finite.
        """
        import torch

        if not texts:
            return np.zeros((0, self.dimension or 0), np.float32)
        device = self.model.device
        lengths, features_of = self._read(texts, kind)
        vectors: Vectors | None = None
        self.model.eval()
        with (
            torch.inference_mode(),
            autocast(device.type, self.bf16),
            without_cudnn_attention(device.type),
            progress.bar(f"encoding {kind} texts", len(texts)) as done,
        ):
            for batch in length_batches(lengths, _BATCH_TOKENS.get(device.type, _BATCH_TOKENS_ELSEWHERE)):
                features = {key: value.to(device) if torch.is_tensor(value) else value for key, value in features_of(batch).items()}
                # The kind is the task that the library's own encode_query and encode_document name: a Router needs it.
                output = self._output(features, kind)[:, : self.model.truncate_dim].float()
                encoded = torch.nn.functional.normalize(output, dim=-1).cpu().numpy()
                if vectors is None:
                    vectors = np.empty((len(texts), encoded.shape[1]), np.float32)
                vectors[batch] = encoded
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
                "fix: add its Pooling layer, or use another model"
            ) from None

    def _read(self, texts: Sequence[str], kind: Kind) -> tuple[npt.NDArray[np.int64], Callable[[npt.NDArray[np.int64]], dict[str, Any]]]:
        """Return the number of tokens that the model reads of each text, and a function from positions of texts to their features.

        It warns of texts that the model does not read whole.
        """
        prompt, limit = self.prompts[kind], self._limit(kind)

        def by_library(positions: npt.NDArray[np.int64]) -> dict[str, Any]:
            return dict(self.model.preprocess([texts[position] for position in positions], prompt=prompt or None, task=kind))

        if len(texts) > _FEW and tokenizer_suffices(self.model, texts, prompt, kind):
            tokens = Tokens(self.model, texts, prompt, kind, alone=True)
            lengths, features_of, counts = tokens.lengths, tokens.padded, tokens.lengths.copy()
            if kind in self._to_warn_of:
                full = np.flatnonzero(counts >= limit).tolist()  # no other text has more tokens than these
                counts[full] = self._token_counts([texts[position] for position in full], kind)
        else:
            counts = self._token_counts(texts, kind)
            lengths, features_of = np.minimum(counts, limit), by_library
        self._warn(Truncation(counts, limit), kind)
        return lengths, features_of

    def _token_counts(self, texts: Sequence[str], kind: Kind) -> npt.NDArray[np.int64]:
        """Return the number of tokens of each text with its prompt, untruncated; of characters, if the model has no tokenizer."""
        if not texts:
            return np.zeros(0, np.int64)  # the tokenizer refuses an empty list
        tokenizer = input_module(self.model, kind).tokenizer
        whole = [self.prompts[kind] + text for text in texts]
        if not callable(tokenizer):
            return np.array([len(text) for text in whole], np.int64)
        # If verbose, the tokenizer would warn of every long text.
        encoded = tokenizer(whole, truncation=False, verbose=False, return_attention_mask=False)
        return np.array([len(ids) for ids in encoded["input_ids"]], np.int64)


@dataclass(frozen=True)
class Truncation:
    """Token counts of texts, and the limit of the model.

    Attributes:
        counts: Number of tokens of each text; shape (texts,).
        limit: Number of tokens that the model reads of a text.
    """

    counts: npt.NDArray[np.int64]
    limit: int

    @property
    def cut(self) -> npt.NDArray[np.bool_]:
        """Whether each text is longer than the limit; shape (texts,)."""
        return self.counts > self.limit

    @property
    def share_lost(self) -> float:
        """Share of all tokens that the model does not read, from 0 to 1."""
        return float(np.maximum(self.counts - self.limit, 0).sum() / max(1, self.counts.sum()))

    def describe(self, kind: Kind) -> str:
        """Return a sentence about the texts that are cut."""
        return (
            f"{self.cut.sum():,} of {len(self.counts):,} {kind} texts are longer than the {self.limit} tokens the model reads: "
            f"{self.share_lost:.1%} of all their tokens are lost"
        )


class LocalEncoder(BaseEncoder):
    """A sentence-transformers model on this machine, loaded when first needed.

    Args:
        name: A folder, a name on the Hub, or ``all-MiniLM-L6-v2`` (offline).
        query_prompt: Text put before each query; by default the model's own query prompt, if it has one.
        document_prompt: Text put before each document; by default the model's own document prompt, if it has one.
        precision: ``bf16`` runs matrix products in bfloat16 under autocast; ``auto`` does so where it is faster.
        pooling: Pooling of token vectors, for a model whose folder does not name one.
        attn_implementation: Implementation of attention, as transformers names it; None for the model's own choice.
        model_kwargs: Options for loading the weights, as sentence-transformers' ``model_kwargs``, such as ``{"dtype": "bfloat16"}``.

    Attributes:
        folder: Folder of the model.
        loading: Options for loading the weights, with the implementation of attention among them.
        pooling: Pooling that is added because the folder names none; None if the folder names one.

    Raises:
        ConfigError: An option for loading the weights is not allowed or unknown.
        ModelError: The model cannot be found, has no safetensors weights, is of another type (a cross-encoder, a sparse encoder), or
            names another pooling; or the implementation of attention cannot run here.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        precision: Precision = "auto",
        pooling: Pooling = "auto",
        attn_implementation: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = str(name)
        self.loading = loading_options(model_kwargs, attn_implementation)
        if reason := why_no_attention(self.loading):
            raise ModelError(reason)
        self.folder = model_folder(self.name, proof="modules.json" if pooling == "auto" else "config.json")
        self.precision = precision
        settings = settings_of(self.folder)
        self.pooling = missing_pooling(self.name, self.folder, settings, pooling)
        own = settings.get("prompts") or {}
        self.prompts: dict[Kind, str] = {
            "query": _first(own, "query") if query_prompt is None else query_prompt,
            "document": _first(own, "document") if document_prompt is None else document_prompt,
        }
        note_changes(self.name, self.folder, settings, both_prompts=query_prompt is not None and document_prompt is not None)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights, their options, tokenizer, pooling, prompts and precision, and of the versions of the libraries."""
        return self._here(self._read_as)

    @cached_property
    def document_fingerprint(self) -> str:
        """The fingerprint; if only the encoder of queries was trained, that of the model whose document vectors this one has."""
        return self._here(self.documents_read_as)

    def _here(self, read_as: list[Any]) -> str:
        libraries = [version(name) for name in ("sentence-transformers", "transformers", "torch")]
        # What "auto" becomes depends on the device and the processor. To ask torch would take seconds.
        where = [processor(), Path("/dev/nvidia0").exists(), os.environ.get("CUDA_VISIBLE_DEVICES")]
        return digest([*read_as, libraries, where, self.prompts, self.precision, *_hashed(changing_vectors(self.loading))], sort_keys=False)

    @cached_property
    def identity(self) -> str:
        """A hash of the documents' weights, tokenizer and pooling, and of the prompts, the same on every machine."""
        return digest([*self.documents_read_as, self.prompts, *_hashed(another_model(self.loading))], sort_keys=False)

    @cached_property
    def whole_identity(self) -> str:
        """A hash of weights, tokenizer, pooling and prompts alone, the same on every machine."""
        return digest([*self._read_as, self.prompts, *_hashed(another_model(self.loading))], sort_keys=False)

    @property
    def dimension(self) -> int | None:
        """Number of dimensions of the vectors. The model is loaded to find out."""
        return self.loaded.dimension

    @property
    def saved_at(self) -> Path:
        """The folder of the model."""
        return self.folder

    @property
    def _read_as(self) -> list[Any]:
        """Hashes of the files, and the pooling that is added."""
        return [self._files, *([self.pooling] if self.pooling else [])]

    @cached_property
    def documents_read_as(self) -> list[Any]:
        """What identifies the model whose document vectors this one has: hashes of its files, and the pooling that is added."""
        return documents_read_as(self.folder) or self._read_as

    @cached_property
    def other_side(self) -> tuple[str, str] | None:
        """Name and identity of the encoder of the documents, if this model encodes queries alone; else None."""
        return other_side_of(self.folder)

    @cached_property
    def _files(self) -> list[list[str]]:
        files = {*weights_of(self.folder), *(path for end in ("json", "txt", "model") for path in self.folder.rglob(f"*.{end}"))}
        files = {path for path in files if path.name != "embedfit.json"}  # published beside a model, and no part of it
        return [[str(path.relative_to(self.folder)), file_sha256(path)] for path in sorted(files)]

    @cached_property
    def loaded(self) -> ModelEncoder:
        """The model in memory.

        Raises:
            ModelError: sentence-transformers cannot load the folder.
        """
        model = load_model(self.folder, self.prompts, self.pooling, self.loading)
        return ModelEncoder(model, self.prompts, bf16=self.autocasts(model, self.loading))

    def autocasts(self, model: SentenceTransformer, loading: Mapping[str, Any]) -> bool:
        """Return whether matrix products of a model run in bfloat16 under autocast. Weights in half precision are used as they are.

        Args:
            model: Model on its device.
            loading: Options that its weights were loaded with.
        """
        return not is_half(loading) and use_bf16(self.precision, model.device.type)

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions).

        Raises:
            ModelError: The model encodes queries alone, and the texts are documents.
        """
        if kind == "document" and self.other_side:
            raise ModelError(f"model {self.name!r} encodes queries alone, for documents of {self.other_side[0]!r}")
        return self.loaded.encode(texts, kind)

    def encode_parts(self, texts: Sequence[str], kind: Kind) -> Iterator[Part]:
        """Yield the vectors slice by slice, and warn of long texts once all of them are counted."""
        with self.loaded.together():
            for rows in slices(texts):
                yield Part(rows, self.encode([texts[row] for row in rows], kind))


def local_of(encoder: Encoder) -> LocalEncoder | None:
    """Return the model on this machine behind an encoder, under a cache or on workers; None if there is none."""
    while isinstance(encoder, WrappingEncoder) and encoder.is_same_model:
        encoder = encoder.encoder
    return encoder if isinstance(encoder, LocalEncoder) else None


def load_model(
    folder: Path, prompts: dict[Kind, str] | None = None, pooling: str | None = None, options: Mapping[str, Any] | None = None
) -> SentenceTransformer:
    """Return the sentence-transformers model of a folder, in fp32 by default, with the settings that it is measured with.

    A copy saved from it keeps these settings: the prompts without a default one, cosine similarity, and unit vectors if the model was
    made for another similarity, so that a client that uses the dot product ranks alike.

    Args:
        folder: Folder of the model.
        prompts: Prompts to set; None to keep those of the folder.
        pooling: Pooling to add, for a folder that names none; None to add none.
        options: Options for loading the weights (`embedfit.loading.loading_options`).

    Raises:
        ModelError: The library cannot load the model, or the model has no token vectors to pool.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize

    quiet_libraries()
    try:
        model = SentenceTransformer(
            str(folder),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": "float32", **(options or {})},
        )
    except Exception as error:  # the library raises whatever its dependencies raise
        raise ModelError(f"model folder {folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    for kind, prompt in (prompts or {}).items():
        for alias in PROMPT_NAMES[kind]:
            model.prompts.pop(alias, None)
            if model.default_prompt_name == alias:
                model.default_prompt_name = None
        # Empty prompts are set too, so that the saved model gives everybody the vectors that were measured.
        model.prompts[kind] = prompt
    model.default_prompt_name = None
    if pooling:
        set_pooling(model, pooling, folder)
    if model.similarity_fn_name != "cosine":
        if not isinstance(model[-1], Normalize):
            model.append(Normalize())
        model.similarity_fn_name = "cosine"
    return model


def quiet_libraries() -> None:
    """Switch off the progress bars and notices of transformers."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _hashed(options: dict[str, Any]) -> list[str]:
    """Return the hash of options, or nothing if there are none."""
    return [digest(options)] if options else []


def _first(prompts: dict[str, str], kind: Kind) -> str:
    return next((prompts[name] for name in PROMPT_NAMES[kind] if prompts.get(name)), "")


_TIMED_QUERIES, _TIMED_REMOTE = 64, 5


def seconds_alone(encoder: Encoder, texts: Sequence[str]) -> float:
    """Return the mean seconds that an encoder takes for a query, encoded alone as in production."""
    # Each text sent to an API is paid for, and the network takes most of the time.
    texts = texts[: _TIMED_REMOTE if complete(encoder).remote else _TIMED_QUERIES]
    encoder.encode(texts[:1], "query")
    start = time.perf_counter()
    for text in texts:
        encoder.encode([text], "query")
    return (time.perf_counter() - start) / len(texts)
