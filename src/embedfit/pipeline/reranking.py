"""A run that tunes a reranker: what the base model finds, before and after a cross-encoder has read its top."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from embedfit import console, progress
from embedfit.config import Config
from embedfit.encode.local import seconds_alone
from embedfit.errors import ConfigError
from embedfit.evaluation.score import Scores
from embedfit.hub import model_folder, public_name, weights_digest
from embedfit.pipeline.job import Job
from embedfit.pipeline.manifest import manifest_of
from embedfit.pipeline.needs import reranker_start
from embedfit.pipeline.notes import alerts, facts, next_steps, notes_on, seeds
from embedfit.pipeline.training import train_all, training_steps
from embedfit.pipeline.written import write_run
from embedfit.report.tables import Report, per_query
from embedfit.retrieve.rerank import LocalReranker, RerankedRetriever
from embedfit.retrieve.retrievers import BM25Retriever
from embedfit.retrieve.run import Run, joined
from embedfit.studies.suspects import find_suspects
from embedfit.track.tracker import tracking

if TYPE_CHECKING:
    from embedfit.tune.result import Tuned

_TIMED = 16
"""Queries that are reranked one by one to measure the time of one."""


def check_reranker_run(config: Config, *, picks: bool) -> None:
    """Check that nothing is asked of the run that needs a tuned encoder, and note the settings that it does not use.

    Raises:
        ConfigError: ``general.keep`` is set, or there are picks.
    """
    if config.general.keep is not None:
        raise ConfigError("general.keep merges weights of an encoder, which a reranker does not change; fix: leave it out")
    if picks:
        raise ConfigError("picks are measured by a searcher, and a reranker's run has none; fix: tune.method = 'full', or no picks")
    sections = [(name, getattr(config, name)) for name in ("general", "searcher", "deploy")]
    unused = [
        f"{name}.{key}"
        for name, section in sections
        for key, field in type(section).model_fields.items()
        if getattr(section, key) != field.default
    ]
    if unused:
        console.note(f"a run that tunes a reranker does not use {', '.join(unused)}")


def start_digest(job: Job) -> str:
    """Return a hash of the weights that the reranker starts from."""
    return weights_digest(model_folder(reranker_start(job.config.tune, job.base), proof="config.json"))


def run_reranker(job: Job, folder: Path) -> None:
    """Measure the base model, tune the reranker, measure both together, and write the run directory."""
    started = time.monotonic()
    with progress.plan("run", ["base model", *training_steps(job), "reranked", "report"]) as plan:
        with plan.step("base model"):
            job.findings  # noqa: B018 (raises before anything is trained)
            words = (job.scored(BM25Retriever(job.template).search(job.test, job.depth), "BM25"),) if job.config.evaluate.bm25 else ()
            base_run = job.dense(job.base).search(job.test, job.depth)
        trained = train_all(job, folder, plan)
        with plan.step("reranked"):
            runs = [_searched(job, training) for training in trained.parts]
            milliseconds = _milliseconds(job, trained.final)
        with plan.step("report"):
            first = trained.parts[0]
            tuned = [*first, trained.final] if len(first) > 1 else [trained.final]
            _write(job, folder, base_run, runs, words, tuned, milliseconds, time.monotonic() - started)


def _searched(job: Job, training: list[Tuned]) -> Run:
    """Return the Run on all held-out queries: each part by the reranker trained without it."""
    parts = zip(training, job.parts, strict=True)
    return joined([_retriever(job, tuned).search(test, job.depth) for tuned, (_, _, test) in parts])


def _retriever(job: Job, tuned: Tuned) -> RerankedRetriever:
    """Return the base model's ranking with its top reranked. The reranker is loaded again, so that no two stay in memory."""
    reranker = job.engine.reranker(LocalReranker(tuned.model, precision=tuned.precision))
    return RerankedRetriever(job.dense(job.base), reranker, job.template, top=job.config.evaluate.rerank_top)


def _milliseconds(job: Job, final: Tuned) -> dict[str, float]:
    """Return the time of one query alone, in milliseconds: to encode it, and to rerank its top."""
    some = job.test.select(list(job.test.queries)[:_TIMED])
    found = job.dense(job.base).search(some, job.config.evaluate.rerank_top)
    texts = dict(zip(some.corpus, some.document_texts(job.template), strict=True))
    pairs = [[(some.queries[id].text, texts[document]) for document in found.documents_at(row)] for row, id in enumerate(found.query_ids)]
    reranker = LocalReranker(final.model, precision=final.precision)
    reranker.score(pairs[0])  # loads the model
    started = time.perf_counter()
    for of_query in pairs:
        reranker.score(of_query)
    spent = (time.perf_counter() - started) / len(pairs)
    return {"encoding": round(1000 * seconds_alone(job.base, some.query_texts()), 3), "reranking": round(1000 * spent, 3)}


def _write(
    job: Job,
    folder: Path,
    base_run: Run,
    runs: list[Run],
    words: tuple[Scores, ...],
    tuned: list[Tuned],
    milliseconds: dict[str, float],
    seconds: float,
) -> None:
    """Write the run directory and send the results to the trackers."""
    config, final = job.config, tuned[-1]
    comparison = job.compared(
        job.scored(base_run, job.base.name), [job.scored(run, f"{job.base.name}, reranked by a tuned cross-encoder") for run in runs]
    )
    queries = per_query(job.dataset, comparison, base_run, runs[0])
    suspects = find_suspects(job.test, base_run, runs[0], scale=1.0)
    price = (
        f"A query takes {sum(milliseconds.values()):.1f} ms on this machine, {milliseconds['reranking']:.1f} ms of it to rerank "
        f"{config.evaluate.rerank_top} documents."
    )
    report = Report(
        config.name,
        comparison,
        queries,
        facts(job, tuned),
        words,
        (price, *notes_on(job, final=True)),
        tuned[0].history if len(tuned) == 1 else (),
        alerts=alerts(job.findings),
        documents=dict(zip(job.dataset.corpus, job.dataset.document_texts(job.template), strict=True)),
        suspects=suspects,
        seeds=seeds(comparison),
        deployed="reranked",
        next=next_steps(job, folder, comparison, len(suspects)),
    )
    identity, start = LocalReranker(final.model).fingerprint, public_name(reranker_start(config.tune, job.base))
    manifest = manifest_of(job, folder, tuned, seconds) | {
        "model": str(final.model.relative_to(folder)),
        "fingerprint": identity,
        "identity": identity,
        "others": [scores.name for scores in words],
        "searcher": None,
        "deployed": "reranked",
        "advice": [price],
        "forms": [],
        "forgetting": None,
        "reranker": {"start": start, "top": config.evaluate.rerank_top, "milliseconds": milliseconds},
    }
    write_run(folder, comparison, comparison, words, queries, suspects, manifest, report, None)
    with tracking(config.name, folder, wanted=config.track.langwatch) as tracker:
        if tracker:
            for scores, run in ((comparison.base, base_run), (comparison.tuned, runs[0])):
                tracker.add(public_name(scores.name), job.test, run, scores, template=job.template)
