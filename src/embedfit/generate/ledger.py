"""Requests to an LLM and their replies, in an append-only file, so that nothing paid for is lost.

Each line is a JSON object for one event:

    start     what all requests have in common; the first line
    sent      a request is sent; its maximum cost
    failed    no answer came; ``charged`` if the request may have to be paid for all the same
    refused   the endpoint refuses this request for its content; nothing is charged, and it is not sent again
    reply     the answer, with tokens, price, seconds, tries and the whole message; on disk before it is used
    verdict   the outcome of a reply: accepted or the reason why not, and the record

A reply is found by the id of its request, which depends on what is asked alone. Callers that look into the ledger first never pay
twice, and a process that was killed is continued by doing everything again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from embedfit import console
from embedfit.errors import DataError, StorageError
from embedfit.files import locked

Line: TypeAlias = dict[str, Any]


@dataclass
class Cost:
    """A number of tokens and their price.

    Attributes:
        tokens: Prompt and completion tokens.
        price: Price in the currency of the prices given; US dollars for the bundled ones.
    """

    tokens: int = 0
    price: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.price + other.price)


def open_ledger(folder: Path, start: Mapping[str, Any]) -> Ledger:
    """Open or create the ledger of a set of requests, and lock its folder for this process.

    Args:
        folder: Folder of ledgers. Each file is named by a hash of its start.
        start: Values that all requests share: prompt, schema, model, seed. If a value has changed, a new ledger is created, the
            old ledger is kept, and a note names the change.

    Raises:
        DataError: A line of the ledger is malformed.
        StorageError: Another process holds the lock, or the folder cannot be written.
    """
    path = folder / f"ledger-{digest(start)[:12]}.jsonl"
    stack, is_new = contextlib.ExitStack(), not folder.exists()
    stack.enter_context(
        locked(folder / ".lock", f"{folder}: another embedfit is writing to this ledger; fix: wait for it, or give another output")
    )
    try:
        if not path.exists():
            _note_changes(folder, path, start)
        if is_new:
            _sync_entries(folder.parent)
        return Ledger(path, start, stack)
    except BaseException:
        stack.close()
        raise


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


class Ledger:
    """An open ledger, made by `open_ledger`.

    Replies stay on disk. Memory holds their offsets alone.

    Attributes:
        path: Path of the file.
        paid: Cost of all replies.
        lost: Maximum cost of the requests that may have been charged without a reply.
        lost_requests: Number of these requests.
        requests: Number of replies.
    """

    def __init__(self, path: Path, start: Mapping[str, Any], stack: contextlib.ExitStack) -> None:
        self.path, self._stack = path, stack
        self.paid, self.lost, self.lost_requests, self.requests = Cost(), Cost(), 0, 0
        self._open: dict[str, Cost] = {}
        self._replies: dict[str, int] = {}
        self._verdicts: dict[str, int] = {}
        self._refusals: dict[str, tuple[str, str]] = {}
        self._end = self._synced = 0
        self._syncing = asyncio.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from None
        stack.callback(os.close, self._file)
        self._read()
        if self._end == 0:
            self._append({"event": "start", **start})
            _sync_entries(path.parent)
        for cost in self._open.values():
            self.lost, self.lost_requests = self.lost + cost, self.lost_requests + 1
        self._open.clear()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        self._stack.close()

    @property
    def spent(self) -> Cost:
        """Maximum of what was charged so far, requests under way included."""
        return sum(self._open.values(), self.paid + self.lost)

    @property
    def under_way(self) -> int:
        """Number of requests that were sent and have neither a reply nor an error."""
        return len(self._open)

    def reply(self, id: str) -> Line | None:
        """Return the line of the reply to a request, None if there is none yet."""
        return self._line(self._replies.get(id))

    def verdict(self, id: str) -> Line | None:
        """Return the last verdict on a reply, None if there is none yet."""
        return self._line(self._verdicts.get(id))

    def sent(self, id: str, most: Cost) -> None:
        """Write that a request is sent, with its maximum cost."""
        self._open[id] = most
        self._append({"event": "sent", "id": id, "tokens": most.tokens, "price": most.price})

    def failed(self, id: str, why: str, *, charged: bool) -> None:
        """Write that a request was not answered, and whether it may have been charged all the same."""
        self._append({"event": "failed", "id": id, "why": why, "charged": charged})
        most = self._open.pop(id)
        if charged:
            self.lost, self.lost_requests = self.lost + most, self.lost_requests + 1

    def refuse(self, id: str, reason: str, why: str) -> None:
        """Write that a request is refused for its content, so that it is not sent again."""
        self._append({"event": "refused", "id": id, "reason": reason, "why": why})
        self._open.pop(id, None)
        self._refusals[id] = (reason, why)

    def refusal(self, id: str) -> tuple[str, str] | None:
        """Return the reason and the endpoint's message for a refused request; None if it was not refused."""
        return self._refusals.get(id)

    async def keep(self, id: str, cost: Cost, line: Mapping[str, Any]) -> None:
        """Write a reply, and return once it is on disk.

        Replies that arrive during a sync share the next one.
        """
        self._replies[id] = self._append({"event": "reply", "id": id, **line})
        self._open.pop(id, None)
        self.paid, self.requests = self.paid + cost, self.requests + 1
        written = self._end
        async with self._syncing:
            if self._synced < written:
                reaches = self._end
                try:
                    await asyncio.to_thread(os.fsync, self._file)
                except OSError as error:
                    raise StorageError(f"{self.path}: cannot be written: {error.strerror}") from None
                self._synced = reaches

    def decide(self, id: str, outcome: str, why: str = "", record: Any = None) -> None:
        """Write the verdict on a reply, unless the same one is there already.

        A verdict follows from its reply, so it is not synced by itself.
        """
        line = {"event": "verdict", "id": id, "outcome": outcome, "why": why, "record": record}
        if self.verdict(id) != line:
            self._verdicts[id] = self._append(line)

    def rows(self) -> Iterator[Line]:
        """Yield the line of each reply in order, with its outcome, why and record."""
        for id in self._replies:
            reply, verdict = self.reply(id) or {}, self.verdict(id) or {}
            yield {**reply, **{key: verdict.get(key) for key in ("outcome", "why", "record")}}

    def _line(self, start: int | None) -> Line | None:
        if start is None:
            return None
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(start)
            line: Line = json.loads(file.readline())
            return line

    def _append(self, line: Mapping[str, Any]) -> int:
        """Write a line, and return its offset."""
        start = self._end
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, start)  # half a line would spoil the next
            raise StorageError(f"{self.path}: cannot be written: {error.strerror}; nothing that stands in it is lost") from None
        self._end = os.lseek(self._file, 0, os.SEEK_END)
        return start

    def _read(self) -> None:
        last = b"\n"
        with os.fdopen(os.dup(self._file), "rb") as file:
            for number, whole in enumerate(file, 1):
                try:
                    self._take(json.loads(whole))
                except (ValueError, KeyError, TypeError, AttributeError):
                    if whole.endswith(b"\n"):
                        raise DataError(
                            f"{self.path}:{number}", "is not a line of a ledger", fix="restore the file, or move it away to start again"
                        ) from None
                    break  # cut off when a process was killed, before the line was used
                self._end += len(whole)
                last = whole
        os.ftruncate(self._file, self._end)
        if not last.endswith(b"\n"):  # only the line break is missing
            os.write(self._file, b"\n")
            self._end += 1

    def _take(self, line: Line) -> None:
        event = line["event"]
        if event == "sent":
            before = self._open.pop(line["id"], None)
            if before:  # the process was killed while this request was under way
                self.lost, self.lost_requests = self.lost + before, self.lost_requests + 1
            self._open[line["id"]] = Cost(line["tokens"], line["price"])
        elif event == "failed":
            most = self._open.pop(line["id"], Cost())
            if line["charged"]:
                self.lost, self.lost_requests = self.lost + most, self.lost_requests + 1
        elif event == "refused":
            self._open.pop(line["id"], None)
            self._refusals[line["id"]] = (line["reason"], line["why"])
        elif event == "reply":
            self._open.pop(line["id"], None)
            self._replies[line["id"]] = self._end
            self.paid = self.paid + Cost(line["prompt_tokens"] + line["completion_tokens"], line["price"])
            self.requests += 1
        elif event == "verdict":
            self._verdicts[line["id"]] = self._end
        elif event != "start":
            raise ValueError(event)


def _sync_entries(folder: Path) -> None:
    """Sync a folder's list of files. A synced file that its folder does not list would be lost."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and needs no sync
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _note_changes(folder: Path, path: Path, start: Mapping[str, Any]) -> None:
    ledgers = sorted(folder.glob("ledger-*.jsonl"), key=lambda ledger: ledger.stat().st_mtime)
    if not ledgers:
        return
    with contextlib.suppress(ValueError, OSError), ledgers[-1].open(encoding="utf-8") as file:
        before = json.loads(file.readline())
        changed = [key for key in start if before.get(key) != start[key]]
        console.note(
            f"Changed since the last run: {', '.join(changed)}. The new ledger is {path.name}; the old one, {ledgers[-1].name}, is kept."
        )
