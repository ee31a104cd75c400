"""Forms of a model that are cheaper to run: what each costs in quality, and what it saves in size and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedfit.data.dataset import Dataset
from embedfit.data.split import group_numbers
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Kind, Vectors
from embedfit.encode.static import StaticEncoder
from embedfit.errors import ConfigError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Difference
from embedfit.evaluation.score import Scores, score_run
from embedfit.retrieve.exact import top_k
from embedfit.retrieve.run import run_of
from embedfit.studies.answers import Answers
from embedfit.studies.forms import spread

TOLERANCE = 0.01
"""Largest loss of the metric that passes by default; one query's worth, if that is more."""
_TIMED_TEXTS, _TIMED_QUERIES = 256, 32
"""Number of texts encoded together, and of queries encoded alone, to measure the speed."""


@dataclass(frozen=True)
class Deployable:
    """A form of a model, measured beside the model that it was made from.

    Attributes:
        name: Name of the form, such as ``onnx-int8``.
        files: Files of its weights, relative to its folder.
        difference: Metric of the model and of the form, on the same queries, with the 95% interval of the difference.
        allowed: Largest loss that passes.
        cosine: Lowest cosine of a vector with the measured one; None for a form with a space of its own.
        bytes: Size of the weights, in bytes; also ``model_bytes`` for the model.
        texts_per_second: Texts encoded in a second, queries and documents in batches; also ``model_texts_per_second``.
        query_milliseconds: Median time for one query alone; also ``model_query_milliseconds``.
        answers: Answers of the run's searcher with this form; None if it has not been asked.
        model: Identity of the model that the form was made from.
    """

    name: str
    files: tuple[str, ...]
    difference: Difference
    allowed: float
    cosine: float | None
    bytes: int
    model_bytes: int
    texts_per_second: float
    model_texts_per_second: float
    query_milliseconds: float
    model_query_milliseconds: float
    answers: Answers | None = None
    model: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is lost beyond what is allowed."""
        return not self.reason

    @property
    def reason(self) -> str:
        """What is lost beyond what is allowed, as text; empty if nothing is. NaN is a loss."""
        if not self.difference.difference >= -self.allowed - 1e-12:
            return "the loss is more than is allowed"
        if self.answers is None:
            return ""
        if not self.answers.difference.difference >= -self.allowed - 1e-12:
            lost = self.answers.difference.difference
            return f"the searcher's best answers lose more than is allowed ({lost:+.3f} right, allowed -{self.allowed:.3f})"
        if self.answers.overstated is not None and not self.answers.overstated <= self.allowed + 1e-12:
            return f"the searcher's probabilities are overstated by {self.answers.overstated:.3f} on average, allowed {self.allowed:.3f}"
        return ""

    @property
    def sentence(self) -> str:
        """The measurement, as text."""
        row = self.difference
        quality = (
            f"{row.metric} {row.tuned:.3f}, the model's is {row.base:.3f} ({row.difference:+.3f}, "
            f"95% interval {row.low:+.3f} to {row.high:+.3f}; allowed -{self.allowed:.3f})"
        )
        return (
            f"{self.name}: {quality}; {self.texts_per_second / self.model_texts_per_second:.1f} times the texts a second, "
            f"{self.query_milliseconds:.1f} ms for one query against {self.model_query_milliseconds:.1f} ms, "
            f"{self.bytes / 1e6:,.0f} MB against {self.model_bytes / 1e6:,.0f} MB{self._asked}"
        )

    @property
    def _asked(self) -> str:
        if self.answers is None:
            return ""
        change = "" if self.answers.change is None else f", with probabilities that change by {self.answers.change:.3f} on average"
        return f"; {self.answers.same:.1%} of the searcher's best answers are the same{change}"

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as JSON has it."""
        answers = self.answers.to_dict() if self.answers else None
        return {**vars(self), "difference": vars(self.difference), "answers": answers, "passed": self.passed}

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> Deployable:
        """Return what `to_dict` described."""
        fields = {name: value for name, value in payload.items() if name != "passed"}
        answers = Answers.from_dict(payload["answers"]) if payload.get("answers") else None
        return cls(**{**fields, "files": tuple(payload["files"]), "difference": Difference(**payload["difference"]), "answers": answers})


def measure_deployable(
    name: str,
    measured: Encoder,
    form: Encoder,
    folder: Path,
    files: Sequence[str],
    model_bytes: int,
    dataset: Dataset,
    template: str,
    metric: str,
    *,
    tolerance: float = TOLERANCE,
    group_by: str | None = None,
    seed: int = 0,
) -> Deployable:
    """Measure a form of a model on held-out queries, and both speeds in turn.

    Args:
        name: Name of the form.
        measured: Model as measured; its vectors come from the cache if they are there.
        form: The form, which encodes every query and document.
        folder: Folder of the form.
        files: Files of its weights, relative to the folder.
        model_bytes: Size of the model's weights, in bytes.
        dataset: Held-out queries and all documents.
        template: Document template.
        metric: Name of the main metric, such as ``mrr@10``.
        tolerance: Largest loss of the metric that passes; one query's worth is always allowed.
        group_by: Metadata field; queries with the same value count as dependent, as near duplicates always do.
        seed: Seed of the interval.

    Raises:
        ConfigError: No query is labelled.
    """
    dataset = dataset.select(dataset.judged)
    if not dataset.queries:
        raise ConfigError("a form is judged on labelled queries, and there are none")
    difference, cosine = measure_quality(name, measured, form, dataset, template, metric, group_by=group_by, seed=seed)
    model_speed, form_speed = (measure_speed(encoder, dataset, template) for encoder in (measured, form))
    return Deployable(
        name,
        tuple(files),
        difference,
        max(tolerance, 1 / len(dataset.queries)),
        cosine,
        sum((folder / file).stat().st_size for file in files),
        model_bytes,
        form_speed[0],
        model_speed[0],
        form_speed[1],
        model_speed[1],
    )


def measure_quality(
    name: str,
    measured: Encoder,
    form: Encoder,
    dataset: Dataset,
    template: str,
    metric: str,
    *,
    group_by: str | None = None,
    seed: int = 0,
) -> tuple[Difference, float | None]:
    """Return the metric of a model and of its form on labelled queries, and the lowest cosine of a vector with the model's.

    The cosine is None for a form with a space of its own. The arguments are those of `measure_deployable`.
    """
    texts = _texts(dataset, template)
    before = {kind: CachedEncoder(measured).encode(texts[kind], kind) for kind in texts}
    after = {kind: form.encode(texts[kind], kind) for kind in texts}
    ids, groups, k = tuple(sorted(dataset.corpus)), group_numbers(dataset, group_by), int(metric.partition("@")[2])

    def scores(vectors: dict[Kind, Vectors], label: str) -> Scores:
        run = run_of(dataset, ids, partial(top_k, vectors["query"], vectors["document"]), k)
        return score_run(run, dataset.qrels, ks=(k,), name=label, groups=groups)

    difference = compare_scores(scores(before, "model"), scores(after, name), metric=metric, seed=seed, held_out=True)[metric]
    if isinstance(form, StaticEncoder):
        return difference, None
    return difference, min(float((before[kind] * after[kind]).sum(axis=1).min()) for kind in texts)


def measure_speed(encoder: Encoder, dataset: Dataset, template: str) -> tuple[float, float]:
    """Return the texts that an encoder encodes in a second, and the median milliseconds for one query alone."""
    texts = _texts(dataset, template)
    return _texts_per_second(encoder, texts), _milliseconds(encoder, texts["query"])


def _texts(dataset: Dataset, template: str) -> dict[Kind, list[str]]:
    """Return the texts of the queries, and of the documents by sorted id."""
    by_id = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True))
    return {"query": dataset.query_texts(), "document": [by_id[id] for id in sorted(by_id)]}


def _texts_per_second(encoder: Encoder, texts: dict[Kind, list[str]]) -> float:
    """Return the texts encoded in a second, half of them queries if there are as many; the better of two trials."""
    half = _TIMED_TEXTS // 2
    parts = {kind: [texts[kind][row] for row in spread(len(texts[kind]), half)] for kind in texts}
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        for kind, part in parts.items():
            encoder.encode(part, kind)
        best = min(best, time.perf_counter() - started)
    return sum(map(len, parts.values())) / best


def _milliseconds(encoder: Encoder, queries: Sequence[str]) -> float:
    """Return the median milliseconds for one query, encoded alone as in production."""
    encoder.encode(queries[:1], "query")
    seconds = []
    for row in spread(len(queries), _TIMED_QUERIES):
        started = time.perf_counter()
        encoder.encode([queries[row]], "query")
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)) * 1000
