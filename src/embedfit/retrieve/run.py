"""A ranking of documents for each query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Dataset
from embedfit.data.duplicates import queries_that_are_documents
from embedfit.data.formats.encodings import read_lines
from embedfit.errors import DataError, shown
from embedfit.files import writing

if TYPE_CHECKING:
    import pandas as pd

Ranked: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Positions and scores of documents, each of shape (queries, k), best first."""
DEPTH = 100
"""Number of documents in a ranking by default."""
NOTHING = np.float32(-1)
"""The score of an empty place: no cosine and no sum of weights is less."""
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Run:
    """For each query, the best documents in order.

    Attributes:
        query_ids: Query ids; n of them.
        document_ids: Sorted ids of the whole corpus. If there are empty places, an id ``""`` at the end stands for them.
        ranked: Positions in `document_ids`, best first, equal scores in order of document id; shape (n, k). If fewer than k documents
            were found for a query, the last places of its row are empty.
        scores: Scores of these documents, larger is better; shape (n, k). The score of an empty place is `NOTHING`.
    """

    query_ids: tuple[str, ...]
    document_ids: tuple[str, ...]
    ranked: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]

    @classmethod
    def from_dict(cls, rankings: Mapping[str, Mapping[str, float]]) -> Run:
        """Return a Run of rankings from elsewhere, in the shape that ranx uses.

        Args:
            rankings: Query id -> {document id: score}. Larger scores are better; equal scores are ranked in order of document id,
                as in a search. Scores are kept in float32.

        Raises:
            DataError: A ranking is not a dict, an id is not a text or is empty, or a score is not a finite number.
        """
        if not isinstance(rankings, Mapping):
            raise DataError("rankings", f"are {shown(rankings)}", expected="{query id: {document id: score}}")
        for query, scores in rankings.items():
            _check_ranking(query, scores)
        document_ids = tuple(sorted({id for scores in rankings.values() for id in scores}))
        position = {id: place for place, id in enumerate(document_ids)}
        width = max(map(len, rankings.values()), default=0) or 1
        ranked, kept = np.full((len(rankings), width), len(document_ids), np.int64), np.full((len(rankings), width), NOTHING, np.float32)
        for row, scores in enumerate(rankings.values()):
            best = sorted(scores, key=lambda id: (-scores[id], id))
            ranked[row, : len(best)] = [position[id] for id in best]
            kept[row, : len(best)] = [scores[id] for id in best]
        return cls(tuple(rankings), named(document_ids, ranked), ranked, kept)

    @classmethod
    def from_trec(cls, path: str | Path) -> Run:
        """Return the rankings in a TREC run file: query id, Q0, document id, rank, score and name of the run in each line.

        Scores decide the order, and not the rank in the fourth column, as in trec_eval. The file may be compressed.

        Args:
            path: Run file, with white space or tabs between the columns.

        Raises:
            DataError: A line is no line of a run, or ranks a document a second time for its query; or there is no line.
        """
        rankings: dict[str, dict[str, float]] = {}
        try:
            for number, line in read_lines(Path(path)):
                cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    query, _, document, _, score, _ = (cell.strip() for cell in cells)
                    own = rankings.setdefault(query, {})
                    if document in own:
                        raise DataError(where, f"ranks document {shown(document)} a second time for query {shown(query)}")
                    own[document] = float(score)
                    _check_ranking(query, {document: own[document]})
                except (ValueError, DataError) as error:
                    if isinstance(error, DataError) and error.where == where:
                        raise
                    expected = "query id, Q0, document id, rank, score, name of the run"
                    raise DataError(where, f"is {shown(line.strip())}", expected=expected) from None
        except OSError as error:
            raise DataError(str(path), f"cannot be read: {error.strerror or error}") from None
        if not rankings:
            raise DataError(str(path), "is empty", expected="at least one line")
        return cls.from_dict(rankings)

    def to_trec(self, path: str | Path, name: str = "embedfit") -> None:
        """Write the rankings as a TREC run file, which trec_eval, ranx, ir_measures and `from_trec` read.

        Args:
            path: File to write.
            name: Name of the run, without white space.

        Raises:
            DataError: An id, or the name, has white space, which stands between the columns.
            StorageError: The file cannot be written.
        """
        lines = []
        for query, scores in self.to_dict().items():
            for rank, (document, score) in enumerate(scores.items(), 1):
                for id in (query, document, name):
                    if not id or len(id.split()) != 1 or id != id.strip():
                        raise DataError("run", f"has {shown(id)}", expected="ids without white space", fix="Run.to_dict keeps all ids")
                lines.append(f"{query} Q0 {document} {rank} {score:.9g} {name}\n")
        with writing(Path(path)) as file:
            file.write("".join(lines).encode())

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return query id -> {document id: score}, best first: the shape that ranx uses. `from_dict` makes the same rankings of it.

        A score is the shortest decimal that float32 tells from its neighbours: 0.9, and not 0.8999999761581421.
        """
        rankings = {}
        for row, query in enumerate(self.query_ids):
            documents = self.documents_at(row)
            rankings[query] = dict(zip(documents, map(float, self.scores[row, : len(documents)].astype(str)), strict=True))
        return rankings

    def documents(self, query_id: str) -> list[str]:
        """Return the ids of the documents found for a query, best first."""
        return self.documents_at(self.query_ids.index(query_id))

    def documents_at(self, row: int, k: int | None = None) -> list[str]:
        """Return the ids of the documents in the first k places of a row, or in all of them, best first, without empty places."""
        return [id for id in (self.document_ids[position] for position in self.ranked[row, :k]) if id]

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each document found for a query: query id, rank from 1, document id, score."""
        import pandas as pd

        n, k = self.ranked.shape
        frame = pd.DataFrame(
            {
                "query_id": np.repeat(np.array(self.query_ids, dtype=object), k),
                "rank": np.tile(np.arange(1, k + 1), n),
                "document_id": np.array(self.document_ids, dtype=object)[self.ranked.ravel()],
                "score": self.scores.ravel(),
            }
        )
        return frame[frame.document_id != ""].reset_index(drop=True)

    @property
    def empty(self) -> npt.NDArray[np.bool_]:
        """Whether each place is empty; shape (n, k)."""
        if self.document_ids[-1:] != ("",):
            return np.zeros(self.ranked.shape, bool)
        return np.asarray(self.ranked == len(self.document_ids) - 1)


def _check_ranking(query: str, scores: Mapping[str, float]) -> None:
    if not isinstance(scores, Mapping):
        raise DataError(f"ranking of query {shown(query)}", f"is {shown(scores)}", expected="{document id: score}")
    for what, id in (("query", query), *(("document", id) for id in scores)):
        if not isinstance(id, str) or not id:
            raise DataError("ranking", f"has the {what} id {id!r}", expected="a text that is not empty", fix="str(id)")
    for id, score in scores.items():
        if not isinstance(score, Real) or not abs(score) <= _LARGEST:
            where = f"ranking of query {shown(query)}"
            raise DataError(where, f"gives document {shown(id)} the score {score!r}", expected="a finite number")


def joined(runs: Sequence[Run]) -> Run:
    """Return one Run from Runs of different queries on one corpus, for example out of fold."""
    return Run(
        tuple(id for run in runs for id in run.query_ids),
        max((run.document_ids for run in runs), key=len),  # some may have empty places, others none
        np.concatenate([run.ranked for run in runs]),
        np.concatenate([run.scores for run in runs]),
    )


def named(document_ids: tuple[str, ...], ranked: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """Return the ids of a Run: the corpus, and ``""`` if a position is the number of documents, which marks an empty place."""
    return (*document_ids, "") if (ranked == len(document_ids)).any() else document_ids


def run_of(dataset: Dataset, document_ids: tuple[str, ...], search: Callable[[int], Ranked], k: int) -> Run:
    """Return the Run of a search. A query that is itself a document does not find itself: see `queries_that_are_documents`.

    Every retriever makes its Run here.

    Args:
        dataset: Data set with the queries, in the order of the rows of ``search``.
        document_ids: Document ids, in the order of the positions of ``search``.
        search: Function from a depth to positions and scores of the best documents of each query, each of shape (n, depth). Empty places
            come last; their position is the number of documents, and their score is `NOTHING`.
        k: Number of documents to return for each query.
    """
    own = own_positions(dataset, document_ids)
    ranked, scores = without_own(search(k + bool((own >= 0).any())), own, k, len(document_ids))
    return Run(tuple(dataset.queries), named(document_ids, ranked), ranked, scores)


def own_positions(dataset: Dataset, document_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return, for each query, the position of the document that it is itself; -1 if it is none of the documents."""
    are_documents = queries_that_are_documents(dataset)
    if not are_documents:
        return np.full(len(dataset.queries), -1, np.int64)
    position = {id: place for place, id in enumerate(document_ids) if id in are_documents}
    return np.array([position.get(id, -1) for id in dataset.queries], np.int64)


def without_own(ranked: Ranked, own: npt.NDArray[np.int64], k: int, count: int) -> Ranked:
    """Return the k best documents of each row without the query itself. A row that lacks another document ends with an empty place.

    Args:
        ranked: Ranking of the k + 1 best documents or of the whole corpus; k documents are enough if no query is a document.
        own: Result of `own_positions` for the rows.
        k: Number of documents to keep.
        count: Number of documents, which is the position of an empty place.
    """
    positions, scores = ranked
    if not (own >= 0).any():
        return positions[:, :k], scores[:, :k]
    is_own = positions == own[:, None]
    width = min(k, positions.shape[1] - int(is_own.any(axis=1).all()))  # so that no column is empty in all rows
    columns = np.argsort(is_own, axis=1, kind="stable")[:, :width]
    positions, scores = np.where(is_own, count, positions), np.where(is_own, NOTHING, scores)
    return np.take_along_axis(positions, columns, axis=1), np.take_along_axis(scores, columns, axis=1)


class Retriever(Protocol):
    """Anything that ranks the corpus of a data set for its queries."""

    name: str

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        ...


def sorted_corpus(dataset: Dataset) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return the positions of the corpus in order of document id, and the sorted ids: ties must not depend on the order of a file."""
    ids = list(dataset.corpus)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return np.array(order, np.int64), tuple(ids[position] for position in order)
