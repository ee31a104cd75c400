"""Hard negatives: documents that the model takes for right and that are not, found for each training query.

Found among the whole corpus with the model as it is then, in memory that does not grow with the corpus. What looks like a
negative and may be an answer that nobody has labelled is left out, since pushing it away teaches the wrong thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedfit import processes
from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset
from embedfit.data.duplicates import nearly_same
from embedfit.encode.encoder import Encoder
from embedfit.files import writing
from embedfit.retrieve.engine import Engine, LocalEngine
from embedfit.retrieve.exact import merged
from embedfit.retrieve.run import own_positions
from embedfit.tune.candidates import BatchAndOthers, Candidates, relevant_positions

_JUDGED = 256
"""Queries whose documents are judged at once."""
_MINING_SHARE = 1 / 4
"""Encoding a corpus anew may cost this share of the training that goes on with what is mined."""

Judge = Callable[[Sequence[tuple[str, str]]], npt.NDArray[np.float32]]
"""Scores pairs of a query's and a document's text; more is more relevant. A cross-encoder, say, or a language model."""


@dataclass(frozen=True)
class Guards:
    """What keeps unlabelled positives from among the negatives.

    Attributes:
        margin: A negative's similarity is at most this share of the least similar positive's (TopK-PercPos of NV-Retriever:
            Moreira et al. 2024).
        judge: If given, a negative must score lower with it than each positive.
    """

    margin: float = 1.0
    judge: Judge | None = None


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

    Known positives are never among them, nor near duplicates of one, nor the document that a query itself is, nor what the
    guards reject.

    Args:
        encoder: The model as it is now.
        train: Queries, corpus and judgements.
        template: What a document says.
        count: Negatives wanted for each query.
        guards: What else to leave out.
        seen: The nearest documents that are looked at, as a multiple of `count`.
        engine: What searches, and says how many documents' vectors are held at once; by default this process.

    Returns:
        Positions in the corpus, hardest first; shape (queries, count), with -1 where there are no more.
    """
    texts, asked = train.document_texts(template), train.query_texts()
    relevant = relevant_positions(train)
    queries = encoder.encode(asked, "query")
    own = own_positions(train, list(train.corpus))
    depth = seen * count + max(map(len, relevant)) + int((own >= 0).any())
    ranked, scores, least = _nearest(encoder, queries, texts, relevant, depth, engine or LocalEngine())
    found = np.full((len(asked), count), -1, np.int64)
    allowed = scores <= (least - (1 - guards.margin) * np.abs(least))[:, None]
    for row, known in enumerate(relevant):
        allowed[row] &= ~np.isin(ranked[row], [*known, own[row]])
    if guards.judge:
        allowed = _judged(guards.judge, asked, texts, relevant, ranked, allowed)
    for row, known in enumerate(relevant):
        kept: list[int] = []
        for position in ranked[row][allowed[row]].tolist():
            if len(kept) == count:
                break
            if not any(nearly_same(texts[position], texts[positive]) for positive in known):
                kept.append(position)
        found[row, : len(kept)] = kept
    return found


def _nearest(
    encoder: Encoder,
    queries: npt.NDArray[np.float32],
    texts: Sequence[str],
    relevant: Sequence[dict[int, int]],
    depth: int,
    engine: Engine,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the nearest documents of each query and their similarities, and that of each query's least similar positive."""
    ranked, scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    least = np.full(len(queries), np.inf, np.float32)
    holders: dict[int, list[int]] = {}
    for row, known in enumerate(relevant):
        for position in known:
            holders.setdefault(position, []).append(row)
    # Processes that train together share the corpus out among them.
    at_once = engine.at_once
    for start in range(processes.number() * at_once, len(texts), processes.count() * at_once):
        vectors = encoder.encode(texts[start : start + at_once], "document")
        for offset, vector in enumerate(vectors):
            for row in holders.get(start + offset, ()):
                least[row] = min(least[row], float(queries[row] @ vector))
        some, similar = engine.top_k(queries, vectors, depth)
        ranked, scores = merged([(ranked, scores), (some + start, similar)], depth)
    parts = processes.gathered((ranked, scores, least))
    ranked, scores = merged([part[:2] for part in parts], depth)
    return ranked, scores, np.min([part[2] for part in parts], axis=0)


def _judged(
    judge: Judge,
    asked: Sequence[str],
    texts: Sequence[str],
    relevant: Sequence[dict[int, int]],
    ranked: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Return which of the allowed documents score lower than all of the query's positives."""
    lower = np.zeros_like(allowed)
    # Processes that train together share the queries out among them.
    rows = range(processes.number(), len(asked), processes.count())
    for start in range(0, len(rows), _JUDGED):
        some = rows[start : start + _JUDGED]
        positions = [[*relevant[row], *ranked[row][allowed[row]].tolist()] for row in some]
        scores = judge([(asked[row], texts[position]) for row, each in zip(some, positions, strict=True) for position in each])
        for row, own in zip(some, np.split(scores, np.cumsum([len(each) for each in positions])[:-1]), strict=True):
            known = len(relevant[row])
            lower[row, allowed[row]] = own[known:] < own[:known].min()
    everywhere: npt.NDArray[np.bool_] = np.any(processes.gathered(lower), axis=0)
    return everywhere


def steps_between_minings(config: TuneConfig, epochs: int, queries: npt.NDArray[np.int64], documents: npt.NDArray[np.int64]) -> int:
    """Return after how many steps to mine anew: an epoch's, or more where the corpus is large beside the training queries.

    Encoding costs a third of training for each token: there is no backward pass, which costs two forward ones.

    Args:
        config: Its batch size and hard negatives.
        epochs: That it trains for.
        queries: Tokens of each training query.
        documents: Tokens of each document.
    """
    epoch = -(-len(queries) // config.batch_size)
    steps = epoch * epochs
    step = 3 * config.batch_size * (queries.mean() + (1 + config.hard_negatives) * documents.mean())
    between = max(epoch, documents.sum() / (_MINING_SHARE * step))
    minings = max(1, int(steps / between))  # at equal distances: the last is not for the last steps alone
    return -(-steps // minings)


class MinedCandidates:
    """Candidates whose hard negatives are found anew with the model in training, every so many batches.

    What was found is kept on disk until training is done, so that a restart goes on with the same.

    Args:
        source: Draws the candidates of each batch.
        find: Returns the hard negatives as the model sees them now; what `mine` returns.
        folder: Where they are kept.
        every: Batches from one search to the next.

    Attributes:
        batch: The number of the next batch, from 0; a restart sets it.
    """

    def __init__(self, source: BatchAndOthers, find: Callable[[int], npt.NDArray[np.int64]], folder: Path, every: int) -> None:
        self._source, self._find, self._folder, self._every = source, find, folder, every
        self._held = -1
        self.batch = 0

    def candidates(self, batch: Sequence[int]) -> Candidates:
        """Return the batch's positives, its hard negatives and random documents, each once."""
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
