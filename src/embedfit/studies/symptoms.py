"""Causes of a poor verdict that are found in the data itself, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedfit.data.check import Finding
from embedfit.data.dataset import Dataset, normalised
from embedfit.data.split import split_folds
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.errors import DataError
from embedfit.evaluation.comparison import Comparison
from embedfit.metrics import metric_label
from embedfit.retrieve.run import Run
from embedfit.searcher.gather import labels_repeat
from embedfit.searcher.views import Asked, TermsView

SHARE = 0.1
"""Smallest share of the training queries that a flaw of the data must concern to be named as a cause."""
_FEWEST = 50
"""Fewest queries on which labels and texts are said to be unrelated."""
_PERMUTATIONS = 300
_ERRORS, _WITHIN = 2.0, 0.2
"""A score is at chance if it is less than so many standard errors above chance, and if with as many added it is less than this above."""
_WANTED = 0.1
"""Difference that the held-out queries should be able to show."""
_ROOM = 1.0
"""Least share of the detectable difference that the base model leaves to be gained."""
_DEPTH = 10
_FOLDS = 3


@dataclass(frozen=True)
class Cause:
    """A flaw that explains a verdict, whatever the settings.

    Attributes:
        name: Short name, such as ``conflicting labels``.
        evidence: What was measured, as text.
        fix: Advice, as text.
    """

    name: str
    evidence: str
    fix: str

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}; fix: {self.fix}"


def causes_in(findings: Sequence[Finding], train: Dataset, prompts: dict[str, str]) -> list[Cause]:
    """Return the flaws of the data that concern at least a tenth of the training queries, and leaks.

    Args:
        findings: Findings of the run.
        train: Training queries and all documents.
        prompts: Prompt of the queries and of the documents.
    """
    queries = set(train.queries)

    def share(*kinds: str) -> float:
        ids = {id for finding in findings if finding.kind in kinds and finding.level != "note" for id in finding.ids}
        return len(ids & queries) / max(1, len(queries))

    causes = []
    leaks = sum(finding.kind == "leak" for finding in findings)
    if leaks:
        evidence = f"{leaks:,} held-out queries repeat training queries, so the figures say nothing about new ones"
        causes.append(Cause("leaks", evidence, 'split.leaks = "drop"'))
    conflicts = share("conflict") + share_of_near_conflicts(findings, queries)
    if conflicts >= SHARE:
        evidence = f"{conflicts:.0%} of the training queries say what another says, with another answer"
        causes.append(Cause("conflicting labels", evidence, "give one text one set of answers"))
    copies = _hidden_by_copies(train)
    if copies >= SHARE:
        evidence = f"the answers of {copies:.0%} of the training queries have copies that do not count as right"
        causes.append(Cause("duplicate documents", evidence, "merge the copies, or judge all of them right"))
    texts = {"query": train.query_texts(), "document": [document.text for document in train.corpus.values()]}
    for kind, prompt in prompts.items():
        start = prompt.strip()
        doubled = sum(text.startswith(start) for text in texts[kind]) / max(1, len(texts[kind])) if start else 0.0
        if doubled >= SHARE:
            evidence = f"{doubled:.0%} of the {kind} texts begin with the prompt already, and the model puts it before them again"
            causes.append(Cause("doubled prompt", evidence, f'model.{kind}_prompt = "", or take it out of the texts'))
    return causes


def share_of_near_conflicts(findings: Sequence[Finding], queries: set[str]) -> float:
    """Return the share of the queries that nearly repeat another one, with another answer."""
    ids = {id for finding in findings if finding.kind == "near conflict" for id in finding.ids}
    exact = {id for finding in findings if finding.kind == "conflict" for id in finding.ids}
    return len((ids - exact) & queries) / max(1, len(queries))


def _hidden_by_copies(train: Dataset) -> float:
    """Return the share of the queries with an answer whose text another document repeats that is not judged right."""
    same: dict[str, set[str]] = {}
    for id, document in train.corpus.items():
        same.setdefault(normalised(f"{document.title} {document.text}"), set()).add(id)
    copies = {id: ids for ids in same.values() if len(ids) > 1 for id in ids}
    hidden = sum(any(not copies.get(id, set()) <= set(train.relevant(query)) for id in train.relevant(query)) for query in train.judged)
    return hidden / max(1, len(train.judged))


def unrelated(train: Dataset, run: Run, encoder: Encoder, groups: dict[str, int], *, seed: int = 0) -> list[Cause]:
    """Return a cause if nothing connects labels with texts, or documents with queries, better than chance.

    Three connections are measured, each against random permutations of the answers: the base model's ranking, the answers of the
    nearest other training query, and a linear model on words (out of fold).

    Args:
        train: Training queries and all documents.
        run: The base model's ranking of the training queries.
        encoder: Base model.
        groups: Query id -> number of its group; the nearest query is looked for in other groups.
        seed: Seed of the permutations.
    """
    ids = [id for id in run.query_ids if train.relevant(id)]
    if len(ids) < _FEWEST:
        return []
    rng = np.random.default_rng(seed)
    train = train.select(ids)
    by_rank = _at_chance(*_gains(train, {id: run.documents(id)[:_DEPTH] for id in ids}), rng)
    if by_rank is None:
        return []
    sentence = f"the base model ranks the documents of {len(ids):,} training queries no better than chance ({by_rank})"
    if not labels_repeat([label for id in ids for label in train.relevant(id)]):
        fix = "check that ids of labels and documents match, and that the model reads this language"
        return [Cause("labels or documents", sentence, fix)]
    nearest = _at_chance_of_neighbours(train, encoder, groups, rng)
    by_words = _by_words(train, seed)
    words = _at_chance(*_gains(train, by_words), rng) if by_words else "they have none"
    if nearest and words:
        evidence = f"{sentence}, and neither similar queries ({nearest}) nor their words ({words}) tell the answers"
        return [Cause("labels", evidence, "check that each label belongs to its query: they look shuffled")]
    evidence = f"{sentence}, although the queries alone tell the answers"
    return [Cause("documents", evidence, "check that each document's text belongs to its id, and what data.document_template shows of it")]


def _by_words(train: Dataset, seed: int) -> dict[str, list[str]]:
    """Return each query's ranking by a linear model on words that was fitted without it; empty for too few groups, labels or words."""
    place = {id: number for number, id in enumerate(train.corpus)}
    documents, rankings = list(train.corpus), dict[str, list[str]]()
    try:
        splits = split_folds(train, _FOLDS, dev=0, seed=seed)
    except DataError:
        return {}
    for split in splits:
        texts, labels = [train.queries[id].text for id in split.train], [place[min(train.relevant(id))] for id in split.train]
        view = TermsView.fit(texts, np.array(labels), len(place)) if len(set(labels)) > 1 else None
        if view is None:
            return {}
        scores = view.scores(Asked([train.queries[id].text for id in split.test], np.zeros((len(split.test), 0), np.float32)))
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=1, kind="stable")[:, :_DEPTH]
        rankings |= {id: [documents[number] for number in row] for id, row in zip(split.test, order.tolist(), strict=True)}
    return rankings


def _gains(train: Dataset, rankings: dict[str, list[str]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the reciprocal rank that each query has with each set of answers, shape (queries, sets), and the number of its own set."""
    sets: dict[tuple[str, ...], int] = {}
    own = np.array([sets.setdefault(tuple(sorted(train.relevant(id))), len(sets)) for id in rankings])
    members: dict[str, list[int]] = {}
    for answers, number in sets.items():
        for document in answers:
            members.setdefault(document, []).append(number)
    gains = np.zeros((len(rankings), len(sets)))
    for row, ranking in enumerate(rankings.values()):
        for rank, document in enumerate(ranking, 1):
            for number in members.get(document, ()):
                gains[row, number] = max(gains[row, number], 1 / rank)
    return gains, own


def _at_chance(gains: npt.NDArray[np.float64], own: npt.NDArray[np.int64], rng: np.random.Generator) -> str | None:
    """Return the score beside that of permuted answers, as text, if it is no better; else None."""
    rows = np.arange(len(own))
    permuted = [float(gains[rows, rng.permutation(own)].mean()) for _ in range(_PERMUTATIONS)]
    return _no_better(float(gains[rows, own].mean()), permuted)


def _at_chance_of_neighbours(train: Dataset, encoder: Encoder, groups: dict[str, int], rng: np.random.Generator) -> str | None:
    """Return the share of queries whose nearest other query has their answer, if it is no larger than with permuted answers; else None."""
    vectors = encoder.encode(train.query_texts(), "query")
    neighbours = _nearest(vectors, np.array([groups[id] for id in train.queries]))
    answers = [frozenset(train.relevant(id)) for id in train.queries]

    def agreement(order: npt.NDArray[np.int64]) -> float:
        return float(np.mean([not answers[order[row]].isdisjoint(answers[order[other]]) for row, other in enumerate(neighbours)]))

    permuted = [agreement(rng.permutation(len(answers))) for _ in range(_PERMUTATIONS)]
    return _no_better(agreement(np.arange(len(answers))), permuted)


def _nearest(vectors: Vectors, groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    cosines = vectors @ vectors.T
    cosines[groups[:, None] == groups[None, :]] = -2
    nearest: npt.NDArray[np.int64] = cosines.argmax(axis=1)
    return nearest


def _no_better(score: float, permuted: Sequence[float]) -> str | None:
    expected, error = float(np.mean(permuted)), float(np.std(permuted))
    no_better = score < expected + _ERRORS * error and score + _ERRORS * error < expected + _WITHIN
    return f"{score:.3f}, and {expected:.3f} with shuffled answers" if no_better else None


def limits_of(comparison: Comparison) -> list[Cause]:
    """Return a cause if the held-out queries could not show a difference: too few of them, or nothing left to be gained."""
    row, count = comparison[comparison.metric], len(comparison.base.query_ids)
    if row.verdict != "no difference shown":
        return []
    if 1 - row.base < _ROOM * row.detectable and row.base > 1 - _WANTED:
        evidence = f"the base model has {metric_label(row.metric)} {row.base:.3f}, so at most {1 - row.base:.3f} can be gained"
        return [Cause("ceiling", evidence, "keep the base model, or measure on harder queries")]
    if row.detectable <= _WANTED:
        return []
    needed = queries_needed(comparison, _WANTED / 2)
    evidence = f"{count:,} held-out queries show a difference of about {row.detectable:.2g} or more"
    fix = f"label more ('embedfit label'): about {needed:,} held-out queries show a difference of {_WANTED / 2:g}"
    return [Cause("too few queries", evidence, fix)]


def queries_needed(comparison: Comparison, difference: float) -> int:
    """Return about how many held-out queries show a difference; the interval narrows with the square root of their number."""
    return round(len(comparison.base.query_ids) * (comparison[comparison.metric].detectable / difference) ** 2)
