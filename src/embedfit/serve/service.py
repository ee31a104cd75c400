"""What a server does: searches and encodes in batches, stores feedback, and learns from it."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embedfit.encode.encoder import BaseEncoder, Kind, Vectors
from embedfit.encode.local import local_of
from embedfit.errors import DamagedError, DataError, EmbedfitError, StorageError, did_you_mean
from embedfit.searcher.searcher import Query, SearchHit
from embedfit.serve.batching import Batcher, Busy, Closed
from embedfit.serve.feedback import Feedback, Search, Stored, new_id, one_line
from embedfit.serve.feedback import Kind as PickKind
from embedfit.serve.indexed import ServedIndex
from embedfit.serve.interleaving import team_draft
from embedfit.serve.metering import Meters
from embedfit.serve.problems import Refused
from embedfit.serve.recording import Recording
from embedfit.serve.searching import Served, Wanted, plain
from embedfit.serve.settings import Settings
from embedfit.serve.version import Asked, Version, by_version
from embedfit.store.base import is_encodable

log = logging.getLogger("embedfit.serve")

MOST_HITS = 1000
_WAITS = (0.05, 0.2, 0.5)
"""Seconds to wait for a search that another process has answered a moment ago, and is about to store."""


@dataclass(frozen=True)
class Answer:
    """The answer to a search.

    Attributes:
        search_id: Id for the feedback; None if none is kept.
        text: Text of the query.
        hits: Hits in the order to show them.
        abstained: Whether the searcher has no answer; the hits are then its guesses.
        needs_person: Whether the best answer's probability is under the threshold; None without one.
        model: Fingerprint of the searcher that answered.
        teams: For each hit, 0 if this searcher added it, 1 if the one it is compared with did; empty without a comparison.
    """

    search_id: str | None
    text: str
    hits: Sequence[SearchHit]
    abstained: bool
    needs_person: bool | None
    model: str
    teams: tuple[int, ...] = ()


class Service:
    """A searcher behind a queue, with its feedback.

    Args:
        searcher: Searcher to serve.
        settings: Settings of the server.
        meters: Figures to count in.
        feedback: Feedback to keep; None to keep none.
        against: Searcher to compare with, blindly; None for none.
    """

    def __init__(
        self,
        searcher: Served | ServedIndex,
        settings: Settings,
        meters: Meters,
        feedback: Feedback | None,
        against: Served | ServedIndex | None = None,
    ) -> None:
        self.settings, self.meters, self.feedback = settings, meters, feedback
        self.version = Version(searcher)
        self.against = Version(against) if against is not None else None
        self.trace: Callable[[Sequence[Answer], float], None] | None = None
        """Called with the answers of each request, and its seconds. It must not wait."""
        self._gone: Collection[str] = ()
        self._recording = Recording(feedback, meters.unrecorded.inc)
        self._random = random.Random()
        self.batcher = Batcher(
            {
                "query": by_version(lambda version, texts: list(version.encoder.encode(texts, "query"))),
                "document": by_version(lambda version, texts: list(version.encoder.encode(texts, "document"))),
                "search": by_version(self._search),
            },
            largest=settings.largest,
            wait=settings.wait,
            queue=settings.queue,
            observe=meters.batch,
        )
        meters.waiting.set_function(lambda: self.batcher.waiting) if not meters.together else None
        self.learn()
        self.version.warm()
        if self.against is not None:
            self.against.learn(feedback)
            self.against.warm()

    @property
    def searcher(self) -> Served | ServedIndex:
        """Searcher of the version that new requests get."""
        return self.version.searcher

    @property
    def encoder(self) -> BaseEncoder:
        """Encoder of the version that new requests get."""
        return self.version.encoder

    def switch(self, searcher: Served | ServedIndex) -> None:
        """Make a searcher the one that new requests get. Those that have begun end with the one they began with.

        It may run in any thread: the searcher learns all picks first, and searches go on meanwhile.
        """
        version = Version(searcher)
        version.learn(self.feedback)
        version.warm()
        # A pick of a document that was shown a moment ago is still a pick.
        self._gone = frozenset(self.searcher.documents) - frozenset(searcher.documents)
        self.version = version

    async def close(self) -> None:
        """Finish what was accepted."""
        await self.batcher.close()
        self._recording.close()
        if self.feedback is not None:
            self.feedback.close()

    def learn(self) -> None:
        """Bring the examples of the newest version in line with the picks."""
        self.version.learn(self.feedback)

    async def search(
        self,
        queries: Sequence[Query],
        k: int,
        filters: Mapping[str, str | int | float | bool] | None = None,
        *,
        person: str = "",
        source: str = "api",
    ) -> list[Answer]:
        """Return the answer to each query.

        Raises:
            Refused: A query cannot be used, or the server is busy.
        """
        start, person = time.perf_counter(), one_line(person)
        version, against = self.version, self.against
        texts = [self.query_text(query, f"query {number}", version) for number, query in enumerate(queries, 1)]
        k = min(k, MOST_HITS)
        ranked = await self._ranked(version, texts, k, filters)
        others = None
        if against is not None:
            other_texts = [self.query_text(query, f"query {number}", against) for number, query in enumerate(queries, 1)]
            others = await self._ranked(against, other_texts, k, filters)
        answers, searches = [], []
        for place, (query, text, hits) in enumerate(zip(queries, texts, ranked, strict=True)):
            if against is not None and others is not None:
                answer, probability = self._interleaved(version.searcher, against.searcher, text, hits, others[place], k)
            else:
                answer, probability = self._answer(version.searcher, text, list(hits[:k]))
            answers.append(answer)
            self.meters.searches.labels("yes" if answer.abstained else "no").inc()
            if answer.search_id:
                record = None if isinstance(query, str) else query
                evidence = [_as_shown(hit) for hit in answer.hits]
                if answer.teams:  # the names of both, since one of them may have added nothing
                    names = self._names()
                    evidence = [{**hit, "team": names[team], "teams": names} for hit, team in zip(evidence, answer.teams, strict=True)]
                searches.append(
                    Search(answer.search_id, text, record, person, source, answer.model, evidence, probability, answer.abstained)
                )
        await self._recording.add(searches)
        if self.trace is not None:
            self.trace(answers, time.perf_counter() - start)
        return answers

    async def encode(self, texts: Sequence[str], kind: Kind, version: Version | None = None) -> Vectors:
        """Return one unit vector per text.

        Args:
            texts: Texts.
            kind: Whether they are queries or documents.
            version: Version that encodes them; by default the newest. Vectors of two versions cannot be compared.

        Raises:
            Refused: A text cannot be used, or the server is busy.
        """
        for number, text in enumerate(texts, 1):
            self._check_text(text, f"text {number}")
        version = version or self.version
        vectors = await self._submit(kind, version, texts, texts)
        return np.stack(vectors) if vectors else np.zeros((0, version.encoder.dimension or 0), np.float32)

    async def pick(self, search: str, choice: str | None, *, person: str = "", kind: PickKind = "pick") -> Stored:
        """Store a pick, and learn from it at once.

        Raises:
            Refused: The search or the document is unknown, or no feedback is kept.
        """
        others = self.against.searcher.documents if self.against is not None else ()
        if choice is not None and choice not in self.searcher.documents and choice not in self._gone and choice not in others:
            near = did_you_mean(choice, self.searcher.documents) if len(self.searcher.documents) <= MOST_HITS else ""
            raise Refused(422, f"choice: no document has this id{near}", code="unknown_document")
        name, model, waits = one_line(person), self.searcher.fingerprint, list(_WAITS)
        while True:
            try:
                stored: Stored = await self._change(lambda: self._feedback.pick(search, choice, person=name, kind=kind, model=model))
                break
            except DataError as error:
                if not waits:
                    raise Refused(404, str(error), code="unknown_search") from None
                await asyncio.sleep(waits.pop(0))
        self.meters.picks.labels("none" if choice is None else kind).inc()
        await self.batcher.call(self.learn)
        return stored

    async def undo(self, search: str, person: str | None = None) -> bool:
        """Take a pick back; return whether there was one."""
        undone: bool = await self._change(lambda: self._feedback.undo(search, person))
        await self.batcher.call(self.learn)
        return undone

    async def delete(self, search: str | None = None, person: str | None = None) -> int:
        """Delete a search with its picks, or everything of a person; return the number of rows deleted."""
        name = None if person is None else one_line(person)
        count: int = await self._change(lambda: self._feedback.delete(search=search, person=name))
        await self.batcher.call(self.learn)
        return count

    def query_text(self, query: Query, where: str, version: Version | None = None) -> str:
        """Return the text of a query, checked.

        Raises:
            Refused: The query cannot be used.
        """
        try:
            text = (version or self.version).searcher.text_of(query, where)
        except EmbedfitError as error:
            raise Refused(422, str(error), code="invalid_query") from None
        self._check_text(text, where)
        return text

    def find_titles(self, words: str, most: int = 50) -> list[tuple[str, str]]:
        """Return (id, text) of up to ``most`` documents whose id or text has all words, those that begin with them first."""
        return self.version.searcher.find_titles(words, most)

    def tokens(self, texts: Sequence[str], kind: Kind) -> int:
        """Return the number of tokens of texts; of words, if the model is not on this machine."""
        model = local_of(self.searcher.encoder)
        if model is None:
            return sum(len(text.split()) for text in texts)
        return int(model.loaded.truncation(texts, kind).counts.sum())

    async def _change(self, function: Callable[[], Any]) -> Any:
        """Return the result of a function that changes the feedback.

        Raises:
            Refused: The database is away, or the disk is full. The log has the reason.
        """
        try:
            return await self._recording.call(function)
        except StorageError as error:
            log.error("%s", error)
            message = "the feedback cannot be stored at the moment"
            raise Refused(503, message, code="feedback_unavailable", headers={"Retry-After": "5"}) from None

    @property
    def _feedback(self) -> Feedback:
        if self.feedback is None:
            raise Refused(409, "this server keeps no feedback", code="no_feedback")
        return self.feedback

    def _check_text(self, text: str, where: str) -> None:
        if not text.strip():
            raise Refused(422, f"{where}: is empty; expected a text", code="empty_text")
        if len(text) > self.settings.characters:
            raise Refused(
                422, f"{where}: has {len(text):,} characters; expected at most {self.settings.characters:,}", code="text_too_long"
            )
        if not is_encodable(text):
            raise Refused(422, f"{where}: contains half of a character (a lone surrogate)", code="invalid_text")

    def _search(self, version: Version, asked: list[Wanted]) -> list[Sequence[SearchHit]]:
        version.learn(self.feedback)
        return version.searcher.answer(asked)

    def _answer(self, searcher: Served | ServedIndex, text: str, hits: list[SearchHit]) -> tuple[Answer, float]:
        """Return the answer, and the probability of the order that it shows."""
        best = hits[0].probability if hits else None
        abstention, threshold = self.settings.abstain, searcher.threshold
        abstained = not hits or (best is not None and best < abstention)
        needs_person = None if threshold is None or best is None else best < threshold
        probability, share = 1.0, self.settings.explore
        if share and len(hits) > 1:
            ranked = list(hits)
            if self._random.random() < share:
                self._random.shuffle(hits)
            same = all(hit is other for hit, other in zip(hits, ranked, strict=True))
            probability = share / math.factorial(min(len(hits), 170)) + (1 - share) * same
        search_id = new_id() if self.feedback else None
        return Answer(search_id, text, hits, abstained, needs_person, searcher.fingerprint), probability

    async def _ranked(
        self, version: Version, texts: Sequence[str], k: int, filters: Mapping[str, str | int | float | bool] | None
    ) -> list[Sequence[SearchHit]]:
        wanted = {key: plain(value) for key, value in (filters or {}).items()}
        return await self._submit("search", version, [Wanted(text, k, wanted) for text in texts], texts)

    def _interleaved(
        self,
        searcher: Served | ServedIndex,
        other: Served | ServedIndex,
        text: str,
        hits: Sequence[SearchHit],
        others: Sequence[SearchHit],
        k: int,
    ) -> tuple[Answer, float]:
        """Return the answers of two searchers as one, and the probability of the order. What tells them apart is left out."""
        drafted = team_draft([hit.id for hit in hits], [hit.id for hit in others], k, self._random)
        by_id = {hit.id: replace(hit, score=0.0, probability=None, because=()) for hit in (*others, *hits)}
        shown = [by_id[id] for id in drafted.ids]
        search_id = new_id() if self.feedback else None
        return Answer(search_id, text, shown, not shown, None, searcher.fingerprint, drafted.teams), drafted.probability

    def _names(self) -> tuple[str, str]:
        """Return the names of the two searchers that are compared."""
        assert self.against is not None
        first, second = self.searcher, self.against.searcher
        if first.name != second.name:
            return first.name, second.name
        return f"{first.name} ({first.fingerprint[:8]})", f"{second.name} ({second.fingerprint[:8]})"

    async def _submit(self, lane: str, version: Version, items: Sequence[Any], texts: Sequence[str]) -> list[Any]:
        if len(items) > self.settings.texts:
            raise Refused(422, f"{len(items):,} texts; expected at most {self.settings.texts:,} in a request", code="too_many_texts")
        try:
            return await self.batcher.submit(lane, [Asked(version, item) for item in items], [len(text) for text in texts])
        except Busy as busy:
            raise Refused(429, str(busy), code="overloaded", headers={"Retry-After": str(busy.seconds)}) from None
        except Closed:
            raise Refused(503, "the server is shutting down", code="closed", headers={"Retry-After": "1"}) from None
        except StorageError as error:
            log.error("%s", error)
            state = "is damaged" if isinstance(error, DamagedError) else "cannot be reached"
            raise Refused(503, f"the index {state}", headers={"Retry-After": "5"}) from None
        except EmbedfitError as error:
            log.error("%s", error)
            raise Refused(500, "the model cannot encode this", code="model") from None


def _as_shown(hit: SearchHit) -> dict[str, Any]:
    # Without the texts of examples: who deletes theirs must find them nowhere else.
    because = [{"kind": reason.kind, "score": reason.score} for reason in hit.because]
    return {"id": hit.id, "score": hit.score, "probability": hit.probability, "because": because}
