"""Texts as tokens: each text is tokenised once, and padded to the longest text of its batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.errors import ModelError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_SLICE = 1024
"""Texts tokenised at once."""
_TRIED = 4
"""Number of the first texts, and of the longest ones, that are read both ways."""
_Read: TypeAlias = tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[Any]]]
"""Number of tokens of each text; for each input of the model, the tokens of all texts end to end."""


class Tokens:
    """The tokens of many texts, cut to the model's length and not padded.

    They are kept end to end in one array for each input of the model: as Python objects, the tokens of a million texts would not fit.

    Args:
        model: Model with the tokenizer and the longest length.
        texts: Texts to tokenise.
        prompt: Text put before each text.
        task: ``query`` or ``document``, for models that treat them differently.
        alone: Result of `tokenizer_suffices` for these texts, if it is known.

    Raises:
        ModelError: The model does not read padded rows of tokens.

    Attributes:
        lengths: Number of tokens of each text; shape (texts,).
    """

    def __init__(
        self, model: SentenceTransformer, texts: Sequence[str], prompt: str, task: str | None = None, *, alone: bool | None = None
    ) -> None:
        self._model, self._prompt, self._task = model, prompt, task
        self._input = input_module(model, task)
        self._same: dict[str, Any] = {}
        if alone is None:
            alone = tokenizer_suffices(model, texts, prompt, task)
        self._by_library(texts[:1] or ["a text"])  # sets what the library adds to the tokens
        read = partial(_by_tokenizer, self._input, prompt) if alone else self._by_library
        parts = [read(texts[start : start + _SLICE]) for start in range(0, len(texts), _SLICE)]
        self.lengths = np.concatenate([np.zeros(0, np.int64), *(lengths for lengths, _ in parts)])
        self._ends = np.cumsum(self.lengths)
        self._values = {key: np.concatenate([rows[key] for _, rows in parts]) for key in (parts[0][1] if parts else ())}

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(self, positions: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Return the features of the texts at some positions: one matrix (texts, longest length) for each input of the model."""
        import torch

        tokenizer = self._input.tokenizer
        inside, where = self.places(positions)
        pads = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        features: dict[str, Any] = {"attention_mask": torch.from_numpy(inside.astype(np.int64))}
        for key, values in self._values.items():
            matrix = np.full(inside.shape, pads.get(key, 0), np.int64)
            matrix[inside] = values[where]
            features[key] = torch.from_numpy(matrix)
        return {**features, **self._same}

    def places(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Return where the tokens of the texts at some positions stand when padded, and when end to end.

        Returns:
            Whether each place of the padded matrix is a token, shape (texts, longest length); and the index of each token among
            the tokens of all texts, in the order of these places, shape (tokens,).
        """
        lengths = self.lengths[positions]
        columns = np.arange(lengths.max(initial=0))
        left = self._input.tokenizer.padding_side == "left"
        inside = columns >= len(columns) - lengths[:, None] if left else columns < lengths[:, None]
        # Counted within the batch, and moved to where its text lies.
        return inside, np.arange(lengths.sum()) + np.repeat(self._ends[positions] - np.cumsum(lengths), lengths)

    def _by_library(self, texts: Sequence[str]) -> _Read:
        read, self._same = _by_library(self._model, self._prompt, self._task, texts)
        return read


def tokenizer_suffices(model: SentenceTransformer, texts: Sequence[str], prompt: str, task: str | None) -> bool:
    """Return whether a model reads exactly what its tokenizer alone makes of the texts.

    Most models do. What the library does around the tokenizer, text by text, takes most of the time and can then be left out. The
    model must have no setting that treats texts in another way, and a few of the texts are read both ways and compared.
    """
    from sentence_transformers.base.modules import Transformer

    module = input_module(model, task)
    plain = (
        type(module) is Transformer
        and module.processor is module.tokenizer
        and list(module.modality_config) == ["text"]
        and not (module.processing_kwargs or module.query_expansion or module.query_length or module.document_length)
    )
    if not plain or not texts:
        return plain
    tried = [*texts[:_TRIED], *sorted(texts, key=len)[-_TRIED:]]
    return _equal(_by_library(model, prompt, task, tried)[0], _by_tokenizer(module, prompt, tried))


def input_module(model: SentenceTransformer, task: str | None) -> Any:
    """Return the module that reads the texts: the first one, or the first of the task's route."""
    routes = getattr(model[0], "sub_modules", {})
    return routes[task][0] if task in routes else model[0]


def _by_library(model: SentenceTransformer, prompt: str, task: str | None, texts: Sequence[str]) -> tuple[_Read, dict[str, Any]]:
    """Return the tokens that the library makes of the texts, and the features that are not tensors."""
    import torch

    with _padded(input_module(model, task)):
        whole = model.preprocess(list(texts), prompt=prompt or None, task=task)
    tensors = {key: value for key, value in whole.items() if torch.is_tensor(value)}
    mask = tensors.pop("attention_mask", None)
    if mask is None or any(value.shape != mask.shape for value in tensors.values()):
        raise ModelError(f"a {type(model[0]).__name__} that does not read padded rows of tokens cannot be tuned")
    inside = mask.bool()
    rows = {key: _small(key, value[inside].numpy()) for key, value in tensors.items()}
    return (inside.sum(dim=1).numpy(), rows), {key: value for key, value in whole.items() if not torch.is_tensor(value)}


@contextlib.contextmanager
def _padded(module: Any) -> Iterator[None]:
    """Let the library pad texts. With flash attention it puts them end to end."""
    flattens = getattr(module, "can_flatten_inputs", False)
    if flattens:
        module.can_flatten_inputs = False
    try:
        yield
    finally:
        if flattens:
            module.can_flatten_inputs = True


def _by_tokenizer(module: Any, prompt: str, texts: Sequence[str]) -> _Read:
    tokens = module.tokenizer([prompt + text for text in texts], truncation=True, return_attention_mask=False, verbose=False)
    lengths = np.array([len(ids) for ids in tokens["input_ids"]], np.int64)
    count = int(lengths.sum())
    return lengths, {key: _small(key, np.fromiter(chain.from_iterable(rows), np.int64, count)) for key, rows in tokens.items()}


def _small(key: str, values: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return an input of the model in the smallest type: only token ids need 32 bits."""
    return values.astype(np.int32 if key == "input_ids" else np.int8)


def _equal(left: _Read, right: _Read) -> bool:
    return (
        np.array_equal(left[0], right[0])
        and left[1].keys() == right[1].keys()
        and all(np.array_equal(values, right[1][key]) for key, values in left[1].items())
    )


def length_batches(lengths: npt.NDArray[np.int64], tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield batches of indices, longest texts first, each within a budget of padded tokens."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size
