"""Batches of requests: texts from many clients are gathered, and encoded together in one thread."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Work: TypeAlias = Callable[[list[Any]], Sequence[Any]]
"""Items -> one result for each, in order. It runs in the batcher's thread."""

_LONGER, _SLACK = 1.5, 40
"""The items of a batch are at most this many times as long as its first one, and this many characters more; or as much shorter."""
_SECONDS_EACH = 0.005
"""Assumed time of an item: until there are measurements, and for the order of requests."""


class Busy(Exception):
    """The queue is full.

    Args:
        seconds: Time after which to try again, a whole number of at least 1.
    """

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(f"the queue is full; try again in {seconds} s")


class Closed(Exception):
    """The server is shutting down."""


@dataclass(eq=False)
class _Job:
    """One request: its items, and those results that are there."""

    lane: str
    items: Sequence[Any]
    lengths: Sequence[int]
    deadline: float
    future: asyncio.Future[list[Any]]
    results: list[Any]
    waiting: list[int] = field(default_factory=list)
    missing: int = 0


class Batcher:
    """Gathers items of the same lane into batches of similar length, and works on one batch at a time in one thread.

    While a batch is being worked on, requests gather by themselves. An idle thread waits for further requests, a few milliseconds at
    most, and only if the batch before held several requests: a lone client never waits. A short request is not held up by a long
    one, since each request's turn comes after its arrival by a time in proportion to its number of items.

    Args:
        lanes: Name of a lane -> its work.
        largest: Maximum number of items of a batch.
        wait: Maximum time to wait for further requests, in seconds.
        queue: Maximum number of items that wait.
        observe: Called with (lane, number of items, seconds) after each batch.
    """

    def __init__(
        self,
        lanes: Mapping[str, Work],
        *,
        largest: int = 32,
        wait: float = 0.003,
        queue: int = 2048,
        observe: Callable[[str, int, float], None] = lambda *_: None,
    ) -> None:
        self.lanes, self.largest, self.wait, self.queue = dict(lanes), largest, wait, queue
        self._observe = observe
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedfit-encode")
        self._jobs: list[_Job] = []
        self._is_working = self._closing = False
        self._later: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        self._requests_before = 1
        self._seconds_each = _SECONDS_EACH
        self.waiting = 0

    async def submit(self, lane: str, items: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
        """Return one result for each item.

        Args:
            lane: Name of the lane.
            items: Items, of any number.
            lengths: Length of each item in characters: those of a batch are alike.

        Raises:
            Busy: More items wait than the queue takes.
            Closed: The server is shutting down.
        """
        if self._closing:
            raise Closed("the server is shutting down")
        if not items:
            return []
        if self.waiting and self.waiting + len(items) > self.queue:
            raise Busy(max(1, math.ceil(self.waiting * self._seconds_each)))
        loop = asyncio.get_running_loop()
        job = _Job(lane, items, lengths, loop.time() + _SECONDS_EACH * len(items), loop.create_future(), [None] * len(items))
        job.waiting, job.missing = list(range(len(items))), len(items)
        self._jobs.append(job)
        self.waiting += len(items)
        self._go_on(loop)
        return await job.future

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a function that runs in the batcher's thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def close(self) -> None:
        """Finish what was accepted, and end the thread."""
        self._closing = True
        loop = asyncio.get_running_loop()
        self._go_on(loop)
        if self._is_working:
            self._idle = loop.create_future()
            await self._idle
        self._thread.shutdown()

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the next batch if the thread is idle, or wait for as many requests as the batch before held."""
        if self._is_working or not self._jobs:
            return
        if len(self._jobs) < self._requests_before and self.waiting < self.largest and not self._closing:
            self._later = self._later or loop.call_later(self.wait, self._start, loop)
        else:
            self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        batch = self._next()
        for job, place in batch:
            job.waiting.remove(place)
        self._jobs = [job for job in self._jobs if job.waiting]
        self._requests_before = len({id(job) for job, _ in batch})
        self._is_working = True
        self._thread.submit(self._timed, loop, batch)

    def _timed(self, loop: asyncio.AbstractEventLoop, batch: list[tuple[_Job, int]]) -> None:
        start = time.perf_counter()
        results = self._work(batch)
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(self._end, loop, batch, results, time.perf_counter() - start)

    def _end(self, loop: asyncio.AbstractEventLoop, batch: list[tuple[_Job, int]], results: list[Any], seconds: float) -> None:
        self._is_working = False
        self.waiting -= len(batch)
        self._seconds_each += 0.2 * (seconds / len(batch) - self._seconds_each)
        self._deliver(batch, results)
        self._go_on(loop)
        self._observe(batch[0][0].lane, len(batch), seconds)
        if self._idle is not None and not self._is_working and not self._idle.done():
            self._idle.set_result(None)

    def _next(self) -> list[tuple[_Job, int]]:
        """Return the next batch: the first item of the request whose turn it is, and those of similar length."""
        first = min(self._jobs, key=lambda job: job.deadline)
        length = first.lengths[first.waiting[0]]
        shortest, longest = (length - _SLACK) / _LONGER, _LONGER * length + _SLACK
        alike = [
            (abs(job.lengths[place] - length), job.deadline, job, place)
            for job in self._jobs
            if job.lane == first.lane
            for place in job.waiting
            if shortest <= job.lengths[place] <= longest
        ]
        alike.sort(key=lambda item: item[:2])
        return [(job, place) for *_, job, place in alike[: self.largest]]

    def _work(self, batch: list[tuple[_Job, int]]) -> list[Any]:
        """Return one result for each item; an exception, for the items of a request that fails."""
        work = self.lanes[batch[0][0].lane]
        try:
            return list(work([job.items[place] for job, place in batch]))
        except Exception as error:
            if len({id(job) for job, _ in batch}) == 1:
                return [error] * len(batch)
        # One request must not fail for another.
        results: dict[tuple[int, int], Any] = {}
        for job in {id(job): job for job, _ in batch}.values():
            places = [place for other, place in batch if other is job]
            results |= zip(((id(job), place) for place in places), self._work([(job, place) for place in places]), strict=True)
        return [results[id(job), place] for job, place in batch]

    @staticmethod
    def _deliver(batch: list[tuple[_Job, int]], results: list[Any]) -> None:
        for (job, place), result in zip(batch, results, strict=True):
            job.results[place] = result
            job.missing -= 1
            if job.missing == 0 and not job.future.done():
                error = next((result for result in job.results if isinstance(result, Exception)), None)
                if error is None:
                    job.future.set_result(job.results)
                else:
                    job.future.set_exception(error)
