"""What a run of generation gave: counts, cost, diversity."""

from __future__ import annotations

import itertools
import statistics
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedfit.config import GenerateConfig
from embedfit.data.dataset import Row
from embedfit.errors import ConfigError
from embedfit.generate.endpoint import DOLLARS, PRICES
from embedfit.generate.tasks import Questions, Records, Task
from embedfit.hosts import OPENAI, checked_address, openai_url
from embedfit.words import words_of


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


def currency_of(config: GenerateConfig) -> str:
    """Return what amounts are in, in words: dollars by the bundled prices; nobody says what currency given prices are in."""
    return "in the currency of generate.price" if config.price or config.judge_price else DOLLARS


def prices_of(config: GenerateConfig) -> dict[str, tuple[float, float]]:
    """Return the prices that are known of the models asked.

    Raises:
        ConfigError: There is a budget, and a price is not known.
    """
    host = checked_address(config.base_url or openai_url()).hostname or ""
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
