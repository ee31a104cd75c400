"""The page on which people pick: rendered here, with a small script for keys and speed. It works without the script too."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, unquote

import jinja2
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers

from embedfit.serve.feedback import one_line
from embedfit.serve.guard import SESSION, cookie, same, session_of
from embedfit.serve.problems import Refused
from embedfit.serve.service import Answer, Service

ANSWERS = 5
"""Number of answers on the page."""
_VISITOR, _PERSON = "embedfit_visitor", "embedfit_person"
_MONTH = 30 * 86_400
_MOST_FIELDS = 200


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
        """Return ``done``, ``total``, and ``recent`` and ``right``: of the recent picks, how often the first suggestion was right."""
        ...


class Picker:
    """The page, and what its forms call.

    Args:
        items: Items to label; None if people enter the queries.
    """

    def __init__(self, items: Items | None) -> None:
        self.items = items
        self._fallback = secrets.token_hex(32)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        for path, route in {"/": self.start, "/login": self.login}.items():
            app.get(path, include_in_schema=False)(route)
        forms = {"search": self.search, "pick": self.pick, "undo": self.undo, "find": self.find, "person": self.person}
        for name, route in forms.items():
            app.post(f"/picker/{name}", include_in_schema=False)(route)
        app.post("/login", include_in_schema=False)(self.enter)

    async def start(self, request: Request) -> Response:
        """Return the page with the next item, or with an empty form."""
        return await self._shown(request)

    async def search(self, request: Request) -> Response:
        """Return the page with the answers to what was entered."""
        service = _service(request)
        form = await self._form(request)
        try:
            answer = await self._ask(request, query_of(form, service.searcher.fields), "page")
        except Refused as refused:
            return self._page(request, "picker.html", status=refused.status, problem=refused.message, given=form)
        return self._page(request, "picker.html", answer=answer, given=form)

    async def pick(self, request: Request) -> Response:
        """Store a pick, and return the page with the next item."""
        person = person_of(request.headers)
        form = await self._form(request)
        search, choice, number = form.get("search", ""), form.get("choice"), form.get("item", "")
        if "skip" in form:
            if self.items is not None and number.isdecimal():
                self.items.skip(int(number), person)
            return await self._shown(request, notice="Skipped.")
        await _service(request).pick(search, choice or None, person=person)
        if self.items is not None and number.isdecimal():
            await self.items.picked(int(number), person, bool(choice) and choice == form.get("best"))
        return await self._shown(request, notice=f"Saved: {choice or 'none of these'}.", undo={"search": search, "item": number})

    async def undo(self, request: Request) -> Response:
        """Take a pick back, and return the page with its item."""
        person = person_of(request.headers)
        form = await self._form(request)
        undone = await _service(request).undo(form.get("search", ""), person)
        if self.items is not None and undone and form.get("item", "").isdecimal():
            await self.items.undone(int(form["item"]), person)
        return await self._shown(request, notice="Taken back." if undone else "There was nothing to take back.")

    async def find(self, request: Request) -> Response:
        """Return the documents that have some words."""
        form = await self._form(request)
        return self._page(request, "found.html", found=_service(request).find_titles(form.get("words", "")[:200]), given=form)

    async def person(self, request: Request) -> Response:
        """Keep the name of a visitor."""
        form = await self._form(request)
        return _with_cookie(request, _PERSON, quote(one_line(form.get("person", ""))))

    async def login(self, request: Request) -> Response:
        """Return the page that asks for the token."""
        return self._page(request, "login.html", wrong=False)

    async def enter(self, request: Request) -> Response:
        """Check the token, and let the visitor in."""
        form = await self._form(request)
        settings = _service(request).settings
        if settings.token and not same(form.get("token", ""), settings.token):
            return self._page(request, "login.html", status=401, wrong=True)
        return _with_cookie(request, SESSION, session_of(settings) if settings.token else "")

    async def _shown(self, request: Request, *, notice: str = "", undo: Mapping[str, str] | None = None) -> Response:
        item = await self.items.next(person_of(request.headers)) if self.items is not None else None
        answer = await self._ask(request, item.query, "label") if item else None
        return self._page(request, "picker.html", item=item, answer=answer, notice=notice, undo=undo)

    async def _ask(self, request: Request, query: Any, source: str) -> Answer:
        [answer] = await _service(request).search([query], ANSWERS, person=person_of(request.headers), source=source)
        return answer

    async def _form(self, request: Request) -> dict[str, str]:
        """Return the fields of a form, whose token is checked.

        Raises:
            Refused: The token is missing or wrong, or the form is malformed.
        """
        try:
            fields = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
        except ValueError:
            raise Refused(422, "the form is malformed", code="invalid_body") from None
        visitor = cookie(request.headers, _VISITOR)
        if not visitor or not same(fields.get("csrf", ""), self._token(_service(request), visitor)):
            raise Refused(403, "the form is not of this page, or too old; reload the page", code="wrong_form")
        return fields

    def _token(self, service: Service, visitor: str) -> str:
        secret = service.feedback.secret if service.feedback else self._fallback
        return hmac.new(secret.encode(), b"form " + visitor.encode(), sha256).hexdigest()

    def _page(self, request: Request, template: str, *, status: int = 200, **content: Any) -> Response:
        service = _service(request)
        visitor = cookie(request.headers, _VISITOR) or secrets.token_urlsafe(16)
        nonce = secrets.token_urlsafe(16)
        is_open = template == "login.html"  # who has no token learns nothing of what is served
        html = (
            _templates()
            .get_template(template)
            .render(
                nonce=nonce,
                part="x-part" in request.headers,  # for the script, which has the rest
                csrf=self._token(service, visitor),
                person="" if is_open else person_of(request.headers),
                fields=service.searcher.fields,
                documents=len(service.searcher.documents),
                progress=self.items.progress() if self.items is not None else None,
                title="embedfit" if is_open else self.items.name if self.items is not None else service.searcher.name,
                **content,
            )
        )
        response = HTMLResponse(html, status, headers={"Content-Security-Policy": _policy(nonce)})
        return response if cookie(request.headers, _VISITOR) else _with_cookie(request, _VISITOR, visitor, response)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _with_cookie(request: Request, name: str, value: str, response: Response | None = None) -> Response:
    """Return a response, by default a redirection to the page, that sets a cookie which no script and no other site can use."""
    response = response or RedirectResponse("/", 303)
    response.set_cookie(name, value, max_age=_MONTH, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return response


def person_of(headers: Headers) -> str:
    """Return the name that a visitor has given; empty if none."""
    return one_line(unquote(cookie(headers, _PERSON), errors="replace"))


def query_of(form: Mapping[str, str], fields: Sequence[str]) -> str | dict[str, Any]:
    """Return the query of a form: a text, or the fields of a record."""
    if not fields:
        return form.get("query", "")
    return {name: form.get(f"field.{name}", "").strip() or None for name in fields}


def _policy(nonce: str) -> str:
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("embedfit.serve"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    loader = environment.loader
    assert loader is not None
    for name in ("style", "script"):
        source, *_ = loader.get_source(environment, {"style": "picker.css", "script": "picker.js"}[name])
        environment.globals[name] = source
    environment.globals.update(answers=ANSWERS, item=None, answer=None, notice="", undo=None, problem="", given={})
    return environment
