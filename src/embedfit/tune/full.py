"""Fine-tuning of all weights, or of LoRA's matrices, on sentence-transformers' trainer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from embedfit import console, processes
from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Precision
from embedfit.encode.local import LocalEncoder, ModelEncoder, load_model
from embedfit.encode.saving import save_in_place
from embedfit.encode.sides import TwoEncoders, save_one_side, save_two_sided, side_of, two_sided
from embedfit.errors import require
from embedfit.loading import changing_vectors, whole_weights
from embedfit.retrieve.engine import Engine, LocalEngine
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.template import DOCUMENT_TEMPLATE
from embedfit.tune.batches import Collator
from embedfit.tune.candidates import AllDocuments, BatchAndOthers, CandidateSource, has_judged_negatives
from embedfit.tune.course import Course, failures_explained, run_course
from embedfit.tune.dev import DevScores, InTraining, with_fewer_documents
from embedfit.tune.lora import merge_lora, save_lora
from embedfit.tune.loss import CandidateLoss
from embedfit.tune.mine import Guards, MinedCandidates, mine, steps_between_minings
from embedfit.tune.prepared import (
    Prepared,
    kept_states,
    memory_tokens,
    merge_with_start,
    prepare,
    random_negatives,
    remembered_vectors,
    starting_weights,
)
from embedfit.tune.query_side import CorpusLoss, FrozenDocuments, map_between
from embedfit.tune.result import DONE, LORA, MODEL, Tuned, answer_keys, claim, keys_of, read_tuned, write_tuned
from embedfit.tune.teacher import Teacher, has_teacher_scores, teacher_identity, teacher_of
from embedfit.tune.training import Training

_CHUNK_TOKENS = 1024
"""Tokens padded and encoded together on a CPU: enough to keep it busy, with little padding. A step's gradient does not
depend on it."""
_CHUNK_TOKENS_ON_DEVICE = 65_536
"""Tokens padded and encoded together on a GPU, shared among the processes that train together."""
_MINING = {"hard_negatives", "mined_margin", "mine_every", "judge"}
_UNUSED = {
    "all": {*_MINING, "negatives"},
    "batch": {*_MINING, "min_gradient"},
    "mined": {"min_gradient"},
    "corpus": {*_MINING, "negatives", "candidates", "min_gradient"},
}
"""Settings of [tune] that have no effect, by kind of candidates."""
_POOL = 8
"""Size of the pool that a query's hard negatives are drawn from, as a multiple of the negatives drawn."""


def tune_model(
    encoder: LocalEncoder,
    train: Dataset,
    dev: Dataset | None,
    folder: str | Path,
    config: TuneConfig | None = None,
    *,
    template: str = DOCUMENT_TEMPLATE,
    report_to: Sequence[str] = (),
    engine: Engine | None = None,
) -> Tuned:
    """Fine-tune a model on labelled pairs, and keep the epoch that is best on dev.

    After a crash, the same call resumes from the last checkpoint and ends with the same weights.

    Args:
        encoder: Model to start from, with its prompts and precision.
        train: Training queries.
        dev: Dev queries, for early stopping and for choosing the epoch; None to train for all epochs.
        folder: Output folder: the model goes to ``folder/model``, LoRA's matrices alone to ``folder/lora``, and checkpoints
            stay there during training.
        config: Settings; the defaults are the same for every data set.
        template: Document template.
        report_to: Trackers that the trainer logs to: ``mlflow``, ``wandb``, ``tensorboard``.
        engine: Engine that mines and judges negatives; by default this process. Processes that train together share that
            work instead, and take no engine.

    Raises:
        ConfigError: A Matryoshka dimension is not below the model's.
        DataError: No training query is judged, or all have the same answer.
        EmbedfitError: LoRA without peft, or a package of ``report_to`` is not installed.
        ModelError: The model cannot be tuned, memory ran out, or training diverged.
        StorageError: The folder cannot be written, holds another tuning, or the disk is full.
    """
    training = Training(train, dev, Path(folder), config or TuneConfig(), template, tuple(report_to), engine or LocalEngine())
    return tune_weights(encoder, training)


def tune_weights(encoder: LocalEncoder, training: Training, documents: Encoder | None = None) -> Tuned:
    """Fine-tune a model on a `Training`; `tune_model` documents the settings and the errors.

    Args:
        encoder: Model to start from.
        training: Data, settings and output folder.
        documents: Another encoder, whose document vectors the model learns to find, through a linear map that is fitted first; needs
            ``documents = "frozen"``. None for the model's own.
    """
    processes.join()
    if training.config.method == "lora":
        require("peft", extra="lora")
    for name in training.report_to:
        require(name, extra=name)
    training = training.judged()
    train, dev, folder, template = training.train, training.dev, training.folder, training.template
    described = [encoder.fingerprint, train.digest(), dev.digest() if dev else None, template, training.config.identity()]
    described += ["judged negatives"] if has_judged_negatives(train) else []  # they were not drawn once
    described += [documents.fingerprint] if documents else []
    described += [teacher_identity(training.config.teacher)] if training.config.teacher else []
    claim(folder, described, keys_of(train, dev), answer_keys(train, dev, template))
    if processes.agreed((folder / DONE).exists()):
        return beside(read_tuned(folder, template=template), documents)
    with failures_explained(training):
        tuned = _train(encoder, training, documents)
    if processes.main():
        write_tuned(tuned, folder)
        for name in ("checkpoints", "mined"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return beside(processes.agreed(tuned), documents)


def beside(tuned: Tuned, documents: Encoder | None) -> Tuned:
    """Return the result with the other encoder that it needs for the documents; as it is if it needs none."""
    if documents is None:
        return tuned
    encoder = TwoEncoders(LocalEncoder(tuned.model, precision=tuned.precision, model_kwargs=tuned.loading), documents)
    return replace(tuned, held=DenseRetriever(encoder, tuned.template))


def _train(encoder: LocalEncoder, training: Training, documents: Encoder | None) -> Tuned:
    """Train a model from its start or its last checkpoint, and save it."""
    config = training.config
    base = CachedEncoder(training.engine.encoder(documents or encoder))  # a comparison may have cached its vectors already
    prepared = prepare(encoder, training, map_between(encoder, base, training) if documents else ())
    start = starting_weights(prepared, config)
    source = _candidate_source(base, training, prepared)
    teacher = teacher_of(base, training)
    loss = _loss(base, training, prepared, teacher)
    _note_unused(config, prepared.candidates, training.train)
    on_cpu = prepared.model.device.type == "cpu"
    chunk_tokens = _CHUNK_TOKENS if on_cpu else _CHUNK_TOKENS_ON_DEVICE // processes.count()
    started = time.monotonic()
    kept = kept_states(prepared, config, chunk_tokens)
    spent = time.monotonic() - started
    collator = Collator(prepared.queries, prepared.documents, source, chunk_tokens=chunk_tokens, kept=kept, teacher=teacher)
    miner = source if isinstance(source, MinedCandidates) else None
    course = Course(
        prepared.model,
        collator,
        loss,
        _dev_scores(base, training, prepared),
        rows=len(prepared.queries),
        epochs=prepared.epochs,
        learning_rate=config.learning_rate_with(prepared.candidates),
        bf16=prepared.encoder.bf16,
        averaged=config.schedule == "averaged",
        miner=miner,
        spent=spent,
        remembered=loss.remembered,
    )
    finished = run_course(training, course)
    _save(prepared, start, encoder, documents, training)
    return Tuned(
        None,
        finished.seconds,
        training.folder,
        training.template,
        encoder.precision,
        encoder.loading,
        finished.history,
        epoch=finished.epoch,
        tokens=finished.tokens,
        candidates=prepared.candidates,
        matryoshka=config.matryoshka,
        frozen=prepared.lower.count if prepared.lower else 0,
    )


def _candidate_source(base: CachedEncoder, training: Training, prepared: Prepared) -> CandidateSource | None:
    """Return the source of each batch's candidate documents; None if no document is encoded."""
    train, config, engine, folder = training.train, training.config, training.engine, training.folder / "mined"
    if prepared.documents is None:
        return None
    if prepared.candidates == "all":
        return AllDocuments(train)
    drawn = BatchAndOthers(train, random=random_negatives(config, prepared.candidates), hard=config.hard_negatives, seed=config.seed)
    if prepared.candidates == "batch":
        return drawn
    guards = Guards.of(training, config.mined_margin, _precision(prepared.encoder))

    def find(number: int) -> npt.NDArray[np.int64]:
        # At first the weights are still the base model's.
        miner = _now(prepared.encoder, prepared.lora is None, engine, folder / "model") if number else base
        return mine(miner, train, training.template, count=_POOL * config.hard_negatives, guards=guards, engine=engine)

    every = config.mine_every or steps_between_minings(config, prepared.epochs, prepared.queries.lengths, prepared.documents.lengths)
    return MinedCandidates(drawn, find, folder, every)


def _loss(base: CachedEncoder, training: Training, prepared: Prepared, teacher: Teacher | None) -> CandidateLoss:
    """Return the loss: over each batch's candidates, or over all documents if they are frozen."""
    config = training.config
    given = (prepared.model, config.scale, config.matryoshka)
    memory = memory_tokens(prepared.model, prepared.lower, config, prepared.longest)
    named: dict[str, Any] = {"memory_tokens": memory, "lower": prepared.lower, "teacher_weight": config.teacher_weight}
    named["remembered"] = remembered_vectors(prepared, config)
    if prepared.documents is not None:
        return CandidateLoss(*given, **named)
    frozen = FrozenDocuments.of(base, training.train, training.template, config.seed, teacher=teacher)
    return CorpusLoss(frozen, *given, **named)


def _dev_scores(base: CachedEncoder, training: Training, prepared: Prepared) -> DevScores | None:
    """Return the scores of the dev part; None without a dev part."""
    if not training.dev:
        return None
    now = InTraining(prepared.encoder)
    retriever = DenseRetriever(now if prepared.documents is not None else TwoEncoders(now, base), training.template)
    dev = with_fewer_documents(training.dev, training.config.seed)
    return DevScores(dev, lambda: retriever.search(dev, 10))


def _note_unused(config: TuneConfig, candidates: str, train: Dataset) -> None:
    unused = sorted((_UNUSED[candidates] | ({"min_gradient"} if config.teacher else set())) & config.model_fields_set)
    if candidates == "batch" and "hard_negatives" in unused and has_judged_negatives(train):
        unused.remove("hard_negatives")
    if unused:
        console.note(f"not used where candidates are {candidates!r}: {', '.join(f'tune.{name}' for name in unused)}")
    if config.teacher is None and has_teacher_scores(train):
        console.note("the data has teacher scores, which are not used; tune.teacher = 'data' learns from them")


def _save(prepared: Prepared, start: Mapping[str, Tensor], base: LocalEncoder, documents: Encoder | None, training: Training) -> None:
    """Save the model, and LoRA's matrices alone beside it before they are merged into it."""
    merge_with_start(prepared, start, training.config.merge_weight)
    if not processes.main():
        return
    model, options = prepared.model, whole_weights(base.loading)
    if prepared.lora is not None:
        save_in_place(partial(save_lora, prepared.lora, base.name), training.folder / LORA)
        if changing_vectors(base.loading) == changing_vectors(options):
            prepared.lora.merge_and_unload()
        else:  # the weights in memory are rounded, and would round away what was learnt
            whole = load_model(base.folder, base.prompts, base.pooling, options)
            model = side_of(whole, "query") if prepared.documents is None else whole
            merge_lora(model, training.folder / LORA)
    if prepared.documents is not None:
        save_in_place(partial(model.save_pretrained, create_model_card=False), training.folder / MODEL)
        return
    if documents is not None:
        save_one_side(model, documents, training.folder / MODEL)
        return
    own = side_of(load_model(base.folder, base.prompts, base.pooling, options), "document")
    save_two_sided(two_sided(model, own), base.documents_read_as, training.folder / MODEL)


def _now(training: ModelEncoder, whole: bool, engine: Engine, folder: Path) -> Encoder:
    """Return the model in its present state, for an engine to encode with. Another machine needs its files.

    Args:
        training: Model in training.
        whole: Whether its files alone are a model. With LoRA's matrices they are not, and the model encodes in this process.
        engine: Engine that encodes.
        folder: Folder for the files.
    """
    if isinstance(engine, LocalEngine) or not whole:
        return InTraining(training)
    save_in_place(partial(training.model.save_pretrained, create_model_card=False), folder)
    query, document = training.prompts["query"], training.prompts["document"]
    return InTraining(engine.encoder(LocalEncoder(folder, query_prompt=query, document_prompt=document, precision=_precision(training))))


def _precision(training: ModelEncoder) -> Precision:
    return "bf16" if training.bf16 else "fp32"
