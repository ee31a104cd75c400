"""Opens the model that an index was made with, from what its stamp says."""

from __future__ import annotations

from pathlib import Path

from embedfit.encode.encoder import Encoder, Kind, complete
from embedfit.encode.local import local_of
from embedfit.encode.named import encoder_of
from embedfit.errors import EmbedfitError, ModelError
from embedfit.searcher.parts import Parts
from embedfit.searcher.saving import read_parts, searcher_digest
from embedfit.sections import ModelConfig
from embedfit.store.base import Stamp

SEARCHER = "searcher"
"""Folder of the searcher in a run directory."""


def opens_of(encoder: Encoder) -> tuple[str, str]:
    """Return the name or path by which an encoder can be opened again, empty if it cannot, and its configured pooling."""
    local, saved = local_of(encoder), complete(encoder).saved_at
    pooling = local.pooling or "auto" if local else "auto"
    if Path(encoder.name).exists():
        return str(Path(encoder.name).resolve()), pooling
    if complete(encoder).remote or (local and local.name == encoder.name):
        return encoder.name, pooling
    return (str(saved.resolve()), pooling) if saved else ("", pooling)


def searcher_folder(path: str | Path) -> Path | None:
    """Return the folder of a searcher, given itself or its run directory; None if there is none."""
    path = Path(path)
    return next((folder for folder in (path, path / SEARCHER) if (folder / "searcher.json").is_file()), None)


def open_encoder(stamp: Stamp, where: str, name: str = "") -> Encoder:
    """Open the encoder that the stamp names, or another one that must be the same.

    Args:
        stamp: Stamp of a version.
        where: Description of the index, for messages.
        name: Name or path of the model; by default what the stamp says.

    Raises:
        ModelError: The model is unknown, gone, or another one.
    """
    name = name or stamp.opens
    if not name:
        raise ModelError(f"{where}: nothing tells where its model {stamp.encoder!r} is; fix: --model PATH")
    settings = ModelConfig(name=name, query_prompt=stamp.query_prompt, document_prompt=stamp.document_prompt, pooling=stamp.pooling)
    try:
        encoder = encoder_of(settings)
    except EmbedfitError as error:
        raise ModelError(f"{where}: its model cannot be opened: {error}") from None
    check_encoder(stamp, encoder, where)
    return encoder


def check_encoder(stamp: Stamp, encoder: Encoder, where: str) -> None:
    """Check that an encoder is the one that made a version.

    Raises:
        ModelError: It has other weights, another tokenizer, pooling or prompts; the message names what differs where that is known.
    """
    whole = complete(encoder)
    if whole.identity == stamp.fingerprint:
        return
    prompts: dict[Kind, str] = {"query": stamp.query_prompt, "document": stamp.document_prompt}
    differs = [
        f"{kind} prompt {whole.prompts[kind]!r} in place of {prompt!r}" for kind, prompt in prompts.items() if whole.prompts[kind] != prompt
    ]
    if whole.dimension not in (None, stamp.dimension):
        differs.insert(0, f"{whole.dimension} dimensions in place of {stamp.dimension}")
    raise ModelError(
        f"{where} was made with {stamp.encoder!r} ({stamp.fingerprint[:12]}), not with {encoder.name!r} ({whole.identity[:12]})"
        f"{': ' if differs else ''}{', '.join(differs)}; fix: --model {stamp.opens or stamp.encoder}, or run 'embedfit index' again"
    )


def open_searcher(stamp: Stamp, where: str, path: str = "") -> Parts:
    """Open the searcher that the stamp names, or a copy of it.

    Args:
        stamp: Stamp of a version that was made from a searcher.
        where: Description of the index, for messages.
        path: Folder of the searcher, or its run directory; by default what the stamp says.

    Raises:
        ModelError: The searcher is gone, damaged or another one.
    """
    folder = searcher_folder(path or stamp.opens)
    if folder is None:
        raise ModelError(
            f"{where}: its searcher is not in {path or stamp.opens}; fix: --model with its run directory, or run 'embedfit index' again"
        )
    if searcher_digest(folder) != stamp.searcher:
        raise ModelError(f"{where}: {folder} is another searcher than it was made from; fix: run 'embedfit index' again")
    return read_parts(folder)
