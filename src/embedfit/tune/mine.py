"""Hard negatives: for each training query, the wrong documents that the model ranks highest.

They are mined from the whole corpus with the model in its present state, in memory that does not grow with the corpus.
Documents that may be unlabelled answers are left out, since pushing them away would teach the wrong thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedfit import processes
from embedfit.config import GenerateConfig, TuneConfig
from embedfit.data.dataset import Dataset
from embedfit.data.duplicates import nearly_same
from embedfit.encode.encoder import Encoder, Precision
from embedfit.files import writing
from embedfit.generate.relevance import LLM, relevance_judge
from embedfit.retrieve.engine import Engine, LocalEngine
from embedfit.retrieve.exact import merged
from embedfit.retrieve.rerank import LocalReranker
from embedfit.retrieve.run import own_positions
from embedfit.tune.candidates import BatchAndOthers, Candidates, relevant_positions
from embedfit.tune.training import Training

_JUDGED = 256
"""Queries whose documents are judged in one call."""
_MINING_SHARE = 1 / 4
"""Largest cost of encoding the corpus again, as a share of the training between two minings."""

Judge = Callable[[Sequence[tuple[str, str]]], npt.NDArray[np.float32]]
"""Scores pairs (query text, document text); higher is more relevant. For example a cross-encoder or a language model."""


@dataclass(frozen=True)
class Guards:
    """Conditions that keep unlabelled positives out of the negatives.

    Attributes:
        margin: Largest similarity of a negative, as a share of the similarity of the query's least similar positive
            (TopK-PercPos of NV-Retriever: Moreira et al. 2024).
        judge: Judge that must score a negative below every positive of the query; None for no judge.
        answers: Function that says whether the document of each pair may answer its query, which no negative may; None for no function.
    """

    margin: float = 1.0
    judge: Judge | None = None
    answers: Callable[[Sequence[tuple[str, str]]], npt.NDArray[np.bool_]] | None = None

    @classmethod
    def of(cls, training: Training, margin: float, precision: Precision = "auto") -> Guards:
        """Return the guards of a training.

        Args:
            training: Settings, engine and output folder.
            margin: Largest similarity of a negative, as a share.
            precision: Precision of a judge that is a cross-encoder.
        """
        name = training.config.judge
        llm = training.llm or relevance_judge(name, GenerateConfig(), training.folder)
        if llm and name and name.startswith(LLM):
            return cls(margin, answers=llm.answers)
        return cls(margin, training.engine.reranker(LocalReranker(name, precision=precision)).score if name else None)


def mine(
    encoder: Encoder,
    train: Dataset,
    template: str,
    *,
    count: int,
    guards: Guards,
    seen: int = 4,
    engine: Engine | None = None,
) -> npt.NDArray[np.int64]:
    """Return each training query's hardest negatives.

    They exclude known positives, near duplicates of positives, the document that is the query itself, and whatever the guards
    reject.

    Args:
        encoder: Model in its present state.
        train: Training queries, corpus and judgements.
        template: Document template.
        count: Negatives per query.
        guards: Conditions for a negative.
        seen: Number of nearest documents that are considered, as a multiple of `count`.
        engine: Engine that searches, and sets how many document vectors are in memory at once; by default this process.

    Returns:
        Positions in the corpus, hardest first, padded with -1; shape (queries, count).
    """
    texts, query_texts = train.document_texts(template), train.query_texts()
    relevant = relevant_positions(train)
    queries = encoder.encode(query_texts, "query")
    own = own_positions(train, list(train.corpus))
    depth = seen * count + max(map(len, relevant)) + int((own >= 0).any())
    ranked, scores, least = _nearest(encoder, queries, texts, relevant, depth, engine or LocalEngine())
    negatives = np.full((len(query_texts), count), -1, np.int64)
    allowed = scores <= (least - (1 - guards.margin) * np.abs(least))[:, None]
    for row, known in enumerate(relevant):
        allowed[row] &= ~np.isin(ranked[row], [*known, own[row]])
    if guards.judge:
        allowed = _judged(guards.judge, query_texts, texts, relevant, ranked, allowed)
    for row, known in enumerate(relevant):
        kept: list[int] = []
        for position in ranked[row][allowed[row]].tolist():
            if len(kept) == count:
                break
            if not any(nearly_same(texts[position], texts[positive]) for positive in known):
                kept.append(position)
        negatives[row, : len(kept)] = kept
    return _unanswered(guards, query_texts, texts, negatives) if guards.answers else negatives


def _unanswered(
    guards: Guards, query_texts: Sequence[str], texts: Sequence[str], negatives: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the negatives without those that may answer their query; shape (queries, any), padded with -1."""
    assert guards.answers is not None
    rows, places = np.nonzero(negatives >= 0)
    answered = None
    if processes.main():  # each request is paid for
        chosen = zip(rows.tolist(), negatives[rows, places].tolist(), strict=True)
        answered = guards.answers([(query_texts[row], texts[position]) for row, position in chosen])
    answered = processes.agreed(answered)
    negatives[rows[answered], places[answered]] = -1
    return np.take_along_axis(negatives, np.argsort(negatives < 0, axis=1, kind="stable"), axis=1)


def _nearest(
    encoder: Encoder,
    queries: npt.NDArray[np.float32],
    texts: Sequence[str],
    relevant: Sequence[dict[int, int]],
    depth: int,
    engine: Engine,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return each query's nearest documents, their similarities, and the similarity of its least similar positive."""
    ranked, scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    least = np.full(len(queries), np.inf, np.float32)
    holders: dict[int, list[int]] = {}
    for row, known in enumerate(relevant):
        for position in known:
            holders.setdefault(position, []).append(row)
    # Processes that train together divide the corpus among them.
    size = engine.at_once
    for start in range(processes.number() * size, len(texts), processes.count() * size):
        vectors = encoder.encode(texts[start : start + size], "document")
        for offset, vector in enumerate(vectors):
            for row in holders.get(start + offset, ()):
                least[row] = min(least[row], float(queries[row] @ vector))
        positions, similarities = engine.top_k(queries, vectors, depth)
        ranked, scores = merged([(ranked, scores), (positions + start, similarities)], depth)
    parts = processes.gathered((ranked, scores, least))
    ranked, scores = merged([part[:2] for part in parts], depth)
    return ranked, scores, np.min([part[2] for part in parts], axis=0)


def _judged(
    judge: Judge,
    query_texts: Sequence[str],
    texts: Sequence[str],
    relevant: Sequence[dict[int, int]],
    ranked: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Return which of the allowed documents the judge scores below all of the query's positives."""
    lower = np.zeros_like(allowed)
    # Processes that train together divide the queries among them.
    rows = range(processes.number(), len(query_texts), processes.count())
    for start in range(0, len(rows), _JUDGED):
        block = rows[start : start + _JUDGED]
        positions = [[*relevant[row], *ranked[row][allowed[row]].tolist()] for row in block]
        scores = judge([(query_texts[row], texts[position]) for row, each in zip(block, positions, strict=True) for position in each])
        for row, own in zip(block, np.split(scores, np.cumsum([len(each) for each in positions])[:-1]), strict=True):
            known = len(relevant[row])
            lower[row, allowed[row]] = own[known:] < own[:known].min()
    gathered: npt.NDArray[np.bool_] = np.any(processes.gathered(lower), axis=0)
    return gathered


def steps_between_minings(config: TuneConfig, epochs: int, queries: npt.NDArray[np.int64], documents: npt.NDArray[np.int64]) -> int:
    """Return the number of steps between two minings: one epoch, or more if the corpus is large beside the training queries.

    Encoding a token costs a third of training on it: it saves the backward pass, which costs two forward passes.

    Args:
        config: Settings, for the batch size and the number of hard negatives.
        epochs: Epochs of the training.
        queries: Number of tokens of each training query, shape (queries,).
        documents: Number of tokens of each document, shape (documents,).
    """
    epoch = -(-len(queries) // config.batch_size)
    steps = epoch * epochs
    step = 3 * config.batch_size * (queries.mean() + (1 + config.hard_negatives) * documents.mean())
    between = max(epoch, documents.sum() / (_MINING_SHARE * step))
    minings = max(1, int(steps / between))  # at equal intervals, so that the last serves more than a few steps
    return -(-steps // minings)


class MinedCandidates:
    """Candidates whose hard negatives are mined again at intervals with the model in training.

    The negatives stay on disk until training ends, so a resumed training uses the same.

    Args:
        source: Source that draws each batch's candidates.
        find: Function from the number of a mining, from 0, to each query's hard negatives, as `mine` returns them.
        folder: Folder for the negatives.
        every: Batches between two minings.

    Attributes:
        batch: Number of the next batch, from 0; a resumed training sets it.
    """

    def __init__(self, source: BatchAndOthers, find: Callable[[int], npt.NDArray[np.int64]], folder: Path, every: int) -> None:
        self._source, self._find, self._folder, self._every = source, find, folder, every
        self._held = -1
        self.batch = 0

    def candidates(self, batch: Sequence[int]) -> Candidates:
        """Return the batch's positives, hard negatives and random documents, without repeats."""
        number = self.batch // self._every
        self.batch += 1
        if number != self._held:
            path = self._folder / f"{number}.npy"
            if processes.agreed(path.exists()):
                self._source.mined = np.load(path)
            else:
                self._source.mined = self._find(number)
                if processes.main():
                    with writing(path) as file:
                        np.save(file, self._source.mined)
            self._held = number
        return self._source.candidates(batch)
