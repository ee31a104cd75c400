"""What a tuning leaves behind in its folder, whatever the method.

tuning.json   what it is a tuning of, and hashes of the queries and right answers it has seen; written first
model/        an ordinary sentence-transformers folder
tuned.json    that it is done, and how it went; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedfit.data import Dataset, text_key, writing
from embedfit.encode import Encoder, LocalEncoder, Precision
from embedfit.errors import StorageError
from embedfit.files import replace_folder, temporary_path
from embedfit.retrieve import Retriever
from embedfit.tune.readers import write_older_form

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
            from embedfit.tune.adapter import AdaptedEncoder, load_adapter

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


def save_in_place(save: Callable[[str], Any], target: Path) -> None:
    """Save a model beside its final place, then move it there.

    Args:
        save: Writes the model to the folder that it is given.
        target: Where the model goes, in a folder that was claimed: a model that is there is replaced.
    """
    with temporary_path(target) as temporary:
        save(str(temporary))
        write_older_form(temporary)
        settings = next(temporary.glob("*.json"))
        for weights in temporary.rglob("*.safetensors"):
            weights.chmod(settings.stat().st_mode)  # the library lets nobody else read them
        replace_folder(temporary, target)


def write_tuned(tuned: Tuned, path: Path) -> None:
    """Write tuned.json; with it, a tuning is done."""
    with writing(path) as file:
        file.write(json.dumps({**vars(tuned), "folder": str(tuned.folder.name)}, indent=1).encode())


def read_tuned(path: Path) -> Tuned:
    """Read tuned.json."""
    said = json.loads(path.read_text(encoding="utf-8"))
    lists = {key: tuple(said[key]) for key in ("history", "matryoshka")}
    return Tuned(**{**said, **lists, "folder": path.parent / said["folder"]})


def why_not_written(error: Exception) -> str | None:
    """Return the reason if an error is about writing a file: torch and safetensors wrap the system's errors in their own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error).splitlines()[0] if str(error) else ""
    marks = ("PytorchStreamWriter", "inline_container", "I/O error", "No space left", "File too large")
    return text if any(mark in text for mark in marks) else None
