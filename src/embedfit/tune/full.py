"""Fine-tuning of the model's weights, all of them or through LoRA, on sentence-transformers' own trainer."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset as Rows
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import distributed
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState

from embedfit import console, ranks
from embedfit.config import TuneConfig
from embedfit.data import DOCUMENT_TEMPLATE, Dataset, writing
from embedfit.encode import CachedEncoder, Encoder, LocalEncoder, ModelEncoder, Precision, load_model, use_bf16
from embedfit.engine import Engine, LocalEngine
from embedfit.errors import ConfigError, DataError, EmbedfitError, ModelError, StorageError, require
from embedfit.rerank import LocalReranker
from embedfit.retrieve import DenseRetriever
from embedfit.score import score_run
from embedfit.split import group_numbers
from embedfit.tokens import Tokens
from embedfit.tune.batches import Collator
from embedfit.tune.candidates import AllDocuments, BatchAndOthers, CandidateSource
from embedfit.tune.logged import logged, run_name
from embedfit.tune.loss import CandidateLoss
from embedfit.tune.mine import Guards, MinedCandidates, mine, steps_between_minings
from embedfit.tune.result import Tuned, answer_keys, claim, keys_of, read_tuned, save_in_place, why_not_written, write_tuned

_ALL_DOCUMENTS_TOKENS = 4096
"""A corpus up to this many tokens is encoded whole in every step."""
_DEV_DOCUMENTS = 2000
"""How many documents, at most, are added to the dev queries' own when choosing a checkpoint."""
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
_SAVE_SECONDS = 20.0
"""At least so long from one checkpoint to the next, unless a dev part may choose it."""
_SAVE_SHARE = 1 / 20
"""At most this share of the time goes into checkpoints: those of a large model take seconds."""
_WEIGHTS = "trained.safetensors"
_RECORD = "embedfit.json"


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
    ranks.join()
    if config.method == "lora":
        require("peft", extra="lora")
    for name in report_to:
        require(name, extra=name)
    train = train.select(train.judged)
    dev = dev.select(dev.judged) if dev and dev.judged else None
    described = [encoder.fingerprint, train.digest(), dev.digest() if dev else None, template, config.model_dump()]
    claim(folder, described, keys_of(train, dev), answer_keys(train, dev, template))
    done = folder / "tuned.json"
    if ranks.agreed(done.exists()):
        return read_tuned(done)
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
    if ranks.main():
        write_tuned(tuned, done)
        for meanwhile in ("checkpoints", "mined"):
            shutil.rmtree(folder / meanwhile, ignore_errors=True)
    return ranks.agreed(tuned)


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
    chunk_tokens = _CHUNK_TOKENS if model.device.type == "cpu" else _CHUNK_TOKENS_ELSEWHERE // ranks.count()
    collator = Collator(queries, documents, source, chunk_tokens=chunk_tokens)
    checkpoints = folder / "checkpoints"
    resume = ranks.agreed(last_checkpoint(checkpoints) if ranks.main() else None)
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
        judge = _Dev(ModelEncoder(model, encoder.prompts, bf16=bf16, warns=False), dev, template, config.seed) if dev else None
        record = _Record(collator, miner, judge, advance, epoch_steps)
        trainer = _Trainer(
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
        if resume and dev and _stopped_early(resume, config.patience):
            # It had only to be saved. Called now, the trainer would run one epoch more before it asks whether to stop.
            trainer.state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
            trainer._load_best_model()
            record.on_train_begin(arguments, trainer.state, None)
        else:
            with logged(trainer, folder):
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if not all(torch.isfinite(value).all() for value in model.parameters()):
        raise _diverged(trainer.state)
    best = trainer.state.best_global_step
    epoch = round(best / epoch_steps) if dev and best else len(record.history)
    target = folder / "model"
    if lora is not None:
        if ranks.main():
            save_in_place(partial(_save_lora, lora, encoder.name), folder / "lora")
        lora.merge_and_unload()
    if ranks.main():
        save_in_place(partial(model.save_pretrained, create_model_card=False), target)
    return Tuned(
        target,
        tuple(record.history),
        epoch,
        record.tokens,
        round(record.seconds, 3),
        kind,
        encoder.precision,
        config.matryoshka,
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
        return _with_lora(model, transformer, config)
    if not config.train_embeddings:
        transformer.get_input_embeddings().weight.requires_grad_(False)
    return None


def _with_lora(model: SentenceTransformer, transformer: torch.nn.Module, config: TuneConfig) -> Any:
    """Freeze a model, and put a product of two narrow trainable matrices beside every linear layer of its transformer.

    LoRA: Hu et al. 2021. The product is scaled by alpha / rank = 2, as is usual, so that the rank can be changed
    without another learning rate. Its one factor begins at zero, so training begins with the very model.
    """
    peft = require("peft", extra="lora")
    model.requires_grad_(False)
    # What a pooler makes of the first token is used by no embedding model.
    layers = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear) and "pooler" not in name]
    if not layers:
        raise ModelError(f'LoRA needs linear layers, and a {type(transformer).__name__} has none; fix: method = "full" in [tune]')
    settings = peft.LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=layers)
    torch.manual_seed(config.seed)  # the other factor is random
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft and transformers about each other
        return peft.get_peft_model(transformer, settings)


def _save_lora(lora: Any, base: str, folder: str) -> None:
    """Save LoRA's matrices alone, as peft and sentence-transformers (``load_adapter``) read them."""
    lora.peft_config["default"].base_model_name_or_path = base
    lora.save_pretrained(folder, save_embedding_layers=False)  # else it asks the Hub whether the vocabulary has grown
    (Path(folder) / "README.md").unlink()  # nothing but "more information needed"


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
        return _Unnamed(training)
    save_in_place(partial(training.model.save_pretrained, create_model_card=False), folder)
    query, document = training.prompts["query"], training.prompts["document"]
    precision: Precision = "bf16" if training.bf16 else "fp32"
    return _Unnamed(engine.encoder(LocalEncoder(folder, query_prompt=query, document_prompt=document, precision=precision)))


def choose_candidates(config: TuneConfig, document_tokens: int) -> str:
    """Return all documents where encoding them in every step is cheap, else the batch's, mined and random ones."""
    if config.candidates != "auto":
        return config.candidates
    return "all" if document_tokens <= _ALL_DOCUMENTS_TOKENS else "mined"


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, and clear away those that a killed process left unfinished."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            # The trainer writes this file last.
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append((int(state["global_step"]), path))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path)
    return max(whole)[1] if whole else None


def _stopped_early(checkpoint: Path, patience: int) -> bool:
    """Return whether training had ended with this checkpoint, for want of a better epoch."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    saved = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {})
    return int(saved.get("attributes", {}).get("early_stopping_patience_counter", 0)) >= patience


class _Trainer(SentenceTransformerTrainer):
    """The library's trainer, whose checkpoints hold the weights that are trained and the record, and no others.

    It writes no model card, which would publish training examples, and stops when training diverges.
    """

    def __init__(self, record: _Record, **settings: Any) -> None:
        super().__init__(**settings)
        self._record = record

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        pass

    def get_train_dataloader(self) -> DataLoader[Any]:
        if ranks.count() == 1:
            whole: DataLoader[Any] = super().get_train_dataloader()
            return whole
        # Candidates belong to the whole batch, so every process sees all of it and encodes its share (see CandidateLoss).
        loader = self._build_dataloader(self.train_dataset, self.args.train_batch_size, dataset_kind="train")
        every: DataLoader[Any] = prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=True,  # as the library has it for one process, or the order would be another
            data_seed=self.args.data_seed,
        )
        self._train_dataloader = every
        return every

    def training_step(self, *inputs: Any, **named: Any) -> torch.Tensor:
        loss = super().training_step(*inputs, **named)
        if ranks.count() > 1:
            # A sum, where DistributedDataParallel takes the mean; and it would count a chunk computed again as a second step.
            gradients = [value.grad for value in self.model.parameters() if value.grad is not None]
            whole = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(whole)
            parts = torch.split(whole, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        if not torch.isfinite(loss):
            raise _diverged(self.state)
        self._record.losses.append(loss.item())
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return  # every process comes here, and the first alone has judged the epoch
        target = Path(str(output_dir or self.args.output_dir))
        target.mkdir(parents=True, exist_ok=True)
        self._record.write(target / _RECORD)
        safetensors.torch.save_file(_trained(self.model), target / _WEIGHTS)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        trained = _trained(self.model)
        with torch.no_grad():
            for name, value in safetensors.torch.load_file(Path(checkpoint_path) / _WEIGHTS).items():
                trained[name].copy_(value)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


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


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def _diverged(state: TrainerState) -> ModelError:
    step = min(state.global_step + 1, state.max_steps)
    return ModelError(
        f"training diverged: the loss or a weight is not a finite number at step {step:,} of {state.max_steps:,}; "
        'fix: a lower tune.learning_rate, or precision = "fp32" in [model]'
    )


class _Dev(SentenceEvaluator):
    """Scores the dev queries after each epoch, and says whether this epoch should be kept.

    A dev part of a few dozen queries cannot tell neighbouring epochs apart, and picking its maximum picks noise. So
    an epoch replaces the one kept so far unless it is worse by more than one standard error of the paired
    difference (the one-standard-error rule: Hastie, Tibshirani and Friedman 2009, section 7.10); among equals the
    later epoch, which the learning rate's decay has settled, is kept.
    """

    def __init__(self, encoder: ModelEncoder, dev: Dataset, template: str, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        relevant = {id for query in dev.queries for id in dev.relevant(query)}
        others = [id for id in dev.corpus if id not in relevant]
        # Choosing an epoch needs no exact figure, and a large corpus would cost more than the training.
        chosen = relevant | set(random.Random(seed).sample(others, min(len(others), _DEV_DOCUMENTS)))
        corpus = {id: document for id, document in dev.corpus.items() if id in chosen}
        qrels = {id: {document: grade for document, grade in grades.items() if document in chosen} for id, grades in dev.qrels.items()}
        self._dev = Dataset(dev.queries, corpus, qrels)
        self._retriever = DenseRetriever(_Unnamed(encoder), template)
        numbers = group_numbers(self._dev)
        self._groups = np.array([numbers[id] for id in self._dev.queries])
        self.kept: list[float] = []
        self.choice = 0

    def __call__(self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1) -> dict[str, float]:
        found = score_run(self._retriever.search(self._dev, 10), self._dev.qrels, ks=(1, 10))
        now = found.values["mrr@10"]
        keep = not self.kept or not clearly_worse(now, np.array(self.kept), self._groups)
        if keep:
            self.kept, self.choice = now.tolist(), self.choice + 1
        return {"mrr@10": found.mean("mrr@10"), "recall@1": found.mean("recall@1"), "choice": self.choice if keep else self.choice - 1}


def clearly_worse(now: npt.NDArray[np.float64], before: npt.NDArray[np.float64], groups: npt.NDArray[np.int64] | None = None) -> bool:
    """Return whether the mean fell by more than one standard error of the paired differences.

    Args:
        now: A metric for each query, shape (n,).
        before: The same of an earlier epoch.
        groups: Number of each query's group, shape (n,): near duplicates are no independent evidence. By default each stands alone.
    """
    difference = now - before
    off = difference - difference.mean()
    sums = off if groups is None else np.bincount(groups, off)[np.unique(groups)]
    if len(sums) < 2:
        return False
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(difference)
    return bool(difference.mean() < -error)


class _Unnamed:
    """A model in training as an Encoder: its weights change at every step, so its vectors must not be kept."""

    name = fingerprint = "in training"

    def __init__(self, encoder: Encoder | ModelEncoder) -> None:
        self.encode = encoder.encode


class _Record(TrainerCallback):  # type: ignore[misc]
    """All that training leaves behind beside the weights; a checkpoint keeps it, or a restart would lose it.

    It also says when there shall be a checkpoint: the trainer itself knows of steps and epochs, which take
    milliseconds or hours.

    Args:
        collator: Knows how many tokens a batch has.
        miner: Of hard negatives, if they are mined.
        judge: Of the dev part, if there is one.
        advance: Moves the progress bar.
        steps: In an epoch.

    Attributes:
        history: Per epoch, its mean loss and dev scores.
        losses: Of this epoch's steps.
        tokens: Trained on so far.
    """

    def __init__(
        self, collator: Collator, miner: MinedCandidates | None, judge: _Dev | None, advance: Callable[[int], None], steps: int
    ) -> None:
        self._collator, self._miner, self._judge, self._advance, self._steps = collator, miner, judge, advance, steps
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.tokens = 0
        self._before = self._started = self._saving = self._saved = self._cost = 0.0

    @property
    def seconds(self) -> float:
        """Spent training so far."""
        return self._before + time.monotonic() - self._started

    def write(self, path: Path) -> None:
        """Write it beside a checkpoint's weights."""
        self._saving = time.monotonic()
        judge = {"kept": self._judge.kept, "choice": self._judge.choice} if self._judge else None
        said = {"seconds": self.seconds, "tokens": self.tokens, "history": self.history, "losses": self.losses, "judge": judge}
        with writing(path) as file:
            file.write(json.dumps(said).encode())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = self._saved = time.monotonic()
        if state.global_step:
            said = json.loads((Path(args.output_dir) / f"checkpoint-{state.global_step}" / _RECORD).read_text(encoding="utf-8"))
            self._before, self.tokens, self.history, self.losses = (said[key] for key in ("seconds", "tokens", "history", "losses"))
            if self._judge:
                self._judge.kept, self._judge.choice = said["judge"]["kept"], said["judge"]["choice"]
            if self._miner:
                self._miner.batch = state.global_step
        self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1)
        self.tokens += self._collator.tokens.popleft()
        # The last step of an epoch waits until the epoch is scored, or a restart would leave that out.
        if state.global_step % self._steps:
            control.should_save |= self._due()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.history.append({"epoch": len(self.history) + 1, "loss": statistics.fmean(self.losses)})
        self.losses = []
        if state.global_step < state.max_steps:
            control.should_save |= self._due()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.history[-1] |= {key: kwargs["metrics"][f"eval_{key}"] for key in ("mrr@10", "recall@1")}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()
        self._cost = self._saved - self._saving

    def _due(self) -> bool:
        return ranks.agreed(time.monotonic() - self._saved > max(_SAVE_SECONDS, self._cost / _SAVE_SHARE))
