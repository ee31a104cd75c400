"""Blind comparison of two searchers by what people pick: their answers are interleaved, and each pick counts for one of them.

Team-draft interleaving (Radlinski, Kurup and Joachims 2008, "How does clickthrough data reflect retrieval quality?", algorithm 2): the two
take turns in adding their best document that is not there yet, and a coin decides who begins each round. A pick counts for the one
that added the document. If both are equally good, each is as likely to get it, whatever place people prefer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

import numpy as np

from embedfit.evaluation.threshold import share_interval

_MOST_ROUNDS = 6
"""Rounds up to which the probability of an order is exact; beyond, it is that of one sequence of coins."""


@dataclass(frozen=True)
class Interleaved:
    """Two rankings in one.

    Attributes:
        ids: Document ids, in the order to show them.
        teams: For each, 0 if the first ranking added it, 1 if the second did.
        probability: Probability of this order, over 0 and at most 1.
    """

    ids: tuple[str, ...]
    teams: tuple[int, ...]
    probability: float


def team_draft(first: Sequence[str], second: Sequence[str], k: int, random: Random) -> Interleaved:
    """Interleave two rankings by team draft.

    Args:
        first: Document ids by one searcher, best first.
        second: Document ids by the other one.
        k: Number of documents to show.
        random: Source of the coins.
    """
    rounds = (k + 1) // 2
    coins = [random.randrange(2) for _ in range(rounds)]
    ids, teams = _drafted(first, second, k, coins)
    if rounds > _MOST_ROUNDS:
        return Interleaved(ids, teams, 0.5**rounds)
    same = sum(_drafted(first, second, k, other)[0] == ids for other in product((0, 1), repeat=rounds))
    return Interleaved(ids, teams, same / 2**rounds)


def _drafted(first: Sequence[str], second: Sequence[str], k: int, coins: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    ids: dict[str, int] = {}
    for coin in coins:
        for team in (coin, 1 - coin):
            best = next((id for id in (first, second)[team] if id not in ids), None)
            if best is not None and len(ids) < k:
                ids[best] = team
    return tuple(ids), tuple(ids.values())


@dataclass(frozen=True)
class Preference:
    """Which of two searchers people prefer.

    Attributes:
        first: Name of one searcher.
        second: Name of the other one.
        wins_first: Number of picks that count for the first.
        wins_second: Number of picks that count for the second.
        neither: Number of picks of none of the documents, or of one that was not shown.
        people: Number of people who picked.
        share: Share of the counted picks that are for the second, from 0 to 1.
        low: Lower end of its 95% interval.
        high: Upper end of its 95% interval.
    """

    first: str
    second: str
    wins_first: int
    wins_second: int
    neither: int
    people: int
    share: float
    low: float
    high: float

    @property
    def winner(self) -> str | None:
        """Name of the searcher that people are shown to prefer; None if no preference is shown."""
        return self.second if self.low > 0.5 else self.first if self.high < 0.5 else None

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        counts = f"{self.wins_second:,} picks for {self.second}, {self.wins_first:,} for {self.first}"
        share = f"{self.share:.0%} ({self.low:.0%} to {self.high:.0%}) for {self.second}"
        verdict = f"{self.winner} is preferred" if self.winner else "no preference is shown"
        return f"Blind comparison: {counts}: {share}; {verdict}."


def preferences(rows: Iterable[Mapping[str, Any]]) -> tuple[Preference, ...]:
    """Return the outcome of each blind comparison among picks.

    The interval is Clopper and Pearson's. If several people picked and one of them more than once, people are the sampling unit
    (`share_interval`), since one person's picks are alike. Picks without a name count as one person's each.

    Args:
        rows: Picks with their searches, from `Feedback.rows`.
    """
    pairs: defaultdict[tuple[str, str], list[tuple[str, str, str | None]]] = defaultdict(list)
    for row in rows:
        if row["kind"] != "pick" or '"teams"' not in row["shown"]:
            continue
        shown = json.loads(row["shown"])
        team = next((hit["team"] for hit in shown if hit["id"] == row["choice"]), None)
        first, second = shown[0]["teams"]
        pairs[first, second].append((row["search"], row["person"], team))
    return tuple(_preference(first, second, picks) for (first, second), picks in pairs.items())


def _preference(first: str, second: str, picks: Sequence[tuple[str, str, str | None]]) -> Preference:
    people = {person or f"search {search}" for search, person, _ in picks}
    counted = [(person or f"search {search}", team) for search, person, team in picks if team is not None]
    wins = np.array([team == second for _, team in counted], bool)
    number = np.unique([person for person, _ in counted], return_inverse=True)[1] if counted else np.zeros(0, np.int64)
    groups = len(set(number.tolist()))
    low, high = share_interval(wins, number if 1 < groups < len(number) else None)
    share = float(wins.mean()) if len(wins) else 0.5
    count = int(wins.sum())
    return Preference(first, second, len(wins) - count, count, len(picks) - len(wins), len(people), share, low, high)
