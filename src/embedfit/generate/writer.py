"""An LLM writes training data: records for labels, or questions for passages.

Each place of a plan is asked for until a reply passes its checks, and every reply goes into a ledger first. A run that was killed, or
stopped by its budget, is continued by doing everything again: replies in the ledger cost nothing. Near duplicates are decided in the
order of the plan, so which records are accepted depends on the replies alone, not on the order in which they came.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from embedfit import console, progress
from embedfit.config import GenerateConfig
from embedfit.data.dataset import Row
from embedfit.data.duplicates import Said
from embedfit.errors import ConfigError, DataError, EmbedfitError, EndpointError, require
from embedfit.files import writing
from embedfit.generate.asker import Asker, interruptible
from embedfit.generate.endpoint import BudgetError, Endpoint, Limits, Refused, Stopped, endpoint_of
from embedfit.generate.estimate import estimate_of
from embedfit.generate.exchange import Exchange, start_of
from embedfit.generate.judge import Judge
from embedfit.generate.ledger import Ledger, open_ledger
from embedfit.generate.outcome import Estimate, Generated, currency_of, measure_diversity, prices_of
from embedfit.generate.plan import Plan, Turn
from embedfit.generate.tally import Tally
from embedfit.generate.tasks import Rejected, Slot, Task, prompt_template

_T = TypeVar("_T")
_MOST_ROOM = 8
"""A reply that was cut off is asked for again with twice the room, up to this multiple of ``max_tokens``."""


def generate(task: Task, output: Path, config: GenerateConfig, endpoint: Callable[[], Endpoint] | None = None) -> Generated:
    """Let an LLM write what a task asks for. A second call continues where the first one stopped, and pays for nothing twice.

    Args:
        task: `Records` or `Questions`.
        output: Path of a .jsonl file, as `embedfit run` reads it. The ledger stands beside it, in ``<name>.ledger/``.
        config: Model, limits and parameters.
        endpoint: Makes the endpoint when the first request is sent. By default from the configuration and the environment.

    Raises:
        EndpointError: The endpoint refuses, or nothing at all could be written. Records accepted before that are in the output.
            A budget that is reached is no error, provided that something is written.
        ConfigError: A setting or a template cannot be used.
        DataError: The output exists and was not generated.
    """
    _check_output(output)
    make = functools.cache(endpoint or functools.partial(endpoint_of, config))
    if not _ledger_folder(output).exists():  # a setting that cannot be used should leave nothing behind
        estimate(task, output, config)
        make()
    with open_ledger(_ledger_folder(output), start_of(task, config)) as ledger:
        writer = _Writer(task, config, ledger, make)
        console.note(f"{task.count:,} {task.kind}: {writer.estimate().sentence}")
        stopping = ran(writer.write())
        generated = writer.result(output)
        if isinstance(stopping, BaseException) and not isinstance(stopping, BudgetError):
            if generated.accepted:
                console.note(f"{generated.accepted:,} of {generated.asked:,} {generated.kind} are in {output}")
            raise stopping
        if not generated.accepted:
            raise stopping if isinstance(stopping, BudgetError) and not generated.outcomes else EndpointError(generated.failure)
    return generated


def estimate(task: Task, output: Path, config: GenerateConfig) -> Estimate:
    """Return what `generate` would still ask for, and about what that costs. Nothing is sent."""
    folder, unused = _ledger_folder(output), contextlib.ExitStack()
    with unused:
        if not folder.exists():
            folder = Path(unused.enter_context(tempfile.TemporaryDirectory()))
        ledger = unused.enter_context(open_ledger(folder, start_of(task, config)))
        return _Writer(task, config, ledger, functools.partial(endpoint_of, config)).estimate()


class _Writer:
    """One run over a task's plan."""

    def __init__(self, task: Task, config: GenerateConfig, ledger: Ledger, endpoint: Callable[[], Endpoint]) -> None:
        require("openai", extra="generate")
        self.task, self.config, self.ledger = task, config, ledger
        limits = Limits(config.concurrency, config.timeout, config.budget, config.max_tokens_total, currency=currency_of(config))
        self.asker = Asker(endpoint, ledger, limits, prices_of(config))
        self._priced = all(model in self.asker.prices for model in (config.model, config.judge) if model)
        self._exchange = Exchange(task, config)
        self._judge = Judge(self._exchange, self.asker, prompt_template(config.judge_prompt, "judge"))
        self._plan = Plan(task.count, config.concurrency)
        self._tally = Tally(self.asker, priced=self._priced, currency=limits.currency)
        self._accepted: dict[int, str] = {}
        self._difficulty: dict[int, str] = {}
        self._began, self._requests_before = time.monotonic(), ledger.requests

    def estimate(self) -> Estimate:
        """Return the requests that remain, and their approximate cost."""
        return estimate_of(self._exchange, self.asker)

    async def write(self) -> EmbedfitError | KeyboardInterrupt | None:
        """Ask for everything, and return why the run ended early; None if it did not."""
        try:
            with interruptible(self.asker):
                with progress.bar(f"writing {self.task.kind}", self.task.count) as self._tally.progress:
                    await self._with_workers(self._decide())
                if self.config.judge:
                    with progress.bar("judging", len(self._accepted)) as advance:
                        self._difficulty = await self._judge.difficulties(self._accepted, lambda: advance(1, said=self._tally.cost))
        finally:
            await self.asker.close()
        return self.asker.stopping

    async def _with_workers(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the decider beside as many workers as there may be requests under way. An error in one task ends all."""
        workers = [asyncio.ensure_future(self._work()) for _ in range(self.config.concurrency)]
        decider = asyncio.ensure_future(work)
        await asyncio.wait([decider, *workers], return_when=asyncio.FIRST_COMPLETED)
        for running in (*workers, decider):
            if running is not decider or not running.done():
                running.cancel()
        for outcome in await asyncio.gather(decider, *workers, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _work(self) -> None:
        while True:
            position, turn = await self._plan.take()
            self._plan.finish(position, await self._passed(self.task.slot(position), turn))

    async def _decide(self) -> None:
        """Accept every text that is not a near duplicate of an earlier text. Have the near duplicates written again."""
        texts = Said()
        for example in getattr(self.task, "examples", ()):
            texts.add(example)
        examples = len(texts)
        ids: list[str] = []
        async for position, turn in self._plan.decided():
            twin = texts.find(turn.text)
            if twin is None:
                texts.add(turn.text)
                ids.append(turn.id)
                self._accepted[position] = turn.id
                self._tally.settle(turn.id, "accepted", record=turn.row)
                continue
            twin_name = f"example {twin + 1}" if twin < examples else ids[twin - examples]
            turn.why = "this says nearly the same as one that is there already; write one that differs in more than a word or two"
            self._tally.settle(turn.id, "near duplicate", f"of {twin_name}")
            self._tally.passed(-1)
            turn.attempt += 1
            if turn.attempt < self.config.tries:
                self._plan.retry(position, turn)
            else:
                self._tally.given_up += 1

    async def _passed(self, slot: Slot, turn: Turn) -> Turn | None:
        """Ask until a reply passes all checks that need no other reply; return None if none does."""
        while turn.attempt < self.config.tries:
            id = self._exchange.id(slot, turn.attempt)
            try:
                turn.reply = self.ledger.reply(id) or await self.asker.ask(self._exchange.request(slot, turn, id))
            except Stopped:
                return None
            except Refused as refused:
                self._tally.count(refused.reason, refused.why)
                break  # the same words would be refused again
            except EmbedfitError as error:  # the prompt template cannot be filled
                self.asker.stop(error)
                return None
            turn.id = id
            try:
                turn.row = self._exchange.record(turn.reply, slot)
                turn.text = self.task.check(slot, turn.row)
                self._tally.passed(1)
                return turn
            except Rejected as rejected:
                self._tally.settle(id, rejected.reason, rejected.why)
                turn.why = rejected.why
                if rejected.reason == "cut off":
                    turn.room = min(_MOST_ROOM, 2 * turn.room)
                if rejected.reason in ("cut off", "refused"):
                    turn.why = ""  # there is nothing to correct: the same prompt again, with another seed
                turn.attempt += 1
        self._tally.given_up += 1
        return None

    def result(self, output: Path) -> Generated:
        """Write the output, and return a summary of the run."""
        kept = {position: id for position, id in sorted(self._accepted.items()) if not self._dropped(position)}
        if kept:
            with writing(output) as file:
                for row in self._rows(kept):
                    file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        difficulty: dict[str, dict[str, int]] = {}
        for position, judged in sorted(self._difficulty.items()):
            counts = difficulty.setdefault(self.task.slot(position).label, {"easy": 0, "hard": 0, "suspect": 0})
            counts[judged] += 1
        ledger, tally = self.ledger, self._tally
        return Generated(
            kind=self.task.kind,
            output=output,
            ledger=ledger.path,
            asked=self.task.count,
            accepted=len(kept),
            given_up=tally.given_up,
            outcomes=dict(tally.outcomes.most_common()),
            labels=dict(Counter(self.task.slot(position).label for position in kept).most_common()),
            difficulty=difficulty,
            diversity=measure_diversity(self._rows(kept), self.task) if kept else None,
            requests=ledger.requests,
            tokens=ledger.paid.tokens,
            price=ledger.paid.price if self._priced else None,
            lost_requests=ledger.lost_requests,
            lost_price=ledger.lost.price,
            seconds=time.monotonic() - self._began,
            new_requests=ledger.requests - self._requests_before,
            stopped=str(self.asker.stopping) if self.asker.stopping else "",
            currency=currency_of(self.config),
        )

    def _dropped(self, position: int) -> bool:
        return self.config.suspects == "drop" and self._difficulty.get(position) == "suspect"

    def _rows(self, kept: Mapping[int, str]) -> Iterator[Row]:
        """Yield the rows of the output, each with its origin."""
        for position, id in kept.items():
            reply, verdict = self.ledger.reply(id) or {}, self.ledger.verdict(id) or {}
            origin = {"model": reply["model"], "prompt": reply["prompt"], "request": id}
            if position in self._difficulty:
                origin["difficulty"] = self._difficulty[position]
            yield {"id": f"generated-{id}", **self.task.output(self.task.slot(position), verdict["record"]), "generated": origin}


def _ledger_folder(output: Path) -> Path:
    return output.with_suffix(".ledger")


def _check_output(output: Path) -> None:
    if output.suffix != ".jsonl":
        raise ConfigError(f"{output}: ends in {output.suffix!r}; expected .jsonl, as lines of JSON are written")
    with contextlib.suppress(FileNotFoundError), output.open("rb") as file:
        line = file.readline()
        with contextlib.suppress(ValueError):
            if not line or "generated" in json.loads(line):
                return
        raise DataError(str(output), "exists already, and was not generated", fix="give another file; this one is not overwritten")


def ran(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine. Where an event loop runs already, as in a notebook, it gets a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
