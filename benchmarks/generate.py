"""What the client adds to a request of an LLM, and whether memory stays flat.

The server is that of examples and tests, in a process of its own on loopback; it answers by rote, so that all that takes time is the client
(and the server, which works on the other core). 32 requests at a time:

- overhead: processor time of the client, and wall time, for each request, where the server answers at once
- delay: how much later than after 0.5 s an answer is there that the server gives after 0.5 s; the median of what the ledger says
- parts: what preparing a request and checking a reply take of it, and what the OpenAI SDK takes for a bare request
- memory: the resident set after 1,000 requests and after all of them

    python benchmarks/generate.py [--requests 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from embedfit import console
from embedfit.config import GenerateConfig
from embedfit.data.documents import read_documents
from embedfit.data.records import record_type
from embedfit.generate.exchange import Exchange
from embedfit.generate.ledger import Ledger
from embedfit.generate.plan import Turn
from embedfit.generate.tasks import Records, prompt_template
from embedfit.generate.writer import generate
from embedfit.samples import TRANSACTIONS

RESULTS = Path(__file__).parent / "results"
SERVER = Path(__file__).parents[1] / "examples" / "openai_server.py"
AT_A_TIME = 32


class Served:
    """The loopback server, in a process of its own while it is entered."""

    def __init__(self, *options: str) -> None:
        self.options = options

    def __enter__(self) -> str:
        self.process = subprocess.Popen([sys.executable, SERVER, *self.options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def resident() -> float:
    """Return the resident set of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def written(url: str, count: int, folder: Path) -> tuple[float, float, list[float]]:
    """Generate so many records; returns wall seconds, processor seconds, and the resident set after each 1,000 replies."""
    sizes: dict[int, float] = {}
    keep = Ledger.keep

    async def counted(self: Ledger, *arguments: object) -> None:
        await keep(self, *arguments)  # type: ignore[arg-type]
        sizes.setdefault(self.requests // 1000, resident())

    Ledger.keep = counted  # type: ignore[method-assign, assignment]
    task = Records(
        read_documents(TRANSACTIONS / "categories.json"), count, record_type("transaction"), prompt_template(None, "transaction")
    )
    config = GenerateConfig(base_url=url, model="rote", price=(1.0, 1.0), concurrency=AT_A_TIME)
    wall, processor = time.perf_counter(), time.process_time()
    found = generate(task, folder / f"{count}-{len(list(folder.iterdir()))}.jsonl", config)
    Ledger.keep = keep  # type: ignore[method-assign]
    assert found.accepted == count
    return time.perf_counter() - wall, time.process_time() - processor, list(sizes.values())[1:]


def bare(url: str, count: int) -> float:
    """Return the wall seconds of as many requests by the OpenAI SDK alone."""
    import openai

    body = {"model": "rote", "max_tokens": 800, "messages": [{"role": "user", "content": "x" * 2500}]}
    schema = {"type": "json_schema", "json_schema": {"name": "T", "schema": {"properties": {"expense_category": {"enum": ["A"]}}}}}

    async def all_of_them() -> None:
        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        left = iter(range(count))

        async def work() -> None:
            for number in left:
                await client.chat.completions.create(**body, seed=number, response_format=schema)

        await asyncio.gather(*(work() for _ in range(AT_A_TIME)))
        await client.close()

    start = time.perf_counter()
    asyncio.run(all_of_them())
    return time.perf_counter() - start


def parts() -> dict[str, float]:
    """Return the milliseconds that it takes to prepare a request and to check a reply."""
    task = Records(read_documents(TRANSACTIONS / "categories.json"), 1000, record_type("transaction"), prompt_template(None, "transaction"))
    exchange = Exchange(task, GenerateConfig(model="rote"))
    row = json.loads((TRANSACTIONS / "transactions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": json.dumps(row)}}
    reply = {"reply": {"choices": [choice]}, "completion_tokens": 100}
    start = time.perf_counter()
    for position in range(1000):
        exchange.request(task.slot(position), Turn(), str(position))
    prepared = time.perf_counter()
    for position in range(1000):
        exchange.record(reply, task.slot(position))
    return {"prepare_ms": prepared - start, "check_ms": time.perf_counter() - prepared}


def main() -> None:
    """Measure, print, and write results/generate.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    count = parser.parse_args().requests
    console.quiet = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Served() as url:
            written(url, AT_A_TIME, folder)  # imports
            wall, processor, sizes = written(url, count, folder)
            sdk = bare(url, 1000)
        with Served("--delay", "0.5") as url:
            written(url, 1024, folder)
        last = max(folder.glob("1024*.ledger/*.jsonl"), key=lambda path: path.stat().st_mtime)
        lines = map(json.loads, last.read_text(encoding="utf-8").splitlines())
        slow = statistics.median(line["seconds"] for line in lines if line["event"] == "reply")
    found = {
        "requests": count,
        "wall_ms_per_request": 1000 * wall / count,
        "client_processor_ms_per_request": 1000 * processor / count,
        "bare_sdk_wall_ms_per_request": sdk,
        "delay_ms_per_request_of_500_ms": 1000 * (slow - 0.5),
        **parts(),
        "load_average": os.getloadavg()[0],
        "resident_mib": [round(size, 1) for size in sizes],
    }
    for key, value in found.items():
        print(f"{key:32} {value if isinstance(value, (int, list)) else f'{value:.2f}'}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "generate.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
