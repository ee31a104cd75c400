"""The two sides of a model: its modules for queries and those for documents, in one model or in two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit.encode.encoder import BaseEncoder, Encoder, Kind, Vectors, complete
from embedfit.encode.readers import write_older_form
from embedfit.encode.saving import save_in_place
from embedfit.files import digest, file_sha256

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RECORD = "document_side.json"
"""File in a model's folder that says whose document vectors the model has."""


class TwoEncoders(BaseEncoder):
    """An encoder of queries beside another encoder of documents, whose vectors it was trained for.

    Args:
        queries: Encoder of the queries.
        documents: Encoder of the documents. If it is cached, documents are encoded once for all encoders of queries.
    """

    def __init__(self, queries: Encoder, documents: Encoder) -> None:
        self.queries, self.documents = complete(queries), complete(documents)
        self.name = queries.name
        self.prompts = {"query": self.queries.prompts["query"], "document": self.documents.prompts["document"]}
        self.remote = self.queries.remote or self.documents.remote

    @property
    def fingerprint(self) -> str:
        """A hash of both encoders."""
        return digest(["two encoders", self.queries.fingerprint, self.documents.document_fingerprint])

    @property
    def document_fingerprint(self) -> str:
        """The fingerprint of the encoder of documents."""
        return self.documents.document_fingerprint

    @property
    def identity(self) -> str:
        """The identity of the encoder of documents."""
        return self.documents.identity

    @property
    def dimension(self) -> int | None:
        """Number of dimensions of the documents' vectors."""
        return self.documents.dimension

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, by the encoder of its kind."""
        return (self.queries if kind == "query" else self.documents).encode(texts, kind)


def side_of(model: SentenceTransformer, kind: Kind) -> SentenceTransformer:
    """Return the model that encodes texts of one kind: the model itself if it treats all texts alike, else the modules of one route."""
    from sentence_transformers.base.modules import Router

    if not any(isinstance(module, Router) for module in model):
        return model
    modules: list[Any] = []
    for module in model:
        modules += list(module.sub_modules.get_submodule(kind).children()) if isinstance(module, Router) else [module]
    return _like(model, modules)


def two_sided(queries: SentenceTransformer, documents: SentenceTransformer) -> SentenceTransformer:
    """Return one model of two: ``encode_query`` runs the first, ``encode_document`` and ``encode``, which knows no task, the second."""
    from sentence_transformers.base.modules import Router

    sides: tuple[Any, Any] = (list(queries.children()), list(documents.children()))
    return _like(documents, [Router.for_query_document(*sides, default_route="document")])


def _like(model: SentenceTransformer, modules: list[Any]) -> SentenceTransformer:
    """Return a model of other modules with the same settings."""
    from sentence_transformers import SentenceTransformer

    prompts: Any = dict(model.prompts)
    made = SentenceTransformer(
        modules=modules, prompts=prompts, similarity_fn_name=model.similarity_fn_name, truncate_dim=model.truncate_dim
    )
    return made.to(model.device)


def is_two_sided(model: SentenceTransformer) -> bool:
    """Return whether the first module of a model is a router of queries and documents."""
    return {"query", "document"} <= set(getattr(model[0], "sub_modules", ()))


def save_two_sided(model: SentenceTransformer, read_as: Sequence[Any], folder: Path) -> None:
    """Save a model of which a part for queries alone was trained, with a record of whose document vectors it has.

    Args:
        model: Model to save. Its router keeps the modules of queries in folders that begin with ``query_``.
        read_as: What identifies the model of the documents: hashes of its files, and the pooling that is added to it.
        folder: Final folder; a model in it is replaced.
    """

    def save(target: str) -> None:
        model.save_pretrained(target, create_model_card=False)
        write_older_form(Path(target))  # the files that are hashed are the final ones
        files = [[name, file_sha256(Path(target, name))] for name in _files_of_documents(Path(target))]
        Path(target, RECORD).write_text(json.dumps({"documents": read_as, "files": files}, indent=1), encoding="utf-8")

    save_in_place(save, folder)


def save_one_side(model: SentenceTransformer, documents: Encoder, folder: Path) -> None:
    """Save an encoder of queries, with a record of the other encoder whose document vectors it was trained for."""

    def save(target: str) -> None:
        model.save_pretrained(target, create_model_card=False)
        record = {"encoder": documents.name, "identity": complete(documents).identity}
        Path(target, RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    save_in_place(save, folder)


def other_side_of(folder: Path) -> tuple[str, str] | None:
    """Return the name and the identity of the encoder that a model's queries were trained for; None if the model has its own documents."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return (str(record["encoder"]), str(record["identity"])) if "encoder" in record else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def documents_read_as(folder: Path) -> list[Any] | None:
    """Return what identifies the model of the documents.

    Returns:
        None if the folder has no record, or if a file has changed since the record was written.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        present = set(_files_of_documents(folder))
        same = all(name in present and file_sha256(folder / name) == sha256 for name, sha256 in record["files"])
        return list(record["documents"]) if same and record["files"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files_of_documents(folder: Path) -> list[str]:
    """Return the files of a model that its document vectors depend on."""
    paths = [path.relative_to(folder) for end in ("safetensors", "json", "txt", "model") for path in folder.rglob(f"*.{end}")]
    own = (RECORD, "embedfit.json")
    return sorted(path.as_posix() for path in paths if path.name not in own and not any(part.startswith("query_") for part in path.parts))
