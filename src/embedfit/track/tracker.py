"""Sends results and searches to LangWatch: each query of each model, with the retrieved documents.

Without ``LANGWATCH_API_KEY`` nothing is sent, written or imported. With it, results are written to a spool file and then sent.
Results that cannot be delivered stay in the file. `resend` sends them again under the same ids, so that nothing counts twice.

LangWatch's own client takes seconds to import, waits seconds at exit, prints to stdout, and reports success when it has lost
results. embedfit therefore talks to the server directly, in the same format; a test compares the two.
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
from embedfit.track.langwatch import langwatch_key, short_id
from embedfit.track.sender import PATIENCE, SPOOL, Delivery, deliver, spool_place, unused_name, write_spool


class Tracker:
    """Collects the results of one command for LangWatch.

    Args:
        name: Name of the experiment; None for searches, which have no experiment.
        run_id: Id of the run.
        folder: Folder of the spool.
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
        """Add the results of a model, query by query.

        Args:
            model: Name of the model; a repeated name gets a number.
            dataset: Data set with the texts.
            run: Ranking of documents for each query.
            scores: Scores of the run; recall at each k and MRR at the largest k are sent.
            template: Template of the document text.
            metadata: Properties of the model to show in LangWatch.
            seconds: Duration of the search for all queries.
        """
        texts = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True))
        k = max(int(name.partition("@")[2]) for name in scores.values)
        metrics = [name for name in scores.values if name.startswith("recall@") or name == f"mrr@{k}"]
        target = unused_name(model, [target["id"] for target in self._head["targets"]])
        self._head["targets"].append({"id": target, "name": target, "type": "custom", "metadata": {"model": model, **(metadata or {})}})
        each = seconds / max(1, len(run.query_ids))
        row_of = {id: row for row, id in enumerate(run.query_ids)}
        for index, id in enumerate(scores.query_ids):
            row = row_of[id]
            documents = run.documents_at(row, k)
            chunks = [
                {"document_id": document, "content": texts[document], "score": round(float(score), 6)}
                for document, score in zip(documents, run.scores[row, : len(documents)], strict=True)
            ]
            self._rows.append(
                {
                    "index": index,
                    "target": target,
                    "query": dataset.queries[id].text,
                    "expected": list(dataset.relevant(id)),
                    "retrieved": chunks,
                    "scores": {name: round(float(scores.values[name][index]), 6) for name in metrics},
                    "seconds": each,
                    "at": time.time(),
                    "trace_id": short_id(32, self.run_id, target, id),
                }
            )

    def add_search(self, query: str, hits: Sequence[tuple[str, str, float]], *, model: str, seconds: float) -> None:
        """Add one search with its hits.

        Args:
            query: Query text.
            hits: Document id, text and score of each hit, best first.
            model: Name of the model that encoded the query.
            seconds: Duration of the search.
        """
        chunks = [{"document_id": id, "content": text, "score": round(float(score), 6)} for id, text, score in hits]
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
        """Send the results, keep what is not accepted, and report both; takes at most about 3 s if there is no response."""
        if not self._rows:
            return Delivery(0, 0)
        try:
            write_spool(self.folder / SPOOL, self._head, self._rows)
            delivery = deliver(self.folder, PATIENCE)
        except EmbedfitError as error:  # the command itself succeeded, so its result must be shown
            console.note(f"Warning: {len(self._rows):,} results were not delivered to LangWatch: {error}")
            return Delivery(0, len(self._rows), str(error))
        if delivery.left:
            console.note(
                f"Warning: {delivery.left:,} results were not delivered to LangWatch ({delivery.problem}); "
                f"'embedfit track resend {self.folder}' sends them again"
            )
        elif delivery.address:
            console.note(f"LangWatch: {delivery.delivered:,} results at {delivery.address}")
        return delivery


@contextlib.contextmanager
def tracking(name: str, folder: Path | None = None, *, wanted: bool = True) -> Iterator[Tracker | None]:
    """Yield a Tracker for an experiment and deliver its results at the end; yield None if nothing is to be sent.

    Args:
        name: Name of the experiment.
        folder: Run directory, whose name becomes the run id; by default a new folder in the cache.
        wanted: Whether the configuration enables tracking.
    """
    if not (wanted and langwatch_key()):
        yield None
        return
    tracker = Tracker(name, *spool_place(name, folder))
    yield tracker
    tracker.deliver()


def trace_search(query: str, hits: Sequence[tuple[str, str, float]], *, model: str, seconds: float) -> None:
    """Send one search to LangWatch as a ``rag`` span, if there is a key; see `Tracker.add_search`."""
    if langwatch_key():
        tracker = Tracker(None, *spool_place("search", None))
        tracker.add_search(query, hits, model=model, seconds=seconds)
        tracker.deliver()
