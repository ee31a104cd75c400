"""What a training begins with: the model with its trainable weights, the tokens of its texts, and the states after frozen layers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel

from embedfit import console
from embedfit.config import TuneConfig
from embedfit.encode.local import LocalEncoder, ModelEncoder, load_model
from embedfit.encode.precision import train_by_plain_attention
from embedfit.encode.sides import is_two_sided, side_of
from embedfit.encode.tokens import Tokens
from embedfit.errors import ConfigError, ModelError
from embedfit.loading import ATTENTION, is_quantized, whole_weights
from embedfit.tune.average import trained_weights
from embedfit.tune.lora import add_lora
from embedfit.tune.lower import KeptStates, LowerLayers, layers_of
from embedfit.tune.remembered import Remembered
from embedfit.tune.training import Training

_ALL_DOCUMENTS_TOKENS = 4096
"""Largest corpus, in tokens, that is encoded whole in every step."""
_ACTIVATION_BYTES = 68
"""Bytes kept for the gradients per token, layer and hidden dimension, in fp32 and without attention's square matrices
(Korthikanti et al. 2022, section 4.1, has 34 in 16 bits)."""
_SQUARE_BYTES = 6
"""Bytes kept as well per layer, head and pair of tokens where attention is computed by plain products: its weights in fp32 and bf16."""
_PLAIN_TOKENS = 128
"""Longest text, on average over all tokens, with which plain products are worth their memory."""
_FROZEN_SHARE = 1 / 2
_FROZEN_QUERIES = 500, 2000
"""Share of the layers that are frozen for a list of labels, and the training queries for which they are. Smaller sets may need all
layers, and larger ones were not tried (docs/decisions.md)."""
_KEPT_SHARE = 1 / 8
"""Largest share of the machine's memory for kept states of frozen layers."""
_RANDOM = 32
"""Random documents per step if none are mined."""


@dataclass(frozen=True)
class Prepared:
    """A model ready for training, with its tokenised texts.

    Attributes:
        encoder: Model in training; the query side alone if documents are frozen.
        lora: peft's model around the transformer; None without LoRA.
        queries: Tokens of each training query.
        documents: Tokens of each document; None if documents are frozen.
        candidates: ``all``, ``mined`` or ``batch``; ``corpus`` if documents are frozen.
        epochs: Most epochs to train for.
        steps: Steps per epoch.
        lower: Frozen layers; None if none are frozen.
    """

    encoder: ModelEncoder
    lora: Any
    queries: Tokens
    documents: Tokens | None
    candidates: str
    epochs: int
    steps: int
    lower: LowerLayers | None

    @property
    def model(self) -> SentenceTransformer:
        """The library's model."""
        return self.encoder.model

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(int(tokens.lengths.max(initial=0)) for tokens in (self.queries, self.documents) if tokens is not None)


def prepare(encoder: LocalEncoder, training: Training, added: Sequence[torch.nn.Module] = ()) -> Prepared:
    """Load the model, set its trainable weights, and tokenise the texts that it will encode.

    Args:
        encoder: Model to start from.
        training: Data and settings.
        added: Modules to put after the model's own.

    Raises:
        ConfigError: A Matryoshka dimension is not below the model's, or all weights are to be trained and are quantized.
        ModelError: The model cannot be tuned.
    """
    config, prompts = training.config, encoder.prompts
    options = encoder.loading
    if config.method != "lora":
        if is_quantized(options):
            raise ConfigError("model.model_kwargs: quantized weights cannot be trained; fix: tune.method = 'lora', or leave the option out")
        options = whole_weights(options)
    model = load_model(encoder.folder, prompts, encoder.pooling, options)
    quantized: Any
    for quantized in model.modules():
        if hasattr(quantized, "support_avx512bf16_for_cpu"):  # bitsandbytes would pack the weights at the first encoding, and not train on
            quantized.support_avx512bf16_for_cpu = False
    documents = None
    if config.documents == "frozen":
        model = side_of(model, "query")
    elif is_two_sided(model):
        raise ModelError(
            f"{encoder.name} encodes queries and documents with two models; fix: tune.documents = 'frozen', which trains that of queries"
        )
    for module in added:
        model.append(module.to(model.device))
    if model.transformers_model is None:
        raise ModelError(f"a {type(model[0]).__name__} cannot be tuned; expected a model whose first module is a transformer")
    dimension = model.get_embedding_dimension()
    for size in config.matryoshka:
        if dimension and size >= dimension:
            raise ConfigError(f"tune.matryoshka: {size} is not below the {dimension} dimensions of {encoder.name}")
    candidates = "corpus"
    if config.documents == "trained":
        documents = Tokens(model, training.train.document_texts(training.template), prompts["document"], "document")
        candidates = choose_candidates(config, int(documents.lengths.sum()))
    queries = Tokens(model, training.train.query_texts(), prompts["query"], "query")
    in_training = ModelEncoder(model, prompts, bf16=encoder.autocasts(model, options), warns=False)
    lengths = np.concatenate([tokens.lengths for tokens in (queries, documents) if tokens is not None])
    if ATTENTION not in options and (lengths**2).sum() <= _PLAIN_TOKENS * lengths.sum():
        train_by_plain_attention(model.transformers_model, in_training.bf16)
    lora, lower = set_trainable(in_training, config, candidates, len(queries))
    steps = -(-len(queries) // config.batch_size)
    return Prepared(in_training, lora, queries, documents, candidates, config.epochs_with(candidates), steps, lower)


def kept_states(prepared: Prepared, config: TuneConfig, batch_tokens: int) -> dict[str, KeptStates]:
    """Return the kept states of the texts after the frozen layers, by kind, where that saves work and memory allows it.

    The frozen layers run again in every step for the other texts, without gradients.
    """
    if not prepared.lower:
        return {}
    # How often a text is encoded in the training.
    uses, texts = {"query": float(prepared.epochs)}, {"query": prepared.queries}
    if prepared.documents is not None:
        all_steps, count = prepared.steps * prepared.epochs, len(prepared.documents)
        drawn = config.batch_size * (1 + config.hard_negatives) + random_negatives(config, prepared.candidates)
        texts["document"], uses["document"] = prepared.documents, all_steps * (1 if prepared.candidates == "all" else drawn / count)
    room = config.memory_gb * 2**30 if config.memory_gb is not None else _machine_memory() * _KEPT_SHARE
    kept: dict[str, KeptStates] = {}
    for kind in sorted(uses, key=lambda kind: -uses[kind]):
        tokens = texts[kind]
        size = prepared.lower.bytes_of(tokens)
        if uses[kind] >= 2 and size <= room and prepared.lower.can_be_left_out(tokens):
            kept[kind] = prepared.lower.keep(tokens, batch_tokens=batch_tokens)
            room -= size
    return kept


def remembered_vectors(prepared: Prepared, config: TuneConfig) -> Remembered | None:
    """Return the last vectors of the texts, none yet; None if every text is encoded in every step."""
    least = config.min_gradient_with(prepared.candidates)
    if least == 0:
        return None
    dimensions = prepared.model.get_embedding_dimension()
    assert prepared.documents is not None
    assert dimensions is not None
    return Remembered(len(prepared.queries) + len(prepared.documents), dimensions, least)


def set_trainable(encoder: ModelEncoder, config: TuneConfig, candidates: str, queries: int) -> tuple[Any, LowerLayers | None]:
    """Set the trainable weights and the dropout. Returns peft's model around the transformer for LoRA, else None; and the frozen layers.

    Token embeddings are frozen by default: a few hundred pairs touch few of them, and they make gradients and checkpoints
    large. Dropout is off by default: in so few steps it costs time and gains nothing (docs/decisions.md has both figures).
    """
    model = encoder.model
    transformer: Any = model.transformers_model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    count = layers_to_freeze(transformer, config, candidates, queries)
    lower = LowerLayers(encoder, count) if count else None
    if config.method == "lora":
        return add_lora(model, transformer, config, lower.layers if lower else ()), lower
    if not config.train_embeddings:
        transformer.get_input_embeddings().weight.requires_grad_(False)
    return None, lower


def starting_weights(prepared: Prepared, config: TuneConfig) -> dict[str, torch.Tensor]:
    """Return a copy of the trainable weights before training, if they are to be merged with the trained ones."""
    if config.merge_weight == 1 or prepared.lora is not None:
        return {}
    return {name: weight.clone() for name, weight in trained_weights(prepared.model).items()}


def merge_with_start(prepared: Prepared, start: Mapping[str, torch.Tensor], weight: float) -> None:
    """Merge the trained weights with those before training.

    Args:
        prepared: Model after training.
        start: Result of `starting_weights`.
        weight: Weight of the trained ones.
    """
    with torch.no_grad():
        for name, value in prepared.model.named_parameters():
            if name in start:
                value.lerp_(start[name], 1 - weight)
            elif prepared.lora is not None and "lora_B" in name:  # scales the product, which is what training added
                value.mul_(weight)


def layers_to_freeze(transformer: torch.nn.Module, config: TuneConfig, candidates: str, queries: int) -> int:
    """Return the number of lower layers to freeze: the setting, or the number by default."""
    if config.freeze != "auto":
        return config.freeze
    if not (share := usual_share_frozen(config, candidates, queries)):
        return 0
    layers = layers_of(transformer)
    if not layers:
        console.note(f"all layers are trained: those of a {type(transformer).__name__} are not known, so the lower half is not frozen")
    return int(len(layers) * share)


def usual_share_frozen(config: TuneConfig, candidates: str, queries: int) -> float:
    """Return the share of the layers that are frozen by default: half of them for labels, if queries are neither few nor many."""
    least, most = _FROZEN_QUERIES
    usual = candidates == "all" and least <= queries <= most and config.method == "full" and not config.train_embeddings
    return _FROZEN_SHARE if usual else 0.0


def random_negatives(config: TuneConfig, kind: str) -> int:
    """Return the number of random documents per step: beside mined ones they gain nothing (docs/decisions.md)."""
    if config.negatives is not None:
        return config.negatives
    return 0 if kind == "mined" else _RANDOM


def choose_candidates(config: TuneConfig, document_tokens: int) -> str:
    """Return ``all`` if encoding every document in every step is cheap, else ``mined``, unless the settings say."""
    if config.candidates != "auto":
        return config.candidates
    return "all" if document_tokens <= _ALL_DOCUMENTS_TOKENS else "mined"


def memory_tokens(model: BaseModel, lower: LowerLayers | None, config: TuneConfig, longest: int) -> float:
    """Return the number of tokens whose activations fit in memory; infinite if the model does not say its layers and width.

    Args:
        model: Model in training.
        lower: Frozen layers; None if none are frozen.
        config: Settings.
        longest: Tokens of the longest text.
    """
    settings = model.transformers_model.config if model.transformers_model is not None else None
    layers, width = getattr(settings, "num_hidden_layers", 0), getattr(settings, "hidden_size", 0)
    if not layers or not width:
        return math.inf
    trained = layers - (lower.count if lower else 0)
    share = 1 / 2 if model.device.type == "cuda" else 1 / 3
    memory = torch.cuda.get_device_properties(model.device).total_memory if model.device.type == "cuda" else _machine_memory()
    plain = getattr(settings, "_attn_implementation", None) == "eager"
    squares = _SQUARE_BYTES * getattr(settings, "num_attention_heads", 0) * longest if plain else 0
    room = config.memory_gb * 2**30 if config.memory_gb is not None else memory * share
    return room / (trained * (_ACTIVATION_BYTES * width + squares))


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
