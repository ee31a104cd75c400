"""Search and feedback as tools for agents, over the Model Context Protocol."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit.errors import require
from embedfit.serve.answers import content_of
from embedfit.serve.feedback import Feedback
from embedfit.serve.indexed import ServedIndex
from embedfit.serve.live import follow
from embedfit.serve.metering import Meters
from embedfit.serve.problems import Refused
from embedfit.serve.searching import Served
from embedfit.serve.service import MOST_HITS, Service
from embedfit.serve.settings import Settings

if TYPE_CHECKING:
    from mcp.server import MCPServer

_PERSON = "agent"


def make_server(searcher: Served | ServedIndex, file: str | Path | None, folder: str = "") -> MCPServer[None]:
    """Return a server with the tools ``search`` and ``feedback``.

    Args:
        searcher: Searcher to offer.
        file: File or address of the feedback; None to keep none, and to offer ``search`` alone.
        folder: Live folder that the searcher was loaded from, to follow it.

    Raises:
        StorageError: The feedback cannot be opened.
    """
    server_class = require("mcp.server", extra="mcp").MCPServer
    settings = Settings(searcher.name, feedback=str(file or ""))
    service = Service(searcher, settings, Meters(), Feedback(file) if file else None)

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        following = asyncio.create_task(follow(service, folder))
        yield
        following.cancel()
        await service.close()

    server: MCPServer[None] = server_class("embedfit", lifespan=lifespan, log_level="WARNING")

    @server.tool()
    async def search(query: str | dict[str, Any], k: int = 5) -> dict[str, Any]:
        """Find the documents that answer a query: a text, or the fields of a record. Returns the best k, each with what speaks for it.

        If `abstained` is true, no document is likely enough. Keep `search_id` to say later which document was right.
        """
        with _in_words():
            [answer] = await service.search([query], max(1, min(k, MOST_HITS)), person=_PERSON)
        return content_of(answer)

    if file is not None:

        @server.tool()
        async def feedback(search_id: str, document_id: str | None) -> dict[str, Any]:
            """Say which document was right for an earlier search, or null if none was. The next searches learn from it."""
            with _in_words():
                return vars(await service.pick(search_id, document_id, person=_PERSON))

    return server


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Turn a refusal into an error whose message the agent reads."""
    from mcp.server.mcpserver.exceptions import ToolError

    try:
        yield
    except Refused as refused:
        raise ToolError(refused.message) from None
