"""Fine-tuning of the model's weights, all of them or through LoRA, on sentence-transformers' own trainer."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset as Rows
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import EarlyStoppingCallback, TrainerState

from embedfit import console, processes
from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Precision
from embedfit.encode.local import LocalEncoder, ModelEncoder, load_model
from embedfit.encode.precision import use_bf16
from embedfit.encode.saving import save_in_place, why_not_written
from embedfit.encode.tokens import Tokens
from embedfit.errors import ConfigError, DataError, EmbedfitError, ModelError, StorageError, require
from embedfit.retrieve.engine import Engine, LocalEngine
from embedfit.retrieve.rerank import LocalReranker
from embedfit.template import DOCUMENT_TEMPLATE
from embedfit.tune.batches import Collator
from embedfit.tune.candidates import AllDocuments, BatchAndOthers, CandidateSource
from embedfit.tune.dev import DevScores, InTraining
from embedfit.tune.logged import logged, run_name
from embedfit.tune.lora import add_lora, save_lora
from embedfit.tune.loss import CandidateLoss
from embedfit.tune.mine import Guards, MinedCandidates, mine, steps_between_minings
from embedfit.tune.result import DONE, MODEL, Tuned, answer_keys, claim, keys_of, read_tuned, write_tuned
from embedfit.tune.trainer import RecordingTrainer, TrainingRecord, diverged, last_checkpoint, stopped_early

_ALL_DOCUMENTS_TOKENS = 4096
"""A corpus up to this many tokens is encoded whole in every step."""
_CHUNK_TOKENS = 1024
"""Tokens that are padded and encoded together on a processor: enough to fill it, with little padding. A step's
gradient is the same however it is cut."""
_CHUNK_TOKENS_ELSEWHERE = 65_536
"""The same on a device, of all that train together."""
_ACTIVATION_BYTES = 68
"""Kept for the gradients, for each token, layer and hidden dimension, in fp32 and without attention's square matrices
(Korthikanti et al. 2022, section 4.1, has 34 in 16 bits)."""
_RANDOM = 32
"""Random documents of a step that has no mined ones."""
_OF_MINING = {"hard_negatives", "mined_margin", "mine_every", "judge"}
_UNUSED = {"all": {*_OF_MINING, "negatives"}, "batch": _OF_MINING, "mined": set()}
"""Settings of [tune] that have no part in a training, by its candidates."""
_POOL = 8
"""Mined documents that a query's hard negatives are drawn from, for each one drawn."""


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
    """Fine-tune a model on labelled pairs, keeping the epoch that is best on dev.

    The same call after a crash goes on from the last checkpoint, and ends with the same weights.

    Args:
        encoder: The model to start from, and its prompts and precision.
        train: Queries to learn from.
        dev: Queries for early stopping and for choosing the epoch; None to train for all epochs.
        folder: Where the model goes (``folder/model``; the adapter alone, of LoRA, in ``folder/lora``), and checkpoints meanwhile.
        config: Settings; by default the same for every data set.
        template: What a document says.
        report_to: Where the trainer's own callbacks log to: ``mlflow``, ``wandb``, ``tensorboard``.
        engine: Where negatives are mined and judged; by default in this process. Not for processes that train together, which
            share that among them.

    Raises:
        ConfigError: A Matryoshka dimension that the model does not have.
        DataError: Every training query has the same answer.
        EmbedfitError: LoRA without peft, or a package of ``report_to`` is not installed.
        ModelError: The model is none that can be tuned, memory ran out, or training diverged.
        StorageError: The folder cannot be written, holds another tuning, or the disk is full.
    """
    folder, config = Path(folder), config or TuneConfig()
    processes.join()
    if config.method == "lora":
        require("peft", extra="lora")
    for name in report_to:
        require(name, extra=name)
    train = train.select(train.judged)
    dev = dev.select(dev.judged) if dev and dev.judged else None
    described = [encoder.fingerprint, train.digest(), dev.digest() if dev else None, template, config.model_dump()]
    claim(folder, described, keys_of(train, dev), answer_keys(train, dev, template))
    if processes.agreed((folder / DONE).exists()):
        return read_tuned(folder, template=template)
    answers = {tuple(sorted(train.relevant(id))) for id in train.queries}
    if len(answers) < 2:
        raise DataError(
            "data",
            f"all {len(train.queries):,} training queries have the one answer {sorted(answers)[0]}",
            fix="add queries with other labels",
        )
    try:
        tuned = _train(encoder, train, dev, folder, config, template, report_to, engine or LocalEngine())
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise ModelError(f"training: memory ran out; fix: a smaller tune.batch_size than {config.batch_size}") from None
        package = type(error).__module__.partition(".")[0]
        if package in report_to:
            raise EmbedfitError(f"training cannot be logged to {package}: {str(error).splitlines()[0]}") from None
        reason = why_not_written(error)
        if reason is None:
            raise
        raise StorageError(f"{folder}: cannot be written: {reason}; fix: make room, then the same command goes on") from None
    if processes.main():
        write_tuned(tuned, folder)
        for meanwhile in ("checkpoints", "mined"):
            shutil.rmtree(folder / meanwhile, ignore_errors=True)
    return processes.agreed(tuned)


def _train(
    encoder: LocalEncoder,
    train: Dataset,
    dev: Dataset | None,
    folder: Path,
    config: TuneConfig,
    template: str,
    report_to: Sequence[str],
    engine: Engine,
) -> Tuned:
    model = load_model(encoder.folder, encoder.prompts, encoder.pooling)
    dimension = model.get_embedding_dimension()
    for size in config.matryoshka:
        if dimension and size >= dimension:
            raise ConfigError(f"tune.matryoshka: {size} is not below the {dimension} dimensions of {encoder.name}")
    lora = _prepare(model, config)
    bf16 = use_bf16(encoder.precision, model.device.type)
    documents = Tokens(model, train.document_texts(template), encoder.prompts["document"], "document")
    queries = Tokens(model, train.query_texts(), encoder.prompts["query"], "query")
    kind = choose_candidates(config, int(documents.lengths.sum()))
    epochs = config.epochs_with(kind)
    epoch_steps = -(-len(queries) // config.batch_size)
    miner = None
    drawn = BatchAndOthers(train, random=_random(config, kind), hard=config.hard_negatives, seed=config.seed)
    source: CandidateSource = AllDocuments(train) if kind == "all" else drawn
    if kind == "mined":
        # At first its weights are the base model's, with which the comparison may have encoded everything.
        first = CachedEncoder(engine.encoder(encoder))
        now = partial(_now, ModelEncoder(model, encoder.prompts, bf16=bf16, warns=False), lora is None, engine, folder / "mined" / "model")
        judge_of = engine.reranker(LocalReranker(config.judge, precision=encoder.precision)).score if config.judge else None
        guards = Guards(config.mined_margin, judge_of)

        def find(number: int) -> npt.NDArray[np.int64]:
            using = now() if number else first
            return mine(using, train, template, count=_POOL * config.hard_negatives, guards=guards, engine=engine)

        every = config.mine_every or steps_between_minings(config, epochs, queries.lengths, documents.lengths)
        source = miner = MinedCandidates(drawn, find, folder / "mined", every)
    unused = sorted(_UNUSED[kind] & config.model_fields_set)
    if unused:
        console.note(f"not used where candidates are {kind!r}: {', '.join(f'tune.{name}' for name in unused)}")
    chunk_tokens = _CHUNK_TOKENS if model.device.type == "cpu" else _CHUNK_TOKENS_ELSEWHERE // processes.count()
    collator = Collator(queries, documents, source, chunk_tokens=chunk_tokens)
    checkpoints = folder / "checkpoints"
    resume = processes.agreed(last_checkpoint(checkpoints) if processes.main() else None)
    if resume:
        console.note(f"going on from {resume.name}")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate_with(kind),
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        optim="adamw_torch_fused",
        use_cpu=model.device.type == "cpu",  # or the library refuses bf16 where there is no GPU
        bf16=bf16,
        seed=config.seed,
        data_seed=config.seed,
        eval_strategy="epoch" if dev else "no",
        save_strategy="epoch" if dev else "no",  # any epoch may be the best; for the rest, see _Record
        save_total_limit=2,
        load_best_model_at_end=dev is not None,
        metric_for_best_model="eval_choice" if dev else None,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        logging_strategy="epoch" if report_to else "no",
        logging_nan_inf_filter=False,
        report_to=list(report_to) or "none",
        run_name=run_name(folder),
        disable_tqdm=True,
        dataloader_pin_memory=model.device.type == "cuda",
    )
    arguments.dataloader_drop_last = False  # the library sets it where several processes train; here each sees the whole batch
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process drives one device; several are several processes (ranks.py)
    with console.progress("tuning", epoch_steps * epochs) as advance:
        judge = DevScores(ModelEncoder(model, encoder.prompts, bf16=bf16, warns=False), dev, template, config.seed) if dev else None
        record = TrainingRecord(collator, miner, judge, advance, epoch_steps)
        trainer = RecordingTrainer(
            record,
            model=model,
            args=arguments,
            train_dataset=Rows.from_dict({"row": range(len(queries))}),
            data_collator=collator,  # type: ignore[arg-type]
            loss=CandidateLoss(model, config.scale, config.matryoshka, memory_tokens=_memory_tokens(model, config)),
            evaluator=judge,
            callbacks=[record, *([EarlyStoppingCallback(config.patience)] if dev else [])],
        )
        # The library's own callbacks print every log line to stdout.
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
                trainer.remove_callback(callback)
        if resume and dev and stopped_early(resume, config.patience):
            # It had only to be saved. Called now, the trainer would run one epoch more before it asks whether to stop.
            trainer.state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
            trainer._load_best_model()
            record.on_train_begin(arguments, trainer.state, None)
        else:
            with logged(trainer, folder):
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if not all(torch.isfinite(value).all() for value in model.parameters()):
        raise diverged(trainer.state)
    best = trainer.state.best_global_step
    epoch = round(best / epoch_steps) if dev and best else len(record.history)
    if lora is not None:
        if processes.main():
            save_in_place(partial(save_lora, lora, encoder.name), folder / "lora")
        lora.merge_and_unload()
    if processes.main():
        save_in_place(partial(model.save_pretrained, create_model_card=False), folder / MODEL)
    return Tuned(
        None,
        round(record.seconds, 3),
        folder,
        template,
        encoder.precision,
        history=tuple(record.history),
        epoch=epoch,
        tokens=record.tokens,
        candidates=kind,
        matryoshka=config.matryoshka,
    )


def _prepare(model: SentenceTransformer, config: TuneConfig) -> Any:
    """Set what is trained, and how much of it is dropped out. Returns peft's model around the transformer, for LoRA.

    Token embeddings stay as they are unless asked for: a few hundred pairs touch few of them, and they are what makes
    a step's gradient and a checkpoint large. Dropout is off: with so few steps it costs time and bought nothing
    (both measured in docs/decisions.md).
    """
    transformer = model.transformers_model
    if transformer is None:
        raise ModelError(f"a {type(model[0]).__name__} cannot be tuned; expected a model that begins with a transformer")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    if config.method == "lora":
        return add_lora(model, transformer, config)
    if not config.train_embeddings:
        transformer.get_input_embeddings().weight.requires_grad_(False)
    return None


def _random(config: TuneConfig, kind: str) -> int:
    """Return how many random documents a step has: beside mined ones they bought nothing (docs/decisions.md)."""
    if config.negatives is not None:
        return config.negatives
    return 0 if kind == "mined" else _RANDOM


def _now(training: ModelEncoder, whole: bool, engine: Engine, folder: Path) -> Encoder:
    """Return the model as it is now, as an engine sees it: another machine must be sent its files.

    Args:
        training: The model.
        whole: Whether its files are a model of their own: with LoRA's matrices in it, they are not, and it stays here.
        engine: Where it is to encode.
        folder: Where its files go.
    """
    if isinstance(engine, LocalEngine) or not whole:
        return InTraining(training)
    save_in_place(partial(training.model.save_pretrained, create_model_card=False), folder)
    query, document = training.prompts["query"], training.prompts["document"]
    precision: Precision = "bf16" if training.bf16 else "fp32"
    return InTraining(engine.encoder(LocalEncoder(folder, query_prompt=query, document_prompt=document, precision=precision)))


def choose_candidates(config: TuneConfig, document_tokens: int) -> str:
    """Return all documents where encoding them in every step is cheap, else the batch's, mined and random ones."""
    if config.candidates != "auto":
        return config.candidates
    return "all" if document_tokens <= _ALL_DOCUMENTS_TOKENS else "mined"


def _memory_tokens(model: SentenceTransformer, config: TuneConfig) -> float:
    """Return how many tokens' activations the memory holds; as many as you like of a model that has no layers to count."""
    settings = model.transformers_model.config if model.transformers_model is not None else None
    layers, width = getattr(settings, "num_hidden_layers", 0), getattr(settings, "hidden_size", 0)
    if not layers or not width:
        return math.inf
    if config.memory_gb is not None:
        memory = config.memory_gb * 2**30
    elif model.device.type == "cuda":
        memory = torch.cuda.get_device_properties(model.device).total_memory / 2
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 3
    return memory / (_ACTIVATION_BYTES * layers * width)
