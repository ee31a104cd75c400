"""Serving mistakes, made on purpose: the vectors that a model gives under each of them."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from embedfit.encode.encoder import PROMPT_NAMES, Kind, Vectors
from embedfit.encode.local import LocalEncoder, quiet_libraries
from embedfit.errors import shown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_POOLINGS = ("mean", "cls", "lasttoken", "max", "weightedmean")
_LENGTHS = (32, 64, 128, 256, 384, 512, 1024, 2048, 4096, 8192)
"""Usual numbers of tokens at which servers cut texts."""
_BATCH = 4
"""Texts encoded at a time: few, so that little padding is computed."""
_UNKNOWN_LENGTH, _STEP = 512, 8
"""Largest length that is searched for, and the distance of the lengths that are looked at first."""

Tokens: TypeAlias = Literal["whole", "no end", "no start", "bare", "two ends", "two starts"]


@dataclass(frozen=True)
class Way:
    """A way of making vectors. The default is the way in which the model was measured.

    Attributes:
        model: Name of another model; empty for the measured one.
        prompt: Text before each text; None for the model's own prompt.
        text: Change of each text.
        tokens: Change of the special tokens.
        cased: Whether a tokenizer that lower-cases texts keeps their case.
        length: Number of tokens at which texts are cut; None for the model's own.
        pooling: Pooling of token vectors; None for the model's own.
        pools_prompt: Whether tokens of the prompt are pooled; None for the model's own setting.
        routed: Whether a model with two routes sends a text along the route of its kind.
        precision: Precision of the weights.
    """

    model: str = ""
    prompt: str | None = None
    text: Literal["", "lower", "stripped", "one line"] = ""
    tokens: Tokens = "whole"
    cased: bool = False
    length: int | None = None
    pooling: str | None = None
    pools_prompt: bool | None = None
    routed: bool = True
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"


OWN = Way()


@dataclass(frozen=True)
class Mistake:
    """A mistake that a server can make.

    Attributes:
        family: Name of the kind of mistake, such as ``pooling``. Of one family, a server makes one mistake at most.
        text: The mistake, as a sentence about the endpoint without its full stop.
        fix: Advice to whoever runs the server.
        changes: Fields of `Way`, and their values under the mistake.
    """

    family: str
    text: str
    fix: str
    changes: Mapping[str, Any]

    def on(self, way: Way) -> Way:
        """Return a way of making vectors with this mistake added."""
        return replace(way, **self.changes)

    def __str__(self) -> str:
        return f"{self.family}: {self.text}; fix: {self.fix}"


class Imitator:
    """Makes the vectors that a server with a mistake gives.

    Args:
        encoder: Model as measured.
        others: Name -> another model that may be served in its place, such as the base model.
    """

    def __init__(self, encoder: LocalEncoder, others: Mapping[str, LocalEncoder]) -> None:
        self.encoder, self.others = encoder, others
        self._models: dict[tuple[str, str], SentenceTransformer] = {}

    def raw(self, texts: Sequence[str], kind: Kind, way: Way = OWN) -> Vectors:
        """Return the vectors of texts as the model gives them, not scaled to unit length."""
        import torch

        model = self._model(way)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors: list[Any] = [None] * len(texts)
        with torch.inference_mode(), _pooled(model, way):
            for start in range(0, len(order), _BATCH):
                rows = order[start : start + _BATCH]
                features = self._features(model, [texts[row] for row in rows], kind, way)
                features = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in features.items()}
                task = kind if way.routed else ("document" if kind == "query" else "query")
                output = model(features, task=task)["sentence_embedding"][:, : model.truncate_dim]
                for row, vector in zip(rows, output.float().cpu().numpy(), strict=True):
                    vectors[row] = vector
        return np.stack(vectors).astype(np.float32)

    def vectors(self, texts: Sequence[str], kind: Kind, way: Way = OWN) -> Vectors:
        """Return one unit vector per text."""
        return unit(self.raw(texts, kind, way))

    def length_of(self, text: str, kind: Kind, served: Vectors) -> int | None:
        """Return the number of tokens of a text whose vector is nearest to a served one; None if the text is too long for a search."""
        count = self.count(text, kind)
        limit = min(count, self.limit) - 1
        if not 3 <= limit <= _UNKNOWN_LENGTH:
            return None
        cosines: dict[int, float] = {}

        def nearest(lengths: Iterable[int]) -> list[int]:
            for length in lengths:
                if length not in cosines and 2 < length <= limit:
                    cosines[length] = float(self.vectors([text], kind, Way(length=length))[0] @ served)
            return sorted(cosines, key=lambda length: -cosines[length])

        for length in nearest(range(limit, 2, -_STEP))[:3]:
            nearest(range(length - _STEP, length + _STEP))
        return nearest(())[0]

    @property
    def limit(self) -> int:
        """Number of tokens that the measured model reads of a text."""
        return int(self._model(OWN).max_seq_length or 2**31)

    def count(self, text: str, kind: Kind) -> int:
        """Return the number of tokens of a text with its prompt."""
        return int(self.encoder.loaded.truncation([text], kind).counts[0])

    def mistakes(self, kind: Kind, longest: int) -> list[Mistake]:
        """Return the mistakes to try, the likely ones first.

        Args:
            kind: Kind of the texts.
            longest: Number of tokens of the longest text.
        """
        return [
            *self._prompts(kind),
            *self._poolings(kind),
            *self._cuts(longest),
            *self._special_tokens(),
            *_TEXTS,
            *([_CASED] if _lower_cases(self._tokenizer) else []),
            *([_ROUTE] if any(type(module).__name__ == "Router" for module in self._model(OWN).modules()) else []),
            *(Mistake("another model", f"it serves {name}", "serve the run's own model", {"model": name}) for name in self.others if name),
        ]

    def _prompts(self, kind: Kind) -> Iterator[Mistake]:
        own, other = self.encoder.prompts[kind], self.encoder.prompts["document" if kind == "query" else "query"]
        named = {name: text for name, text in self._model(OWN).prompts.items() if text and name not in PROMPT_NAMES[kind]}
        tried: dict[str, tuple[str, str]] = {}
        if own:
            tried[""] = ("the prompt is missing", f"put {shown(own)} before each {kind}")
            tried[own + own] = ("the prompt is there twice", "send texts without it, or serve the model without a default prompt")
        if other:
            tried[other] = (f"the prompt {shown(other)} of the other kind is used", f"put {shown(own)} before each {kind}")
            tried[other + own] = (f"it adds the prompt {shown(other)} to every text", "serve the model without a default prompt")
        for name, text in named.items():
            tried.setdefault(text, (f"the model's prompt {name!r} is used", f"put {shown(own)} before each {kind}"))
            tried.setdefault(text + own, (f"it adds the model's prompt {name!r} to every text", "serve the model without a default prompt"))
        tried.pop(own, None)
        for prompt, (text, fix) in tried.items():
            yield Mistake("prompt", text, fix, {"prompt": prompt})

    def _poolings(self, kind: Kind) -> Iterator[Mistake]:
        place = _pooling_place(self._model(OWN))
        if place is None:
            return
        module: Any = self._model(OWN)[place]
        modes = [module.pooling_mode] if isinstance(module.pooling_mode, str) else list(module.pooling_mode)
        own = "+".join(modes)
        for mode in _POOLINGS:
            if mode != own:
                yield Mistake("pooling", f"it pools by {mode!r}, not by {own!r}", f"serve with {own} pooling", {"pooling": mode})
        if self.encoder.prompts[kind]:
            what = "leaves out" if module.include_prompt else "includes"
            yield Mistake("pooling", f"it {what} the prompt when it pools", "change that", {"pools_prompt": not module.include_prompt})

    def _cuts(self, longest: int) -> Iterator[Mistake]:
        limit = self.limit
        config = getattr(self._model(OWN).transformers_model, "config", None)
        most = int(getattr(config, "max_position_embeddings", None) or limit)
        known = {*_LENGTHS, most, limit - 2, limit + 2, int(min(getattr(self._model(OWN).tokenizer, "model_max_length", 0), most))}
        for length in sorted(known, key=lambda length: abs(length - limit)):
            if 2 < length < longest and length != limit and length <= max(most, limit):
                yield cut_at(length, limit)
        if limit < longest <= most:
            text = f"it reads texts of {longest:,} tokens whole, where the model cuts them at {limit:,}"
            yield Mistake("truncation", text, f"serve with {limit:,} tokens", {"length": longest})

    def _special_tokens(self) -> Iterator[Mistake]:
        if not self._tokenizer:
            return
        starts, ends = self._specials
        if ends:
            yield Mistake("end token", "the end token is missing", "let the server add special tokens", {"tokens": "no end"})
            yield Mistake("end token", "the end token is there twice", "send texts without it", {"tokens": "two ends"})
        if starts:
            yield Mistake("start token", "the start token is missing", "let the server add special tokens", {"tokens": "no start"})
            yield Mistake("start token", "the start token is there twice", "send texts without it", {"tokens": "two starts"})
        if starts and ends:
            yield Mistake("special tokens", "start and end token are missing", "let the server add special tokens", {"tokens": "bare"})

    def _model(self, way: Way) -> SentenceTransformer:
        key = (way.model, way.precision)
        if key not in self._models:
            model = (self.others[way.model] if way.model else self.encoder).loaded.model
            self._models[key] = model if way.precision == "fp32" else _rounded(model, way.precision)
        return self._models[key]

    @cached_property
    def _tokenizer(self) -> dict[str, Any]:
        """The tokenizer's JSON, without truncation and padding; empty if it is not one of the library tokenizers."""
        backend = getattr(self._model(OWN).tokenizer, "backend_tokenizer", None)
        return {**json.loads(backend.to_str()), "truncation": None, "padding": None} if backend is not None else {}

    @cached_property
    def _uncased(self) -> Any:
        return _loaded(self._tokenizer)

    @cached_property
    def _cased(self) -> Any:
        return _loaded(_with_case(self._tokenizer))

    @cached_property
    def _specials(self) -> tuple[list[int], list[int]]:
        """Ids of the special tokens before and after a text."""
        tokenizer = self._model(OWN).tokenizer
        whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        start = next((place for place in range(len(whole)) if whole[place : place + len(bare)] == bare), 0)
        return list(whole[:start]), list(whole[start + len(bare) :])

    def _features(self, model: SentenceTransformer, texts: Sequence[str], kind: Kind, way: Way) -> dict[str, Any]:
        encoder = self.others[way.model] if way.model else self.encoder
        prompt = encoder.prompts[kind] if way.prompt is None else way.prompt
        texts = [_changed(text, way) for text in texts]
        if way.text == "lower":
            prompt = prompt.lower()
        features = dict(model.preprocess(texts, prompt=prompt or None, task=kind))
        if (way.tokens, way.cased, way.length) == (OWN.tokens, OWN.cased, OWN.length) or not self._tokenizer:
            return features
        return {**features, **self._own_tokens(model, [prompt + text for text in texts], way, features)}

    def _own_tokens(self, model: SentenceTransformer, texts: list[str], way: Way, features: dict[str, Any]) -> dict[str, Any]:
        """Return the tensors of texts whose tokens are cut or changed."""
        import torch

        tokenizer = self._cased if way.cased else self._uncased
        limit = way.length or int(model.max_seq_length or 2**31)
        starts, ends = self._specials
        starts = {"no start": [], "bare": [], "two starts": starts * 2}.get(way.tokens, starts)
        ends = {"no end": [], "bare": [], "two ends": ends * 2}.get(way.tokens, ends)
        room = max(0, limit - len(starts) - len(ends))
        rows = [starts + encoding.ids[:room] + ends for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        rows = [row or [model.tokenizer.pad_token_id or 0] for row in rows]
        width = max(map(len, rows))
        ids = np.full((len(rows), width), model.tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(rows):
            columns = slice(width - len(tokens), width) if model.tokenizer.padding_side == "left" else slice(len(tokens))
            ids[row, columns], mask[row, columns] = tokens, 1
        kinds = {"token_type_ids": torch.zeros(ids.shape, dtype=torch.int64)} if "token_type_ids" in features else {}
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask), **kinds}


def cut_at(length: int, limit: int) -> Mistake:
    """Return the mistake of cutting texts at a number of tokens, where the model's limit is another."""
    return Mistake(
        "truncation", f"it cuts texts at {length:,} tokens, not at {limit:,}", f"serve with {limit:,} tokens", {"length": length}
    )


_TEXTS = (
    Mistake("lower-casing", "it lower-cases texts", "send texts as they are", {"text": "lower"}),
    Mistake("white space", "it strips white space around texts", "send texts as they are", {"text": "stripped"}),
    Mistake("white space", "it turns line breaks into spaces", "send texts as they are", {"text": "one line"}),
)
_CASED = Mistake("lower-casing", "it does not lower-case texts, as the tokenizer should", "serve with the run's tokenizer", {"cased": True})
_ROUTE = Mistake(
    "route",
    "it sends texts along the route of the other kind, so the query adapter is left out or wrong",
    "name the task",
    {"routed": False},
)
PRECISIONS = tuple(
    Mistake("precision", f"its weights are {name}", "serve in fp32, or accept the loss", {"precision": precision})
    for precision, name in (("fp16", "in half precision (fp16)"), ("bf16", "in bfloat16"), ("int8", "rounded to 8 bits"))
)


def unit(vectors: Vectors) -> Vectors:
    """Return vectors scaled to unit length."""
    scaled: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return scaled


def _changed(text: str, way: Way) -> str:
    if way.text == "lower":
        return text.lower()
    if way.text == "stripped":
        return text.strip()
    return " ".join(text.splitlines()) if way.text == "one line" else text


def _loaded(content: Any) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(content))


def _lower_cases(content: Any) -> bool:
    """Return whether a tokenizer's JSON has a normalizer that lower-cases."""
    normalizer = content.get("normalizer") or {}
    return any(part.get("type") == "Lowercase" or part.get("lowercase") for part in (normalizer, *normalizer.get("normalizers", ())))


def _with_case(content: Any) -> Any:
    """Return a tokenizer's JSON without lower-casing."""
    normalizer = content["normalizer"]
    parts = normalizer.get("normalizers", [normalizer])
    kept = [{**part, "lowercase": False} if "lowercase" in part else part for part in parts if part.get("type") != "Lowercase"]
    return {**content, "normalizer": {"type": "Sequence", "normalizers": kept}}


def _pooling_place(model: SentenceTransformer) -> int | None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    return next((place for place, module in enumerate(model) if isinstance(module, Pooling)), None)


@contextlib.contextmanager
def _pooled(model: SentenceTransformer, way: Way) -> Iterator[None]:
    """Give a model another pooling for a while."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    place = _pooling_place(model)
    if place is None or (way.pooling is None and way.pools_prompt is None):
        yield
        return
    own: Any = model[place]
    includes = own.include_prompt if way.pools_prompt is None else way.pools_prompt
    model[place] = Pooling(own.embedding_dimension, way.pooling or own.pooling_mode, includes)
    try:
        yield
    finally:
        model[place] = own


def _rounded(model: SentenceTransformer, precision: str) -> SentenceTransformer:
    """Return a copy of a model in a lower precision; with ``int8``, each row of a weight matrix has 255 steps."""
    import torch

    quiet_libraries()
    rounded = copy.deepcopy(model).eval()
    if precision != "int8":
        return rounded.to(torch.float16 if precision == "fp16" else torch.bfloat16)
    with torch.no_grad():
        for module in rounded.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                step = module.weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
                module.weight.copy_((module.weight / step).round() * step)
    return rounded
