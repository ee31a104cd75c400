"""The result of generation: counts, cost, diversity."""

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
    """Diversity of a set of texts.

    Attributes:
        distinct_words: Share of distinct words among all words (distinct-1: J. Li et al., A diversity-promoting objective, 2016).
        distinct_pairs: Share of distinct pairs of neighbouring words among all such pairs (distinct-2).
        overlap: Median over texts of the Jaccard similarity of words with the nearest text of the same label, 0 to 1.
        fields: (field, distinct values, values, most frequent value, its count) for each field, most repetitive first.
    """

    distinct_words: float
    distinct_pairs: float
    overlap: float
    fields: tuple[tuple[str, int, int, str, int], ...]


@dataclass(frozen=True)
class Generated:
    """The result of generation.

    Attributes:
        kind: ``records`` or ``queries``.
        output: Path of the file that was written.
        ledger: Path of the ledger of all requests.
        asked: Number of records or queries asked for.
        accepted: Number of records or queries in the output.
        given_up: Number of places for which every attempt was rejected, or the endpoint refused to answer.
        outcomes: Outcome -> number of replies and refusals, without those of the judge.
        labels: Label -> number of accepted records, most frequent first.
        difficulty: Label -> ``easy``, ``hard``, ``suspect`` -> number of records; empty without a judge.
        diversity: Diversity of the output; None if it is empty.
        requests: Number of replies in all runs on this ledger, those of the judge included.
        tokens: Tokens of all replies.
        price: Price of all replies; None where the price of a model is not known.
        lost_requests: Number of requests that may have been charged without a reply.
        lost_price: Maximum price of these requests.
        seconds: Duration of this run.
        new_requests: Number of replies in this run.
        stopped: Reason why the run ended early; empty if it did not.
        currency: Currency of the prices, in words.
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
        """Share of accepted replies, 0 to 1, without those of the judge."""
        return self.accepted / max(1, sum(self.outcomes.values()))

    @property
    def sentence(self) -> str:
        """A summary in one line."""
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
        """Why nothing was written, in one line."""
        reasons = ", ".join(f"{count:,} {outcome}" for outcome, count in self.outcomes.items() if outcome != "accepted")
        suspect = sum(counts["suspect"] for counts in self.difficulty.values())
        reasons += f"{', ' if reasons else ''}{suspect:,} suspect" if suspect else ""
        line = f"none of {self.asked:,} {self.kind} could be written, of {self.requests:,} requests"
        line += f" for {self.price:.4f}" if self.price else ""
        line += f": {reasons}" if reasons else ""
        line += f"; {self.stopped}" if self.stopped else ""
        return f"{line}; fix: see the prompt and {self.ledger}, or take another model"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        diversity = vars(self.diversity) if self.diversity else None
        return {**vars(self), "output": str(self.output), "ledger": str(self.ledger), "diversity": diversity}


@dataclass(frozen=True)
class Estimate:
    """The requests that remain, and their expected cost.

    Attributes:
        requests: Expected number of requests.
        tokens: Expected number of tokens.
        price: Expected price; None where the price of a model is not known.
        most: Price if every reply has its maximum length; None where the price of a model is not known.
        currency: Currency of the prices, in words.
    """

    requests: int
    tokens: int
    price: float | None
    most: float | None
    currency: str = DOLLARS

    @property
    def sentence(self) -> str:
        """A summary in one line."""
        if not self.requests:
            return "nothing is left to ask"
        price = "the price of the model is not known"
        if self.price is not None:
            price = f"{self.price:.4f} (at most {self.most:.4f}) {self.currency}"
        return f"about {self.requests:,} requests, {self.tokens:,} tokens, {price}"


def measure_diversity(rows: Iterator[Row], task: Task) -> Diversity:
    """Return the diversity of generated rows."""
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
        texts = [str(value) for name, value in own.items() if name not in ("style", "persona") and value is not None]
        row_words = words_of(" ".join(texts))
        words.update(row_words)
        pairs.update(itertools.pairwise(row_words))
        sets.setdefault(str(row[label_field]), []).append(frozenset(row_words))
    nearest = [overlap for same_label in sets.values() for overlap in _nearest_overlaps(same_label)]
    fields = [(name, len(counts), counts.total(), *counts.most_common(1)[0]) for name, counts in values.items()]
    fields.sort(key=lambda field: field[1] / field[2])
    return Diversity(
        len(words) / max(1, words.total()),
        len(pairs) / max(1, pairs.total()),
        statistics.median(nearest) if nearest else 0.0,
        tuple(fields),
    )


def _nearest_overlaps(sets: Sequence[frozenset[str]]) -> list[float]:
    """Return for each set of words its largest Jaccard similarity with another set."""
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
    overlaps: list[float] = []
    for start in range(0, len(sets), 512):
        both = (holds[start : start + 512] @ holds.T).toarray()
        share = both / np.maximum(sizes[start : start + 512, None] + sizes - both, 1)
        share[np.arange(len(share)), np.arange(start, start + len(share))] = 0
        overlaps += share.max(axis=1).tolist()
    return overlaps


def currency_of(config: GenerateConfig) -> str:
    """Return the currency of prices, in words. The bundled prices are in dollars; prices in the configuration name no currency."""
    return "in the currency of generate.price" if config.price or config.judge_price else DOLLARS


def prices_of(config: GenerateConfig) -> dict[str, tuple[float, float]]:
    """Return the known prices of the writing and the judging model.

    Raises:
        ConfigError: There is a budget, and the price of a model is not known.
    """
    host = checked_address(config.base_url or openai_url()).hostname or ""
    known = dict(PRICES) if host == urllib.parse.urlsplit(OPENAI).hostname or host.endswith(".openai.azure.com") else {}
    if config.price:
        known[config.model] = config.price
    if config.judge and config.judge_price:
        known[config.judge] = config.judge_price
    models = [config.model, *([config.judge] if config.judge else [])]
    for model in models:
        if config.budget is not None and model not in known:
            name = "price" if model == config.model else "judge_price"
            raise ConfigError(f"a budget needs the price of {model!r}; fix: give {name}, for a million prompt tokens and completion tokens")
    return {model: known[model] for model in models if model in known}
