"""The tools as an agent's client sees them: the official SDK, and a process that speaks over its standard streams."""

import asyncio
import json
import os
import sys

import pytest

from embedfit.serve.feedback import Feedback


def test_an_agent_searches_says_what_was_right_and_finds_it_next_time(run_folder, tmp_path):
    mcp = pytest.importorskip("mcp")
    file = tmp_path / "feedback.db"
    command = ["-m", "embedfit", "mcp", str(run_folder), "--feedback", str(file)]

    async def talk():
        server = mcp.StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
        async with mcp.stdio_client(server) as streams, mcp.ClientSession(*streams) as session:
            await session.initialize()
            tools = {tool.name for tool in (await session.list_tools()).tools}

            async def call(name, **arguments):
                result = await session.call_tool(name, arguments)
                text = result.content[0].text
                return text if result.is_error else json.loads(text)

            first = await call("search", query="zorbing voucher", k=2)
            stored = await call("feedback", search_id=first["search_id"], document_id="rent")
            again = await call("search", query="zorbing voucher")
            return tools, first, stored, again, await call("feedback", search_id="nobody", document_id=None)

    tools, first, stored, again, refused = asyncio.run(talk())
    assert tools == {"search", "feedback"}
    assert len(first["hits"]) == 2
    assert stored["learned"] is True
    assert again["hits"][0]["id"] == "rent"
    assert again["hits"][0]["because"][0]["text"] == "zorbing voucher"
    assert "search_id: is unknown" in refused
    feedback = Feedback(file)
    assert [row["person"] for row in feedback.rows()] == ["agent"]
    feedback.close()
