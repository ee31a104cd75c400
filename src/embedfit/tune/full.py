"""Fine-tuning of all weights, or of LoRA's matrices, on sentence-transformers' trainer."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset as Rows
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import EarlyStoppingCallback

from embedfit import console, processes
from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Precision
from embedfit.encode.local import LocalEncoder, ModelEncoder, load_model
from embedfit.encode.precision import use_bf16
from embedfit.encode.saving import save_in_place, why_not_written
from embedfit.encode.tokens import Tokens
from embedfit.errors import ConfigError, EmbedfitError, ModelError, StorageError, require
from embedfit.retrieve.engine import Engine, LocalEngine
from embedfit.retrieve.rerank import LocalReranker
from embedfit.template import DOCUMENT_TEMPLATE
from embedfit.tune.batches import Collator
from embedfit.tune.candidates import AllDocuments, BatchAndOthers, CandidateSource, has_judged_negatives
from embedfit.tune.dev import DevScores, InTraining
from embedfit.tune.logged import logged, run_name
from embedfit.tune.lora import add_lora, save_lora
from embedfit.tune.loss import CandidateLoss
from embedfit.tune.lower import KeptStates, LowerLayers, layers_of
from embedfit.tune.mine import Guards, MinedCandidates, mine, steps_between_minings
from embedfit.tune.result import DONE, MODEL, Tuned, answer_keys, claim, keys_of, read_tuned, write_tuned
from embedfit.tune.trainer import RecordingTrainer, TrainingRecord, diverged, last_checkpoint, stopped_early
from embedfit.tune.training import Training

_ALL_DOCUMENTS_TOKENS = 4096
"""Largest corpus, in tokens, that is encoded whole in every step."""
_CHUNK_TOKENS = 1024
"""Tokens padded and encoded together on a CPU: enough to keep it busy, with little padding. A step's gradient does not
depend on it."""
_CHUNK_TOKENS_ON_DEVICE = 65_536
"""Tokens padded and encoded together on a GPU, shared among the processes that train together."""
_ACTIVATION_BYTES = 68
"""Bytes kept for the gradients per token, layer and hidden dimension, in fp32 and without attention's square matrices
(Korthikanti et al. 2022, section 4.1, has 34 in 16 bits)."""
_FROZEN_SHARE = 1 / 2
_FROZEN_QUERIES = 2000
"""Share of the layers that are frozen for a list of labels, and the most training queries for which they are. Larger sets were
not tried (docs/decisions.md)."""
_KEPT_SHARE = 1 / 8
"""Largest share of the machine's memory for kept states of frozen layers."""
_RANDOM = 32
"""Random documents per step if none are mined."""
_MINING = {"hard_negatives", "mined_margin", "mine_every", "judge"}
_UNUSED = {"all": {*_MINING, "negatives"}, "batch": _MINING, "mined": set()}
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


def tune_weights(encoder: LocalEncoder, training: Training) -> Tuned:
    """Fine-tune a model on a `Training`; `tune_model` documents the settings and the errors."""
    processes.join()
    if training.config.method == "lora":
        require("peft", extra="lora")
    for name in training.report_to:
        require(name, extra=name)
    training = training.judged()
    train, dev, folder, template = training.train, training.dev, training.folder, training.template
    described = [encoder.fingerprint, train.digest(), dev.digest() if dev else None, template, training.config.identity()]
    described += ["judged negatives"] if has_judged_negatives(train) else []  # they were not drawn once
    claim(folder, described, keys_of(train, dev), answer_keys(train, dev, template))
    if processes.agreed((folder / DONE).exists()):
        return read_tuned(folder, template=template)
    with _failures_explained(training):
        tuned = _train(encoder, training)
    if processes.main():
        write_tuned(tuned, folder)
        for name in ("checkpoints", "mined"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return processes.agreed(tuned)


@contextlib.contextmanager
def _failures_explained(training: Training) -> Iterator[None]:
    """Raise exhausted memory, a failing tracker and a full disk as errors of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise ModelError(f"training: memory ran out; fix: a smaller tune.batch_size than {training.config.batch_size}") from None
        package = type(error).__module__.partition(".")[0]
        if package in training.report_to:
            raise EmbedfitError(f"training cannot be logged to {package}: {str(error).splitlines()[0]}") from None
        reason = why_not_written(error)
        if reason is None:
            raise
        raise StorageError(f"{training.folder}: cannot be written: {reason}; fix: make room, then the same command resumes") from None


@dataclass(frozen=True)
class _Prepared:
    """A model ready for training, with its tokenised texts.

    Attributes:
        encoder: Model in training.
        lora: peft's model around the transformer; None without LoRA.
        queries: Tokens of each training query.
        documents: Tokens of each document.
        candidates: ``all``, ``mined`` or ``batch``.
        epochs: Most epochs to train for.
        steps: Steps per epoch.
        lower: Frozen layers; None if none are frozen.
    """

    encoder: ModelEncoder
    lora: Any
    queries: Tokens
    documents: Tokens
    candidates: str
    epochs: int
    steps: int
    lower: LowerLayers | None

    @property
    def model(self) -> SentenceTransformer:
        """The library's model."""
        return self.encoder.model


def _train(encoder: LocalEncoder, training: Training) -> Tuned:
    """Train a model from its start or its last checkpoint, and save it."""
    prepared, config, checkpoints = _prepared(encoder, training), training.config, training.folder / "checkpoints"
    source = _candidate_source(encoder, training, prepared)
    _note_unused(config, prepared.candidates, training.train)
    on_cpu = prepared.model.device.type == "cpu"
    chunk_tokens = _CHUNK_TOKENS if on_cpu else _CHUNK_TOKENS_ON_DEVICE // processes.count()
    started = time.monotonic()
    kept = _kept_states(prepared, config, chunk_tokens)
    spent = time.monotonic() - started
    collator = Collator(prepared.queries, prepared.documents, source, chunk_tokens=chunk_tokens, kept=kept)
    checkpoint = processes.agreed(last_checkpoint(checkpoints) if processes.main() else None)
    if checkpoint:
        console.note(f"resuming from {checkpoint.name}")
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    with console.progress("tuning", prepared.steps * prepared.epochs, done) as advance:
        judge = DevScores(prepared.encoder, training.dev, training.template, config.seed) if training.dev else None
        miner = source if isinstance(source, MinedCandidates) else None
        record = TrainingRecord(collator, miner, judge, advance, prepared.steps, spent)
        trainer = _trainer(training, prepared, collator, record, judge)
        if checkpoint and training.dev and stopped_early(checkpoint, config.patience):
            trainer.load_finished(checkpoint)
        else:
            with logged(trainer, training.folder):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not all(torch.isfinite(value).all() for value in prepared.model.parameters()):
        raise diverged(trainer.state)
    _save(prepared, encoder.name, training.folder)
    best = trainer.state.best_global_step
    return Tuned(
        None,
        round(record.seconds, 3),
        training.folder,
        training.template,
        encoder.precision,
        history=tuple(record.history),
        epoch=round(best / prepared.steps) if training.dev and best else len(record.history),
        tokens=record.tokens,
        candidates=prepared.candidates,
        matryoshka=config.matryoshka,
        frozen=prepared.lower.count if prepared.lower else 0,
    )


def _prepared(encoder: LocalEncoder, training: Training) -> _Prepared:
    """Load the model, set its trainable weights, and tokenise the data."""
    config, prompts = training.config, encoder.prompts
    model = load_model(encoder.folder, prompts, encoder.pooling)
    if model.transformers_model is None:
        raise ModelError(f"a {type(model[0]).__name__} cannot be tuned; expected a model whose first module is a transformer")
    dimension = model.get_embedding_dimension()
    for size in config.matryoshka:
        if dimension and size >= dimension:
            raise ConfigError(f"tune.matryoshka: {size} is not below the {dimension} dimensions of {encoder.name}")
    documents = Tokens(model, training.train.document_texts(training.template), prompts["document"], "document")
    queries = Tokens(model, training.train.query_texts(), prompts["query"], "query")
    candidates = choose_candidates(config, int(documents.lengths.sum()))
    in_training = ModelEncoder(model, prompts, bf16=use_bf16(encoder.precision, model.device.type), warns=False)
    lora, lower = _set_trainable(in_training, config, candidates, len(queries))
    steps = -(-len(queries) // config.batch_size)
    return _Prepared(in_training, lora, queries, documents, candidates, config.epochs_with(candidates), steps, lower)


def _kept_states(prepared: _Prepared, config: TuneConfig, batch_tokens: int) -> dict[str, KeptStates]:
    """Return the kept states of the texts after the frozen layers, by kind, where that saves work and memory allows it.

    The frozen layers run again in every step for the other texts, without gradients.
    """
    if not prepared.lower:
        return {}
    all_steps, count = prepared.steps * prepared.epochs, len(prepared.documents)
    drawn = config.batch_size * (1 + config.hard_negatives) + _random(config, prepared.candidates)
    # How often a text is encoded in the training.
    uses = {"query": prepared.epochs, "document": all_steps * (1 if prepared.candidates == "all" else drawn / count)}
    room = config.memory_gb * 2**30 if config.memory_gb is not None else _machine_memory() * _KEPT_SHARE
    kept: dict[str, KeptStates] = {}
    for kind in sorted(uses, key=lambda kind: -uses[kind]):
        tokens = prepared.queries if kind == "query" else prepared.documents
        size = prepared.lower.bytes_of(tokens)
        if uses[kind] >= 2 and size <= room and prepared.lower.can_be_left_out(tokens):
            kept[kind] = prepared.lower.keep(tokens, batch_tokens=batch_tokens)
            room -= size
    return kept


def _candidate_source(encoder: LocalEncoder, training: Training, prepared: _Prepared) -> CandidateSource:
    """Return the source of each batch's candidate documents."""
    train, config, engine, folder = training.train, training.config, training.engine, training.folder / "mined"
    if prepared.candidates == "all":
        return AllDocuments(train)
    drawn = BatchAndOthers(train, random=_random(config, prepared.candidates), hard=config.hard_negatives, seed=config.seed)
    if prepared.candidates == "batch":
        return drawn
    # The weights are still the base model's, whose vectors a comparison may have cached already.
    first = CachedEncoder(engine.encoder(encoder))
    judge = engine.reranker(LocalReranker(config.judge, precision=encoder.precision)).score if config.judge else None
    guards = Guards(config.mined_margin, judge)

    def find(number: int) -> npt.NDArray[np.int64]:
        miner = _now(prepared.encoder, prepared.lora is None, engine, folder / "model") if number else first
        return mine(miner, train, training.template, count=_POOL * config.hard_negatives, guards=guards, engine=engine)

    every = config.mine_every or steps_between_minings(config, prepared.epochs, prepared.queries.lengths, prepared.documents.lengths)
    return MinedCandidates(drawn, find, folder, every)


def _note_unused(config: TuneConfig, candidates: str, train: Dataset) -> None:
    unused = sorted(_UNUSED[candidates] & config.model_fields_set)
    if candidates == "batch" and "hard_negatives" in unused and has_judged_negatives(train):
        unused.remove("hard_negatives")
    if unused:
        console.note(f"not used where candidates are {candidates!r}: {', '.join(f'tune.{name}' for name in unused)}")


def _trainer(
    training: Training, prepared: _Prepared, collator: Collator, record: TrainingRecord, judge: DevScores | None
) -> RecordingTrainer:
    """Return the trainer, which prints nothing."""
    config, model = training.config, prepared.model
    trainer = RecordingTrainer(
        record,
        model=model,
        args=_arguments(training, prepared),
        train_dataset=Rows.from_dict({"row": range(len(prepared.queries))}),
        data_collator=collator,  # type: ignore[arg-type]
        loss=CandidateLoss(model, config.scale, config.matryoshka, memory_tokens=_memory_tokens(prepared, config), lower=prepared.lower),
        evaluator=judge,
        callbacks=[record, *([EarlyStoppingCallback(config.patience)] if judge else [])],
    )
    # The library's own callbacks print every log line to stdout.
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)
    return trainer


def _arguments(training: Training, prepared: _Prepared) -> SentenceTransformerTrainingArguments:
    """Return the settings in the trainer's own terms."""
    config, device = training.config, prepared.model.device.type
    when_dev = "epoch" if training.dev else "no"
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(training.folder / "checkpoints"),
        num_train_epochs=prepared.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate_with(prepared.candidates),
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        optim="adamw_torch_fused",
        use_cpu=device == "cpu",  # otherwise the library refuses bf16 without a GPU
        bf16=prepared.encoder.bf16,
        seed=config.seed,
        data_seed=config.seed,
        eval_strategy=when_dev,
        save_strategy=when_dev,  # any epoch may be the best; `TrainingRecord` asks for further checkpoints
        save_total_limit=2,
        load_best_model_at_end=training.dev is not None,
        metric_for_best_model="eval_choice" if training.dev else None,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        logging_strategy="epoch" if training.report_to else "no",
        logging_nan_inf_filter=False,
        report_to=list(training.report_to) or "none",
        run_name=run_name(training.folder),
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
    )
    arguments.dataloader_drop_last = False  # the library sets it for several processes; here each sees the whole batch
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process drives one device (processes.py)
    return arguments


def _save(prepared: _Prepared, base: str, folder: Path) -> None:
    """Save the model, and LoRA's matrices alone beside it before they are merged into it."""
    if prepared.lora is not None:
        if processes.main():
            save_in_place(partial(save_lora, prepared.lora, base), folder / "lora")
        prepared.lora.merge_and_unload()
    if processes.main():
        save_in_place(partial(prepared.model.save_pretrained, create_model_card=False), folder / MODEL)


def _set_trainable(encoder: ModelEncoder, config: TuneConfig, candidates: str, queries: int) -> tuple[Any, LowerLayers | None]:
    """Set the trainable weights and the dropout. Returns peft's model around the transformer for LoRA, else None; and the frozen layers.

    Token embeddings are frozen by default: a few hundred pairs touch few of them, and they make gradients and checkpoints
    large. Dropout is off by default: in so few steps it costs time and gains nothing (docs/decisions.md has both figures).
    """
    model = encoder.model
    transformer: Any = model.transformers_model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    count = _layers_to_freeze(transformer, config, candidates, queries)
    lower = LowerLayers(encoder, count) if count else None
    if config.method == "lora":
        return add_lora(model, transformer, config, lower.layers if lower else ()), lower
    if not config.train_embeddings:
        transformer.get_input_embeddings().weight.requires_grad_(False)
    return None, lower


def _layers_to_freeze(transformer: torch.nn.Module, config: TuneConfig, candidates: str, queries: int) -> int:
    """Return the number of lower layers to freeze: the setting, or by default half of them for labels and few queries."""
    if config.freeze != "auto":
        return config.freeze
    if candidates != "all" or queries > _FROZEN_QUERIES or config.method != "full" or config.train_embeddings:
        return 0
    layers = layers_of(transformer)
    if not layers:
        console.note(f"all layers are trained: those of a {type(transformer).__name__} are not known, so the lower half is not frozen")
    return int(len(layers) * _FROZEN_SHARE)


def _random(config: TuneConfig, kind: str) -> int:
    """Return the number of random documents per step: beside mined ones they gain nothing (docs/decisions.md)."""
    if config.negatives is not None:
        return config.negatives
    return 0 if kind == "mined" else _RANDOM


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
    precision: Precision = "bf16" if training.bf16 else "fp32"
    return InTraining(engine.encoder(LocalEncoder(folder, query_prompt=query, document_prompt=document, precision=precision)))


def choose_candidates(config: TuneConfig, document_tokens: int) -> str:
    """Return ``all`` if encoding every document in every step is cheap, else ``mined``, unless the settings say."""
    if config.candidates != "auto":
        return config.candidates
    return "all" if document_tokens <= _ALL_DOCUMENTS_TOKENS else "mined"


def _memory_tokens(prepared: _Prepared, config: TuneConfig) -> float:
    """Return the number of tokens whose activations fit in memory; infinite if the model does not say its layers and width."""
    model = prepared.model
    settings = model.transformers_model.config if model.transformers_model is not None else None
    layers, width = getattr(settings, "num_hidden_layers", 0), getattr(settings, "hidden_size", 0)
    if not layers or not width:
        return math.inf
    trained = layers - (prepared.lower.count if prepared.lower else 0)
    share = 1 / 2 if model.device.type == "cuda" else 1 / 3
    memory = torch.cuda.get_device_properties(model.device).total_memory if model.device.type == "cuda" else _machine_memory()
    return (config.memory_gb * 2**30 if config.memory_gb is not None else memory * share) / (_ACTIVATION_BYTES * trained * width)


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
