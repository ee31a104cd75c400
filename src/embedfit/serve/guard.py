"""What stands before every request: token, origin, and the limits on bodies, time and memory."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedfit.serve.problems import Refused, problem
from embedfit.serve.settings import Settings, is_loopback

log = logging.getLogger("embedfit.serve")

SESSION = "embedfit_session"
_OPEN = {"/health", "/login"}
"""Paths that need no token."""
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # without a referrer, a browser sends no origin with a form
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
Observe = Callable[[str, str, int, float], None]
"""Called with (method, path of the route, status, seconds)."""


def session_of(settings: Settings) -> str:
    """Return the value of the cookie that stands for the token in a browser."""
    return hmac.new(settings.token.encode(), b"embedfit session", sha256).hexdigest()


class Guard:
    """Refuses requests before the application sees them, and hands bodies on whole.

    Args:
        app: The application.
        settings: Settings of the server.
        observe: Called once for each request that was answered.
    """

    def __init__(self, app: ASGIApp, settings: Settings, observe: Observe = lambda *_: None) -> None:
        self.app, self.settings, self._observe = app, settings, observe
        self._bytes = 0
        self._session = session_of(settings) if settings.token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, method = time.perf_counter(), 0, scope["method"]
        if method == "HEAD":  # the server leaves the body out
            scope = {**scope, "method": "GET"}

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        taken = 0
        try:
            self._check(scope)
            body = await self._body(scope, receive)
            taken = len(body)
            await self.app(scope, _replayed(body, receive), sending)
        except Refused as refused:
            await self._refusal(scope, refused)(scope, receive, sending)
        except _Gone:
            status = 499
        except Exception as error:
            # The message may hold a text of the client's: only its type and place are logged.
            log.error("%s %s: %s", method, _route(scope), _place(error))
            if not status:
                await problem(scope["path"], Refused(500, "an error of the server; its log names the place"))(scope, receive, sending)
        finally:
            self._bytes -= taken
            seconds = time.perf_counter() - start
            self._observe(method, _route(scope), status, seconds)
            if self.settings.log:
                log.info("%s %s %d %.1f ms", method, _route(scope), status, 1000 * seconds)

    def _check(self, scope: Scope) -> None:
        """Refuse what needs no look at the body."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # A page of another site can make its own name lead to this machine. It cannot forge the Host header.
        if not self.settings.token and not is_loopback(_name(host)):
            raise Refused(403, "the Host header names another machine, and without a token only this one is served", code="wrong_host")
        if scope["method"] not in _SAFE_METHODS:
            origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
            if site not in ("same-origin", "none") or (origin is not None and origin.partition("://")[2] != host):
                raise Refused(403, "the request comes from a page of another site", code="wrong_origin")
            if headers.get("content-encoding", "identity") != "identity":
                raise Refused(415, "the body is compressed; expected it as it is")
        if self.settings.token and scope["path"] not in _OPEN and not self._is_known(headers):
            raise Refused(
                401, "the token is missing or wrong; expected Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"}
            )

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.casefold() == "bearer" and same(given.strip(), self.settings.token):
            return True
        return same(cookie(headers, SESSION), self._session)

    def _refusal(self, scope: Scope, refused: Refused) -> Response:
        if refused.status == 401 and "text/html" in Headers(scope=scope).get("accept", ""):
            return RedirectResponse("/login", 303)
        return problem(scope["path"], refused)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body; raise if it is too large, or comes too slowly."""
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > self.settings.body:
            raise Refused(413, f"the body has more than {self.settings.body:,} bytes", code="body_too_large")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.settings.patience):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    size += len(part)
                    self._bytes += len(part)
                    if size > self.settings.body:
                        raise Refused(413, f"the body has more than {self.settings.body:,} bytes", code="body_too_large")
                    if self._bytes > self.settings.bodies:
                        raise Refused(429, "the server has its hands full; try again", code="overloaded", headers={"Retry-After": "1"})
                    parts.append(part)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            self._bytes -= size
            raise Refused(408, f"the body did not arrive within {self.settings.patience:g} s", headers={"Connection": "close"}) from None
        except (Refused, _Gone):
            self._bytes -= size
            raise


class _Gone(Exception):
    """The client went away before its request was complete."""


def same(given: str, expected: str) -> bool:
    """Return whether two secrets are the same, in a time that tells nothing about them."""
    return hmac.compare_digest(sha256(given.encode("utf-8", "surrogateescape")).digest(), sha256(expected.encode()).digest())


def cookie(headers: Headers, name: str) -> str:
    """Return a cookie, or an empty text."""
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


def _name(host: str) -> str:
    """Return a Host header without its port."""
    return host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host


def _route(scope: Scope) -> str:
    """Return the path of the route, which holds nothing of the client's."""
    return str(getattr(scope.get("route"), "path", "other"))


def _replayed(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__} at {where}"
