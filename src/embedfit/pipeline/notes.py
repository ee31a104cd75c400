"""Alerts, notes and facts for the reader of a report."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit.data.check import Finding, warnings
from embedfit.encode.local import local_of
from embedfit.evaluation.comparison import Comparison
from embedfit.metrics import metric_label
from embedfit.pipeline.job import Job
from embedfit.pipeline.parts import LISTED
from embedfit.studies.forgetting import Forgetting

if TYPE_CHECKING:
    from embedfit.tune.result import Tuned

_CANDIDATES = {
    "all": "all documents",
    "mined": "the batch's documents, mined and random ones",
    "batch": "the batch's documents and random ones",
    "corpus": "all documents, whose vectors are the base model's",
}
MIXED = "The further data of [mix] trains the query adapter, LoRA and full fine-tuning; the other methods learn from [data] alone."


def alerts(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Return the alerts for a report: leaks that were allowed."""
    leaks = [finding for finding in findings if finding.kind == "leak"]
    if not leaks:
        return ()
    summary = f"{len(leaks):,} held-out queries repeat training queries, and leaks were allowed: the figures below are too good."
    return (summary, *(leak.message for leak in leaks[:LISTED]))


def notes_on(job: Job, forgetting: Forgetting | None = None, *, final: bool = False) -> tuple[str, ...]:
    """Return the notes on how to read the figures."""
    notes = []
    writers = Counter(str(query.metadata["generated"]["model"]) for query in job.test.queries.values() if _written_by_llm(query.metadata))
    if writers:
        names = ", ".join(name for name, _ in writers.most_common())
        notes.append(
            f"{writers.total():,} of the {len(job.test.queries):,} held-out queries were written by an LLM ({names}): "
            "the figures say how well such queries are answered; people may word theirs differently."
        )
    candidates = job.config.model.candidates
    if candidates:
        on = "on these queries; the intervals hold for all of them at once" if job.choices > 1 else "on the other queries alone"
        notes.append(f"The base model was chosen among {len(set(candidates)):,} {on}.")
    if len(job.splits) > 1:
        notes.append(
            f"Every query is scored by a model that never saw it: {len(job.splits)} models, each on the fold that it was trained without."
        )
    if job.config.split.by == "documents":
        notes.append(_note_on_new_answers(job))
    elif job.config.split.group_by and len(job.splits) == 1 and _left_out(job):
        field = job.config.split.group_by
        notes.append(f"Queries left out of training, because they share a {field} with a held-out one or leak: {_left_out(job):,}.")
    if len(job.splits) > 1 and final:
        notes.append(
            f"The model in this directory was trained in the same way on all {len(job.dataset.judged):,} queries; "
            "the figures are an estimate for it."
        )
    if forgetting and forgetting.warning:
        notes.append(forgetting.warning)
    return (*notes, *warnings(job.findings))


def next_steps(job: Job, folder: Path, comparison: Comparison, doubtful: int) -> tuple[tuple[str, str], ...]:
    """Return what can be done with a finished run, each step with its command.

    Args:
        job: Data and settings.
        folder: Run directory.
        comparison: Base model and what is deployed.
        doubtful: Number of queries whose label is in doubt.
    """
    run = shlex.quote(str(folder))
    if job.config.tune.method == "reranker":
        better = comparison.verdict == "better"
        return (("Publish the reranker with its evidence", f"embedfit publish {run} NAME/MODEL"),) if better else ()
    steps = []
    if comparison.verdict != "better":
        steps.append(("See which settings are worth changing", f"embedfit doctor {run}"))
    steps.append(("Try it in a browser, and collect picks", f"embedfit serve {run}"))
    if doubtful:
        count = "the label that is" if doubtful == 1 else f"the {doubtful:,} labels that are"
        steps.append((f"Look at {count} in doubt", f"embedfit serve {run}  # the tab 'Doubtful labels'"))
    if comparison.verdict == "better":
        steps.append(("Search from a vector database", f"embedfit index --model {run}"))
        if local_of(job.base):
            steps.append(("Publish the model with its evidence", f"embedfit publish {run} NAME/MODEL"))
            steps.append(("Make a smaller and faster form", f"embedfit export {run} --form onnx-int8"))
    return tuple(steps)


def _note_on_new_answers(job: Job) -> str:
    """Return the note on a split by documents."""
    answers = {id: set(job.dataset.relevant(id)) for id in job.dataset.judged}
    total = len(set().union(*answers.values()))
    counts = [len(set().union(*(answers[id] for id in split.test))) for split in job.splits]
    held_out = f"{counts[0]:,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
    each = "" if len(counts) == 1 else " in each fold"
    sentence = (
        f"{held_out} of the {total:,} documents that are asked for were held out{each}, with all of their queries: "
        "the figures say how well the model finds answers that training never saw."
    )
    if len(counts) == 1 and _left_out(job):
        sentence += f" Queries left out of training, because they share an answer with a held-out one or leak: {_left_out(job):,}."
    return sentence


def _left_out(job: Job) -> int:
    """Return the number of judged queries in no part of the only split."""
    [split] = job.splits
    return len(job.dataset.judged) - sum(map(len, (split.train, split.dev, split.test)))


def _written_by_llm(metadata: Mapping[str, Any]) -> bool:
    origin = metadata.get("generated")
    return isinstance(origin, dict) and "model" in origin


def seeds(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Return (label, value) rows: the metric of each seed, its spread over seeds, and the error from the draw of queries."""
    seeds, metric = comparison.seeds, comparison.metric
    if not seeds:
        return ()
    each = [(f"{metric_label(metric)}, seed {number + 1}", f"{value:.3f}") for number, value in enumerate(seeds.means[metric])]
    spread = ("standard deviation over seeds", f"{seeds.spread[metric]:.3f}")
    return (*each, spread, ("standard error from the draw of queries", f"{seeds.query_error[metric]:.3f}"))


def facts(job: Job, tuned: Sequence[Tuned]) -> dict[str, str]:
    """Return label -> text on data, split, models, training and software."""
    config, settings, first = job.config, job.config.tune, job.splits[0]
    parts = f"{len(first.train):,} train / {len(first.dev):,} dev / {len(first.test):,} test queries"
    weights = "all weights" if settings.train_embeddings else "all weights but the token embeddings"
    if tuned[0].frozen:
        weights = f"the layers above the lowest {tuned[0].frozen}"
    if settings.documents == "frozen":
        weights = f"of the encoder of queries alone, {weights}"
    where = f" above the lowest {tuned[0].frozen} layers" if tuned[0].frozen else ""
    trained = f"LoRA of rank {settings.lora_rank} on all linear layers{where}" if settings.method == "lora" else weights
    kind = tuned[0].candidates
    merged = f"trained weights merged with the base model's, {settings.merge_weight:g} of the former; " if settings.merge_weight < 1 else ""
    least = f"texts with a gradient of {settings.min_gradient:g} and more; " if kind and settings.min_gradient_with(kind) else ""
    spent = f"{sum(training.seconds for training in tuned):.0f} s"
    if settings.method == "reranker":
        tuning = (
            f"a cross-encoder, {weights}; cross-entropy of a right document among those that the base model finds, "
            f"AdamW at {settings.learning_rate_with('mined'):g}, batch {settings.batch_size}, "
            f"at most {settings.epochs_with('mined')} epochs; kept: epoch {', '.join(str(training.epoch) for training in tuned)}"
        )
    elif kind is None:
        tuning = f"a linear map of the query vector, fitted on frozen vectors; scale {settings.scale:g}"
    else:
        tuning = (
            f"{trained}; softmax over {_CANDIDATES[kind]}, scale {settings.scale:g}, "
            f"AdamW at {settings.learning_rate_with(kind):g}, batch {settings.batch_size}, at most {settings.epochs_with(kind)} epochs; "
            f"{'weights averaged over each epoch; ' if settings.schedule == 'averaged' else ''}{least}{merged}"
            f"kept: epoch {', '.join(str(training.epoch) for training in tuned)}"
        )
        spent += f" for {sum(training.tokens or 0 for training in tuned):,} tokens"
    return {
        "Data": f"{len(job.dataset.judged):,} labelled queries, {len(job.dataset.corpus):,} documents ({Path(config.data.queries).name})",
        **({"Feedback": job.picked.describe()} if job.picked else {}),
        "Split": f"{len(job.splits)} folds, each {parts}" if len(job.splits) > 1 else f"{parts}, seed {config.split.seed}",
        "Document template": job.template,
        "Base model": f"{job.base.name} (fingerprint {job.base.fingerprint[:12]})",
        "Tuning": tuning,
        "Training time": spent,
        "Software": ", ".join(f"{name} {version(name)}" for name in ("embedfit", "sentence-transformers", "transformers", "torch")),
    }
