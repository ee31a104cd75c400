"""An LLM says whether documents answer queries, so that unlabelled answers are not trained against. Each pair is paid for once."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedfit import progress
from embedfit.config import GenerateConfig
from embedfit.errors import EmbedfitError
from embedfit.generate.asker import Asker, interruptible
from embedfit.generate.endpoint import Endpoint, Limits, Refused, Stopped, endpoint_of
from embedfit.generate.exchange import Exchange, start_of
from embedfit.generate.ledger import Ledger, digest, open_ledger
from embedfit.generate.outcome import currency_of, prices_of
from embedfit.generate.tasks import Rejected, filled, prompt_template
from embedfit.generate.writer import ran

LLM = "openai:"
"""Beginning of a judge's name if it is an LLM at the endpoint of [generate]; its name there follows."""
_NO, _YES = "no", "yes"


class _Pairs:
    """Pairs of a query and a document, as the requests of an `Exchange`."""

    kind = "relevance"

    def __init__(self, template: str) -> None:
        self._template = template

    def start(self) -> dict[str, Any]:
        return {"prompt": self._template}


class RelevanceJudge:
    """Asks an LLM whether documents answer queries.

    Args:
        model: Name of the LLM at its endpoint.
        config: Endpoint, limits and parameters. The budget counts for the ledger of this judge alone.
        folder: Folder of the ledger. A pair that stands there is not asked again, whichever training asked it.
        endpoint: Makes the endpoint when the first request is sent. By default from the configuration and the environment.
    """

    def __init__(self, model: str, config: GenerateConfig, folder: Path, endpoint: Callable[[], Endpoint] | None = None) -> None:
        price = config.judge_price or config.price
        self._config = config.model_copy(update={"model": model, "price": price, "judge": None, "judge_price": None})
        self._folder, self._endpoint = folder, functools.cache(endpoint or functools.partial(endpoint_of, self._config))
        self._template = prompt_template(None, "relevance")
        task: Any = _Pairs(self._template)
        self._start, self._exchange = start_of(task, self._config), Exchange(task, self._config)

    def answers(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.bool_]:
        """Return whether the document of each pair (query text, document text) may answer the query.

        A pair that the LLM refuses to read, or answers in no usable way, may.

        Raises:
            EndpointError: The endpoint cannot be used, or the budget is reached. The same call continues from there.
            ConfigError: The environment lacks a key, or a budget has no price.
        """
        with open_ledger(self._folder, self._start) as ledger:
            said = ran(self._ask_all(list(dict.fromkeys(pairs)), ledger))
        return np.array([said[pair] != _NO for pair in pairs], np.bool_)

    async def _ask_all(self, pairs: Sequence[tuple[str, str]], ledger: Ledger) -> dict[tuple[str, str], str]:
        config = self._config
        limits = Limits(config.concurrency, config.timeout, config.budget, config.max_tokens_total, currency=currency_of(config))
        asker = Asker(self._endpoint, ledger, limits, prices_of(config))
        said: dict[tuple[str, str], str] = {}
        left = iter(pairs)

        async def work() -> None:
            for pair in left:
                try:
                    said[pair] = await self._ask(pair, asker)
                except Stopped:
                    return
                advance(1)

        try:
            with interruptible(asker), progress.bar("judging", len(pairs)) as advance:
                async with asyncio.TaskGroup() as group:
                    for _ in range(config.concurrency):
                        group.create_task(work())
        finally:
            await asker.close()
        if asker.stopping:
            raise asker.stopping
        return said

    async def _ask(self, pair: tuple[str, str], asker: Asker) -> str:
        """Return ``yes``, ``no``, or an empty text if there is no usable answer."""
        query, document = pair
        for attempt in range(self._config.judge_tries):
            id = digest([self._start, query, document, attempt])[:16]
            try:
                prompt = filled(self._template, query=query, document=document)
                request = self._exchange.choice_request(
                    self._config.model, (_NO, _YES), prompt, id, {"kind": "relevance", "attempt": attempt}
                )
                reply = await asker.ask(request)
            except Refused:
                return ""
            except EmbedfitError as error:  # the prompt template cannot be filled
                asker.stop(error)
                raise Stopped from None
            try:
                choice = self._exchange.choice(reply, (_NO, _YES))
            except Rejected as rejected:
                asker.ledger.decide(id, rejected.reason, rejected.why)
                continue
            asker.ledger.decide(id, choice, record=choice)
            return choice
        return ""


def relevance_judge(name: str | None, config: GenerateConfig, folder: Path) -> RelevanceJudge | None:
    """Return the judge that ``tune.judge`` names; None if it names no LLM.

    Args:
        name: The setting.
        config: Settings of the endpoint.
        folder: Folder beside which the ledger stands.
    """
    return RelevanceJudge(name.removeprefix(LLM), config, folder / "judge.ledger") if name and name.startswith(LLM) else None
