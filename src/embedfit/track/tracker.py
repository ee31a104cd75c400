"""Results and searches to LangWatch: every query of every model, with what was retrieved for it.

Without ``LANGWATCH_API_KEY`` nothing is sent, written or imported. With it, results are first written to a file, then sent; what could
not be delivered stays in that file, and `resend` sends it again, under the same ids, so that nothing counts twice.

LangWatch's own client takes seconds to import, waits seconds at the end, prints to stdout, and reports success when it has lost
results. So this speaks to its server directly, in the same words; a test holds them against the client's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.dataset import Dataset
from embedfit.errors import EmbedfitError
from embedfit.evaluation.score import Scores
from embedfit.retrieve.run import Run
from embedfit.track.sender import PATIENCE, SPOOL, Delivery, another_endpoint, deliver, langwatch_key, short_id, spool_place, write_spool


class Tracker:
    """The results of one command, on their way to LangWatch.

    Args:
        name: Of the experiment; None for searches, which belong to none.
        run_id: Of this run of it.
        folder: Where results are kept until they are delivered.
    """

    def __init__(self, name: str | None, run_id: str, folder: Path) -> None:
        self.run_id, self.folder = run_id, folder
        self._head: dict[str, Any] = {"experiment": name, "run_id": run_id, "created_at": int(time.time() * 1000), "targets": []}
        self._rows: list[dict[str, Any]] = []

    def add(
        self,
        model: str,
        dataset: Dataset,
        run: Run,
        scores: Scores,
        *,
        template: str,
        metadata: Mapping[str, str] | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Take in how a model did, query by query.

        Args:
            model: Its name; the same name again is told apart by a number.
            dataset: With the texts.
            run: What was retrieved.
            scores: Of the run; recall at each k and MRR at the largest are sent.
            template: What a document says.
            metadata: Of the model, to be shown beside it.
            seconds: That the search took for all queries.
        """
        said = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True))
        k = max(int(name.partition("@")[2]) for name in scores.values)
        shown = [name for name in scores.values if name.startswith("recall@") or name == f"mrr@{k}"]
        target = another_endpoint(model, [one["id"] for one in self._head["targets"]])
        self._head["targets"].append({"id": target, "name": target, "type": "custom", "metadata": {"model": model, **(metadata or {})}})
        each = seconds / max(1, len(run.query_ids))
        row_of = {id: row for row, id in enumerate(run.query_ids)}
        for index, id in enumerate(scores.query_ids):
            row = row_of[id]
            found = run.documents_at(row, k)
            chunks = [
                {"document_id": document, "content": said[document], "score": round(float(score), 6)}
                for document, score in zip(found, run.scores[row, : len(found)], strict=True)
            ]
            self._rows.append(
                {
                    "index": index,
                    "target": target,
                    "query": dataset.queries[id].text,
                    "expected": list(dataset.relevant(id)),
                    "retrieved": chunks,
                    "scores": {name: round(float(scores.values[name][index]), 6) for name in shown},
                    "seconds": each,
                    "at": time.time(),
                    "trace_id": short_id(32, self.run_id, target, id),
                }
            )

    def add_search(self, query: str, found: Sequence[tuple[str, str, float]], *, model: str, seconds: float) -> None:
        """Take in one search as it was answered.

        Args:
            query: Its text.
            found: Document id, text and score of each document, best first.
            model: That encoded it.
            seconds: That it took.
        """
        chunks = [{"document_id": id, "content": text, "score": round(float(score), 6)} for id, text, score in found]
        row = {
            "index": len(self._rows),
            "target": model,
            "query": query,
            "retrieved": chunks,
            "seconds": seconds,
            "at": time.time() - seconds,
        }
        self._rows.append({**row, "trace_id": short_id(32, self.run_id, str(len(self._rows)))})

    def deliver(self) -> Delivery:
        """Send what was taken in, keep what was not delivered, and tell the user of both; in at most about 3 s if nobody answers."""
        if not self._rows:
            return Delivery(0, 0)
        try:
            write_spool(self.folder / SPOOL, self._head, self._rows)
            found = deliver(self.folder, PATIENCE)
        except EmbedfitError as error:  # what was to be followed is done, and shall be shown
            console.note(f"Warning: {len(self._rows):,} results were not delivered to LangWatch: {error}")
            return Delivery(0, len(self._rows), str(error))
        if found.left:
            console.note(
                f"Warning: {found.left:,} results were not delivered to LangWatch ({found.problem}); "
                f"'embedfit track resend {self.folder}' sends them again"
            )
        elif found.address:
            console.note(f"LangWatch: {found.delivered:,} results at {found.address}")
        return found


@contextlib.contextmanager
def tracking(name: str, folder: Path | None = None, *, wanted: bool = True) -> Iterator[Tracker | None]:
    """Give a Tracker for an experiment, and deliver at the end; give None where nothing is to be sent.

    Args:
        name: Of the experiment.
        folder: The run directory, whose name becomes the run's id; by default one of its own beside the cache.
        wanted: Whether the configuration wants it.
    """
    if not (wanted and langwatch_key()):
        yield None
        return
    tracker = Tracker(name, *spool_place(name, folder))
    yield tracker
    tracker.deliver()


def trace_search(query: str, found: Sequence[tuple[str, str, float]], *, model: str, seconds: float) -> None:
    """Send one search to LangWatch as a ``rag`` span, if there is a key; see `Tracker.add_search`."""
    if langwatch_key():
        tracker = Tracker(None, *spool_place("search", None))
        tracker.add_search(query, found, model=model, seconds=seconds)
        tracker.deliver()
