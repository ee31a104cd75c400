"""The places of a task's plan: handed to workers, and decided in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedfit.generate.ledger import Line

_AHEAD = 1024
"""Places that may be asked for before an earlier one is decided. The window keeps memory flat."""


@dataclass
class Turn:
    """The state of one place.

    Attributes:
        attempt: Number of replies rejected so far.
        room: Factor on the maximum number of tokens of a reply.
        reply: Ledger line of the last reply.
        why: Error in the last reply, for the model to correct; empty if there is nothing to correct.
        row: Record in the last reply that passed its checks.
        text: Text of that record, for comparison with other records.
        id: Id of the request of that reply.
    """

    attempt: int = 0
    room: int = 1
    reply: Line | None = None
    why: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    id: str = ""


class Plan:
    """Hands places to workers in order, and gives back what they return in the same order.

    Args:
        count: Number of places.
        concurrency: Number of workers.
    """

    def __init__(self, count: int, concurrency: int) -> None:
        self.count = count
        self._ahead = max(_AHEAD, 4 * concurrency)
        self._waiting: asyncio.PriorityQueue[tuple[int, int, Turn]] = asyncio.PriorityQueue()
        self._results: dict[int, asyncio.Future[Turn | None]] = {}
        self._retries: list[int] = []

    async def take(self) -> tuple[int, Turn]:
        """Wait for a place to ask for, and return its position and its state. Retries go first."""
        _, position, turn = await self._waiting.get()
        return position, turn

    def finish(self, position: int, turn: Turn | None) -> None:
        """Hand in a place with a reply that passed its checks, or None where the place was given up."""
        self._result(position).set_result(turn)

    def retry(self, position: int, turn: Turn) -> None:
        """Have a place asked for again, to be decided in the next round."""
        self._retries.append(position)
        self._waiting.put_nowait((0, position, turn))

    async def decided(self) -> AsyncIterator[tuple[int, Turn]]:
        """Yield the places that were not given up: all first replies in the order of the plan, then all retries, and so on."""
        for position in range(min(self._ahead, self.count)):
            self._waiting.put_nowait((1, position, Turn()))
        positions: Sequence[int] = range(self.count)
        is_first = True
        while positions:
            self._retries = []
            for position in positions:
                turn = await self._result(position)
                del self._results[position]
                if is_first and position + self._ahead < self.count:
                    self._waiting.put_nowait((1, position + self._ahead, Turn()))
                if turn is not None:
                    yield position, turn
            positions, is_first = self._retries, False

    def _result(self, position: int) -> asyncio.Future[Turn | None]:
        if position not in self._results:
            self._results[position] = asyncio.get_running_loop().create_future()
        return self._results[position]
