"""Items to label: which comes next, and how far people are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedfit.data.cells import read_text
from embedfit.data.dataset import unchecked
from embedfit.data.documents import read_documents
from embedfit.data.formats.opening import read_rows
from embedfit.data.texts import Contents, Row
from embedfit.encode.local import LocalEncoder
from embedfit.errors import DataError, StorageError, did_you_mean
from embedfit.searcher.parts import Parts
from embedfit.searcher.views import Asked
from embedfit.serve.enough import FIRST, Labelled, Outlook, learn, next_size
from embedfit.serve.feedback import Feedback, key_of
from embedfit.serve.picker import Item
from embedfit.serve.searching import Served, asked_of, template_of
from embedfit.serve.service import Service
from embedfit.serve.summary import write_labels

log = logging.getLogger("embedfit.serve")

_CANDIDATES = 256
"""Number of open items among which the next one is chosen: enough for a good choice, and quick for a file of any length."""
_RESERVED_SECONDS = 120
"""Time for which an item that is shown to one person is not shown to another."""
_ONE_IN = 3
"""One item in so many is drawn at random."""
_RECENT = 50
_TURN_SECONDS = 0.0005
"""Turn of a thread while labels are learnt from. A pick passes through several threads, and waits for a turn at each."""
_WRITE_SECONDS = 1.0
_COLUMNS = ("query", "text")


class Labelling:
    """The items of a file, in the order in which labels for them teach most.

    An item is informative if its two best answers are close together, and if it is unlike those that are labelled (Settles 2009,
    "Active learning literature survey", uncertainty and density). One item in three is drawn at random instead: on those is measured
    whether enough is labelled, since the informative ones are harder than the rest. The picks are kept in the feedback; the data set
    is written from it.

    Args:
        name: Name for the page.
        queries: Texts or records of the items.
        output: File of the data set, in JSONL.
        people: Number of people who label each item.
    """

    def __init__(self, name: str, queries: Sequence[Any], output: Path, people: int = 1) -> None:
        self.name, self.output, self.people = name, output, people
        self._queries = list(queries)
        self._texts: list[str] = []
        self._open: list[int] = []
        self._by: defaultdict[int, set[str]] = defaultdict(set)
        self._skipped: defaultdict[str, dict[int, None]] = defaultdict(dict)
        self._shown: dict[int, tuple[str, float]] = {}
        self._first: dict[str, list[int]] = defaultdict(list)
        self._right: deque[bool] = deque(maxlen=_RECENT)
        self._random = random.Random(0)
        self._written = 0.0
        self._learn_at = FIRST
        self._learning: asyncio.Task[None] | None = None
        self.outlook: Outlook | None = None
        self._drawn: dict[int, str] = {}
        self._parts: Parts
        self._asked: Asked
        self._service: Service

    async def start(self, service: Service) -> None:
        """Encode the items, and find those that are labelled already."""
        self._service = service
        texts = [service.query_text(query, f"item {number}") for number, query in enumerate(self._queries, 1)]
        # Items with the same text are one item.
        numbers = list({key_of(text): number for number, text in reversed(list(enumerate(texts)))}.values())[::-1]
        self._queries, self._texts = [self._queries[number] for number in numbers], [texts[number] for number in numbers]
        self._asked = await service.batcher.call(asked_of, service.searcher, self._texts)
        number_of = {key_of(text): number for number, text in enumerate(self._texts)}
        for row in self._feedback.rows():
            if row["key"] in number_of and row["kind"] == "pick":
                self._by[number_of[row["key"]]].add(row["person"])
        self._open = [number for number in range(len(self._texts)) if len(self._by[number]) < self.people]
        # By its text, so that a restart draws the same ones.
        self._drawn = {number: key for key, number in number_of.items() if int(key[:8], 16) % _ONE_IN == 0}
        self._parts = self._searcher.without_feedback()
        self._learn()

    async def close(self) -> None:
        """Write the data set."""
        if self._learning is not None:
            self._learning.cancel()
        self._write()

    async def next(self, person: str) -> Item | None:
        """Return the item that a person should label next; None if none is left for them."""
        while self._first[person]:
            return self._item(self._first[person].pop(), person)
        now = time.monotonic()
        self._shown = {number: shown for number, shown in self._shown.items() if now - shown[1] < _RESERVED_SECONDS}
        mine = [number for number in self._open if person not in self._by[number]]
        skipped = self._skipped[person]
        free = [number for number in mine if number not in skipped and self._shown.get(number, (person, 0.0))[0] == person]
        drawn = [number for number in free if number in self._drawn]
        done = [number for number, people in self._by.items() if people]
        if drawn and (len(drawn) == len(free) or _ONE_IN * sum(number in self._drawn for number in done) <= len(done)):
            return self._item(min(drawn, key=self._drawn.__getitem__), person)
        free = [number for number in free if number not in self._drawn]
        if free:
            candidates = free if len(free) <= _CANDIDATES else self._random.sample(free, _CANDIDATES)
            values = await self._service.batcher.call(self._informative, candidates)
            return self._item(candidates[int(np.argmax(values))], person)
        left = [number for number in skipped if number in set(mine)] or mine
        return self._item(left[0], person) if left else None

    def item(self, number: int, person: str) -> Item | None:
        """Return the item of a number, which a person labels now; None if there is none."""
        return self._item(number, person) if 0 <= number < len(self._texts) else None

    async def picked(self, number: int, person: str, suggested: bool) -> None:
        """Note that an item is done, and whether the first suggestion was right."""
        if not 0 <= number < len(self._texts):
            return
        self._by[number].add(person)
        self._skipped[person].pop(number, None)
        self._shown.pop(number, None)
        self._right.append(suggested)
        self._settle(number)
        self._learn()

    async def undone(self, number: int, person: str) -> None:
        """Note that an item is to be labelled again, and comes next."""
        if not 0 <= number < len(self._texts):
            return
        self._by[number].discard(person)
        if self._right:
            self._right.pop()
        self._first[person].append(number)
        self._settle(number)

    def skip(self, number: int, person: str) -> None:
        """Put an item at a person's end."""
        if 0 <= number < len(self._texts):
            self._skipped[person].pop(number, None)
            self._skipped[person][number] = None

    def progress(self) -> dict[str, Any]:
        """Return the progress, as `Items.progress` describes it."""
        done = len(self._texts) - len(self._open)
        recent = {"recent": len(self._right), "right": sum(self._right)}
        return {"done": done, "total": len(self._texts), **recent, "outlook": self.outlook}

    @property
    def _feedback(self) -> Feedback:
        assert self._service.feedback is not None
        return self._service.feedback

    @property
    def _searcher(self) -> Served:
        searcher = self._service.searcher
        assert isinstance(searcher, Served)  # labels are made before there is an index
        return searcher

    def _item(self, number: int, person: str) -> Item:
        self._shown[number] = person, time.monotonic()
        return Item(number, self._queries[number], self._texts[number])

    def _settle(self, number: int) -> None:
        is_open = len(self._by[number]) < self.people
        if is_open and number not in self._open:
            self._open.append(number)
        elif not is_open and number in self._open:
            self._open.remove(number)
        if time.monotonic() - self._written > _WRITE_SECONDS:
            self._write()

    def _learn(self) -> None:
        """Learn from the labels in a thread of its own, unless that goes on already or little is new."""
        done = len(self._texts) - len(self._open)
        if done < self._learn_at or self._learning is not None:
            return
        self._learn_at = next_size(done)
        self._learning = asyncio.create_task(self._learnt())

    async def _learnt(self) -> None:
        try:
            labelled = await asyncio.to_thread(self._labelled)
            if len(labelled.documents) >= FIRST:
                progress = await in_background(learn, self._parts, labelled)
                await self._service.batcher.call(self._searcher.relearn, progress.parts)
                self.outlook = progress.outlook or self.outlook
        except Exception as error:  # labelling goes on without it; the message may hold a text
            log.error("nothing can be learnt from the labels: %s", type(error).__name__)
        self._learning = None
        self._learn()

    def _labelled(self) -> Labelled:
        """Return the items on which all picks agree, in the order of their first pick."""
        number_of = {key_of(text): number for number, text in enumerate(self._texts)}
        place_of = {id: place for place, id in enumerate(self._searcher.searcher.parts.corpus.ids)}
        choices: dict[int, set[int]] = {}
        for row in self._feedback.rows():
            if row["kind"] == "pick" and row["key"] in number_of:
                choices.setdefault(number_of[row["key"]], set()).add(place_of.get(row["choice"], -1))
        agreed = {number: chosen.pop() for number, chosen in choices.items() if len(chosen) == 1 and number not in self._open}
        numbers, asked = list(agreed), self._asked
        vectors, base = asked.vectors[numbers], None if asked.base is None else asked.base[numbers]
        drawn = np.array([number in self._drawn for number in numbers], bool)
        return Labelled(Asked([self._texts[number] for number in numbers], vectors, base), np.array(list(agreed.values())), drawn)

    def _write(self) -> None:
        try:
            write_labels(self._feedback, self.output)
            self._written = time.monotonic()
        except DataError:  # there are no labels, or no longer
            if self._written:
                self.output.unlink(missing_ok=True)
        except StorageError as error:  # the picks are in the database; the file is written after one of the next
            log.error("%s", error)

    def _informative(self, candidates: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return how much a label of each candidate would teach: 0 to 2. It runs in the batcher's thread."""
        vectors, base = self._asked.vectors, self._asked.base
        asked = Asked([self._texts[number] for number in candidates], vectors[candidates], None if base is None else base[candidates])
        margins = self._searcher.searcher.margins(asked)
        margins /= max(float(margins.max()), 1e-6)
        done = [number for number, people in self._by.items() if people]
        likeness = (asked.vectors @ vectors[done].T).max(axis=1) if done else np.zeros(len(candidates), np.float32)
        values: np.ndarray[Any, np.dtype[np.float32]] = 2 - margins - likeness
        return values


async def in_background(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function that runs in a thread which the end of the process does not wait for, and no pick."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    interval = sys.getswitchinterval()

    def settle(result: Any, error: Exception | None) -> None:
        if not future.done():
            future.set_result(result) if error is None else future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = function(*arguments)
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, failure)

    sys.setswitchinterval(_TURN_SECONDS)
    threading.Thread(target=run, name="embedfit-learn", daemon=True).start()
    try:
        return await future
    finally:
        sys.setswitchinterval(interval)


@dataclass(frozen=True)
class ItemSource:
    """Items to label, and what to choose from.

    Attributes:
        items: File of the items, in any format of queries.
        run: Finished run whose documents and model are used; None to use the next ones.
        documents: File of the documents.
        model: Model that suggests answers.
        template: Template of a document's text.
        column: Column of an item's text; by default ``query``, ``text``, or the only one. Not for records.
    """

    items: Path
    run: Path | None
    documents: Path | None
    model: str
    template: str
    column: str | None

    def read(self) -> tuple[list[Any], Served]:
        """Return the texts or records of the items, and the searcher.

        Raises:
            EmbedfitError: A file cannot be read, a row has no text, or the model is missing.
        """
        rows = []
        for where, row in read_rows(self.items):
            if isinstance(row, DataError):
                raise row
            rows.append((where, row))
        if not rows:
            raise DataError(str(self.items), "has no rows", expected="one item in each row")
        if self.run is not None:
            searcher = Served.load(self.run)
            return self._records(rows, searcher) if searcher.fields and self.column is None else self._texts(rows), searcher
        return self._texts(rows), self._searcher()  # loading a model takes longest

    def _searcher(self) -> Served:
        assert self.documents is not None
        corpus = read_documents(self.documents)
        data = unchecked(Contents({}, corpus, {}))
        return Served.untrained(LocalEncoder(self.model), data, template_of(self.template, corpus))

    def _records(self, rows: list[tuple[str, Row]], searcher: Served) -> list[Row]:
        records = [{key: value for key, value in row.items() if key in searcher.fields} for _, row in rows]
        for (where, _), record in zip(rows, records, strict=True):
            searcher.text_of(record, where)
        return records

    def _texts(self, rows: list[tuple[str, Row]]) -> list[str]:
        names = list(dict.fromkeys(name for _, row in rows for name in row))
        column = self.column or next((name for name in _COLUMNS if name in names), names[0] if len(names) == 1 else None)
        if column is None or column not in names:
            near = did_you_mean(column, names) if column else ""
            raise DataError(str(self.items), f"has the columns {', '.join(names)}{near}", fix="--column NAME, the column of the text")
        return [read_text(row, column, where) for where, row in rows]
