"""Fine-tuning of the whole model, on sentence-transformers' own trainer."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset as Rows
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState

from embedfit import console
from embedfit.config import TuneConfig
from embedfit.data import DOCUMENT_TEMPLATE, Dataset, text_key, writing
from embedfit.encode import LocalEncoder, ModelEncoder, Precision, length_batches, load_model, use_bf16
from embedfit.errors import DataError, ModelError, StorageError
from embedfit.retrieve import DenseRetriever
from embedfit.score import score_run
from embedfit.tune.candidates import AllDocuments, BatchAndRandom, CandidateSource
from embedfit.tune.loss import CandidateLoss

_ALL_DOCUMENTS_TOKENS = 4096
"""A corpus up to this many tokens is encoded whole in every step."""
_DEV_DOCUMENTS = 2000
"""How many documents, at most, are added to the dev queries' own when choosing a checkpoint."""
_CHUNK_TOKENS = 1024
"""Tokens that are padded and encoded together on a processor: enough to fill it, with little padding. A step's
gradient is the same however it is cut."""


@dataclass(frozen=True)
class Tuned:
    """What tuning leaves behind.

    Attributes:
        folder: An ordinary sentence-transformers folder.
        history: Per epoch: epoch, loss, and dev's MRR@10 and recall@1 if there is a dev part.
        epoch: The epoch whose weights were kept.
        tokens: Tokens that went through the model in training, padding not counted.
        seconds: Spent training, this process and those before it that were interrupted.
        candidates: ``all`` or ``batch``.
        precision: Of the encoder that was tuned.
    """

    folder: Path
    history: tuple[dict[str, float], ...]
    epoch: int
    tokens: int
    seconds: float
    candidates: str
    precision: Precision

    @property
    def encoder(self) -> LocalEncoder:
        """The tuned model."""
        return LocalEncoder(self.folder, precision=self.precision)


def tune_model(
    encoder: LocalEncoder,
    train: Dataset,
    dev: Dataset | None,
    folder: str | Path,
    config: TuneConfig | None = None,
    *,
    template: str = DOCUMENT_TEMPLATE,
) -> Tuned:
    """Fine-tune a model on labelled pairs, keeping the epoch that is best on dev.

    The same call after a crash goes on from the last checkpoint, and ends with the same weights.

    Args:
        encoder: The model to start from, and its prompts and precision.
        train: Queries to learn from.
        dev: Queries for early stopping and for choosing the epoch; None to train for all epochs.
        folder: Where the model goes (``folder/model``), and checkpoints meanwhile.
        config: Settings; by default the same for every data set.
        template: What a document says.

    Raises:
        DataError: Every training query has the same answer.
        ModelError: The model is none that can be tuned.
        StorageError: The folder cannot be written, holds another tuning, or the disk is full.
    """
    folder, config = Path(folder), config or TuneConfig()
    train = train.select(train.judged)
    dev = dev.select(dev.judged) if dev and dev.judged else None
    seen = sorted(text_key(query.text) for part in (train, dev) if part for query in part.queries.values())
    _claim(folder, [encoder.fingerprint, train.digest(), dev.digest() if dev else None, template, config.model_dump()], seen)
    done = folder / "tuned.json"
    if done.exists():
        return _read(done)
    answers = {tuple(sorted(train.relevant(id))) for id in train.queries}
    if len(answers) < 2:
        raise DataError(
            "data",
            f"all {len(train.queries):,} training queries have the one answer {sorted(answers)[0]}",
            fix="add queries with other labels",
        )
    try:
        tuned = _train(encoder, train, dev, folder, config, template)
    except Exception as error:
        reason = _why_not_written(error)
        if reason is None:
            raise
        raise StorageError(f"{folder}: cannot be written: {reason}; fix: make room, then the same command goes on") from None
    with writing(done) as file:
        file.write(json.dumps({**vars(tuned), "folder": str(tuned.folder.name)}, indent=1).encode())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return tuned


def _claim(folder: Path, described: list[Any], seen: list[str]) -> None:
    """Make sure that what a folder holds came of the same model, data and settings, or begin with it.

    What is written also tells, later, which queries the model must not be measured on.
    """
    identity = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    path = folder / "tuning.json"
    if not path.exists():
        with writing(path) as file:
            file.write(json.dumps({"identity": identity, "seen": seen}).encode())
    elif json.loads(path.read_text(encoding="utf-8"))["identity"] != identity:
        raise StorageError(f"{folder}: holds a tuning of another model, data or settings; fix: give another folder, or remove it")


def _train(encoder: LocalEncoder, train: Dataset, dev: Dataset | None, folder: Path, config: TuneConfig, template: str) -> Tuned:
    model = load_model(encoder.folder, encoder.prompts)
    _prepare(model, config)
    bf16 = use_bf16(encoder.precision, model.device.type)
    tokenise = partial(_tokenised, model)
    documents = tokenise(train.document_texts(template), encoder.prompts["document"])
    queries = tokenise(train.query_texts(), encoder.prompts["query"])
    source = choose_candidates(config, train, sum(map(_length, documents)))
    collator = Collator(model, queries, documents, source, chunk_tokens=_CHUNK_TOKENS if model.device.type == "cpu" else 2**30)
    checkpoints = folder / "checkpoints"
    resume = last_checkpoint(checkpoints)
    if resume:
        console.note(f"going on from {resume.name}")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        optim="adamw_torch_fused",
        use_cpu=model.device.type == "cpu",  # or the library refuses bf16 where there is no GPU
        bf16=bf16,
        seed=config.seed,
        data_seed=config.seed,
        eval_strategy="epoch" if dev else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=dev is not None,
        metric_for_best_model="eval_choice" if dev else None,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=model.device.type == "cuda",
    )
    steps = -(-len(queries) // config.batch_size) * config.epochs
    with console.progress("tuning", steps) as advance:
        judge = _Dev(ModelEncoder(model, encoder.prompts, bf16=bf16, warns=False), dev, template, config.seed) if dev else None
        clock = _Clock(collator, judge, advance)
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=Rows.from_dict({"row": range(len(queries))}),
            data_collator=collator,  # type: ignore[arg-type]
            loss=CandidateLoss(model, config.scale),
            evaluator=judge,
            callbacks=[clock, *([EarlyStoppingCallback(config.patience)] if dev else [])],
        )
        # The library's own callbacks print every log line to stdout.
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
                trainer.remove_callback(callback)
        if resume and dev and _stopped_early(resume, config.patience):
            # It had only to be saved. Called now, the trainer would run one epoch more before it asks whether to stop.
            trainer.state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
            trainer._load_best_model()
            clock.on_train_begin(arguments, trainer.state, None)
        else:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    history = _history(trainer.state.log_history)
    best = trainer.state.best_global_step
    epoch = round(best / (steps / config.epochs)) if dev and best else len(history)
    target = folder / "model"
    _save(model, target)
    return Tuned(
        target,
        history,
        epoch,
        clock.tokens,
        round(clock.seconds, 3),
        "all" if isinstance(source, AllDocuments) else "batch",
        encoder.precision,
    )


def _prepare(model: SentenceTransformer, config: TuneConfig) -> None:
    """Set what is trained, and how much of it is dropped out.

    Token embeddings stay as they are unless asked for: a few hundred pairs touch few of them, and they are what makes
    a step's gradient and a checkpoint large. Dropout is off: with so few steps it costs time and bought nothing
    (both measured in docs/decisions.md).
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    transformer = model.transformers_model
    if transformer is not None and not config.train_embeddings:
        transformer.get_input_embeddings().weight.requires_grad_(False)


def choose_candidates(config: TuneConfig, train: Dataset, document_tokens: int) -> CandidateSource:
    """Return all documents where encoding them in every step is cheap, else the batch's and random ones."""
    if config.candidates == "all" or (config.candidates == "auto" and document_tokens <= _ALL_DOCUMENTS_TOKENS):
        return AllDocuments(train)
    return BatchAndRandom(train, negatives=config.negatives, seed=config.seed)


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


class Collator:
    """Make a batch of tokens and grades from the positions of its queries; nothing is tokenised twice.

    Args:
        model: For padding.
        queries: Features of each query.
        documents: Features of each document.
        source: Chooses the documents.
        chunk_tokens: Pad texts of similar length together, up to this many tokens.

    Attributes:
        tokens: Tokens put in batches so far, without padding.
    """

    valid_label_columns: tuple[str, ...] = ()  # asked for by the trainer's batch sampler

    def __init__(
        self,
        model: SentenceTransformer,
        queries: Sequence[dict[str, Any]],
        documents: Sequence[dict[str, Any]],
        source: CandidateSource,
        *,
        chunk_tokens: int,
    ) -> None:
        self._model, self._queries, self._documents, self._source = model, queries, documents, source
        self._chunk_tokens = chunk_tokens
        self.tokens = 0

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Return the chunks' features, each under a prefix of its own, and the grades as ``label``."""
        # Order within a batch is free, and by length the chunks need little padding.
        batch = sorted((row["row"] for row in rows), key=lambda row: (-_length(self._queries[row]), row))
        found = self._source.candidates(batch)
        documents = [self._documents[position] for position in found.documents.tolist()]
        order = sorted(range(len(documents)), key=lambda column: -_length(documents[column]))
        inputs: dict[str, Any] = {"return_loss": True}
        texts = [self._queries[row] for row in batch]
        candidates = [documents[column] for column in order]
        self.tokens += sum(map(_length, texts)) + sum(map(_length, candidates))
        for kind, features in (("query", texts), ("document", candidates)):
            for number, chunk in enumerate(length_batches(np.array([_length(one) for one in features]), self._chunk_tokens)):
                padded = _padded(self._model, [features[position] for position in chunk])
                inputs |= {f"{kind}{number}_{key}": value for key, value in padded.items()}
        inputs["label"] = torch.from_numpy(found.grades[:, order])
        return inputs


def _tokenised(model: SentenceTransformer, texts: Sequence[str], prompt: str) -> list[dict[str, Any]]:
    """Return the features of each text, cut to the model's length and not padded."""
    features = []
    for start in range(0, len(texts), 256):
        some = list(texts[start : start + 256])
        whole = model.preprocess(some, prompt=prompt or None)
        if "attention_mask" not in whole:
            raise ModelError(f"a {type(model[0]).__name__} cannot be tuned; expected a model that begins with a transformer")
        mask = whole["attention_mask"].bool()
        for row in range(len(some)):
            features.append(
                {
                    key: value[row][mask[row]] if torch.is_tensor(value) and value.shape == mask.shape else value
                    for key, value in whole.items()
                }
            )
    return features


def _padded(model: SentenceTransformer, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the features of several texts as one matrix per key."""
    rows = [{key: value for key, value in feature.items() if torch.is_tensor(value)} for feature in features]
    same = {key: value for key, value in features[0].items() if not torch.is_tensor(value)}
    padded = model.tokenizer.pad([{key: value.tolist() for key, value in row.items()} for row in rows], return_tensors="pt")
    return {**padded, **same}


def _length(features: dict[str, Any]) -> int:
    return len(features["input_ids"])


class _Trainer(SentenceTransformerTrainer):
    """The library's trainer, without the model card that would publish training examples."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        pass

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        target = Path(str(output_dir or self.args.output_dir))
        target.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(str(target), create_model_card=False)


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
        self.kept: list[float] = []
        self.choice = 0

    def __call__(self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1) -> dict[str, float]:
        found = score_run(self._retriever.search(self._dev, 10), self._dev.qrels, ks=(1, 10))
        now = found.values["mrr@10"]
        keep = not self.kept or not clearly_worse(now, np.array(self.kept))
        if keep:
            self.kept, self.choice = now.tolist(), self.choice + 1
        return {"mrr@10": found.mean("mrr@10"), "recall@1": found.mean("recall@1"), "choice": self.choice if keep else self.choice - 1}


def clearly_worse(now: npt.NDArray[np.float64], before: npt.NDArray[np.float64]) -> bool:
    """Return whether the mean fell by more than one standard error of the paired differences."""
    difference = now - before
    return bool(difference.mean() < -difference.std(ddof=1) / np.sqrt(len(difference))) if len(now) > 1 else False


class _Unnamed:
    """A model in training as an Encoder: its weights change at every step, so its vectors must not be kept."""

    name = fingerprint = "in training"

    def __init__(self, encoder: ModelEncoder) -> None:
        self.encode = encoder.encode


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Counts seconds and tokens, moves the progress bar, and keeps all that a restart would lose beside each checkpoint."""

    def __init__(self, collator: Collator, judge: _Dev | None, advance: Callable[[int], None]) -> None:
        self._collator, self._judge, self._advance = collator, judge, advance
        self._seconds, self._tokens = 0.0, 0
        self._started = 0.0

    @property
    def seconds(self) -> float:
        """Spent training so far."""
        return self._seconds + time.monotonic() - self._started

    @property
    def tokens(self) -> int:
        """Trained on so far."""
        return self._tokens + self._collator.tokens

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()
        path = _beside(args, state)
        if path.exists():
            said = json.loads(path.read_text(encoding="utf-8"))
            self._seconds, self._tokens = said["seconds"], said["tokens"]
            if self._judge:
                self._judge.kept, self._judge.choice = said["kept"], said["choice"]
        self._advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Before the checkpoint, not after it: the trainer's own state is written last, and makes it whole.
        path = _beside(args, state)
        judge = {"kept": self._judge.kept, "choice": self._judge.choice} if self._judge else {}
        with writing(path) as file:
            file.write(json.dumps({"seconds": self.seconds, "tokens": self.tokens, **judge}).encode())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._judge:
            self.on_evaluate(args, state, control)


def _beside(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "embedfit.json"


def _history(log: Sequence[dict[str, float]]) -> tuple[dict[str, float], ...]:
    """Return one row per epoch from the trainer's log, where loss and dev scores are lines of their own."""
    epochs: dict[int, dict[str, float]] = {}
    for line in log:
        if "loss" in line or "eval_mrr@10" in line:
            row = epochs.setdefault(round(line["epoch"]), {"epoch": round(line["epoch"])})
            row.update({key.removeprefix("eval_"): line[key] for key in ("loss", "eval_mrr@10", "eval_recall@1") if key in line})
    return tuple(epochs[epoch] for epoch in sorted(epochs))


def _save(model: SentenceTransformer, target: Path) -> None:
    """Write the model beside its final place, then move it there."""
    temporary = target.with_name(f".{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary), create_model_card=False)
    for weights in temporary.rglob("*.safetensors"):
        weights.chmod((temporary / "modules.json").stat().st_mode)  # the library lets nobody else read them
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def _read(path: Path) -> Tuned:
    said = json.loads(path.read_text(encoding="utf-8"))
    return Tuned(**{**said, "folder": path.parent / said["folder"], "history": tuple(said["history"])})


def _why_not_written(error: Exception) -> str | None:
    """Return the reason if an error is about writing a file: torch and safetensors wrap the system's errors in their own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error).splitlines()[0] if str(error) else ""
    marks = ("PytorchStreamWriter", "inline_container", "I/O error", "No space left", "File too large")
    return text if any(mark in text for mark in marks) else None
