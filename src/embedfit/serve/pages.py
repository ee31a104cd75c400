"""Pages for people: rendered here, with tokens in their forms, a strict policy, and texts in a shape that is quick to read."""

from __future__ import annotations

import hmac
import re
import secrets
from functools import cache
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, unquote

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers

from embedfit.serve.feedback import one_line
from embedfit.serve.guard import cookie, same
from embedfit.serve.problems import Refused
from embedfit.serve.service import Service

MOST_ANSWERS = 9
"""Maximum number of answers on the page: there is a key for each."""
VISITOR, PERSON = "embedfit_visitor", "embedfit_person"
"""Names of the cookies that hold a visitor's random id and name."""
_MONTH = 30 * 86_400
_MOST_FIELDS = 200
_LINE = re.compile(r"([^:]{1,40}): +(\S.*)")


class Pages:
    """What all pages of a server share.

    Args:
        name: Name of what the people work on; by default the model's.

    Attributes:
        tabs: (path, label) for each page that the header links to; fewer than two are not shown.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.tabs: list[tuple[str, str]] = []
        self._fallback = secrets.token_hex(32)

    async def form(self, request: Request) -> dict[str, str]:
        """Return the fields of a form, whose token is checked.

        Raises:
            Refused: The token is missing or wrong, or the form is malformed.
        """
        try:
            fields = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
        except ValueError:
            raise Refused(422, "the form is malformed", code="invalid_body") from None
        visitor = cookie(request.headers, VISITOR)
        if not visitor or not same(fields.get("csrf", ""), self._token(service_of(request), visitor)):
            raise Refused(403, "the form is not of this page, or too old; reload the page", code="wrong_form")
        return fields

    def page(self, request: Request, template: str, *, status: int = 200, **content: Any) -> Response:
        """Return a page.

        Args:
            request: The request.
            template: File name of the template.
            status: HTTP status.
            content: What the template shows.
        """
        service = service_of(request)
        visitor = cookie(request.headers, VISITOR) or secrets.token_urlsafe(16)
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
                tabs=self.tabs,
                path=request.url.path,
                title="embedfit" if is_open else self.name or service.searcher.name,
                **content,
            )
        )
        response = HTMLResponse(html, status, headers={"Content-Security-Policy": _policy(nonce)})
        return response if cookie(request.headers, VISITOR) else with_cookie(request, VISITOR, visitor, response)

    def problem(self, request: Request, refused: Refused) -> Response:
        """Return the page that says why a request was refused."""
        message = "There is no such page." if refused.status == 404 and refused.code is None else refused.message
        response = self.page(request, "problem.html", status=refused.status, problem=message)
        response.headers.update(refused.headers or {})
        return response

    def _token(self, service: Service, visitor: str) -> str:
        secret = service.feedback.secret if service.feedback else self._fallback
        return hmac.new(secret.encode(), b"form " + visitor.encode(), sha256).hexdigest()


def service_of(request: Request) -> Service:
    """Return the service behind a request."""
    service: Service = request.app.state.service
    return service


def with_cookie(request: Request, name: str, value: str, response: Response | None = None) -> Response:
    """Return a response, by default a redirection to the page, that sets a cookie which no script and no other site can use."""
    response = response or RedirectResponse("/", 303)
    response.set_cookie(name, value, max_age=_MONTH, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return response


def person_of(headers: Headers) -> str:
    """Return the name that a visitor has given; empty if none."""
    return one_line(unquote(cookie(headers, PERSON), errors="replace"))


def fields_of(text: str) -> list[tuple[str, str]]:
    """Return (name, value) for each line of a text such as a record's; nothing if it is another text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    matches = [_LINE.fullmatch(line) for line in lines]
    return [(match[1], match[2]) for match in matches if match] if len(lines) > 1 and all(matches) else []


def brief(text: str) -> str:
    """Return a text in one line; of a record, the values alone."""
    fields = fields_of(text)
    return " · ".join(value for _, value in fields) if fields else " ".join(text.split())


def beyond(text: str, name: str) -> str:
    """Return a text in one line, without the name before it if it begins with that."""
    line, name = " ".join(text.split()), " ".join(name.split())
    return line[len(name) :].lstrip(" :-\u2013") if line.casefold().startswith(name.casefold()) else line


def percent(probability: float) -> str:
    """Return a probability as a whole percentage that is neither 0 nor 100."""
    return "< 1%" if probability < 0.005 else "> 99%" if probability > 0.995 else f"{probability:.0%}"


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
    environment.filters |= {"brief": brief, "percent": percent, "beyond": beyond, "fields": fields_of}
    environment.globals.update(item=None, more=False, answer=None, notice="", undo=None, problem="", given={}, progress=None)
    return environment
