"""An LLM writes training data: records for labels, or questions for passages.

Each place of a plan is asked for until a reply passes its checks, and all replies go into a ledger first. So a run that was
killed, or stopped by its budget, goes on by doing everything again: what was answered comes out of the ledger, at no cost.
Which records are accepted depends on the replies alone and not on the order in which they came, as near duplicates are
decided on in the order of the plan.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import os
import re
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from embedfit import console
from embedfit.config import GenerateConfig
from embedfit.data.dataset import Row
from embedfit.data.duplicates import Said
from embedfit.errors import ConfigError, DataError, EmbedfitError, EndpointError, require, shown
from embedfit.files import writing
from embedfit.generate.answers import CUT_OFF, REFUSALS, answer_model, answer_of, choice_schema, chosen, completion_of, refusal_of
from embedfit.generate.asker import Asker
from embedfit.generate.endpoint import BudgetError, Endpoint, Limits, Refused, Request, Stopped
from embedfit.generate.ledger import Ledger, Line, digest, open_ledger
from embedfit.generate.outcome import Estimate, Generated, base_url_of, currency_of, measure_diversity, prices_of
from embedfit.generate.tasks import Records, Rejected, Slot, Task, drawn, filled, prompt_template
from embedfit.hosts import checked_address, header_value, key_in, key_variable

_T = TypeVar("_T")
_ROOM = 8
"""A reply that was cut off is asked for again with twice the room, up to so many times the first."""
_HOPELESS = 50
"""Replies of which not one could be used, after which the prompt or the model is wrong, and going on a waste."""
_ENOUGH_TO_TELL = 20
"""Replies from which what is left is estimated."""
_JUDGE_TOKENS = 150
"""Of a judge's prompt and a record, beside the options; for the estimate."""
_AHEAD = 1024
"""Places of the plan that may be asked for before an earlier one is decided on, which keeps memory flat."""


def generate(task: Task, output: Path, config: GenerateConfig, endpoint: Callable[[], Endpoint] | None = None) -> Generated:
    """Let an LLM write what a task asks for. Called again, it goes on where it was, and pays for nothing twice.

    Args:
        task: `Records` or `Questions`.
        output: A .jsonl file as the main job reads it. The ledger stands beside it, in ``<name>.ledger/``.
        config: The model, what it may cost, how it is asked.
        endpoint: Makes the endpoint when something has to be sent. By default from the configuration and the environment.

    Raises:
        EndpointError: The endpoint refuses; what was written by then is in the output. Or nothing at all could be written. A
            budget that is reached is no error, if something is written.
        ConfigError: A setting or a template cannot be used.
        DataError: The output is a file of yours.
    """
    _check_output(output)
    make = functools.cache(endpoint or functools.partial(endpoint_of, config))
    if not _ledger_folder(output).exists():  # a setting that cannot be used should leave nothing behind
        estimate(task, output, config)
        make()
    with open_ledger(_ledger_folder(output), _start(task, config)) as ledger:
        writer = _Writer(task, config, ledger, make)
        console.note(f"{task.count:,} {task.kind}: {writer.estimate().sentence}")
        stopping = _ran(writer.write())
        found = writer.result(output)
        if isinstance(stopping, BaseException) and not isinstance(stopping, BudgetError):
            if found.accepted:
                console.note(f"{found.accepted:,} of {found.asked:,} {found.kind} are in {output}")
            raise stopping
        if not found.accepted:
            raise stopping if isinstance(stopping, BudgetError) and not found.outcomes else EndpointError(found.failure)
    return found


def estimate(task: Task, output: Path, config: GenerateConfig) -> Estimate:
    """Return what `generate` would still have to ask, and about what that costs; nothing is sent."""
    folder, unused = _ledger_folder(output), contextlib.ExitStack()
    with unused:
        if not folder.exists():
            folder = Path(unused.enter_context(tempfile.TemporaryDirectory()))
        ledger = unused.enter_context(open_ledger(folder, _start(task, config)))
        return _Writer(task, config, ledger, functools.partial(endpoint_of, config)).estimate()


def endpoint_of(config: GenerateConfig, ask: Callable[[str], str] | None = None) -> Endpoint:
    """Return the endpoint of a configuration, with its key from the environment.

    Args:
        config: Says which variable holds the key, if it is not the host's own.
        ask: Asks a person for the key, where there is none and the endpoint is not on this machine.

    Raises:
        ConfigError: A variable is not set.
    """
    base_url = base_url_of(config)
    variable = config.key or key_variable(base_url)
    key = key_in(variable)
    if not key:
        host = checked_address(base_url).hostname or ""
        if host in ("localhost", "::1") or host.startswith("127."):
            key = "none"
        elif ask:
            key = header_value(ask(f"Key for {host}: "), "the key")
    if not key:
        raise ConfigError(f"{variable} is not set; fix: export {variable}=..., or name another variable with 'key' in [generate]")
    missing = [variable for variable in config.headers.values() if variable not in os.environ]
    if missing:
        raise ConfigError(f"{missing[0]} is not set, but generate.headers names it; fix: export it")
    headers = {name: os.environ[variable] for name, variable in config.headers.items()}
    return Endpoint(base_url, key, headers, key_name=variable)


@dataclass
class _Turn:
    """How often a place was asked for, and what came of it last."""

    attempt: int = 0
    room: int = 1
    reply: Line | None = None
    why: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    id: str = ""


class _Writer:
    """One run over a task's plan."""

    def __init__(self, task: Task, config: GenerateConfig, ledger: Ledger, endpoint: Callable[[], Endpoint]) -> None:
        require("instructor", extra="generate")
        self.task, self.config, self.ledger = task, config, ledger
        limits = Limits(config.concurrency, config.timeout, config.budget, config.max_tokens_total, currency=currency_of(config))
        self.prices = prices_of(config)
        self.asker = Asker(endpoint, ledger, limits, self.prices)
        self._identity = digest(_start(task, config))
        self._judge_prompt = prompt_template(config.judge_prompt, "judge")
        self._accepted: dict[int, str] = {}
        self._given_up = self._passing = 0
        self._outcomes: Counter[str] = Counter()
        self._difficulty: dict[int, str] = {}
        self._found: dict[int, asyncio.Future[_Turn | None]] = {}
        self._todo: asyncio.PriorityQueue[tuple[int, int, _Turn]] = asyncio.PriorityQueue()
        self._prepared = functools.lru_cache(256)(self._prepare)
        self._began, self._requests_before = time.monotonic(), ledger.requests
        self._progress: Callable[..., None] = lambda steps, **said: None

    def estimate(self) -> Estimate:
        """Return what is left to ask, judged by the ledger where it has something, else by the first prompt."""
        config, first = self.config, self.task.slot(0)
        done = answered = prompt_tokens = completion_tokens = 0
        judged = set()
        for row in self.ledger.rows():
            if row["kind"] == "judge":
                judged.add(row["for"])
                continue
            answered += 1
            done += row["outcome"] == "accepted"
            prompt_tokens += row["prompt_tokens"]
            completion_tokens += row["completion_tokens"]
        body = self._request(first, _Turn(), "").body
        requests = max(0, self.task.count - done)
        # Four bytes for a token of English and of JSON, and a reply of a quarter of its room: a guess, no more.
        each, reply = len(json.dumps([body["messages"], self.task.schema(first.label)])) / 4, config.max_tokens / 4
        if answered >= _ENOUGH_TO_TELL:
            requests = round(requests * answered / max(1, done))
            each, reply = prompt_tokens / answered, completion_tokens / answered
        parts = [(config.model, requests, each, reply, self.asker.most(body).tokens - config.max_tokens)]
        if config.judge:
            options = sum(len(option["name"] + option["about"]) for option in self.task.options(first, 0)[0])
            parts.append(
                (config.judge, max(0, self.task.count - len(judged)), options / 4 + _JUDGE_TOKENS, 20.0, options + 4 * _JUDGE_TOKENS)
            )
        tokens = price = most = 0.0
        for model, times, prompt, answer, longest in parts:
            rate = self.prices.get(model, (0.0, 0.0))
            tokens += times * (prompt + answer)
            price += times * (prompt * rate[0] + answer * rate[1]) / 1e6
            most += times * (longest * rate[0] + config.max_tokens * rate[1]) / 1e6
        known = self._priced
        return Estimate(
            sum(part[1] for part in parts), round(tokens), price if known else None, most if known else None, currency_of(self.config)
        )

    async def write(self) -> EmbedfitError | KeyboardInterrupt | None:
        """Ask for everything; returns why it ended early, if so."""
        try:
            with _interruptible(self.asker):
                with console.progress(f"writing {self.task.kind}", self.task.count) as self._progress:
                    await self._with_workers(self._decide())
                if self.config.judge:
                    with console.progress("judging", len(self._accepted)) as self._progress:
                        await self._judge_all()
        finally:
            await self.asker.close()
        return self.asker.stopping

    async def _with_workers(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the decider beside as many workers as there may be requests under way; an error of one ends all."""
        workers = [asyncio.ensure_future(self._work()) for _ in range(self.config.concurrency)]
        decider = asyncio.ensure_future(work)
        await asyncio.wait([decider, *workers], return_when=asyncio.FIRST_COMPLETED)
        for one in (*workers, decider):
            if one is not decider or not one.done():
                one.cancel()
        for outcome in await asyncio.gather(decider, *workers, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _work(self) -> None:
        while True:
            _, position, turn = await self._todo.get()
            self._at(position).set_result(await self._passed(self.task.slot(position), turn))

    def _at(self, position: int) -> asyncio.Future[_Turn | None]:
        if position not in self._found:
            self._found[position] = asyncio.get_running_loop().create_future()
        return self._found[position]

    async def _decide(self) -> None:
        """Accept what is no near duplicate, in the order of the plan, and have the others written again.

        The order makes what is accepted a matter of the replies alone. All first replies are decided on, then all
        second ones of those that were near duplicates, and so on.
        """
        said = Said()
        for example in getattr(self.task, "examples", ()):
            said.add(example)
        texts_before = len(said)
        places: list[int] = []
        ahead = max(_AHEAD, 4 * self.config.concurrency)
        for position in range(min(ahead, self.task.count)):
            self._todo.put_nowait((1, position, _Turn()))
        positions: Sequence[int] = range(self.task.count)
        first = True
        while positions:
            again = []
            for position in positions:
                turn = await self._at(position)
                del self._found[position]
                if first and position + ahead < self.task.count:
                    self._todo.put_nowait((1, position + ahead, _Turn()))
                if turn is None:
                    continue
                twin = said.find(turn.text)
                if twin is None:
                    said.add(turn.text)
                    places.append(position)
                    self._accepted[position] = turn.id
                    self._settle(turn.id, "accepted", record=turn.row)
                    continue
                where = f"example {twin + 1}" if twin < texts_before else self._accepted[places[twin - texts_before]]
                turn.why = "this says nearly the same as one that is there already; write one that differs in more than a word or two"
                self._settle(turn.id, "near duplicate", f"of {where}")
                self._passing -= 1
                self._tell(-1)
                turn.attempt += 1
                if turn.attempt < self.config.tries:
                    again.append(position)
                    self._todo.put_nowait((0, position, turn))
                else:
                    self._given_up += 1
            positions, first = again, False

    async def _passed(self, slot: Slot, turn: _Turn) -> _Turn | None:
        """Ask until a reply passes every check that it can be given by itself; None if there is none."""
        while turn.attempt < self.config.tries:
            id = digest([self._identity, slot.key, turn.attempt])[:16]
            known = self.ledger.reply(id)
            try:
                turn.reply = known or await self.asker.ask(self._request(slot, turn, id))
            except Stopped:
                return None
            except Refused as refused:
                self._count(refused.reason, refused.why)
                break  # the same words would be refused again
            except EmbedfitError as error:  # of the prompt
                self.asker.stop(error)
                return None
            turn.id = id
            try:
                turn.row = self._parsed(turn.reply, slot)
                turn.text = self.task.check(slot, turn.row)
                self._passing += 1
                self._tell(1)
                return turn
            except Rejected as rejected:
                self._settle(id, rejected.reason, rejected.why)
                turn.why = rejected.why
                if rejected.reason == "cut off":
                    turn.room = min(_ROOM, 2 * turn.room)
                if rejected.reason in ("cut off", "refused"):
                    turn.why = ""  # there is nothing to correct: the same again, with another seed
                turn.attempt += 1
        self._given_up += 1
        return None

    def _settle(self, id: str, outcome: str, why: str = "", record: Any = None) -> None:
        self.ledger.decide(id, outcome, why, record)
        self._count(outcome, why)

    def _count(self, outcome: str, why: str) -> None:
        self._outcomes[outcome] += 1
        answered = sum(self._outcomes.values())
        if answered >= _HOPELESS and not self._passing:
            reason, times = self._outcomes.most_common(1)[0]
            self.asker.stop(
                EndpointError(
                    f"not one of the first {answered} replies could be used, {times} for this reason: {reason} "
                    f"(the last: {why}); fix: see the prompt and {self.ledger.path}, or take another model"
                )
            )

    @property
    def _priced(self) -> bool:
        return all(model in self.prices for model in (self.config.model, self.config.judge) if model)

    @property
    def _cost(self) -> str:
        paid = self.ledger.paid
        return f"{paid.price:.4f} {currency_of(self.config)} paid" if self._priced else f"{paid.tokens:,} tokens"

    def _tell(self, steps: int) -> None:
        """Move the progress bar by replies that pass, which are decided on only when all before them are there."""
        rejected = sum(self._outcomes.values()) - self._outcomes["accepted"]
        self._progress(steps, said=f"{self._cost}, {self._passing / max(1, self._passing + rejected):.0%} accepted")

    def _request(self, slot: Slot, turn: _Turn, id: str) -> Request:
        """Return what to ask: the prompt, and if there was a reply before, what was wrong with it."""
        from instructor.processing.response import handle_reask_kwargs

        prompt = self.task.prompt(slot, drawn(self._identity, slot.key))
        body = self._body(self.config.model, slot.label, prompt, id, turn.room)
        if turn.reply and turn.why:
            body["messages"] = handle_reask_kwargs(
                {"messages": body["messages"]}, self._mode, completion_of(turn.reply), ValueError(turn.why)
            )["messages"]
        facts = {"kind": self.task.kind, "for": slot.label, "number": slot.number, "attempt": turn.attempt}
        return Request(id, body, facts)

    def _body(self, model: str, label: str | None, prompt: str, id: str, room: int, options: tuple[str, ...] = ()) -> dict[str, Any]:
        prepared = self._prepared(self._shape(label), options)[1]
        prompt = prompt.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent
        messages = [{**message, "content": message["content"].replace(_PLACEHOLDER, prompt)} for message in prepared["messages"]]
        body = {**prepared, "model": model, "messages": messages, "max_tokens": self.config.max_tokens * room, "seed": drawn(id) % 2**31}
        if self.config.temperature is not None:
            body["temperature"] = self.config.temperature
        return body

    @functools.cached_property
    def _mode(self) -> Any:
        import instructor

        return {"json_schema": instructor.Mode.JSON_SCHEMA, "tools": instructor.Mode.TOOLS, "json": instructor.Mode.JSON}[self.config.mode]

    def _shape(self, label: str | None) -> str | None:
        """Return the label, if the schema depends on it."""
        return label if isinstance(self.task, Records) else None

    def _prepare(self, label: str | None, options: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
        """Return the response model, and what instructor puts into a request for it: once for each label, as it takes a while."""
        from instructor.processing.response import handle_response_model

        model = answer_model("Choice", choice_schema(options), chosen(options)) if options else self._record_model(label or "")
        prepared: tuple[Any, dict[str, Any]] = handle_response_model(
            model, self._mode, messages=[{"role": "user", "content": _PLACEHOLDER}]
        )
        return prepared

    def _record_model(self, label: str) -> type[BaseModel]:
        schema = self.task.schema(label)
        return answer_model(re.sub(r"\W+", "_", str(schema.get("title") or "Record")), schema, self.task.validate)

    def _parsed(self, reply: Line, slot: Slot | None, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return what a reply says, checked against the schema.

        Raises:
            Rejected: It says nothing that could be used.
        """
        choice = reply["reply"]["choices"][0]
        message, finish = choice["message"], str(choice.get("finish_reason") or "").lower()
        refusal = refusal_of(message)
        if refusal or finish in REFUSALS:
            raise Rejected("refused", shown(refusal or "content filter", 200))
        if finish in CUT_OFF:
            raise Rejected("cut off", f"after {reply['completion_tokens']} tokens")
        model = self._prepared(self._shape(slot.label if slot else None), options)[0]
        try:
            row: dict[str, Any] = model.model_validate(answer_of(message, model.__name__)).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            text = first["msg"].removeprefix("Value error, ")
            raise Rejected("invalid", f"{where}: {text}" if where else text) from None
        except (ValueError, AssertionError, TypeError, KeyError, AttributeError) as error:
            raise Rejected("invalid", shown(str(error), 200)) from None
        return row

    # Judging

    async def _judge_all(self) -> None:
        places = iter(sorted(self._accepted))

        async def work() -> None:
            for position in places:
                try:
                    self._difficulty[position] = await self._judged(position)
                except Refused:
                    pass  # the judge is not allowed to read it, which says nothing of how hard it is
                except Stopped:
                    continue  # those that were judged before are in the ledger
                except EmbedfitError as error:  # of the prompt
                    self.asker.stop(error)
                self._progress(1, said=self._cost)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.config.concurrency):
                group.create_task(work())

    async def _judged(self, position: int) -> str:
        """Return how hard a record is: easy if the judge, who does not know the label, gets it right at once."""
        model, slot, id = str(self.config.judge), self.task.slot(position), self._accepted[position]
        row = (self.ledger.verdict(id) or {})["record"]
        for attempt in range(self.config.judge_tries):
            own = digest([id, "judge", model, self._judge_prompt, attempt])[:16]
            options, right = self.task.options(slot, drawn(own))
            names = tuple(option["name"] for option in options)
            known = self.ledger.reply(own)
            if not known:
                prompt = filled(self._judge_prompt, text=self.task.shown(row), options=options, kind=self.task.kind)
                facts = {"kind": "judge", "for": id, "attempt": attempt}
                body = self._body(model, None, prompt, own, 1, tuple(sorted(names)))
                known = await self.asker.ask(Request(own, body, facts))
            try:
                said = str(self._parsed(known, None, tuple(sorted(names)))["choice"])
            except Rejected as rejected:
                self.ledger.decide(own, rejected.reason, rejected.why)
                continue
            self.ledger.decide(own, "right" if said == right else "wrong", record=said)
            if said == right:
                return "easy" if attempt == 0 else "hard"
        return "suspect"

    # What came of it

    def result(self, output: Path) -> Generated:
        """Write the output, and return what came of it."""
        kept = {position: id for position, id in sorted(self._accepted.items()) if not self._dropped(position)}
        if kept:
            with writing(output) as file:
                for row in self._rows(kept):
                    file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        stopping = self.asker.stopping
        labels = Counter(self.task.slot(position).label for position in kept)
        difficulty: dict[str, dict[str, int]] = {}
        for position, found in sorted(self._difficulty.items()):
            counts = difficulty.setdefault(self.task.slot(position).label, {"easy": 0, "hard": 0, "suspect": 0})
            counts[found] += 1
        return Generated(
            self.task.kind,
            output,
            self.ledger.path,
            self.task.count,
            len(kept),
            self._given_up,
            dict(self._outcomes.most_common()),
            dict(labels.most_common()),
            difficulty,
            measure_diversity(self._rows(kept), self.task) if kept else None,
            self.ledger.requests,
            self.ledger.paid.tokens,
            self.ledger.paid.price if self._priced else None,
            self.ledger.lost_requests,
            self.ledger.lost.price,
            time.monotonic() - self._began,
            self.ledger.requests - self._requests_before,
            str(stopping) if stopping else "",
            currency_of(self.config),
        )

    def _dropped(self, position: int) -> bool:
        return self.config.suspects == "drop" and self._difficulty.get(position) == "suspect"

    def _rows(self, kept: Mapping[int, str]) -> Iterator[Row]:
        """Yield the rows of the output, with where each came from."""
        for position, id in kept.items():
            reply, verdict = self.ledger.reply(id) or {}, self.ledger.verdict(id) or {}
            origin = {"model": reply["model"], "prompt": reply["prompt"], "request": id}
            if position in self._difficulty:
                origin["difficulty"] = self._difficulty[position]
            yield {
                "id": f"generated-{id}",
                **self.task.output(self.task.slot(position), verdict["record"]),
                "generated": origin,
            }


_PLACEHOLDER = "\0prompt\0"


def _start(task: Task, config: GenerateConfig) -> dict[str, Any]:
    """Return what makes a ledger one of its own."""
    return {
        "kind": task.kind,
        **task.start(),
        "model": config.model,
        "mode": config.mode,
        "parameters": {"temperature": config.temperature, "max_tokens": config.max_tokens},
    }


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
        raise DataError(str(output), "is there already, and was not generated", fix="give another file; this one is not overwritten")


@contextlib.contextmanager
def _interruptible(asker: Asker) -> Iterator[None]:
    """Let the first Ctrl-C wait for what is under way, as it has to be paid for; the second does not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupted() -> None:
        if asker.stopping and task:
            task.cancel()
        asker.stop(KeyboardInterrupt())
        if asker.ledger.under_way:
            console.note(f"waiting for {asker.ledger.under_way} replies that are paid for; press Ctrl-C again to leave them")

    try:
        loop.add_signal_handler(signal.SIGINT, interrupted)
    except (NotImplementedError, RuntimeError):  # no such thing on Windows: Ctrl-C leaves at once
        yield
        return
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _ran(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine, in a thread of its own where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
