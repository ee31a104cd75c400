"""Tuning of a reranker: a cross-encoder learns to put the right document above the others that a retriever finds."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedfit import processes
from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, Precision
from embedfit.encode.lengths import Lengths
from embedfit.encode.local import LocalEncoder, quiet_libraries
from embedfit.encode.precision import use_bf16
from embedfit.encode.saving import save_in_place
from embedfit.errors import ConfigError, ModelError
from embedfit.files import writing
from embedfit.hub import model_folder, weights_digest
from embedfit.retrieve.rerank import TOP, LocalReranker, RerankedRetriever, rerank, score_pairs
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.tune.candidates import judged_negatives, relevant_positions
from embedfit.tune.course import Course, failures_explained, run_course
from embedfit.tune.dev import DevScores
from embedfit.tune.mine import Guards, mine
from embedfit.tune.prepared import memory_tokens
from embedfit.tune.result import DONE, MODEL, Tuned, answer_keys, claim, keys_of, read_tuned, write_tuned
from embedfit.tune.training import Training

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_NEGATIVES = 4
"""Default negatives of a query in a step."""
_CHUNK = 32
"""Pairs of similar length that are padded and read together."""


def tune_reranker(encoder: Encoder, training: Training, *, start: str | Path, top: int = TOP, precision: Precision = "auto") -> Tuned:
    """Tune a cross-encoder on what a retriever finds for the training queries. The same call again resumes, or reads the result.

    In each step, a query's right document competes with documents judged irrelevant for it and with others of its top: a softmax over
    their scores (localized contrastive estimation: Gao et al. 2021, "Rethink training of BERT rerankers", equation 3).

    Args:
        encoder: Encoder of the retriever: the base model, or one that is tuned already. If it is cached, its vectors are read.
        training: Data, settings and output folder.
        start: Model to start from: a cross-encoder, or another model that gets a new head.
        top: Documents of each query that are reranked, and that negatives are taken from.
        precision: Precision of the cross-encoder.

    Raises:
        ConfigError: Several processes train together.
        DataError: No training query is judged, or all have the same answer.
        ModelError: The model cannot be loaded, memory ran out, or training diverged.
        StorageError: The folder cannot be written, or holds another tuning.
    """
    if processes.count() > 1:
        raise ConfigError("tune.method 'reranker' trains in one process; fix: run it without torchrun")
    training = training.judged()
    train, dev, folder, template = training.train, training.dev, training.folder, training.template
    weights = weights_digest(model_folder(str(start), proof="config.json"))
    digests = [train.digest(), dev.digest() if dev else None]
    described = ["reranker", encoder.fingerprint, weights, *digests, template, top, precision, training.config.identity()]
    claim(folder, described, keys_of(train, dev), answer_keys(train, dev, template))
    if not (folder / DONE).exists():
        with failures_explained(training):
            tuned = _train(encoder, training, start, top, precision)
        write_tuned(tuned, folder)
        for name in ("checkpoints", "mined"):
            shutil.rmtree(folder / name, ignore_errors=True)
    tuned = read_tuned(folder, template=template)
    reranker = training.engine.reranker(LocalReranker(folder / MODEL, precision=precision))
    return replace(tuned, held=RerankedRetriever(DenseRetriever(encoder, template), reranker, template, top=top))


def _train(encoder: Encoder, training: Training, start: str | Path, top: int, precision: Precision) -> Tuned:
    config = training.config
    model = cross_encoder_from(start, config.seed)
    transformer: Any = model.transformers_model
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout
    if not config.train_embeddings:
        transformer.get_input_embeddings().weight.requires_grad_(False)
    bf16 = use_bf16(precision, model.device.type)
    count = config.hard_negatives if "hard_negatives" in config.model_fields_set else _NEGATIVES
    collator = PairCollator(model, training.train, training.template, _mined(encoder, training, top), count=count, seed=config.seed)
    loss = PairLoss(model, memory_tokens=memory_tokens(model, None, config, model.max_seq_length or 512))
    judge = _dev_scores(encoder, training, model, top, bf16)
    rate, epochs = config.learning_rate_with("mined"), config.epochs_with("mined")
    course = Course(model, collator, loss, judge, rows=len(training.train.queries), epochs=epochs, learning_rate=rate, bf16=bf16)
    finished = run_course(training, course)
    save_in_place(partial(model.save_pretrained, create_model_card=False), training.folder / MODEL)
    return Tuned(
        None,
        finished.seconds,
        training.folder,
        training.template,
        precision,
        history=finished.history,
        epoch=finished.epoch,
        tokens=finished.tokens,
        candidates="mined",
    )


def cross_encoder_from(start: str | Path, seed: int = 0) -> CrossEncoder:
    """Return a cross-encoder in memory. A model of another type gets a new head, and reads as many tokens as before.

    Args:
        start: Name or folder of the model.
        seed: Seed of a new head.

    Raises:
        ModelError: The model cannot be found or loaded, or it gives several numbers for a pair.
    """
    folder = model_folder(str(start), proof="config.json")
    if is_cross_encoder(folder):
        return LocalReranker(start).loaded
    from sentence_transformers import CrossEncoder

    quiet_libraries()
    torch.manual_seed(seed)
    options = {"use_safetensors": True, "dtype": "float32"}
    logger = logging.getLogger("sentence_transformers.base.model")  # it warns that the model is converted, which is meant here
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model: CrossEncoder = CrossEncoder(str(folder), num_labels=1, trust_remote_code=False, local_files_only=True, model_kwargs=options)
    except Exception as error:  # the library raises whatever its dependencies raise
        raise ModelError(f"{folder}: cannot be made a cross-encoder: {str(error).strip().splitlines()[0]}") from error
    finally:
        logger.setLevel(level)
    model.max_seq_length = min(Lengths(LocalEncoder(folder)).limit, model.max_seq_length or 512)
    return model


def is_cross_encoder(folder: Path) -> bool:
    """Return whether a folder holds a cross-encoder."""
    settings, config = (_json(folder / name) for name in ("config_sentence_transformers.json", "config.json"))
    if "model_type" in settings and (folder / "modules.json").exists():
        return bool(settings["model_type"] == "CrossEncoder")
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _mined(encoder: Encoder, training: Training, top: int) -> npt.NDArray[np.int64]:
    """Return the wrong documents in each training query's top, padded with -1; shape (queries, top).

    They may be nearer to the query than its right document, unless the settings say otherwise: to put those below is the task. They stay on
    disk until training ends, so that a resumed training has the same.
    """
    path, config = training.folder / "mined" / "0.npy", training.config
    if path.exists():
        kept: npt.NDArray[np.int64] = np.load(path)
        return kept
    margin = config.mined_margin if "mined_margin" in config.model_fields_set else math.inf
    mined = mine(encoder, training.train, training.template, count=top, guards=Guards.of(training, margin), seen=1, engine=training.engine)
    with writing(path) as file:
        np.save(file, mined)
    return mined


def _dev_scores(encoder: Encoder, training: Training, model: CrossEncoder, top: int, bf16: bool) -> DevScores | None:
    """Return the scores of the dev part, whose documents are found once and reranked after each epoch."""
    dev = training.dev
    if not dev:
        return None
    found = DenseRetriever(encoder, training.template).search(dev, max(top, 10))
    return DevScores(dev, lambda: rerank(found, dev, _Now(model, bf16), training.template, top=top))


class _Now:
    """A cross-encoder in training as a Reranker."""

    name = "in training"

    def __init__(self, model: CrossEncoder, bf16: bool) -> None:
        self._model, self._bf16 = model, bf16

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        return score_pairs(self._model, pairs, bf16=self._bf16, name=self.name)


class PairCollator:
    """Makes a batch of pairs from the positions of its queries: each with one right document and some wrong ones.

    Args:
        model: Cross-encoder, for its tokens.
        train: Training queries, corpus and judgements.
        template: Document template.
        mined: Positions of each query's wrong documents, padded with -1; shape (queries, any). Judged ones come before them.
        count: Wrong documents of a query in a step.
        seed: Seed of the draws.

    Attributes:
        tokens: Number of tokens, without padding, of each batch that is made but not yet trained on.
    """

    valid_label_columns: tuple[str, ...] = ()  # the trainer's batch sampler reads it

    def __init__(self, model: CrossEncoder, train: Dataset, template: str, mined: npt.NDArray[np.int64], *, count: int, seed: int) -> None:
        self._model, self._mined, self._count, self._seed = model, mined, count, seed
        self._queries, self._documents = train.query_texts(), train.document_texts(template)
        self._relevant, self._judged = relevant_positions(train), judged_negatives(train)
        self.tokens: deque[int] = deque()

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Return the features of each chunk of pairs, and as ``label`` the place of each query's pairs, the right one first."""
        batch = sorted(row["row"] for row in rows)
        # The batch itself is the seed, so a resumed training draws the same.
        rng = np.random.default_rng([self._seed, *batch])
        pairs: list[tuple[str, str]] = []
        label = np.full((len(batch), 1 + self._count), -1, np.int64)
        for place, row in enumerate(batch):
            documents = [rng.choice(list(self._relevant[row])), *self._negatives(row, rng)]
            label[place, : len(documents)] = len(pairs) + np.arange(len(documents))
            pairs += [(self._queries[row], self._documents[document]) for document in documents]
        order = np.argsort([-len(query) - len(document) for query, document in pairs], kind="stable")
        inputs: dict[str, Any] = {"return_loss": True}
        count = 0
        for number, start in enumerate(range(0, len(pairs), _CHUNK)):
            chunk = [pairs[index] for index in order[start : start + _CHUNK]]
            features = {key: value for key, value in self._model.preprocess(chunk).items() if torch.is_tensor(value)}
            count += int(features["attention_mask"].sum())
            inputs |= {f"pairs{number}_{key}": value for key, value in features.items()}
        self.tokens.append(count)
        place_of = np.append(np.argsort(order), -1)  # the last one for padding
        inputs["label"] = torch.from_numpy(place_of[label])
        return inputs

    def _negatives(self, row: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        mined, judged = self._mined[row], self._judged[row]
        drawn = rng.permutation(mined[mined >= 0])
        chosen: npt.NDArray[np.int64] = np.concatenate([rng.permutation(judged), drawn[~np.isin(drawn, judged)]])[: self._count]
        return chosen


class PairLoss(nn.Module):
    """The cross-entropy of each query's right document among the documents of its pairs.

    Args:
        reader: Cross-encoder in training. (The trainer would replace an attribute called ``model`` by a wrapper.)
        memory_tokens: Most padded tokens whose activations are kept for the gradients; in a larger batch they are computed again.
    """

    def __init__(self, reader: CrossEncoder, *, memory_tokens: float = math.inf) -> None:
        super().__init__()
        self.reader, self._memory_tokens = reader, memory_tokens

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the mean loss over the queries.

        Args:
            features: Tokens of the pairs, in chunks.
            labels: Places of each query's pairs, the right one first, -1 for none; shape (queries, documents).
        """
        whole = sum(chunk["input_ids"].numel() for chunk in features) <= self._memory_tokens
        read = self._read if whole else partial(checkpoint, self._read, use_reentrant=False)
        scores = torch.cat([read(chunk) for chunk in features])
        logits = scores[labels.clamp(min=0)].masked_fill(labels < 0, -1e9)
        return nn.functional.cross_entropy(logits, torch.zeros(len(labels), dtype=torch.long, device=labels.device))

    def _read(self, chunk: dict[str, Tensor]) -> Tensor:
        scores: Tensor = self.reader(dict(chunk))["scores"]
        return scores.float().squeeze(-1)
