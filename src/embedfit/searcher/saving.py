"""A searcher's folder: everything that it needs, in files that any program can read.

searcher.json      settings, weights, calibration, and the sha256 of each other file; written last
documents.parquet  id, text, title and metadata (JSON) of each document
examples.parquet   key and text of each example
pairs.parquet      example and document positions of each labelled pair
vectors.npz        vectors of documents and examples
linear.npz         the linear models
terms.parquet      terms and their rarity
model/, base/      the models; they share their disk space with the run's
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from embedfit.data.dataset import Document
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.local import LocalEncoder, local_of
from embedfit.encode.named import encoder_of
from embedfit.encode.onnx import OnnxEncoder
from embedfit.errors import DataError, ModelError, StorageError
from embedfit.evaluation.calibration import Calibrator
from embedfit.evaluation.conformal import ConformalSets
from embedfit.evaluation.threshold import Threshold
from embedfit.files import digest, file_sha256, json_bytes, replace_folder, temporary_path, writing
from embedfit.loading import usable
from embedfit.searcher.forms import form_of
from embedfit.searcher.fusion import Fusion
from embedfit.searcher.gather import Corpus, Examples, Views
from embedfit.searcher.parts import Parts
from embedfit.searcher.views import (
    BASE,
    CLASSES,
    DOCUMENTS,
    EXAMPLES,
    TERMS,
    WORDS,
    ClassesView,
    DocumentsView,
    ExamplesView,
    TermsView,
    View,
    WordsView,
)
from embedfit.sections import ModelConfig
from embedfit.template import Template

_VERSION = 1
_SETTINGS = "searcher.json"


def write_parts(parts: Parts, target: Path) -> Path:
    """Write the parts of a searcher into a folder, which is replaced as a whole.

    Args:
        parts: Parts to write.
        target: Folder to write.

    Raises:
        StorageError: The folder cannot be written, or holds something else than a searcher.
        ModelError: The encoder is neither a folder, nor an adapter's file, nor behind an API.
    """
    if target.exists() and not (target / _SETTINGS).exists() and any(target.iterdir()):
        raise StorageError(f"{target}: holds something else than a searcher; fix: give another folder, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_path(target) as made:
        made.mkdir()
        models = {"model": _keep_model(parts.encoder, made / "model")}
        if parts.base and BASE in parts.views.views:
            models["base"] = _keep_model(parts.base, made / "base")
        _write_tables(parts, made)
        _write_arrays(parts, made)
        settings = {
            "version": _VERSION,
            "models": models,
            "template": parts.template,
            "query_template": parts.query_template and [parts.query_template.text, parts.query_template.missing],
            "views": list(parts.views.views),
            "scale": parts.views.scale,
            "fusion": parts.fusion.to_dict(),
            "calibration": parts.calibrator.to_dict() if parts.calibrator else None,
            "threshold": parts.threshold.to_dict() if parts.threshold else None,
            "sets": parts.sets.to_dict() if parts.sets else None,
            "files": {path.name: file_sha256(path) for path in sorted(made.iterdir()) if path.is_file()},
        }
        with writing(made / _SETTINGS) as file:
            file.write(json_bytes(settings))
        replace_folder(made, target)
    return target


def read_parts(folder: Path, form: str | None = None) -> Parts:
    """Read the parts of a searcher from its folder.

    Args:
        folder: Folder of the searcher.
        form: Form of the model to run, such as ``onnx-int8``, which its run exported; by default the model itself.

    Raises:
        DataError: The folder is no searcher, a file in it is missing or damaged, or its run has no such form.
        ModelError: The model is missing, or is another one than the searcher was made with.
    """
    settings = _settings(folder)
    models = settings["models"]
    forms: Mapping[str, Encoder] = form_of(folder, form, models) if form else {}
    encoder = forms.get("model") or _model(folder, "model", models["model"])
    base = forms.get("base") or (_model(folder, "base", models["base"]) if "base" in models else None)
    with np.load(folder / "vectors.npz", allow_pickle=False) as arrays:
        vectors = {name: arrays[name] for name in arrays.files}
    documents, corpus = _read_documents(folder, vectors["documents"])
    examples = _read_examples(folder, vectors["examples"])
    views = _read_views(folder, settings, corpus, examples)
    query_template = settings["query_template"]
    return Parts(
        encoder,
        documents,
        corpus,
        examples,
        views,
        Fusion.from_dict(settings["fusion"]),
        template=settings["template"],
        base=base,
        query_template=Template(query_template[0], missing=query_template[1]) if query_template else None,
        calibrator=Calibrator.from_dict(settings["calibration"]) if settings["calibration"] else None,
        threshold=Threshold.from_dict(settings["threshold"]) if settings["threshold"] else None,
        sets=ConformalSets.from_dict(settings["sets"]) if settings["sets"] else None,
    )


def searcher_digest(folder: str | Path, form: str | None = None) -> str:
    """Return a text that changes whenever an answer of the searcher in a folder could. With a form, it begins like the model's own.

    Args:
        folder: Folder of the searcher.
        form: Form of the model that runs, such as ``onnx-int8``; by default the model itself.
    """
    settings = _settings(Path(folder))
    if not form:
        return digest(settings)
    encoder = form_of(Path(folder), form, settings["models"])["model"]
    return f"{digest(settings)}:{form}:{encoder.identity[:12]}"


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = cast(dict[str, Any], json.loads((folder / _SETTINGS).read_text(encoding="utf-8")))
        version = settings["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(str(folder), f"is no searcher: {error}", expected=f"a folder with {_SETTINGS}") from None
    if version != _VERSION:
        raise DataError(str(folder), f"was written by another version of embedfit (format {version})", expected=f"format {_VERSION}")
    for name, sha256 in settings["files"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            raise DataError(str(folder / name), "is missing or damaged", fix="write the searcher again")
    return settings


def _keep_model(encoder: Encoder, target: Path) -> dict[str, Any]:
    """Put a model beside the searcher, and return how to open it."""
    whole = complete(encoder)
    prompts = {"query_prompt": whole.prompts["query"], "document_prompt": whole.prompts["document"]}
    local = local_of(encoder)
    if local is not None:
        shutil.copytree(local.folder, target, copy_function=_link)
        loading = {"loading": local.loading} if local.loading else {}
        return {"identity": whole.whole_identity, "name": encoder.name, "local": True, "precision": local.precision, **loading, **prompts}
    if isinstance(encoder, OnnxEncoder):
        shutil.copytree(encoder.folder, target, copy_function=_link)
        return {"identity": whole.whole_identity, "name": encoder.name, "form": encoder.form, **prompts}
    saved = whole.saved_at
    if saved is not None and saved.is_file():
        target.mkdir()
        _link(str(saved), str(target / saved.name))
        return {"identity": whole.whole_identity, "name": encoder.name, "file": saved.name, **prompts}
    if whole.remote:
        return {"identity": whole.whole_identity, "name": encoder.name, **prompts}
    raise ModelError(f"{encoder.name}: an encoder of your own cannot be saved with a searcher; fix: keep the searcher in memory")


def _model(folder: Path, place: str, kept: Mapping[str, Any]) -> Encoder:
    prompts = {key: kept[key] for key in ("query_prompt", "document_prompt")}
    encoder: Encoder
    if kept.get("local"):
        loading = usable(kept.get("loading", {}), kept["name"])
        encoder = LocalEncoder(folder / place, precision=kept["precision"], model_kwargs=loading, **prompts)
        encoder.name = kept["name"]
    elif "form" in kept:
        encoder = OnnxEncoder(folder / place, kept["form"], **prompts)
        encoder.name = kept["name"]
    else:
        name = str(folder / place / kept["file"]) if "file" in kept else kept["name"]
        encoder = encoder_of(ModelConfig(name=name, **prompts))
    if complete(encoder).whole_identity != kept["identity"]:
        raise ModelError(f"{folder / place}: is another model than the searcher was made with; fix: write the searcher again")
    return encoder


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where that is not possible."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _write_tables(parts: Parts, folder: Path) -> None:
    import pandas as pd

    documents = [parts.documents[id] for id in parts.corpus.ids]
    _table(
        folder / "documents.parquet",
        pd.DataFrame(
            {
                "id": parts.corpus.ids,
                "text": [document.text for document in documents],
                "title": [document.title for document in documents],
                "metadata": [json_bytes(dict(document.metadata)).decode() for document in documents],
                "searched": parts.corpus.texts,
            }
        ),
    )
    examples = parts.examples
    _table(folder / "examples.parquet", pd.DataFrame({"key": examples.query_ids, "text": examples.texts}))
    _table(folder / "pairs.parquet", pd.DataFrame({"example": examples.members, "document": examples.owners}))
    terms = parts.views.views.get(TERMS)
    if isinstance(terms, TermsView):
        rows = [
            (kind, term, column, float(rarities[column]))
            for kind, vocabulary, rarities in zip(("words", "pieces"), terms.vocabularies, terms.rarities, strict=True)
            for term, column in vocabulary.items()
        ]
        _table(folder / "terms.parquet", pd.DataFrame(rows, columns=["kind", "term", "column", "rarity"]))


def _table(path: Path, frame: Any) -> None:
    with writing(path) as file:
        frame.to_parquet(file, index=False)


def _write_arrays(parts: Parts, folder: Path) -> None:
    with writing(folder / "vectors.npz") as file:
        np.savez(file, documents=parts.corpus.vectors, examples=parts.examples.vectors)
    linear: dict[str, Any] = {}
    for name in (CLASSES, TERMS, BASE):
        view = parts.views.views.get(name)
        if isinstance(view, ClassesView | TermsView):
            linear |= {f"{name}_weights": view.weights, f"{name}_biases": view.biases, f"{name}_classes": view.classes}
    with writing(folder / "linear.npz") as file:
        np.savez(file, **linear)


def _read_documents(folder: Path, vectors: Any) -> tuple[dict[str, Document], Corpus]:
    import pandas as pd

    frame = pd.read_parquet(folder / "documents.parquet")
    rows = zip(frame.id, frame.text, frame.title, frame.metadata, strict=True)
    documents = {id: Document(id, text, title, json.loads(metadata)) for id, text, title, metadata in rows}
    return documents, Corpus(tuple(frame.id), tuple(frame.searched), vectors)


def _read_examples(folder: Path, vectors: Any) -> Examples:
    import pandas as pd

    frame, pairs = pd.read_parquet(folder / "examples.parquet"), pd.read_parquet(folder / "pairs.parquet")
    owners, members = (pairs[name].to_numpy(np.int64) for name in ("document", "example"))
    return Examples(tuple(frame.key), tuple(frame.text), vectors, owners, members)


def _read_views(folder: Path, settings: Mapping[str, Any], corpus: Corpus, examples: Examples) -> Views:
    count, scale = len(corpus.ids), float(settings["scale"])
    views: dict[str, View] = {DOCUMENTS: DocumentsView(corpus.vectors)}
    with np.load(folder / "linear.npz", allow_pickle=False) as arrays:
        for name in settings["views"]:
            if name == EXAMPLES:
                views[name] = ExamplesView(examples.vectors, examples.owners, examples.members, count, scale)
            elif name == WORDS:
                views[name] = WordsView(corpus.texts)
            elif name != DOCUMENTS:
                weights, biases, classes = (arrays[f"{name}_{what}"] for what in ("weights", "biases", "classes"))
                if name == TERMS:
                    views[name] = TermsView(*_read_terms(folder), weights, biases, classes, count)
                else:
                    views[name] = ClassesView(weights, biases, classes, count, base=name == BASE)
    return Views(views, count, scale)


def _read_terms(folder: Path) -> tuple[list[dict[str, int]], list[Any]]:
    import pandas as pd

    frame = pd.read_parquet(folder / "terms.parquet")
    kinds = [frame[frame.kind == kind].sort_values("column") for kind in ("words", "pieces")]
    return [dict(zip(kind.term, kind.column.tolist(), strict=True)) for kind in kinds], [kind.rarity.to_numpy() for kind in kinds]
