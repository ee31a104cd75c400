"""What a tuning leaves behind in its folder, whatever the method.

tuning.json   what it is a tuning of, and hashes of the queries and right answers it has seen; written first
model/        an ordinary sentence-transformers folder
tuned.json    that it is done, and how it went; written last
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedfit.data.dataset import Dataset, text_key
from embedfit.encode.encoder import Encoder, Precision
from embedfit.encode.local import LocalEncoder
from embedfit.errors import StorageError
from embedfit.files import writing
from embedfit.retrieve.run import Retriever

_REPLACED = ("model", "lora", "adapter.safetensors", "tuned.json", "checkpoints", "mined")
"""What a tuning writes into its folder, replaces, and removes in the end."""


@dataclass(frozen=True)
class Tuned:
    """What tuning leaves behind.

    Attributes:
        folder: An ordinary sentence-transformers folder; of an adapter over an API, its file.
        history: Per epoch: epoch, loss, and dev's MRR@10 and recall@1 if there is a dev part.
        epoch: The epoch whose weights were kept.
        tokens: Tokens that went through the model in training, padding not counted.
        seconds: Spent training, this process and those before it that were interrupted.
        candidates: ``all``, ``mined`` or ``batch``.
        precision: Of the encoder that was tuned.
        matryoshka: Dimensions that the vectors may be cut to, as they were trained for it.
        over: The encoder that an adapter's file belongs to, where it is none of this machine.
    """

    folder: Path
    history: tuple[dict[str, float], ...]
    epoch: int
    tokens: int
    seconds: float
    candidates: str
    precision: Precision
    matryoshka: tuple[int, ...] = ()
    over: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        """The tuned model."""
        if self.over:
            from embedfit.encode.adapted import AdaptedEncoder, load_adapter

            return AdaptedEncoder(self.over, load_adapter(self.folder))
        return LocalEncoder(self.folder, precision=self.precision)


@dataclass(frozen=True)
class Fitted:
    """What can be searched with after training.

    Attributes:
        retriever: Searches with it.
        seconds: Spent training; encoding with the base model is not counted.
    """

    retriever: Retriever
    seconds: float


def keys_of(train: Dataset, dev: Dataset | None) -> list[str]:
    """Return the keys of the queries that a model is tuned on or chosen by."""
    return sorted(text_key(query.text) for part in (train, dev) if part for query in part.queries.values())


def answer_keys(train: Dataset, dev: Dataset | None, template: str) -> list[str]:
    """Return the keys of what the documents say that are right for the queries that a model is tuned on or chosen by."""
    keys = set()
    for part in (train, dev):
        if part:
            asked = {document for id in part.queries for document in part.relevant(id)}
            texts = zip(part.corpus, part.document_texts(template), strict=True)
            keys |= {text_key(text) for id, text in texts if id in asked}
    return sorted(keys)


def seen_by(model: Path, what: Literal["seen", "answers"] = "seen") -> list[str]:
    """Return the keys of the queries, or of the answers, that a model has seen, as far as what lies beside its folder or file tells."""
    path = model.parent / "tuning.json"
    return list(json.loads(path.read_text(encoding="utf-8")).get(what, ())) if path.exists() else []


def claim(folder: Path, described: list[Any], seen: list[str], answers: list[str]) -> None:
    """Make sure that what a folder holds came of the same model, data and settings, or begin with it.

    What is written also tells, later, which queries the model must not be measured on, whose answers are new to it, and that the
    other files are embedfit's own: they may be replaced.

    Raises:
        StorageError: The folder holds another tuning, or something of somebody else's that this one would replace.
    """
    identity = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    path = folder / "tuning.json"
    if not path.exists():
        taken = next((name for name in _REPLACED if (folder / name).exists()), None)
        if taken:
            raise StorageError(f"{folder}: holds {taken!r}, which no tuning wrote there; fix: give another folder, or move it away")
        with writing(path) as file:
            file.write(json.dumps({"identity": identity, "seen": seen, "answers": answers}).encode())
    elif json.loads(path.read_text(encoding="utf-8"))["identity"] != identity:
        raise StorageError(f"{folder}: holds a tuning of another model, data or settings; fix: give another folder, or remove it")


def write_tuned(tuned: Tuned, path: Path) -> None:
    """Write tuned.json; with it, a tuning is done."""
    with writing(path) as file:
        file.write(json.dumps({**vars(tuned), "folder": str(tuned.folder.name)}, indent=1).encode())


def read_tuned(path: Path) -> Tuned:
    """Read tuned.json."""
    said = json.loads(path.read_text(encoding="utf-8"))
    lists = {key: tuple(said[key]) for key in ("history", "matryoshka")}
    return Tuned(**{**said, **lists, "folder": path.parent / said["folder"]})
