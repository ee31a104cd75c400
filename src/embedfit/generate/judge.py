"""Easy, hard and suspect records, told apart by a second model that does not know their labels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from embedfit.errors import EmbedfitError
from embedfit.generate.asker import Asker
from embedfit.generate.endpoint import Refused, Stopped
from embedfit.generate.exchange import Exchange
from embedfit.generate.ledger import digest
from embedfit.generate.tasks import Rejected, drawn, filled


class Judge:
    """Sorts accepted records by difficulty.

    Args:
        exchange: Makes the requests.
        asker: Sends them.
        template: Jinja source of the prompt.
    """

    def __init__(self, exchange: Exchange, asker: Asker, template: str) -> None:
        self._exchange, self._asker, self._ledger, self._template = exchange, asker, asker.ledger, template
        self._model = str(exchange.config.judge)

    async def difficulties(self, accepted: Mapping[int, str], advance: Callable[[], None]) -> dict[int, str]:
        """Return position -> ``easy``, ``hard`` or ``suspect``. A record that the judge refuses to read has no difficulty.

        Args:
            accepted: Position -> id of the request of the accepted reply.
            advance: Called after each record.
        """
        difficulties: dict[int, str] = {}
        positions = iter(sorted(accepted))

        async def work() -> None:
            for position in positions:
                try:
                    difficulties[position] = await self._difficulty(position, accepted[position])
                except Refused:
                    pass
                except Stopped:
                    continue  # records that were judged before are in the ledger
                except EmbedfitError as error:  # the prompt template cannot be filled
                    self._asker.stop(error)
                advance()

        async with asyncio.TaskGroup() as group:
            for _ in range(self._exchange.config.concurrency):
                group.create_task(work())
        return difficulties

    async def _difficulty(self, position: int, id: str) -> str:
        """Return ``easy`` if the first answer is right, ``hard`` if a later one is, else ``suspect``."""
        task, config = self._exchange.task, self._exchange.config
        slot, row = task.slot(position), (self._ledger.verdict(id) or {})["record"]
        for attempt in range(config.judge_tries):
            own = digest([id, "judge", self._model, self._template, attempt])[:16]
            options, right = task.options(slot, drawn(own))
            names = tuple(sorted(option["name"] for option in options))
            reply = self._ledger.reply(own)
            if not reply:
                prompt = filled(self._template, text=task.shown(row), options=options, kind=task.kind)
                facts = {"kind": "judge", "for": id, "attempt": attempt}
                reply = await self._asker.ask(self._exchange.choice_request(self._model, names, prompt, own, facts))
            try:
                choice = self._exchange.choice(reply, names)
            except Rejected as rejected:
                self._ledger.decide(own, rejected.reason, rejected.why)
                continue
            self._ledger.decide(own, "right" if choice == right else "wrong", record=choice)
            if choice == right:
                return "easy" if attempt == 0 else "hard"
        return "suspect"
