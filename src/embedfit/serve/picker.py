"""The page on which people pick: rendered here, with a small script for keys and speed. It works without the script too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import Response

from embedfit.serve.feedback import one_line
from embedfit.serve.guard import SESSION, same, session_of
from embedfit.serve.pages import MOST_ANSWERS, PERSON, Pages, person_of, service_of, with_cookie
from embedfit.serve.problems import Refused
from embedfit.serve.service import Answer

MOST_FOUND = 30
"""Number of documents that a search among all of them shows."""


@dataclass(frozen=True)
class Item:
    """An item to label.

    Attributes:
        number: Place in the file, from 0.
        query: Its text or record.
        text: Its text.
    """

    number: int
    query: Any
    text: str


class Items(Protocol):
    """The items that people label, and how far they are."""

    name: str

    async def next(self, person: str) -> Item | None:
        """Return the item that a person should label next; None if all are done."""
        ...

    def item(self, number: int, person: str) -> Item | None:
        """Return the item of a number, which a person labels now; None if there is none."""
        ...

    async def picked(self, number: int, person: str, suggested: bool) -> None:
        """Note that an item is done, and whether the first suggestion was right."""
        ...

    async def undone(self, number: int, person: str) -> None:
        """Note that an item is to be labelled again, and comes next."""
        ...

    def skip(self, number: int, person: str) -> None:
        """Put an item at a person's end."""
        ...

    def progress(self) -> dict[str, Any]:
        """Return the progress.

        Returns:
            ``done`` and ``total``; ``recent`` and ``right``: of the recent picks, how often the first suggestion was right; and
            ``outlook``, whether enough is labelled, or None.
        """
        ...


class Picker:
    """The page, and what its forms call.

    Args:
        pages: What all pages share.
        items: Items to label; None if people enter the queries.
    """

    def __init__(self, pages: Pages, items: Items | None) -> None:
        self.pages, self.items = pages, items
        pages.tabs.append(("/", "Label" if items is not None else "Pick"))

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        for path, route in {"/": self.start, "/login": self.login}.items():
            app.get(path, include_in_schema=False)(route)
        forms = {"search": self.search, "pick": self.pick, "more": self.more, "undo": self.undo, "find": self.find, "person": self.person}
        for name, route in forms.items():
            app.post(f"/picker/{name}", include_in_schema=False)(route)
        app.post("/login", include_in_schema=False)(self.enter)

    async def start(self, request: Request) -> Response:
        """Return the page with the next item, or with an empty form."""
        return await self._shown(request)

    async def search(self, request: Request) -> Response:
        """Return the page with the answers to what was entered."""
        service = service_of(request)
        form = await self.pages.form(request)
        try:
            answer = await self._ask(request, query_of(form, service.searcher.fields))
        except Refused as refused:
            return self._page(request, status=refused.status, problem=refused.message, given=form)
        return self._page(request, answer=answer, given=form)

    async def more(self, request: Request) -> Response:
        """Return the page with an answer for each key. It is a search of its own, since its answers are seen together."""
        form = await self.pages.form(request)
        number = number_of(form)
        if self.items is None:
            query, item = query_of(form, service_of(request).searcher.fields), None
        else:
            item = self.items.item(number, person_of(request.headers)) if number is not None else None
            if item is None:
                return await self._shown(request)
            query = item.query
        answer = await self._ask(request, query, MOST_ANSWERS)
        return self._page(request, item=item, answer=answer, given=form, more=True)

    async def pick(self, request: Request) -> Response:
        """Store a pick, and return the page with the next item."""
        person = person_of(request.headers)
        form = await self.pages.form(request)
        search, choice, number = form.get("search", ""), form.get("choice"), number_of(form)
        if "skip" in form:
            if self.items is not None and number is not None:
                self.items.skip(number, person)
            return await self._shown(request, notice="Skipped.")
        await service_of(request).pick(search, choice or None, person=person)
        if self.items is not None and number is not None:
            await self.items.picked(number, person, bool(choice) and choice == form.get("best"))
        undo = {"search": search, "item": form.get("item", "")}
        return await self._shown(request, notice=f"Saved: {choice or 'none of these'}.", undo=undo)

    async def undo(self, request: Request) -> Response:
        """Take a pick back, and return the page with its item."""
        person = person_of(request.headers)
        form = await self.pages.form(request)
        number = number_of(form)
        undone = await service_of(request).undo(form.get("search", ""), person)
        if self.items is not None and undone and number is not None:
            await self.items.undone(number, person)
        return await self._shown(request, notice="Taken back." if undone else "There was nothing to take back.")

    async def find(self, request: Request) -> Response:
        """Return the documents that have some words."""
        form = await self.pages.form(request)
        found = service_of(request).find_titles(form.get("words", "")[:200], MOST_FOUND + 1)
        return self._page(request, "found.html", found=found[:MOST_FOUND], more=len(found) > MOST_FOUND, given=form)

    async def person(self, request: Request) -> Response:
        """Keep the name of a visitor."""
        form = await self.pages.form(request)
        return with_cookie(request, PERSON, quote(one_line(form.get("person", ""))))

    async def login(self, request: Request) -> Response:
        """Return the page that asks for the token."""
        return self.pages.page(request, "login.html", wrong=False)

    async def enter(self, request: Request) -> Response:
        """Check the token, and let the visitor in."""
        form = await self.pages.form(request)
        settings = service_of(request).settings
        if settings.token and not same(form.get("token", ""), settings.token):
            return self.pages.page(request, "login.html", status=401, wrong=True)
        return with_cookie(request, SESSION, session_of(settings) if settings.token else "")

    async def _shown(self, request: Request, *, notice: str = "", undo: Mapping[str, str] | None = None) -> Response:
        item = await self.items.next(person_of(request.headers)) if self.items is not None else None
        answer = await self._ask(request, item.query) if item else None
        return self._page(request, item=item, answer=answer, notice=notice, undo=undo)

    async def _ask(self, request: Request, query: Any, most: int | None = None) -> Answer:
        service, source = service_of(request), "page" if self.items is None else "label"
        [answer] = await service.search([query], most or service.settings.answers, person=person_of(request.headers), source=source)
        return answer

    def _page(self, request: Request, template: str = "picker.html", *, status: int = 200, **content: Any) -> Response:
        searcher = service_of(request).searcher
        progress = self.items.progress() if self.items is not None else None
        content |= {"fields": searcher.fields, "documents": len(searcher.documents), "progress": progress, "most": MOST_ANSWERS}
        return self.pages.page(request, template, status=status, **content)


def number_of(form: Mapping[str, str]) -> int | None:
    """Return the number of the item that a form is about; None without one."""
    number = form.get("item", "")
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else None


def query_of(form: Mapping[str, str], fields: Sequence[str]) -> str | dict[str, Any]:
    """Return the query of a form: a text, or the fields of a record."""
    if not fields:
        return form.get("query", "")
    return {name: form.get(f"field.{name}", "").strip() or None for name in fields}
