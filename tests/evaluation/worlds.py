"""Queries whose true probabilities are known."""

import numpy as np


def draw(rng, queries, *, candidates=8, sharpness=1.6, heat=1.0, without_answer=0.0, sizes=None, shared=0.0):
    """Return scores, relevance, groups and the true probability of each candidate.

    Logits are normal, and the right candidate is drawn from their softmax, times the chance that there is an answer. Scores are the logits
    divided by ``heat``: below 1 they are overconfident. With ``sizes``, queries come in groups of these sizes, in which they share logits
    and the draw of the answer with a chance of ``shared``.
    """
    groups = np.arange(queries) if sizes is None else np.repeat(np.arange(queries), rng.choice(sizes, queries))[:queries]
    count = len(groups)
    logits = rng.normal(0, sharpness, (count, candidates))
    logits[:, 0] += rng.exponential(sharpness, count) * 2
    level = rng.normal(0, 1, count)
    uniform, answer = rng.random(count), rng.random(count)
    same = rng.random(count) < shared
    first = np.searchsorted(groups, groups)
    for values in (logits, level, uniform, answer):
        values[same] = values[first][same]
    has_answer = 1 / (1 + np.exp(-(level * 2 + np.log(1 / without_answer - 1)))) if without_answer else np.ones(count)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    truth = shares * has_answer[:, None]
    right = (shares.cumsum(axis=1) > uniform[:, None]).argmax(axis=1)
    relevant = np.zeros(logits.shape, bool)
    relevant[np.arange(count), right] = answer < has_answer
    return np.log(shares) / heat + level[:, None] * (without_answer > 0), relevant, groups, truth
