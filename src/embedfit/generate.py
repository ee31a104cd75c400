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
import itertools
import json
import os
import re
import signal
import statistics
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from embedfit import console
from embedfit.config import GenerateConfig, checked_address
from embedfit.data import Row, writing
from embedfit.duplicates import Said
from embedfit.endpoint import (
    DOLLARS,
    OPENAI,
    PRICES,
    Asker,
    BudgetError,
    Endpoint,
    Limits,
    Refused,
    Request,
    Stopped,
    header_value,
    key_variable,
)
from embedfit.errors import ConfigError, DataError, EmbedfitError, EndpointError, require, shown
from embedfit.ledger import Ledger, Line, digest, open_ledger
from embedfit.plan import Questions, Records, Rejected, Slot, Task, drawn, filled, prompt_template
from embedfit.words import words_of

if TYPE_CHECKING:
    pass

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


@dataclass(frozen=True)
class Diversity:
    """How unlike each other texts are.

    Attributes:
        distinct_words: Different words, of all words (distinct-1 of J. Li et al., A diversity-promoting objective function, 2016).
        distinct_pairs: Different pairs of neighbouring words, of all such pairs (distinct-2).
        overlap: How much a text has in common with the nearest one of the same label: words in both, of words in either; the median.
        fields: (field, different values, values, the most frequent value, how often it stands there), most repeated first.
    """

    distinct_words: float
    distinct_pairs: float
    overlap: float
    fields: tuple[tuple[str, int, int, str, int], ...]


@dataclass(frozen=True)
class Generated:
    """What came of generating.

    Attributes:
        kind: ``records`` or ``queries``.
        output: The file that was written.
        ledger: Where all requests stand.
        asked: How many were asked for.
        accepted: How many there are.
        given_up: Places of the plan for which every try was rejected, or the endpoint refused to answer.
        outcomes: Outcome -> replies and refusals, judging apart.
        labels: Label -> how many were accepted, most first.
        difficulty: Label -> {easy, hard, suspect} -> how many; empty without a judge.
        diversity: Of what was accepted; None if that is nothing.
        requests: Answered in all, judging included, all runs on this ledger together.
        tokens: Of these.
        price: Of these; None where the price of a model is not known.
        lost_requests: Those that may have been charged, with nothing to show for it.
        lost_price: What they cost at most.
        seconds: Of this run.
        new_requests: Answered in this run.
        stopped: Why it ended before all was written; empty if it did not.
        currency: Of the prices.
    """

    kind: str
    output: Path
    ledger: Path
    asked: int
    accepted: int
    given_up: int
    outcomes: dict[str, int]
    labels: dict[str, int]
    difficulty: dict[str, dict[str, int]]
    diversity: Diversity | None
    requests: int
    tokens: int
    price: float | None
    lost_requests: int
    lost_price: float
    seconds: float
    new_requests: int
    stopped: str = ""
    currency: str = DOLLARS

    @property
    def acceptance(self) -> float:
        """Accepted, of all replies but the judge's."""
        return self.accepted / max(1, sum(self.outcomes.values()))

    @property
    def sentence(self) -> str:
        """Return it all in one line."""
        line = f"{self.accepted:,} of {self.asked:,} {self.kind} in {self.output}: {self.acceptance:.0%} of the replies could be used"
        line += f"; {self.requests:,} requests, {self.tokens:,} tokens"
        if self.price is not None:
            line += f", {self.price:.4f} {self.currency} paid"
        if self.lost_requests:
            line += f"; {self.lost_requests:,} requests without an answer"
            line += "" if self.price is None else f", for which at most {self.lost_price:.4f} {self.currency} is due"
        if self.given_up:
            line += f"; {self.given_up:,} given up"
        return line + (f"; {self.stopped}" if self.stopped else "")

    @property
    def failure(self) -> str:
        """Return in one line why nothing was written."""
        reasons = ", ".join(f"{count:,} {outcome}" for outcome, count in self.outcomes.items() if outcome != "accepted")
        suspect = sum(counts["suspect"] for counts in self.difficulty.values())
        reasons += f"{', ' if reasons else ''}{suspect:,} suspect" if suspect else ""
        line = f"none of {self.asked:,} {self.kind} could be written, of {self.requests:,} requests"
        line += f" for {self.price:.4f}" if self.price else ""
        line += f": {reasons}" if reasons else ""
        line += f"; {self.stopped}" if self.stopped else ""
        return f"{line}; fix: see the prompt and {self.ledger}, or take another model"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        diversity = vars(self.diversity) if self.diversity else None
        return {**vars(self), "output": str(self.output), "ledger": str(self.ledger), "diversity": diversity}


@dataclass(frozen=True)
class Estimate:
    """What is still to be asked, and what that will cost.

    Attributes:
        requests: About so many.
        tokens: About.
        price: About; None where the price of a model is not known.
        most: If every reply is as long as it may be.
        currency: Of both.
    """

    requests: int
    tokens: int
    price: float | None
    most: float | None
    currency: str = DOLLARS

    @property
    def sentence(self) -> str:
        """Return it in one line."""
        if not self.requests:
            return "nothing is left to ask"
        price = "the price of the model is not known"
        if self.price is not None:
            price = f"{self.price:.4f} (at most {self.most:.4f}) {self.currency}"
        return f"about {self.requests:,} requests, {self.tokens:,} tokens, {price}"


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
    base_url = _base_url(config)
    variable = config.key or key_variable(base_url)
    key = header_value(os.environ.get(variable, ""), variable)
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
        limits = Limits(config.concurrency, config.timeout, config.budget, config.max_tokens_total, currency=_currency(config))
        self.prices = _prices(config)
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
            sum(part[1] for part in parts), round(tokens), price if known else None, most if known else None, _currency(self.config)
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
        return f"{paid.price:.4f} {_currency(self.config)} paid" if self._priced else f"{paid.tokens:,} tokens"

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
                {"messages": body["messages"]}, self._mode, _completion(turn.reply), ValueError(turn.why)
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

        model = _answer_model("Choice", _choice_schema(options), _chosen(options)) if options else self._record_model(label or "")
        prepared: tuple[Any, dict[str, Any]] = handle_response_model(
            model, self._mode, messages=[{"role": "user", "content": _PLACEHOLDER}]
        )
        return prepared

    def _record_model(self, label: str) -> type[BaseModel]:
        schema = self.task.schema(label)
        return _answer_model(re.sub(r"\W+", "_", str(schema.get("title") or "Record")), schema, self.task.validate)

    def _parsed(self, reply: Line, slot: Slot | None, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return what a reply says, checked against the schema.

        Raises:
            Rejected: It says nothing that could be used.
        """
        choice = reply["reply"]["choices"][0]
        message, finish = choice["message"], str(choice.get("finish_reason") or "").lower()
        refusal = _refusal(message)
        if refusal or finish in _REFUSALS:
            raise Rejected("refused", shown(refusal or "content filter", 200))
        if finish in _CUT_OFF:
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
            _currency(self.config),
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


def measure_diversity(rows: Iterator[Row], task: Task) -> Diversity:
    """Return how unlike each other generated rows are."""
    values: dict[str, Counter[str]] = {}
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    sets: dict[str, list[frozenset[str]]] = {}
    label_field = task.record.label if isinstance(task, Records) else task.label if isinstance(task, Questions) else "expected"
    for row in rows:
        own = {name: value for name, value in row.items() if name not in ("id", "generated", label_field, "evidence")}
        for name, value in own.items():
            if isinstance(value, str):
                values.setdefault(name, Counter())[value] += 1
        spoken = [value for name, value in own.items() if name not in ("style", "persona") and value is not None]
        said = words_of(" ".join(map(str, spoken)))
        words.update(said)
        pairs.update(itertools.pairwise(said))
        sets.setdefault(str(row[label_field]), []).append(frozenset(said))
    nearest = [overlap for some in sets.values() for overlap in _nearest_overlaps(some)]
    fields = [(name, len(counts), counts.total(), *counts.most_common(1)[0]) for name, counts in values.items()]
    fields.sort(key=lambda found: found[1] / found[2])
    return Diversity(
        len(words) / max(1, words.total()),
        len(pairs) / max(1, pairs.total()),
        statistics.median(nearest) if nearest else 0.0,
        tuple(fields),
    )


def _nearest_overlaps(sets: Sequence[frozenset[str]]) -> list[float]:
    """Return for each set of words the most that it has in common with another: words in both, of words in either."""
    import numpy as np
    from scipy.sparse import csr_matrix

    if len(sets) < 2:
        return []
    number: dict[str, int] = {}
    columns = [number.setdefault(word, len(number)) for words in sets for word in words]
    sizes = np.array([len(words) for words in sets])
    holds = csr_matrix(
        (np.ones(len(columns), np.float32), columns, np.concatenate([[0], sizes.cumsum()])), (len(sets), max(1, len(number)))
    )
    found: list[float] = []
    for start in range(0, len(sets), 512):
        both = (holds[start : start + 512] @ holds.T).toarray()
        share = both / np.maximum(sizes[start : start + 512, None] + sizes - both, 1)
        share[np.arange(len(share)), np.arange(start, start + len(share))] = 0
        found += share.max(axis=1).tolist()
    return found


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


def _currency(config: GenerateConfig) -> str:
    """Return what amounts are in, in words: dollars by the bundled prices; nobody says what currency given prices are in."""
    return "in the currency of generate.price" if config.price or config.judge_price else DOLLARS


def _prices(config: GenerateConfig) -> dict[str, tuple[float, float]]:
    """Return the prices that are known of the models asked.

    Raises:
        ConfigError: There is a budget, and a price is not known.
    """
    host = checked_address(_base_url(config)).hostname or ""
    known = dict(PRICES) if host == urllib.parse.urlsplit(OPENAI).hostname or host.endswith(".openai.azure.com") else {}
    if config.price:
        known[config.model] = config.price
    if config.judge and config.judge_price:
        known[config.judge] = config.judge_price
    asked = [config.model, *([config.judge] if config.judge else [])]
    for model in asked:
        if config.budget is not None and model not in known:
            name = "price" if model == config.model else "judge_price"
            raise ConfigError(f"a budget needs the price of {model!r}; fix: give {name}, for a million prompt tokens and completion tokens")
    return {model: known[model] for model in asked if model in known}


def _base_url(config: GenerateConfig) -> str:
    return config.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI


def _answer_model(name: str, schema: dict[str, Any], validate: Callable[[Mapping[str, Any]], dict[str, Any]]) -> type[BaseModel]:
    """Return a Pydantic model for instructor, of any schema and whatever checks it."""

    class Answer(BaseModel):
        model_config = ConfigDict(extra="allow")

        @model_validator(mode="before")
        @classmethod
        def _checked(cls, row: Any) -> Any:
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, seen {shown(row)}")
            return validate(row)

        @classmethod
        def model_json_schema(cls, *arguments: Any, **named: Any) -> dict[str, Any]:
            return {"title": name, **json.loads(json.dumps(schema))}

    Answer.__name__ = Answer.__qualname__ = name
    Answer.__doc__ = str(schema.get("description") or "")
    return Answer


def _choice_schema(options: tuple[str, ...]) -> dict[str, Any]:
    return {
        "title": "Choice",
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(options)}},
        "required": ["choice"],
        "additionalProperties": False,
    }


def _chosen(options: tuple[str, ...]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def validate(row: Mapping[str, Any]) -> dict[str, Any]:
        if row.get("choice") not in options:
            raise ValueError(f"choice is {shown(row.get('choice'))}, which is none of the options")
        return {"choice": row["choice"]}

    return validate


def answer_of(message: Mapping[str, Any], tool: str = "") -> dict[str, Any]:
    """Return the JSON object that a message holds: in a tool call or in the text, with whatever models put around it.

    Args:
        message: Of a completion.
        tool: Name of the tool that the model was given; a call of it may be written out as text.

    Raises:
        Rejected: It holds none, or two that differ, so that one would have to guess.
    """
    texts = [text for text in (*_arguments(message), _text(message.get("content"))) if text]
    problem = Rejected("invalid", "Invalid JSON: the reply is empty")
    if not texts:
        texts = [text for key in _THOUGHTS if _is_object(text := message.get(key))][:1]
    for text in texts:
        if isinstance(text, dict):
            return _called(text, tool)
        try:
            return _called(_strict(text), tool)
        except ValueError as error:
            problem = Rejected("invalid", f"Invalid JSON: {error}")
    for text in texts:
        objects = _objects(str(text))
        if len(objects) > 1:  # some repeat the schema before they answer
            objects = [row for row in objects if not _is_schema(row)] or objects
        try:
            objects = _distinct(_called(row, tool, marked=bool(_WRITTEN_CALL.search(str(text)))) for row in objects)
        except ValueError as error:
            raise Rejected("invalid", f"Invalid JSON: {error}") from None
        if len(objects) > 1:
            raise Rejected("invalid", "Invalid JSON: there are two different objects; answer with one")
        if objects:
            return objects[0]
    raise problem


_THOUGHTS = ("reasoning_content", "reasoning")
"""Where some servers put a whole answer, for which they leave the content empty."""


def _is_object(text: Any) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(text, str) and bool(_strict(text))
    return False


def _distinct(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for row in rows:
        if row not in found:
            found.append(row)
    return found


def _is_schema(row: Any) -> bool:
    """Return whether an object is a JSON Schema rather than what it describes."""
    return isinstance(row.get("properties"), dict) and (row.get("type") == "object" or "$schema" in row or "$defs" in row)


_WRITTEN_CALL = re.compile(r"<\|?(?:tool|function)_?calls?\b[^>]*>|\[TOOL_CALLS?\]|<function[=>]", re.IGNORECASE)
"""What stands before a tool call that a model writes out, and its server does not read."""


def _called(row: dict[str, Any], tool: str, *, marked: bool = False) -> dict[str, Any]:
    """Return the arguments of a tool call that is written out as an object; any other object as it is.

    Raises:
        ValueError: The arguments are no object.
    """
    arguments = row.get("arguments", row.get("parameters"))
    if not (marked or (tool and row.get("name") == tool)) or not row.keys() <= {"name", "type", "id", "arguments", "parameters"}:
        return row
    if isinstance(arguments, str):
        return _strict(arguments)
    return arguments if isinstance(arguments, dict) else row


def _arguments(message: Mapping[str, Any]) -> list[Any]:
    """Return what a message calls tools with: JSON, or the object itself."""
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    functions = functions or [message.get("function_call")]
    found: list[Any] = []
    for function in functions:
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, (str, dict)) and arguments not in found:
            found.append(arguments)
    if len(found) > 1:
        raise Rejected("invalid", "Invalid JSON: there are two different tool calls; answer with one")
    return found


def _text(content: Any) -> Any:
    """Return the text of a message: a string, or its parts but for the thoughts among them; or the object that stands in its place."""
    if isinstance(content, dict) and "text" not in content:
        return content
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, dict) and str(part.get("type") or "text") in ("text", "output_text"):
            part = part.get("text")
            part = part.get("value") if isinstance(part, dict) else part
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts).strip().removeprefix("\ufeff")


def _refusal(message: Mapping[str, Any]) -> str:
    """Return in which words a model refuses to answer; empty if it does not."""
    content = message.get("content")
    parts = [message, *(part for part in content if isinstance(part, dict))] if isinstance(content, list) else [message]
    return next((part["refusal"] for part in parts if isinstance(part.get("refusal"), str) and part["refusal"]), "")


_REFUSALS = ("content_filter", "content_filtered", "safety", "prohibited_content", "blocklist", "recitation", "spii", "refusal")
_CUT_OFF = ("length", "max_tokens", "model_length", "max_output_tokens")
"""Why a reply ended, in the words of OpenAI and those of others behind the same API."""
_TAG = r"(?:\w+:)?(?:ant)?(?:think|thinking|thoughts?|reasoning|analysis|reflection|scratchpad)"
_LANDMARK = re.compile(
    rf"(?P<end></{_TAG}>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>|<\|channel\|>\s*final\b.*?<\|message\|>)"
    rf"|(?P<start><{_TAG}>|◁think▷|\[THINK\]|<\|begin_of_thought\|>|<\|channel\|>)|\{{",
    re.IGNORECASE | re.DOTALL,
)
"""Where a model's thoughts start and end, in the marks of several, and where an object may start."""


def _strict(text: str) -> dict[str, Any]:
    """Return the object that a text is, and nothing else.

    Raises:
        ValueError: It is not one.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_object)
        if isinstance(value, str):  # some servers encode twice
            value = json.loads(value, parse_constant=_no_constant, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, seen {shown(value)}")
    return value


def _objects(text: str) -> list[dict[str, Any]]:
    """Return the different objects that stand in a text outside of the model's thoughts; none if what looks like one is broken."""
    decoder = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_object, strict=False)
    found: list[Any] = []
    before: list[Any] | None = None  # the thoughts, while in them
    place = 0
    while landmark := _LANDMARK.search(text, place):
        place = landmark.end()
        if landmark["end"]:  # some templates swallow the start
            found, before = before or [], None
        elif landmark["start"]:
            before = list(found) if before is None else before
        else:
            try:
                value, place = decoder.raw_decode(text, landmark.start())
            except (ValueError, RecursionError):
                if re.match(r"\s*[\"'{}]", text[place : place + 200]):  # what stands in it is a part of an answer at best
                    found.append(None)
            else:
                if value not in found:
                    found.append(value)
    found = found if before is None else before
    return [] if None in found else found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in pairs:
        if name in row and row[name] != value:
            raise ValueError(f"the key {shown(name)} stands there twice")
        row[name] = value
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _completion(reply: Line) -> Any:
    """Return a reply as the SDK's object, for instructor to show it to the model again; of odd ones the text alone."""
    from openai.types.chat import ChatCompletion

    message = reply["reply"]["choices"][0]["message"]
    calls = message.get("tool_calls")
    well_formed = isinstance(calls, list) and all(
        isinstance(call, dict)
        and isinstance(call.get("id"), str)
        and isinstance(function := call.get("function"), dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), str)
        for call in calls
    )
    text = _text(message.get("content"))
    plain: dict[str, Any] = {"role": "assistant", "content": text if isinstance(text, str) else json.dumps(text), "refusal": None}
    if well_formed:
        plain |= {"content": plain["content"] or None, "tool_calls": [{**call, "type": "function"} for call in calls]}
    choice = {"finish_reason": "stop", "index": 0, "message": plain}
    return ChatCompletion.construct(id="", created=0, model="", object="chat.completion", choices=[choice])


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
