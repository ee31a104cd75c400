"""Many requests to an LLM at a time, each paid for once: pace, retries and budget.

An `Asker` looks into the ledger first, and sends what is not there. It keeps to a maximum number of requests under way, lowers it while
the endpoint answers 429, retries after errors that may pass, and sends nothing that could exceed the budget. A request that is refused
for its content (too long, or caught by a content filter) fails alone, and the ledger keeps the refusal. Any other lasting error stops
everything at once. Requests that are under way then are waited for, as they have to be paid for.

A request counts as charged if it was sent and not answered: a timeout while reading, a dropped connection, a broken completion. It does
not count if it never left (no connection, an unknown host, a refused certificate or proxy, an invalid header), or if the answer is
anything else than a completion, whatever its status.
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
"""Requests that may be given up one after another without an answer to any. After more of them the endpoint is to blame."""
_CERTAIN_TOKENS_PER_BYTE = 1.0
"""Upper bound: no tokenizer makes more tokens than there are bytes. Replies show a lower one."""
_MARGIN = 1.25
"""Factor on the highest number of tokens per byte seen so far."""


class _Pace:
    """Limits the requests under way. A 429 halves the limit; it grows by one after as many answers as it allows requests."""

    def __init__(self, most: int, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.most, self.limit, self.under_way = most, float(most), 0
        self._sleep = sleep
        self._slowed = self._until = 0.0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for a place, and give the time at which it was free."""
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
        """Lower the limit after a 429, unless its request was sent before the limit was last lowered.

        Args:
            since: Time at which the request was sent.
            wait: Seconds that the endpoint asks to wait; None if it does not say.
        """
        if wait:
            self._until = max(self._until, time.monotonic() + wait)
        if since >= self._slowed:
            self._slowed, self.limit = time.monotonic(), max(1.0, self.limit / 2)

    def faster(self) -> None:
        """Raise the limit after an answer."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)


class Asker:
    """Sends the requests that have no reply in the ledger.

    Args:
        endpoint: Makes the endpoint. It is called when the first request is sent, so that no key is needed before.
        ledger: Requests and replies so far.
        limits: Limits on requests, time and money.
        prices: Model -> price of a million (prompt tokens, completion tokens).

    Attributes:
        stopping: Reason why nothing more is sent; None while requests are sent.
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
        """Send nothing more. Only the first reason is kept."""
        self.stopping = self.stopping or why
        self._stopped.set()

    async def _sleep(self, seconds: float) -> None:
        """Sleep until the time is over or everything stops."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def close(self) -> None:
        """Close the connections."""
        if self._endpoint:
            await self._endpoint.close()

    async def ask(self, request: Request) -> Line:
        """Return the ledger line of the reply to a request. The request is sent only if there is none.

        Raises:
            Stopped: Nothing more may be sent.
            Refused: The request is refused for its content, now or in an earlier run.
        """
        if reply := self.ledger.reply(request.id):
            return reply
        if refusal := self.ledger.refusal(request.id):
            raise Refused(*refusal)
        try:
            return await self._send(request)
        except EmbedfitError as error:
            self.stop(error)
            raise Stopped from None

    def most(self, body: Mapping[str, Any]) -> Cost:
        """Return the maximum cost of a request."""
        per_byte = min(_CERTAIN_TOKENS_PER_BYTE, _MARGIN * self._seen.get(body["model"], _CERTAIN_TOKENS_PER_BYTE))
        return self._cost(body["model"], int(_size(body) * per_byte) + 1, int(body["max_tokens"]))

    def _cost(self, model: str, prompt: int, completion: int) -> Cost:
        rate = self.prices.get(model, (0.0, 0.0))
        return Cost(prompt + completion, (prompt * rate[0] + completion * rate[1]) / 1e6)

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
        """Wait until the budget has room for a request, and write into the ledger that it is sent.

        Raises:
            Stopped: Everything was stopped meanwhile.
            BudgetError: There is no room, and nothing is under way that may cost less than its maximum.
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
            return f"stopped before the budget of {self.limits.budget:g} would be exceeded: {spent}"
        if self.limits.tokens is not None and after.tokens > self.limits.tokens:
            used = f"{self.ledger.spent.tokens:,} are used, and the next request could take {most.tokens:,}"
            return f"stopped before {self.limits.tokens:,} tokens would be exceeded: {used}"
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
                f"{self._connected().base_url} has answered nothing but 429 for {without:.0f} s"
                + (f", and asks for {wait:.0f} s more" if wait else "")
                + "; fix: run the same command later"
            )
        return wait

    def _give_up(self, request: Request, broken: Broken, failures: int, began: float) -> None:
        """Give up after too many failures in a row: this request alone, or everything if no request is answered.

        Raises:
            Refused: The endpoint has answered other requests, and this one breaks it.
            EndpointError: The endpoint cannot be reached, has never answered, or broke at many requests in a row.
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
        raise EndpointError(f"{self._connected().base_url} {seen}; fix: run the same command when it is back, to continue from here")

    def _connected(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = self._make()
        return self._endpoint

    async def _keep(self, request: Request, completion: Line, tries: int, seconds: float) -> Line:
        model, usage = request.body["model"], completion.get("usage")
        counted = token_count(usage, "prompt_tokens"), token_count(usage, "completion_tokens")
        is_counted = None not in counted
        text = json.dumps(completion["choices"][0]["message"])
        # Where an endpoint does not count tokens, the prompt is taken at its maximum, and the answer by its bytes.
        prompt = self.most(request.body).tokens - int(request.body["max_tokens"]) if counted[0] is None else counted[0]
        answer = min(int(request.body["max_tokens"]), len(text)) if counted[1] is None else counted[1]
        if is_counted:
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
            "counted": is_counted,
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
    except (NotImplementedError, RuntimeError):  # not on Windows: there Ctrl-C ends at once
        yield
        return
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _size(body: Mapping[str, Any]) -> int:
    """Return the bytes of everything that the model reads, with room for the marks between turns."""
    parts = {key: body[key] for key in ("messages", "response_format", "tools") if key in body}
    return len(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")) + 64
