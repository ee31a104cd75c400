"""The application: search, feedback, health and figures over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from embedfit import console
from embedfit.errors import StorageError
from embedfit.serve import live
from embedfit.serve.answers import content_of
from embedfit.serve.conventions import add_conventions
from embedfit.serve.doubts import Doubts
from embedfit.serve.feedback import Feedback
from embedfit.serve.guard import Guard
from embedfit.serve.indexed import ServedIndex
from embedfit.serve.labelling import ItemSource, Labelling
from embedfit.serve.metering import Meters
from embedfit.serve.pages import Pages, service_of
from embedfit.serve.picker import Picker
from embedfit.serve.problems import Refused, problem
from embedfit.serve.searching import Served
from embedfit.serve.service import MOST_HITS, Service
from embedfit.serve.settings import Settings, log_to_stderr
from embedfit.serve.tracing import Tracer, targets

log = logging.getLogger("embedfit.serve")

_PATIENCE_SECONDS = 120.0


class Body(BaseModel):
    """The body of a request. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class SearchBody(Body):
    """A search: one query, or several."""

    query: str | dict[str, Any] | None = Field(None, description="A text, or the fields of a record.")
    queries: list[str | dict[str, Any]] | None = Field(None, description="Several queries at once, in place of `query`.")
    k: int = Field(5, ge=1, le=MOST_HITS, description="Number of hits.")
    filter: dict[str, str | int | float | bool] | None = Field(None, description="Metadata that a document must have.")
    person: str = Field("", max_length=100, description="Who searches.")


class FeedbackBody(Body):
    """What a person picked."""

    search_id: str = Field(max_length=100, description="The `search_id` of an answer.")
    choice: str | None = Field(description="Id of the right document; null for none of these.")
    person: str = Field("", max_length=100, description="Who picked.")
    kind: Literal["pick", "click"] = Field("pick", description="`click`: the document was opened, which is no label.")


def make_app(
    searcher: Served | ServedIndex,
    settings: Settings,
    items: Labelling | None = None,
    against: Served | ServedIndex | None = None,
    *,
    patience: float = 0.0,
) -> ASGIApp:
    """Return the application that serves a searcher.

    Args:
        searcher: Searcher to serve.
        settings: Settings of the server.
        items: Items to label; None if people enter the queries.
        against: Searcher to compare with, blindly; None for none.
        patience: Seconds to wait for the feedback's database.

    Raises:
        StorageError: The feedback cannot be opened.
    """
    meters = Meters()
    feedback = _opened(settings, patience) if settings.feedback else None

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = Service(searcher, settings, meters, feedback, against)
        tracer = None
        if settings.traces != "none":
            tracer = Tracer(targets(), texts=settings.traces == "texts", dropped=meters.untraced.inc)
            service.trace = tracer.add
        if feedback is not None:
            with contextlib.suppress(StorageError):  # the next start forgets them
                feedback.forget_unpicked(settings.keep_days)
        if items is not None:
            await items.start(service)
        following = asyncio.create_task(live.follow(service, settings.folder, settings.form))
        yield
        following.cancel()
        if items is not None:
            await items.close()
        await service.close()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    app = FastAPI(
        title="embedfit", version=version("embedfit"), lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json"
    )
    pages = Pages(items.name if items is not None else "")
    _add_errors(app, pages)
    _add_routes(app, meters)
    add_conventions(app)
    Picker(pages, items).add_to(app)
    if settings.suspects:
        Doubts(pages, Path(settings.suspects)).add_to(app)
    return Guard(app, settings, meters.request)


def from_environment() -> ASGIApp:
    """Return the application of the settings that the parent process passed on. Each worker calls it."""
    log_to_stderr()
    settings = Settings.passed_on()
    return make_app_of(settings, patience=_PATIENCE_SECONDS)


def make_app_of(settings: Settings, *, patience: float = 0.0) -> ASGIApp:
    """Return the application that the settings describe.

    Args:
        settings: Settings of the server.
        patience: Seconds to wait for the feedback's database.

    Raises:
        EmbedfitError: A folder holds no searcher, or the run has no such form.
    """
    against = load(settings.against) if settings.against else None
    return make_app(load(settings.folder, settings.form), settings, against=against, patience=patience)


def _opened(settings: Settings, patience: float) -> Feedback:
    """Return the feedback. A worker that starts while the database is away waits for it: its failure would end all workers."""
    end = time.monotonic() + patience
    while True:
        try:
            return Feedback(settings.feedback, settings.agreement)
        except StorageError as error:
            if time.monotonic() > end:
                raise
            log.error("%s", error)
            time.sleep(1)


def make_labelling_app(settings: Settings, source: ItemSource, output: Path, people: int) -> ASGIApp:
    """Return the application that labels the items of a file.

    Args:
        settings: Settings of the server.
        source: Items, and what to choose from.
        output: File of the data set, in JSONL.
        people: Number of people who label each item.

    Raises:
        EmbedfitError: A file cannot be read, or the model is missing.
    """
    queries, searcher = source.read()
    console.quiet = True
    return make_app(searcher, settings, Labelling(source.items.name, queries, output, people))


def load(folder: str | Path, form: str = "") -> Served | ServedIndex:
    """Return the searcher of a folder.

    Args:
        folder: Run directory, or folder of a searcher.
        form: Form of the model to run; empty for the model itself.

    Raises:
        EmbedfitError: The folder holds no searcher, or the run has no such form.
    """
    searcher = live.load(folder, form)
    console.quiet = True  # progress bars and notes are for people at a terminal
    return searcher


def _add_routes(app: FastAPI, meters: Meters) -> None:
    @app.post("/search", summary="Search", tags=["embedfit"])
    async def search(body: SearchBody, request: Request) -> Response:
        """Return the best documents for a query, or for each of several."""
        service = service_of(request)
        if (body.query is None) == (body.queries is None):
            raise Refused(422, "expected either 'query' or 'queries'", code="invalid_body")
        queries = [body.query] if body.query is not None else body.queries or []
        answers = await service.search(queries, body.k, body.filter, person=body.person)
        contents = [content_of(answer) for answer in answers]
        return JSONResponse(contents[0] if body.query is not None else {"answers": contents})

    @app.post("/feedback", summary="Say what was right", tags=["embedfit"])
    async def give_feedback(body: FeedbackBody, request: Request) -> Response:
        """Store a pick. The same pick twice is stored once; another one by the same person replaces it."""
        stored = await service_of(request).pick(body.search_id, body.choice, person=body.person, kind=body.kind)
        return JSONResponse(vars(stored))

    @app.delete("/feedback", summary="Delete feedback", tags=["embedfit"])
    async def delete_feedback(request: Request, search_id: str | None = None, person: str | None = None) -> Response:
        """Delete a search with its picks, or everything of a person."""
        if (not search_id and not person) or (search_id and person):
            raise Refused(422, "expected either 'search_id' or 'person'", code="invalid_query")
        return JSONResponse({"deleted": await service_of(request).delete(search_id or None, person or None)})

    @app.get("/metrics", summary="Figures for Prometheus", tags=["embedfit"])
    async def metrics() -> Response:
        """Return the figures in Prometheus' text format."""
        return Response(meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_errors(app: FastAPI, pages: Pages) -> None:
    def answer(request: Request, refused: Refused) -> Response:
        if "text/html" in request.headers.get("accept", ""):  # a browser that shows the answer to a person
            return pages.problem(request, refused)
        return problem(request.url.path, refused)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{place}: {first['msg']}" if place else str(first["msg"])
        if first["type"] == "json_invalid":
            message = f"the body is not JSON, from character {place} on; expected an object"
        elif not place and first["type"] != "missing":
            message = "the body is not an object; expected JSON, with Content-Type: application/json"
        return answer(request, Refused(422, message, code="invalid_body"))

    @app.exception_handler(RecursionError)
    async def too_deep(request: Request, error: RecursionError) -> Response:
        return answer(request, Refused(422, "the body is nested too deeply", code="invalid_body"))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        return answer(request, Refused(error.status_code, str(error.detail), headers=dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return answer(request, Refused(500, "an error of the server; its log names the place"))
