"""The page on which people decide about doubtful labels. Each decision is in suspects.csv at once, where `embedfit relabel` reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from embedfit.errors import DataError, StorageError
from embedfit.files import neutral
from embedfit.serve.pages import Pages, service_of
from embedfit.serve.problems import Refused
from embedfit.studies.suspects import DECISIONS, decide, read_decisions

_SAID = {"keep": "The label stays.", "replace": "The suggestion replaces the label.", "add": "Both are right."}


@dataclass(frozen=True)
class Doubt:
    """A doubtful label.

    Attributes:
        id: Id of the query, as in the file.
        query: Text of the query.
        expected: (id, text) of each expected document.
        suggested: Id and text of the suggested document.
        confidence: Confidence as in the file, such as ``0.912``; empty if the column is missing.
    """

    id: str
    query: str
    expected: list[tuple[str, str]]
    suggested: tuple[str, str]
    confidence: str


class Doubts:
    """The page, and what its forms call.

    Args:
        pages: What all pages share.
        path: File of the suspects.
    """

    def __init__(self, pages: Pages, path: Path) -> None:
        self.pages, self.path = pages, path
        try:
            is_needed = bool(read_decisions(path))
        except DataError:  # the page says what is wrong with it
            is_needed = True
        if is_needed:
            pages.tabs.append(("/suspects", "Doubtful labels"))

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        app.get("/suspects", include_in_schema=False)(self.start)
        app.post("/suspects/decide", include_in_schema=False)(self.decide)
        app.post("/suspects/undo", include_in_schema=False)(self.undo)

    async def start(self, request: Request) -> Response:
        """Return the page with the first undecided label."""
        return await self._shown(request)

    async def decide(self, request: Request) -> Response:
        """Store a decision, and return the page with the next undecided label."""
        form = await self.pages.form(request)
        id, decision = form.get("id", ""), form.get("decision", "")
        if decision == "skip":
            return await self._shown(request, after=id, notice="Skipped.")
        if decision not in DECISIONS:
            raise Refused(422, f"decision: expected {', '.join(DECISIONS)} or skip", code="invalid_body")
        if not await self._write(id, "", decision):
            return await self._shown(request, after=id, notice="Somebody else has decided this one.")
        return await self._shown(request, after=id, notice=_SAID[decision], undo={"id": id, "decision": decision})

    async def undo(self, request: Request) -> Response:
        """Take a decision back, and return the page with its label."""
        form = await self.pages.form(request)
        id = form.get("id", "")
        undone = await self._write(id, form.get("decision", ""), "")
        notice = "Taken back." if undone else "The decision has changed since, and stays."
        return await self._shown(request, first=id if undone else "", notice=notice)

    async def _write(self, id: str, before: str, decision: str) -> bool:
        try:
            return await asyncio.to_thread(decide, self.path, id, before, decision)
        except DataError as error:
            raise Refused(409, str(error), code="bad_file") from None
        except StorageError:
            raise Refused(503, "the decision could not be stored", headers={"Retry-After": "5"}) from None

    async def _shown(self, request: Request, *, first: str = "", after: str = "", **content: Any) -> Response:
        """Return the page with an undecided label: the one named, else the next after another one, else the first."""
        try:
            rows = await asyncio.to_thread(read_decisions, self.path)
        except DataError as error:
            raise Refused(409, str(error), code="bad_file") from None
        places = {row["query_id"]: place for place, row in enumerate(rows)}
        start = places.get(first, places.get(after, -1) + 1)
        ordered = [*rows[start:], *rows[:start]]
        row = next((row for row in ordered if not row["decision"].strip()), None)
        doubt = _doubt(row, service_of(request).searcher.documents, service_of(request).searcher.texts) if row else None
        progress = {"done": sum(bool(row["decision"].strip()) for row in rows), "total": len(rows)}
        return self.pages.page(request, "doubts.html", doubt=doubt, progress=progress, file=self.path.name, **content)


def _doubt(row: Mapping[str, str], documents: Iterable[str], texts: Mapping[str, str]) -> Doubt:
    ids = {neutral(id): id for id in documents}

    def named(cells: Iterable[str]) -> list[tuple[str, str]]:
        known = [ids.get(cell.strip(), cell.strip()) for cell in cells]
        return [(id, texts.get(id, "")) for id in known]

    cell = row.get("expected", "")
    expected = named([cell] if cell in ids else cell.split("|"))
    [suggested] = named([row["suggested"]])
    return Doubt(row["query_id"], row.get("query") or row["query_id"], expected, suggested, row.get("confidence", ""))
