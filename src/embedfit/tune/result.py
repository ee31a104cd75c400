"""The result of tuning, whatever the method, and the files in its folder.

tuning.json           identity of the tuning, and hashes of the queries and right answers it has seen; written first
model/                a plain sentence-transformers folder
lora/                 LoRA's matrices alone, in peft's format
adapter.safetensors   a query adapter
tuned.json            how the tuning went; written last, so it marks a complete tuning
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from embedfit.data.dataset import Dataset, text_key
from embedfit.encode.encoder import Encoder, Precision
from embedfit.encode.local import LocalEncoder, local_of
from embedfit.errors import ModelError, StorageError
from embedfit.files import digest, writing
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import Retriever
from embedfit.template import DOCUMENT_TEMPLATE

MODEL, LORA, ADAPTER, DONE = "model", "lora", "adapter.safetensors", "tuned.json"
"""Names in a tuning's folder: the model, LoRA's matrices, the adapter's file, and the file that marks a complete tuning."""
_REPLACED = (MODEL, LORA, ADAPTER, DONE, "checkpoints", "mined")
"""Names in a tuning's folder that a tuning replaces, or removes at the end."""


@dataclass(frozen=True)
class Tuned:
    """The result of tuning, whatever the method.

    Attributes:
        held: Retriever that exists in memory; None if the retriever is loaded from ``folder/model``.
        seconds: Training time, including that of interrupted processes; encoding with the base model is not counted.
        folder: Folder with everything that tuning wrote; None if nothing was written.
        template: Document template.
        precision: Precision that ``folder/model`` is loaded with.
        loading: Options that its weights are loaded with (`embedfit.loading.loading_options`).
        history: One row per epoch (epoch, loss, and MRR@10 and recall@1 on dev), or one row per strength that a query adapter
            was tried with (strength, MRR@10 and recall@1 on dev).
        epoch: Epoch whose weights were kept, from 1; None if the method has no epochs.
        tokens: Tokens trained on, without padding; None if the method trains on vectors.
        candidates: ``all``, ``mined`` or ``batch``; None if the method trains on vectors.
        matryoshka: Dimensions that the vectors may be truncated to, because the model was trained for it.
        frozen: Number of lower layers that were frozen.
        strength: Strength of a query adapter's pull towards the identity; None if it is the identity, or for another method.
    """

    held: Retriever | None = field(compare=False)
    seconds: float
    folder: Path | None = None
    template: str = DOCUMENT_TEMPLATE
    precision: Precision = "fp32"
    loading: dict[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    epoch: int | None = None
    tokens: int | None = None
    candidates: str | None = None
    matryoshka: tuple[int, ...] = ()
    frozen: int = 0
    strength: float | None = None

    @property
    def model(self) -> Path:
        """Path to use as a model: a sentence-transformers folder, or the file of an adapter over an API."""
        if self.folder is None:
            raise ModelError("this tuning is in memory alone; fix: give a folder to tune into")
        model = self.folder / MODEL
        return model if model.exists() else self.folder / ADAPTER

    @property
    def retriever(self) -> Retriever:
        """Retriever of the tuned model or index. A model in a folder is loaded again at each access."""
        return self.held or DenseRetriever(LocalEncoder(self.model, precision=self.precision, model_kwargs=self.loading), self.template)

    @property
    def encoder(self) -> Encoder:
        """Encoder of the retriever. A model in a folder is loaded again at each access, so that no two stay in memory."""
        encoder: Encoder = self.retriever.encoder  # type: ignore[attr-defined]
        return encoder

    def to_dict(self) -> dict[str, Any]:
        """Return the result as ``embedfit tune --json`` prints it."""
        from embedfit.encode.adapted import AdaptedEncoder  # it imports torch

        encoder = self.encoder
        return {
            "folder": str(self.model),
            "history": self.history,
            "epoch": self.epoch,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "candidates": self.candidates,
            "precision": self.precision,
            "matryoshka": self.matryoshka,
            "over": encoder.encoder.name if isinstance(encoder, AdaptedEncoder) else None,
        }


def keys_of(train: Dataset, dev: Dataset | None) -> list[str]:
    """Return the keys of the queries in the training and dev parts, sorted."""
    return sorted(text_key(query.text) for part in (train, dev) if part for query in part.queries.values())


def answer_keys(train: Dataset, dev: Dataset | None, template: str) -> list[str]:
    """Return the keys of the texts of all right answers in the training and dev parts, sorted."""
    keys = set()
    for part in (train, dev):
        if part:
            answers = {document for id in part.queries for document in part.relevant(id)}
            texts = zip(part.corpus, part.document_texts(template), strict=True)
            keys |= {text_key(text) for id, text in texts if id in answers}
    return sorted(keys)


def seen_by(model: Path, what: Literal["seen", "answers"] = "seen") -> list[str]:
    """Return the keys of the queries or answers that a model has seen; none if no tuning.json is beside its folder or file."""
    path = model.parent / "tuning.json"
    return list(json.loads(path.read_text(encoding="utf-8")).get(what, ())) if path.exists() else []


def claim(folder: Path, described: list[Any], seen: list[str], answers: list[str]) -> None:
    """Claim a folder for a tuning of one model, data set and settings, by writing tuning.json if it is not there.

    The file also records which queries the model must not be measured on and which answers it has seen, and that the other
    files in the folder are embedfit's own and may be replaced.

    Args:
        folder: Output folder.
        described: Identity of the tuning: everything that changes its result, as JSON.
        seen: Keys of the queries, as `keys_of` returns them.
        answers: Keys of the right answers, as `answer_keys` returns them.

    Raises:
        StorageError: The folder holds another tuning, or a file that no tuning wrote and this one would replace.
    """
    identity = digest(described)
    path = folder / "tuning.json"
    if not path.exists():
        taken = next((name for name in _REPLACED if (folder / name).exists()), None)
        if taken:
            raise StorageError(f"{folder}: holds {taken!r}, which no tuning wrote there; fix: give another folder, or move it away")
        with writing(path) as file:
            file.write(json.dumps({"identity": identity, "seen": seen, "answers": answers}).encode())
    elif json.loads(path.read_text(encoding="utf-8"))["identity"] != identity:
        raise StorageError(f"{folder}: holds a tuning of another model, data or settings; fix: give another folder, or remove it")


def write_tuned(tuned: Tuned, folder: Path) -> None:
    """Write tuned.json, which marks the tuning of a model's weights as complete."""
    names = ("history", "epoch", "tokens", "seconds", "candidates", "precision", "matryoshka")
    more = {name: getattr(tuned, name) for name in ("frozen", "loading") if getattr(tuned, name)}
    _write(folder, {"folder": MODEL, **{name: getattr(tuned, name) for name in names}, **more, "over": None})


def write_fitted(tuned: Tuned, folder: Path) -> None:
    """Write tuned.json, which marks the fitting of a query adapter as complete."""
    _write(folder, {name: getattr(tuned, name) for name in ("strength", "history", "seconds")})


def _write(folder: Path, record: dict[str, Any]) -> None:
    with writing(folder / DONE) as file:
        file.write(json.dumps(record, indent=1).encode())


def read_tuned(folder: Path, base: Encoder | None = None, template: str = DOCUMENT_TEMPLATE) -> Tuned:
    """Read a complete tuning.

    Args:
        folder: Folder that was tuned into.
        base: Encoder that was tuned. An adapter over an API needs it; a local one gives an adapted model its precision.
        template: Document template.

    Raises:
        ModelError: The folder holds an adapter over an API, and no base encoder or another one is given.
    """
    record = json.loads((folder / DONE).read_text(encoding="utf-8"))
    history = tuple(record["history"])
    if "epoch" in record:
        matryoshka = tuple(record["matryoshka"])
        fields = {name: record[name] for name in ("seconds", "precision", "epoch", "tokens", "candidates")}
        fields |= {name: record[name] for name in ("frozen", "loading") if name in record}
        return Tuned(None, folder=folder, template=template, history=history, matryoshka=matryoshka, **fields)
    held: Retriever | None = None
    local = local_of(base) if base else None
    precision: Precision = local.precision if local else "auto"
    loading = local.loading if local else {}
    if not (folder / MODEL).exists():
        from embedfit.encode.adapted import AdaptedEncoder, load_adapter  # they import torch

        if base is None:
            raise ModelError(f"{folder}: holds an adapter without its model; fix: give the encoder that it was fitted on")
        held, precision = DenseRetriever(AdaptedEncoder(base, load_adapter(folder / ADAPTER)), template), "fp32"
    return Tuned(held, record["seconds"], folder, template, precision, loading, history, strength=record["strength"])
