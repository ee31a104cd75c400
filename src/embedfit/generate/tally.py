"""Outcomes and cost of a run so far, for the progress bar, and the stop of a hopeless run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from embedfit.errors import EndpointError
from embedfit.generate.asker import Asker

_HOPELESS = 50
"""Replies without a single usable one after which the run stops: the prompt or the model is wrong."""


class Tally:
    """Counts outcomes, and writes them into the ledger.

    Args:
        asker: Stopped when no reply can be used.
        priced: Whether the prices of all models are known.
        currency: Currency of the prices, in words.

    Attributes:
        outcomes: Outcome -> number of replies and refusals.
        passing: Replies that passed their checks, near duplicates excluded.
        given_up: Places for which every attempt failed.
        progress: Advances the progress bar that is shown.
    """

    def __init__(self, asker: Asker, *, priced: bool, currency: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.passing = self.given_up = 0
        self.progress: Callable[..., None] = lambda steps, **said: None
        self._asker, self._ledger = asker, asker.ledger
        self._priced, self._currency = priced, currency

    def settle(self, id: str, outcome: str, why: str = "", record: Any = None) -> None:
        """Write into the ledger what became of a reply, and count it."""
        self._ledger.decide(id, outcome, why, record)
        self.count(outcome, why)

    def count(self, outcome: str, why: str) -> None:
        """Count an outcome. Stops everything if no reply of many could be used."""
        self.outcomes[outcome] += 1
        answered = self.outcomes.total()
        if answered >= _HOPELESS and not self.passing:
            reason, times = self.outcomes.most_common(1)[0]
            self._asker.stop(
                EndpointError(
                    f"none of the first {answered} replies could be used, {times} for this reason: {reason} "
                    f"(the last: {why}); fix: see the prompt and {self._ledger.path}, or take another model"
                )
            )

    def passed(self, replies: int) -> None:
        """Count replies that passed their checks; -1 takes one back. The progress bar moves at once, before they are decided."""
        self.passing += replies
        rejected = self.outcomes.total() - self.outcomes["accepted"]
        self.progress(replies, said=f"{self.cost}, {self.passing / max(1, self.passing + rejected):.0%} accepted")

    @property
    def cost(self) -> str:
        """The price paid so far, or the tokens where a price is not known."""
        paid = self._ledger.paid
        return f"{paid.price:.4f} {self._currency} paid" if self._priced else f"{paid.tokens:,} tokens"
