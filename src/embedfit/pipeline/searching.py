"""The searcher of a run: what is learnt on queries that no model was trained on, and what is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Dataset
from embedfit.data.records import record_type
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, complete
from embedfit.evaluation.calibrate import Assessed
from embedfit.evaluation.families import compare_many
from embedfit.evaluation.score import Scores
from embedfit.metrics import metric_label
from embedfit.pipeline.job import Job
from embedfit.pipeline.kept_out import Part, parts_for_weights, with_dev
from embedfit.pipeline.needs import local
from embedfit.retrieve.run import Run
from embedfit.searcher.fit import assembled
from embedfit.searcher.fusion import Evidence
from embedfit.searcher.gather import SCALE, Corpus, Examples, Views
from embedfit.searcher.learn import Learnt, assess, cross_fitted, run_of_evidence
from embedfit.searcher.searcher import Searcher
from embedfit.searcher.views import BASE, DOCUMENTS, TERMS, WORDS, Array, View

if TYPE_CHECKING:
    from embedfit.pipeline.training import Trained

SEARCHER = "searcher"
"""Name of the step that measures and builds it."""
UNTUNED, ALONE = "untuned searcher", "tuned alone"
"""Names of the other methods in tables."""


@dataclass(frozen=True)
class Searched:
    """A searcher's rankings, and what it learnt.

    Attributes:
        run: Rankings of the held-out queries, by weights that were learnt without them.
        chances: Query id -> probability that its best answer is right; empty for too few queries.
        learnt: Weights.
        assessed: How far answers can be trusted; None for too few queries.
    """

    run: Run
    chances: dict[str, float]
    learnt: Learnt
    assessed: Assessed | None


@dataclass
class Bench:
    """The views of one job, shared between encoders where they do not depend on one.

    Attributes:
        job: Data, parts and settings.
    """

    job: Job
    _words: dict[str, View] = field(default_factory=dict)

    @cached_property
    def parts(self) -> list[Part]:
        """The queries to learn the weights on."""
        return parts_for_weights(self.job)

    @property
    def views(self) -> tuple[str, ...]:
        """The views that the settings ask for; documents are always among them."""
        return tuple(dict.fromkeys((DOCUMENTS, *self.job.config.searcher.views)))

    @property
    def base(self) -> Encoder | None:
        """The model before it was tuned, if a view may read its vectors: not if each query has a price, or if an adapter maps them."""
        asks = BASE in self.views and self.job.config.tune.method != "adapter"
        return self.encoder(self.job.base) if asks and not complete(self.job.base).remote else None

    @cached_property
    def groups(self) -> dict[str, int]:
        """Query id -> number of its group."""
        return self.job.groups

    def encoder(self, model: Encoder) -> Encoder:
        """Return a model on the job's engine, with a cache."""
        return CachedEncoder(self.job.engine.encoder(model))

    def built(self, encoder: Encoder, known: Dataset, *, tuned: bool, scale: float | None = None) -> tuple[Corpus, Examples, Views]:
        """Return the documents, the examples, and the views on them.

        Args:
            encoder: Encoder of queries and documents.
            known: Labelled queries.
            tuned: Whether the encoder is another model than the base.
            scale: Scale of the soft maximum over a document's examples; by default the usual one.
        """
        base = self.base if tuned else None
        corpus = Corpus.of(self.job.dataset, encoder, self.job.template)
        examples = Examples.of(known, encoder, corpus.ids, base)
        names = [view for view in self.views if view != BASE or base]
        keys = {WORDS: WORDS, TERMS: "\n".join(known.queries)}  # neither depends on an encoder
        given = {name: self._words[key] for name, key in keys.items() if name in names and key in self._words}
        views = Views.fit(corpus, examples, names, given=given, scale=scale or SCALE)
        self._words |= {key: views.views[name] for name, key in keys.items() if name in views.views}
        return corpus, examples, views

    def evidence(self, encoders: Sequence[Encoder], *, tuned: bool) -> tuple[Evidence, tuple[str, ...]]:
        """Return what the views say about the asked queries of each part, and the document ids.

        Args:
            encoders: Encoder of each part.
            tuned: Whether they are other models than the base.
        """
        gathered: list[Evidence] = []
        ids: tuple[str, ...] = ()
        for model, part in zip(encoders, self.parts, strict=True):
            encoder = self.encoder(model)
            corpus, _, views = self.built(encoder, part.known, tuned=tuned)
            gathered.append(views.gather(part.asked, encoder, corpus.ids, self.base if tuned else None))
            ids = corpus.ids
        return Evidence.joined(gathered), ids

    def run(self, encoders: Sequence[Encoder], final: Encoder, *, tuned: bool) -> Searched:
        """Learn the weights, and search the held-out queries.

        Args:
            encoders: Encoder of each part that the weights are learnt on.
            final: Encoder of the only split's model; ignored with folds.
            tuned: Whether they are other models than the base.
        """
        job, seed = self.job, self.job.config.split.seed
        evidence, ids = self.evidence(encoders, tuned=tuned)
        learnt = Learnt.of(evidence, self.views, seed=seed)
        groups = np.array([self.groups[id] for id in evidence.query_ids])
        scores = cross_fitted(evidence, groups, self.views, seed=seed)
        assessed = self.assessed(evidence, scores, groups) if tuned else None  # only what is deployed states probabilities
        if len(job.splits) > 1:
            run, chances = run_of_evidence(evidence, scores, ids, job.depth), assessed.probability if assessed else None
        else:
            [(train, dev, test)] = job.parts
            searcher = self.searcher(final, with_dev(job.dataset, train, dev), learnt, assessed, tuned=tuned)
            run, chances = searcher.rank_with_chances(test, job.depth)
        return Searched(run, {} if chances is None else dict(zip(run.query_ids, chances.tolist(), strict=True)), learnt, assessed)

    def assessed(self, evidence: Evidence, scores: Array, groups: npt.NDArray[np.int64]) -> Assessed | None:
        """Return how far answers can be trusted, by fused scores of weights that were fitted without each query."""
        settings, seed = self.job.config.searcher, self.job.config.split.seed
        answerable = [bool(self.job.dataset.relevant(id)) for id in evidence.query_ids]
        return assess(evidence, scores, groups, answerable, precision=settings.precision, coverage=settings.coverage, seed=seed)

    def searcher(self, model: Encoder, known: Dataset, learnt: Learnt, assessed: Assessed | None, *, tuned: bool) -> Searcher:
        """Return the searcher over an encoder, with labelled queries as its examples."""
        encoder = self.encoder(model)
        corpus, examples, views = self.built(encoder, known, tuned=tuned, scale=learnt.scale)
        data = self.job.config.data
        query_template = record_type(data.record, template=data.query_template, label=data.label).template if data.record else None
        searcher = assembled(
            self.job.dataset,
            encoder,
            corpus,
            examples,
            views,
            learnt,
            assessed,
            self.job.template,
            base=self.base,
            query_template=query_template,
        )
        return searcher if self.job.config.searcher.keep_texts else searcher.without_texts()


@dataclass(frozen=True)
class Deployed:
    """The searcher, and its rankings of the held-out queries.

    Attributes:
        searched: Rankings, one for each seed.
        untuned: Rankings of the searcher over the base model; None if the searcher has the documents alone.
        searcher: Searcher to deploy.
    """

    searched: list[Searched]
    untuned: Run | None
    searcher: Searcher


def measure_searchers(bench: Bench, trained: Trained, model: Encoder, weight: float, folder: Path) -> Deployed:
    """Measure the searcher over the tuned models and over the base model.

    Args:
        bench: Parts of the job.
        trained: Trainings.
        model: Model to deploy.
        weight: Weight of the tuned model where it is merged with the base.
        folder: Run directory.
    """
    job = bench.job
    untuned = None
    if bench.views != (DOCUMENTS,):
        untuned = bench.run([job.base] * len(bench.parts), job.base, tuned=False).run
    measured = []
    for seed, (training, for_weights) in enumerate(zip(trained.parts, trained.for_weights, strict=True)):
        where = folder / "seeds" / str(seed) if seed else folder
        encoders = [
            merged_with_base(job, tuned.encoder, weight, where / "folds" / str(fold) / "kept") for fold, tuned in enumerate(for_weights)
        ]
        final = model if seed == 0 or len(training) > 1 else merged_with_base(job, training[0].encoder, weight, where / "kept")
        measured.append(bench.run(encoders, final, tuned=True))
    [*_, (train, dev, _)] = job.parts
    known = job.dataset.select(job.dataset.judged) if len(job.splits) > 1 else with_dev(job.dataset, train, dev)
    searcher = bench.searcher(model, known, measured[0].learnt, measured[0].assessed, tuned=True)
    return Deployed(measured, untuned, searcher)


def merged_with_base(job: Job, model: Encoder, weight: float, folder: Path) -> Encoder:
    """Return a tuned model, merged with the base if its weight is under 1."""
    if weight == 1:
        return model
    from embedfit.tune.merge import merge_models

    return merge_models(local(job.base), local(model), weight, folder)


def described(searcher: Searcher) -> dict[str, Any]:
    """Return what a manifest says about a searcher."""
    parts = searcher.parts
    return {
        "views": list(parts.fusion.views),
        "documents": len(parts.corpus.ids),
        "examples": len(parts.examples.query_ids),
        "threshold": parts.threshold.to_dict() if parts.threshold else None,
        "sets": parts.sets.to_dict() if parts.sets else None,
    }


def need_for_tuning(job: Job, untuned: Scores, tuned: Scores, deployed: Scores) -> tuple[str, ...]:
    """Return a sentence if the searcher is not shown to be better than one over the base model. Two comparisons are counted.

    Args:
        job: Settings.
        untuned: Scores of the searcher over the base model.
        tuned: Scores of the tuned model alone.
        deployed: Scores of the searcher over the tuned model, on the same queries.
    """
    metric = job.metric
    difference = compare_many([deployed, tuned], base=untuned, metric=metric, seed=job.config.split.seed)[0]
    if difference.verdict == "better":
        return ()
    return (
        f"Fine-tuning is not shown to be needed: a searcher over the base model is not worse beyond chance ({metric_label(metric)} "
        f"{untuned.mean(metric):.3f} against {deployed.mean(metric):.3f}).",
    )


def trusted(searched: Searched) -> tuple[str, ...]:
    """Return a sentence on the share of the queries that need no person; empty for too few queries."""
    if searched.assessed is None:
        return ()
    threshold = searched.assessed.trust.threshold
    if threshold.value is None:
        return (f"No answer can go without a check yet: {threshold.reason}.",)
    return (f"At {threshold.precision:.0%} precision, {threshold.coverage:.0%} of the queries need no person.",)
