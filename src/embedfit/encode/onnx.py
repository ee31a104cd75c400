"""An exported model: its transformer runs on ONNX Runtime, all else in numpy. No torch is imported, so it loads in under a second."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.encode.encoder import PROMPT_NAMES, BaseEncoder, Kind, Vectors
from embedfit.encode.pooling import POOLING_FLAGS, settings_of
from embedfit.encode.tokens import length_batches
from embedfit.errors import ModelError, require
from embedfit.files import digest, file_sha256

FILES = {"onnx": "onnx/model.onnx", "onnx-int8": "onnx/model_quantized.onnx"}
"""Form -> its file in the folder, where transformers.js, fastembed and sentence-transformers look for it."""
_BATCH_TOKENS = 1024
"""Padded tokens in a batch."""

_Floats: TypeAlias = npt.NDArray[np.float32]
_Step: TypeAlias = Callable[[_Floats, _Floats, Kind], _Floats]
"""Function from the output before it, the attention mask and the kind of text to the next output."""


class OnnxEncoder(BaseEncoder):
    """A model that `embedfit export` wrote, or any sentence-transformers folder with an ONNX file.

    Args:
        folder: Folder of the model.
        form: ``onnx`` or ``onnx-int8``; by default the smaller one that is there.
        query_prompt: Text put before each query; by default the model's own.
        document_prompt: Text put before each document; by default the model's own.
        threads: Number of threads of the runtime; by default OMP_NUM_THREADS, or one for each core.

    Raises:
        ModelError: The folder has no such file, or a layer that cannot be computed here.
        EmbedfitError: onnxruntime is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        form: str | None = None,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        there = [name for name in reversed(FILES) if (self.folder / FILES[name]).is_file()]
        if not there or (form and form not in there):
            raise ModelError(f"{folder}: has no {FILES.get(form or '', 'ONNX file')}; fix: embedfit export RUN --form {form or 'onnx'}")
        self.form = form or there[0]
        self.name = f"{folder}, {self.form}"
        own = settings_of(self.folder).get("prompts") or {}
        given = {"query": query_prompt, "document": document_prompt}
        self.prompts: dict[Kind, str] = {
            kind: next((own[name] for name in PROMPT_NAMES[kind] if own.get(name)), "") if given[kind] is None else str(given[kind])
            for kind in ("query", "document")
        }
        self.threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
        self.steps, self._width = _steps(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files and prompts, and of the version of the runtime."""
        return digest([self._read_as, version("onnxruntime")], sort_keys=False)

    @cached_property
    def identity(self) -> str:
        """A hash of the files and prompts, the same on every machine."""
        return digest(self._read_as, sort_keys=False)

    @property
    def _read_as(self) -> list[Any]:
        # What else stands in the folder, such as a static form or a searcher's other model, does not change the vectors.
        places = [self.folder / module["path"] for module in _modules(self.folder) if module["path"]]
        others = [
            *self.folder.glob("*.json"),
            *(path for end in ("json", "safetensors") for place in places for path in place.rglob(f"*.{end}")),
        ]
        file = self.folder / FILES[self.form]
        own = file.parent.glob(f"{file.name}*")  # with the weights beside it, if they are many
        files = sorted({*own, *others} - {self.folder / name for name in ("embedfit.json", "forms.json")})
        return [[[str(path.relative_to(self.folder)), file_sha256(path)] for path in files], self.prompts]

    @property
    def dimension(self) -> int | None:
        """Number of dimensions of the vectors; None if the folder does not state it."""
        return self._width

    @property
    def saved_at(self) -> Path:
        """The folder of the model."""
        return self.folder

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions).

        The 8-bit form rounds the numbers of a whole batch alike, so a vector depends a little on the texts beside it.

        Raises:
            ModelError: A vector is not finite.
        """
        whole = [self.prompts[kind] + text for text in texts]
        encodings = self._tokenizer.encode_batch([text.lower() for text in whole] if self._lower else whole)
        lengths = np.array([len(encoding.ids) for encoding in encodings], np.int64)
        vectors: Vectors | None = None
        for batch in length_batches(lengths, _BATCH_TOKENS):
            features = self._padded([encodings[row] for row in batch], int(lengths[batch].max()))
            [tokens] = self._session.run(["last_hidden_state"], {name: features[name] for name in self._inputs})
            encoded, mask = tokens.astype(np.float32), features["attention_mask"].astype(np.float32)
            for step in self.steps:
                encoded = step(encoded, mask, kind)
            vectors = np.empty((len(texts), encoded.shape[1]), np.float32) if vectors is None else vectors
            vectors[batch] = _normalised(encoded)
        if vectors is None:
            return np.zeros((0, self._width or 0), np.float32)
        if not np.isfinite(vectors).all():
            raise ModelError(f"{self.name}: gives vectors that are not finite; fix: use another form")
        return vectors

    @cached_property
    def _session(self) -> Any:
        runtime = require("onnxruntime", extra="onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        try:
            return runtime.InferenceSession(str(self.folder / FILES[self.form]), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises classes of its own
            raise ModelError(f"{self.folder / FILES[self.form]}: cannot be loaded: {str(error).splitlines()[0]}") from None

    @cached_property
    def _inputs(self) -> list[str]:
        return [entry.name for entry in self._session.get_inputs()]

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        limit = self._reading.get("max_seq_length") or self._texts["model_max_length"]
        tokenizer.enable_truncation(min(int(limit), 2**31 - 1), direction=self._texts.get("truncation_side", "right"))
        return tokenizer

    @cached_property
    def _reading(self) -> dict[str, Any]:
        return _settings(self.folder / "sentence_bert_config.json")

    @property
    def _lower(self) -> bool:
        return bool(self._reading.get("do_lower_case"))

    @cached_property
    def _texts(self) -> dict[str, Any]:
        return {"model_max_length": 512, **_settings(self.folder / "tokenizer_config.json")}

    def _padded(self, encodings: Sequence[Any], width: int) -> dict[str, npt.NDArray[np.int64]]:
        pad = self._tokenizer.token_to_id(_content(self._texts.get("pad_token"))) or 0
        left = self._texts.get("padding_side") == "left"
        shape = (len(encodings), width)
        features = {"input_ids": np.full(shape, pad, np.int64), "attention_mask": np.zeros(shape, np.int64)}
        features["token_type_ids"] = np.zeros(shape, np.int64)
        for row, encoding in enumerate(encodings):
            columns = slice(width - len(encoding.ids), width) if left else slice(len(encoding.ids))
            features["input_ids"][row, columns], features["attention_mask"][row, columns] = encoding.ids, 1
            features["token_type_ids"][row, columns] = encoding.type_ids
        return features


def is_exported(folder: Path) -> bool:
    """Return whether a folder has a model in an exported form, and not the model itself."""
    return any((folder / file).is_file() for file in FILES.values()) and not any(folder.glob("model*.safetensors"))


def check_exportable(folder: Path, *, tokenizer: bool = True, name: str = "") -> None:
    """Check that every layer after the transformer can be computed without torch, and that the tokenizer is in a file.

    Args:
        folder: Folder of the model.
        tokenizer: Whether to check the tokenizer.
        name: Name of the model for the message; by default the folder.

    Raises:
        ModelError: A layer cannot be computed, or there is no such file. The message names it.
    """
    _steps(folder)
    if tokenizer and not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{name or folder}: has no tokenizer.json, which an exported model needs; fix: use a fast tokenizer")


def check_first_layer(folder: Path) -> None:
    """Check that a model begins with one transformer.

    Raises:
        ModelError: It begins with another layer.
    """
    first = next((_type(module) for module in _modules(folder)), "missing layer")
    if first == "Router":
        raise ModelError(
            f"{folder}: has one encoder for queries and another for documents, and only a single Transformer can be exported; "
            'fix: tune.documents = "trained", and run again'
        )
    if first != "Transformer":
        raise ModelError(f"{folder}: begins with a {first}; only a Transformer can be exported")


def is_exportable(folder: Path) -> bool:
    """Return whether a folder names its layers and has its tokenizer in one file, as an exported model needs."""
    return (folder / "modules.json").is_file() and (folder / "tokenizer.json").is_file()


def _steps(folder: Path) -> tuple[list[_Step], int | None]:
    """Return the layers after the transformer, and the number of dimensions that come out; None if no layer states it."""
    check_first_layer(folder)
    modules = _modules(folder)
    steps, width = [], None
    for module in modules[1:]:
        step, out = _step(folder / module["path"], _type(module))
        steps.append(step)
        width = out or width
    size = settings_of(folder).get("truncate_dim")
    if size:
        steps.append(lambda vectors, mask, kind: vectors[:, :size])
    return steps, size or width


def _modules(folder: Path) -> list[dict[str, Any]]:
    if not (folder / "modules.json").exists():
        raise ModelError(f"{folder}: has no modules.json, which names the layers; fix: give a model that embedfit saved")
    return list(json.loads((folder / "modules.json").read_text(encoding="utf-8")))


def _type(module: dict[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _step(folder: Path, type: str) -> tuple[_Step, int | None]:
    settings = _settings(folder / "config.json")
    if type == "Normalize":
        return (lambda vectors, mask, kind: _normalised(vectors)), None
    if type == "Pooling":
        modes = settings.get("pooling_mode") or [mode for flag, mode in POOLING_FLAGS.items() if settings.get(flag)]
        modes = [modes] if isinstance(modes, str) else list(modes)
        if not settings.get("include_prompt", True):
            raise ModelError(f"{folder}: leaves the prompt out of pooling, which an exported model cannot do")
        width = settings.get("embedding_dimension") or settings.get("word_embedding_dimension")
        return partial(_pooled, modes), width * len(modes) if width else None
    if type == "Dense":
        from safetensors.numpy import load_file

        weights = load_file(folder / "model.safetensors")
        activation = str(settings.get("activation_function")).rpartition(".")[2]
        if activation not in ("Identity", "Tanh", "None"):
            raise ModelError(f"{folder}: has the activation {activation}, which an exported model cannot compute")
        bias = weights.get("linear.bias", np.zeros(1, np.float32))
        return partial(_dense, weights["linear.weight"].T, bias, activation == "Tanh"), settings.get("out_features")
    if type == "Router":
        structure = _settings(folder / "router_config.json")
        routes: dict[str, list[_Step]] = {}
        width = None
        for kind, names in structure["structure"].items():
            inside = [_step(folder / name, str(structure["types"][name]).rpartition(".")[2]) for name in names]
            routes[kind] = [step for step, _ in inside]
            width = next((out for _, out in inside[::-1] if out), width)
        return partial(_routed, routes), width
    raise ModelError(f"{folder}: is a {type} layer, which an exported model cannot compute")


def _pooled(modes: Sequence[str], tokens: _Floats, mask: _Floats, kind: Kind) -> _Floats:
    weights, rows = mask[:, :, None], np.arange(len(mask))
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1e-9)
    first, last = mask.argmax(axis=1), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    ways: dict[str, Callable[[], _Floats]] = {
        "mean": lambda: (tokens * weights).sum(axis=1) / counts,
        "mean_sqrt_len_tokens": lambda: (tokens * weights).sum(axis=1) / np.sqrt(counts),
        "cls": lambda: tokens[rows, first],
        "lasttoken": lambda: tokens[rows, last],
        "max": lambda: np.where(weights > 0, tokens, -np.inf).max(axis=1),
        "weightedmean": lambda: _weighted(tokens, mask),
    }
    return np.concatenate([ways[mode]() for mode in modes], axis=1)


def _weighted(tokens: _Floats, mask: _Floats) -> _Floats:
    """Return the mean in which a token weighs as much as its place, from 1."""
    weights = (mask * mask.cumsum(axis=1))[:, :, None]
    mean: _Floats = (tokens * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    return mean


def _dense(weight: _Floats, bias: _Floats, tanh: bool, vectors: _Floats, mask: _Floats, kind: Kind) -> _Floats:
    out: _Floats = vectors @ weight + bias
    return np.tanh(out) if tanh else out


def _routed(routes: dict[str, list[_Step]], vectors: _Floats, mask: _Floats, kind: Kind) -> _Floats:
    for step in routes[kind]:
        vectors = step(vectors, mask, kind)
    return vectors


def _normalised(vectors: _Floats) -> _Floats:
    unit: _Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def _content(token: Any) -> str:
    """Return a special token's text, which tokenizer_config.json holds alone or among settings."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _settings(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
