"""Frozen lower layers: each text's hidden states after them are computed once, and training runs the upper layers alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedfit import progress
from embedfit.encode.local import ModelEncoder
from embedfit.encode.precision import autocast, without_cudnn_attention
from embedfit.encode.tokens import Tokens, length_batches
from embedfit.errors import ConfigError

KEPT = "kept_states"
"""Name of the kept states among the features of a chunk of texts."""


def layers_of(transformer: nn.Module) -> Sequence[nn.Module]:
    """Return the layers of a transformer, lowest first; none if its architecture does not hold them in one list."""
    config = getattr(transformer, "config", None)
    count = getattr(config, "num_hidden_layers", None) if hasattr(config, "hidden_size") else None
    lists = [module for module in transformer.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return list(lists[0]) if len(lists) == 1 and len({type(layer) for layer in lists[0]}) == 1 else []


class LowerLayers:
    """The frozen lower layers of a model.

    All weights that their output depends on are frozen with them, such as the embeddings of tokens and positions. Dropout is
    off in them, so that a text always has the same hidden states.

    Args:
        encoder: Model in training.
        count: Number of layers to freeze.

    Raises:
        ConfigError: The model has no more layers than that, or its layers are not known.

    Attributes:
        count: Number of frozen layers.
        total: Number of layers of the model.
        layers: The frozen layers, lowest first.
    """

    def __init__(self, encoder: ModelEncoder, count: int) -> None:
        transformer: Any = encoder.model.transformers_model
        layers = layers_of(transformer)
        if not layers:
            raise ConfigError(f"tune.freeze: the layers of a {type(transformer).__name__} are not known; fix: tune.freeze = 0")
        if count >= len(layers):
            raise ConfigError(f"tune.freeze is {count}, and the model has {len(layers)} layers; fix: a smaller number")
        self._encoder, self.count, self.total = encoder, count, len(layers)
        self.layers = layers[:count]
        self._width = int(transformer.config.hidden_size)
        self._returns_tuple = False
        upper = {id(module) for layer in layers[count:] for module in layer.modules()}
        for module in transformer.modules():
            if isinstance(module, nn.Dropout) and id(module) not in upper:
                module.p = 0.0
        self._freeze(transformer)

    def _freeze(self, transformer: nn.Module) -> None:
        """Freeze every weight that the hidden states depend on: a gradient says which those are."""
        tokens = Tokens(self._encoder.model, ["a text"], "")
        weights = [weight for weight in transformer.parameters() if weight.requires_grad]
        states = self._run(self._on_device(tokens.padded(np.array([0]))))
        if weights and states.requires_grad:
            for weight, gradient in zip(weights, torch.autograd.grad(states.sum(), weights, allow_unused=True), strict=True):
                weight.requires_grad_(gradient is None)

    def keep(self, tokens: Tokens, *, batch_tokens: int) -> KeptStates:
        """Return the hidden states of texts after the frozen layers.

        Args:
            tokens: Tokens of the texts.
            batch_tokens: Most padded tokens in a batch.
        """
        encoder, device = self._encoder, self._encoder.model.device
        training, kept = encoder.model.training, KeptStates(tokens)
        encoder.model.eval()
        with (
            torch.no_grad(),
            autocast(device.type, encoder.bf16),
            without_cudnn_attention(device.type),
            progress.bar("frozen layers", len(tokens)) as done,
        ):
            for batch in length_batches(tokens.lengths, batch_tokens):
                kept.put(batch, self._run(self._on_device(tokens.padded(batch))))
                done(len(batch))
        encoder.model.train(training)
        return kept

    def bytes_of(self, tokens: Tokens) -> int:
        """Return the size of the texts' hidden states in fp32."""
        return 4 * self._width * int(tokens.lengths.sum())

    def can_be_left_out(self, tokens: Tokens) -> bool:
        """Return whether the upper layers alone give the same vectors: some architectures use the lower layers elsewhere too."""
        texts = np.unique([int(tokens.lengths.argmin()), int(tokens.lengths.argmax())])
        features, model = self._on_device(tokens.padded(texts)), self._encoder.model.eval()
        with torch.no_grad(), without_cudnn_attention(model.device.type):
            states = self._run(dict(features)) * features["attention_mask"].unsqueeze(-1)  # padding has no states that are kept
            expected = model(dict(features))["sentence_embedding"]
            try:
                with self.replaced_by(states):
                    vectors = model(dict(features))["sentence_embedding"]
            except Exception:  # whatever an architecture raises that expects its lower layers to run
                return False
        return bool(torch.allclose(vectors, expected, rtol=1e-4, atol=1e-5))

    @contextlib.contextmanager
    def replaced_by(self, states: Tensor) -> Iterator[None]:
        """Pass hidden states on in place of running the frozen layers.

        Args:
            states: Hidden states after the frozen layers; shape (texts, tokens, width).
        """

        def give(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            return (states,) if self._returns_tuple else states

        for layer in self.layers:
            layer.forward = give
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def _run(self, features: dict[str, Any]) -> Tensor:
        """Return the hidden states after the frozen layers, without running the others."""

        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            self._returns_tuple = isinstance(output, tuple)
            raise _Reached(output[0] if self._returns_tuple else output)

        hook = self.layers[-1].register_forward_hook(stop)
        try:
            self._encoder.model(features)
        except _Reached as reached:
            return reached.states
        finally:
            hook.remove()
        raise ConfigError("tune.freeze: the model does not run its layers one after another; fix: tune.freeze = 0")

    def _on_device(self, features: dict[str, Any]) -> dict[str, Any]:
        device = self._encoder.model.device
        return {key: value.to(device) if torch.is_tensor(value) else value for key, value in features.items()}


class _Reached(Exception):
    """The output of the last frozen layer, raised to leave out the layers above it."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


class KeptStates:
    """Hidden states of many texts, end to end in one array like their tokens.

    Args:
        tokens: Tokens of the texts.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._states: Tensor | None = None

    def put(self, positions: npt.NDArray[np.int64], states: Tensor) -> None:
        """Keep the hidden states of the texts at some positions; shape (texts, longest length, width)."""
        inside, where = self._tokens.places(positions)
        states = states.cpu()
        if self._states is None:
            self._states = torch.empty(int(self._tokens.lengths.sum()), states.shape[2], dtype=states.dtype)
        self._states[torch.from_numpy(where)] = states[torch.from_numpy(inside)]

    def padded(self, positions: npt.NDArray[np.int64]) -> Tensor:
        """Return the hidden states of the texts at some positions, zero at padding; shape (texts, longest length, width)."""
        assert self._states is not None
        inside, where = self._tokens.places(positions)
        padded = self._states.new_zeros(*inside.shape, self._states.shape[1])
        padded[torch.from_numpy(inside)] = self._states[torch.from_numpy(where)]
        return padded
