"""The mean of the weights over an epoch, in place of a learning rate that falls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights in training by name. They change in place, but training in several processes may move them in memory."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


class EpochMean:
    """The mean of the trained weights after each step of the present epoch, which is the model of that epoch.

    At a constant learning rate the weights go around a good place, and their mean lies nearer to it (stochastic weight averaging:
    Izmailov et al. 2018). The last epoch need not be known, so that any may be the last.

    Args:
        model: Model in training, whose weights change in place.

    Attributes:
        values: Mean of each trained weight by its name; the weights themselves before the first step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.values = {name: weight.clone() for name, weight in trained_weights(model).items()}

    @property
    def _weights(self) -> list[Tensor]:
        return list(trained_weights(self._model).values())

    def add(self, step: int) -> None:
        """Add the weights as they are now.

        Args:
            step: Number of steps in this epoch, from 1; the first begins a new mean.
        """
        torch._foreach_lerp_(list(self.values.values()), self._weights, 1 / step)

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Continue from the values of a checkpoint."""
        for name, value in values.items():
            self.values[name].copy_(value)

    def put(self) -> None:
        """Set the weights to their mean."""
        self._set(list(self.values.values()))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Set the weights to their mean, and back afterwards."""
        before = [weight.clone() for weight in self._weights]
        self.put()
        try:
            yield
        finally:
            self._set(before)

    def _set(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self._weights, values)
