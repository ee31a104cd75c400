"""Asking an LLM over HTTP: any OpenAI-compatible endpoint, many requests at a time, each paid for once.

An `Asker` looks into the ledger first. What is not there is sent: at most so many at a time, fewer while the endpoint says
429, again after errors that pass, and never where it could cost more than there is to spend. A request that is refused for what it
says (too long, or caught by a content filter) is refused alone, and the ledger knows. Other errors that do not pass stop everything
at once. What is under way then is waited for, as it has to be paid for.

A request counts as charged when it was sent and no answer came: a timeout while reading, a dropped connection, a completion that is
broken. What never left (no connection, no host of that name, a refused certificate or proxy, a header that cannot be sent) and what
came back as anything else than a completion, also under status 200, does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

from embedfit import console
from embedfit.errors import EmbedfitError, EndpointError
from embedfit.generate.endpoint import Broken, BudgetError, Busy, Endpoint, Limits, Refused, Request, Stopped, token_count
from embedfit.generate.ledger import Cost, Ledger, Line, digest

_ALONE = 5
"""Requests in a row, without an answer to any other, that may be given up one by one; more of them, and the endpoint is to blame."""
_CERTAIN_TOKENS_PER_BYTE = 1.0
"""No tokenizer makes more tokens than there are bytes. What is seen later says how many fewer there are."""
_MARGIN = 1.25
"""Over the most tokens per byte that were seen."""


class _Pace:
    """How many requests may be under way: half as many after a 429, one more after as many answers as there are places."""

    def __init__(self, most: int, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.most, self.limit, self.under_way = most, float(most), 0
        self._sleep = sleep
        self._slowed = self._until = 0.0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for a place; gives the time at which it was had."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.under_way < max(1, int(self.limit)))
            self.under_way += 1
        try:
            if (wait := self._until - time.monotonic()) > 0:
                await self._sleep(wait)
            yield time.monotonic()
        finally:
            async with self._changed:
                self.under_way -= 1
                self._changed.notify_all()

    def slower(self, since: float, wait: float | None) -> None:
        """Take note of a 429; those sent before the last slowing down do not count, as they could not know of it."""
        if wait:
            self._until = max(self._until, time.monotonic() + wait)
        if since >= self._slowed:
            self._slowed, self.limit = time.monotonic(), max(1.0, self.limit / 2)

    def faster(self) -> None:
        """Take note of an answer."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)


class Asker:
    """Asks an endpoint for what is not in the ledger yet.

    Args:
        endpoint: Makes the endpoint; called when something has to be sent, so that no key is needed before.
        ledger: What is known already.
        limits: What it may take.
        prices: Model -> money for a million tokens of (prompt, completion).

    Attributes:
        stopping: Why nothing more is sent, if so.
    """

    def __init__(self, endpoint: Callable[[], Endpoint], ledger: Ledger, limits: Limits, prices: Mapping[str, tuple[float, float]]) -> None:
        self.ledger, self.limits, self.prices = ledger, limits, prices
        self.stopping: EmbedfitError | KeyboardInterrupt | None = None
        self._make = endpoint
        self._endpoint: Endpoint | None = None
        self._stopped = asyncio.Event()
        self._pace = _Pace(limits.concurrency, self._sleep)
        self._seen: dict[str, float] = {}
        self._answered: float | None = None
        self._given_up = 0
        self._began = time.monotonic()
        self._room = asyncio.Condition()

    def stop(self, why: EmbedfitError | KeyboardInterrupt) -> None:
        """Send nothing more; the first reason stays."""
        self.stopping = self.stopping or why
        self._stopped.set()

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not when nothing more is sent anyway."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def close(self) -> None:
        """Close the connections."""
        if self._endpoint:
            await self._endpoint.close()

    async def ask(self, request: Request) -> Line:
        """Return the ledger's line of a request's reply, sending it only if there is none.

        Raises:
            Stopped: Nothing more may be sent.
            Refused: This one is refused for what it says, now or in an earlier run.
        """
        known = self.ledger.reply(request.id)
        if known:
            return known
        if refusal := self.ledger.refusal(request.id):
            raise Refused(*refusal)
        try:
            return await self._send(request)
        except EmbedfitError as error:
            self.stop(error)
            raise Stopped from None

    def most(self, body: Mapping[str, Any]) -> Cost:
        """Return what a request may cost at most."""
        per_byte = min(_CERTAIN_TOKENS_PER_BYTE, _MARGIN * self._seen.get(body["model"], _CERTAIN_TOKENS_PER_BYTE))
        return self._cost(body["model"], int(_size(body) * per_byte) + 1, int(body["max_tokens"]))

    def _cost(self, model: str, prompt: int, completion: int) -> Cost:
        each = self.prices.get(model, (0.0, 0.0))
        return Cost(prompt + completion, (prompt * each[0] + completion * each[1]) / 1e6)

    async def _send(self, request: Request) -> Line:
        failures = tries = 0
        began = time.monotonic()
        while True:
            wait = None
            async with self._pace.turn() as since:
                endpoint = self._connected()
                await self._reserve(request)
                tries += 1
                started = time.monotonic()
                try:
                    completion = await endpoint.once(request.body, self.limits.timeout)
                except Busy as busy:
                    await self._failed(request, "HTTP 429", charged=False)
                    wait = self._slower(since, busy.wait)
                except Broken as broken:
                    await self._failed(request, str(broken), charged=broken.charged)
                    failures += 1
                    self._give_up(request, broken, failures, began)
                except Refused as refused:
                    self.ledger.refuse(request.id, refused.reason, refused.why)
                    await self._settled()
                    raise
                except EmbedfitError as error:
                    await self._failed(request, str(error), charged=False)
                    raise
                else:
                    self._answered, self._given_up = time.monotonic(), 0
                    self._pace.faster()
                    return await self._keep(request, completion, tries, time.monotonic() - started)
            await self._sleep(0 if wait else self.limits.retries.wait(tries))

    async def _reserve(self, request: Request) -> None:
        """Wait until a request fits into what may be spent, and write that it goes out.

        Raises:
            Stopped: Somebody else stopped meanwhile.
            EmbedfitError: It does not fit, and nothing is under way whose real cost may be less.
        """
        most = self.most(request.body)
        async with self._room:
            while True:
                if self.stopping:
                    raise Stopped
                short = self._short(most)
                if not short:
                    self.ledger.sent(request.id, most)
                    return
                if not self.ledger.under_way:
                    raise BudgetError(f"{short}; fix: raise it, and run the same command")
                await self._room.wait()
                most = self.most(request.body)

    def _short(self, most: Cost) -> str:
        after = self.ledger.spent + most
        if self.limits.budget is not None and after.price > self.limits.budget:
            spent = f"{self.ledger.spent.price:.4f} {self.limits.currency} is spent, and the next request could cost {most.price:.4f}"
            return f"stopped before the budget of {self.limits.budget:g} would be passed: {spent}"
        if self.limits.tokens is not None and after.tokens > self.limits.tokens:
            used = f"{self.ledger.spent.tokens:,} are used, and the next request could take {most.tokens:,}"
            return f"stopped before {self.limits.tokens:,} tokens would be passed: {used}"
        return ""

    async def _failed(self, request: Request, why: str, *, charged: bool) -> None:
        self.ledger.failed(request.id, why, charged=charged)
        await self._settled()

    async def _settled(self) -> None:
        async with self._room:
            self._room.notify_all()

    def _slower(self, since: float, wait: float | None) -> float | None:
        self._pace.slower(since, wait)
        without = time.monotonic() - (self._answered or self._began)
        if any(map(self.limits.retries.is_too_long, (without, wait))):
            raise EndpointError(
                f"{self._connected().base_url} has been saying 429 for {without:.0f} s"
                + (f", and asks for {wait:.0f} s more" if wait else "")
                + "; fix: run the same command later"
            )
        return wait

    def _give_up(self, request: Request, broken: Broken, failures: int, began: float) -> None:
        """Give up after too many failures in a row: this request alone, or everything where nobody is answered.

        Raises:
            Refused: The endpoint has answered others, and this request breaks it.
            EndpointError: It cannot be reached, has never answered, or breaks at many in a row.
        """
        if failures < self.limits.retries.limit(unreachable=broken.unreachable and self._answered is None):
            return
        self._given_up += 1
        if not broken.unreachable and self.ledger.requests and self._given_up <= _ALONE:
            why = f"failed {failures} times in a row ({broken})"
            if broken.charged and (self._answered or 0.0) > began:  # the next run would pay for as many tries again
                self.ledger.refuse(request.id, "failed", why)
            raise Refused("failed", why)
        seen = f"cannot be reached ({broken})" if broken.unreachable else f"failed {failures} times in a row ({broken})"
        raise EndpointError(f"{self._connected().base_url} {seen}; fix: run the same command when it is back, it goes on from here")

    def _connected(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = self._make()
        return self._endpoint

    async def _keep(self, request: Request, completion: Line, tries: int, seconds: float) -> Line:
        model, usage = request.body["model"], completion.get("usage")
        counted = token_count(usage, "prompt_tokens"), token_count(usage, "completion_tokens")
        said = None not in counted
        text = json.dumps(completion["choices"][0]["message"])
        # An endpoint that does not count is taken at its most for the prompt, and by bytes for the answer.
        prompt = self.most(request.body).tokens - int(request.body["max_tokens"]) if counted[0] is None else counted[0]
        answer = min(int(request.body["max_tokens"]), len(text)) if counted[1] is None else counted[1]
        if said:
            self._seen[model] = max(self._seen.get(model, 0.0), prompt / _size(request.body))
        cost = self._cost(model, prompt, answer)
        line = {
            **request.facts,
            "prompt": digest([request.body["messages"], request.body.get("response_format"), request.body.get("tools")])[:16],
            "model": model,
            "seed": request.body.get("seed"),
            "parameters": {key: request.body[key] for key in ("max_tokens", "temperature") if key in request.body},
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "counted": said,
            "price": cost.price,
            "seconds": round(seconds, 3),
            "tries": tries,
            "reply": completion,
        }
        await self.ledger.keep(request.id, cost, line)
        await self._settled()
        return {"event": "reply", "id": request.id, **line}


@contextlib.contextmanager
def interruptible(asker: Asker) -> Iterator[None]:
    """Let the first Ctrl-C wait for the requests under way, as they have to be paid for. The second one ends at once."""
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


def _size(body: Mapping[str, Any]) -> int:
    """Return the bytes of everything that the model reads, with room for what marks the turns."""
    read = {key: body[key] for key in ("messages", "response_format", "tools") if key in body}
    return len(json.dumps(read, ensure_ascii=False).encode("utf-8", "surrogatepass")) + 64
