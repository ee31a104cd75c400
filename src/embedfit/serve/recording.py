"""Searches are stored right behind their answers, several in one transaction. Picks and deletions come after them, in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from embedfit.errors import StorageError
from embedfit.serve.feedback import Feedback, Search

log = logging.getLogger("embedfit.serve")

_MOST = 1000
"""Number of searches that wait to be stored before answers wait for the database, and of those that are kept while it refuses them."""


class Recording:
    """The one thread that uses the feedback's database while requests are answered.

    Searches that it refuses, because it is away or the disk is full, are stored when it takes them again.

    Args:
        feedback: Feedback; None to keep none.
        failed: Called in the thread with the number of searches that are given up.
    """

    def __init__(self, feedback: Feedback | None, failed: Callable[[float], None]) -> None:
        self._feedback, self._failed = feedback, failed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedfit-feedback")
        self._waiting: list[Search] = []
        self._refused: list[Search] = []

    async def add(self, searches: Sequence[Search]) -> None:
        """Store searches after the answer that is being made; wait if the database is far behind."""
        if not self._waiting and searches:
            asyncio.get_running_loop().call_soon(self._begin)
        self._waiting += searches
        if len(self._waiting) > _MOST:
            self._begin()
            await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a function that runs in the thread, after all searches so far are stored.

        Raises:
            StorageError: The searches cannot be stored.
        """
        self._begin()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._after_all, function, *arguments)

    def close(self) -> None:
        """Store what waits, and end the thread."""
        self._begin()
        self._thread.submit(self._end)
        self._thread.shutdown()

    def _begin(self) -> None:
        searches, self._waiting = self._waiting, []
        if searches:
            self._thread.submit(self._store, searches)

    def _after_all(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._refused:
            self._store([])
        if self._refused:
            raise StorageError("the searches before it are not stored yet")
        return function(*arguments)

    def _end(self) -> None:
        if self._refused:
            self._store([])
        if self._refused:
            self._failed(len(self._refused))

    def _store(self, searches: list[Search]) -> None:
        assert self._feedback is not None
        searches, self._refused = self._refused + searches, []
        try:
            self._feedback.record(searches)
        except StorageError as error:
            # A search is worth answering even if nobody can give feedback on it.
            log.error("%s", error)
            self._refused = searches[-_MOST:]
            if len(searches) > _MOST:
                self._failed(len(searches) - _MOST)
        except Exception as error:
            if len(searches) > 1:  # one must not be lost for another
                for search in searches:
                    self._store([search])
                return
            log.error("%s", type(error).__name__)
            self._failed(1)
