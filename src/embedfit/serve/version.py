"""The versions of what is served. Each request is answered by one version, from its arrival to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from embedfit.encode.encoder import complete
from embedfit.errors import StorageError
from embedfit.serve.feedback import Feedback
from embedfit.serve.indexed import ServedIndex
from embedfit.serve.searching import Served

log = logging.getLogger("embedfit.serve")


class Version:
    """A searcher that is served, with the picks that it has learned.

    Args:
        searcher: Searcher.
    """

    def __init__(self, searcher: Served | ServedIndex) -> None:
        self.searcher = searcher
        self.encoder = complete(searcher.encoder)
        self._learned = 0

    def learn(self, feedback: Feedback | None) -> None:
        """Bring the examples in line with the picks, also those that other processes stored. Not for two threads at once."""
        if feedback is None:
            return
        try:
            number, changes = feedback.examples(self._learned)
            if changes:
                self.searcher.learn(changes)
        except StorageError as error:  # a search is worth answering with the picks that are known
            log.error("%s", error)
        else:
            self._learned = number

    def warm(self) -> None:
        """Encode a text, since the first one takes longest."""
        self.encoder.encode(["ready"], "query")


class Asked(NamedTuple):
    """Something to work on, and the version that is to do it."""

    version: Version
    content: Any


def by_version(work: Callable[[Version, list[Any]], Sequence[Any]]) -> Callable[[list[Asked]], list[Any]]:
    """Return work on a batch of mixed versions: the items of each version are worked on together."""

    def work_on(asked: list[Asked]) -> list[Any]:
        results: list[Any] = [None] * len(asked)
        for version in dict.fromkeys(item.version for item in asked):
            places = [place for place, item in enumerate(asked) if item.version is version]
            for place, result in zip(places, work(version, [asked[place].content for place in places]), strict=True):
                results[place] = result
        return results

    return work_on
