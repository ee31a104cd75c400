"""Estimate of the requests that are left, and of their cost."""

from __future__ import annotations

import json

from embedfit.generate.asker import Asker
from embedfit.generate.exchange import Exchange
from embedfit.generate.outcome import Estimate, currency_of
from embedfit.generate.plan import Turn

_ENOUGH_TO_TELL = 20
"""Replies from which the rest is extrapolated."""
_JUDGE_TOKENS = 150
"""Tokens of a judge's prompt and a record, without the options."""
_JUDGE_REPLY = 20.0
"""Tokens of a judge's reply."""


def estimate_of(exchange: Exchange, asker: Asker) -> Estimate:
    """Return the requests that remain: from the replies in the ledger if there are enough, otherwise from the first prompt."""
    task, config = exchange.task, exchange.config
    first = task.slot(0)
    done = answered = prompt_tokens = completion_tokens = 0
    judged = set()
    for row in asker.ledger.rows():
        if row["kind"] == "judge":
            judged.add(row["for"])
            continue
        answered += 1
        done += row["outcome"] == "accepted"
        prompt_tokens += row["prompt_tokens"]
        completion_tokens += row["completion_tokens"]
    body = exchange.request(first, Turn(), "").body
    requests = max(0, task.count - done)
    # A rough guess: a token is four bytes of English or JSON, and a reply takes a quarter of its room.
    prompt, reply = len(json.dumps([body["messages"], task.schema(first.label)])) / 4, config.max_tokens / 4
    if answered >= _ENOUGH_TO_TELL:
        requests = round(requests * answered / max(1, done))
        prompt, reply = prompt_tokens / answered, completion_tokens / answered
    parts = [(config.model, requests, prompt, reply, asker.most(body).tokens - config.max_tokens)]
    if config.judge:
        options = sum(len(option["name"] + option["about"]) for option in task.options(first, 0)[0])
        left = max(0, task.count - len(judged))
        parts.append((config.judge, left, options / 4 + _JUDGE_TOKENS, _JUDGE_REPLY, options + 4 * _JUDGE_TOKENS))
    tokens = price = most = 0.0
    for model, times, prompt, reply, longest in parts:
        rate = asker.prices.get(model, (0.0, 0.0))
        tokens += times * (prompt + reply)
        price += times * (prompt * rate[0] + reply * rate[1]) / 1e6
        most += times * (longest * rate[0] + config.max_tokens * rate[1]) / 1e6
    priced = all(model in asker.prices for model, *_ in parts)
    requests = sum(times for _, times, *_ in parts)
    return Estimate(requests, round(tokens), price if priced else None, most if priced else None, currency_of(config))
