"""A model's transformer as an ONNX file, in the layout that other runtimes read."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedfit.encode.local import LocalEncoder, load_model
from embedfit.encode.onnx import FILES, check_exportable, is_exportable
from embedfit.encode.pooling import settings_of
from embedfit.encode.readers import write_older_form
from embedfit.errors import ModelError, check_package
from embedfit.loading import portable

_LARGEST = 2**31 - 2**24
"""Bytes of weights that one ONNX file may hold; larger ones go into a file beside it."""


def export_onnx(encoder: LocalEncoder, folder: Path, form: str) -> Path:
    """Write a model as ONNX, in fp32 or with 8-bit weights, with its tokenizer and settings. Return the ONNX file.

    The int8 form has a scale for each column of a weight matrix, and weights of 7 bits, so that sums of products cannot overflow on
    processors without VNNI. The quantizer's defaults have four times the error.

    Args:
        encoder: Model to export.
        folder: Folder to write to; files of another form in it are kept.
        form: ``onnx`` or ``onnx-int8``.

    Raises:
        ModelError: The model has a layer that cannot be exported.
        EmbedfitError: A package of the extra ``onnx`` is not installed.
    """
    check_exporter()
    folder.mkdir(parents=True, exist_ok=True)
    with _source(encoder, folder) as source:
        _copy_settings(encoder, source, folder)
    target = folder / FILES[form]
    target.parent.mkdir(exist_ok=True)
    if form == "onnx":
        _write_transformer(encoder, target)
        return target
    whole = target.with_name("whole.onnx")
    try:
        _write_transformer(encoder, whole)
        with _quiet():
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(whole, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    finally:
        for path in (whole, whole.with_name(f"{whole.name}.data")):
            path.unlink(missing_ok=True)
    return target


def check_exporter() -> None:
    """Check that the packages of an export are installed.

    Raises:
        EmbedfitError: A package of the extra ``onnx`` is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        check_package(package, extra="onnx")


@contextlib.contextmanager
def _source(encoder: LocalEncoder, folder: Path) -> Iterator[Path]:
    """Yield the folder of a model that can be exported: its own, or a copy that names its layers and has its tokenizer in one file.

    Args:
        encoder: Model to export.
        folder: Folder for the copy.
    """
    if (encoder.folder / "modules.json").exists():
        check_exportable(encoder.folder, tokenizer=False)
    if is_exportable(encoder.folder) and not encoder.pooling:
        yield encoder.folder
        return
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        model = load_model(encoder.folder, encoder.prompts, encoder.pooling, portable(encoder.loading))
        model.save_pretrained(copy, create_model_card=False)
        write_older_form(Path(copy))
        check_exportable(Path(copy), name=encoder.name)
        yield Path(copy)


def _copy_settings(encoder: LocalEncoder, source: Path, folder: Path) -> None:
    """Copy everything but the transformer's weights."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        is_weight = len(name.parts) == 1 and path.name.startswith(("model", "pytorch_model"))
        if path.is_file() and not is_weight and path.suffix in (".json", ".txt", ".model", ".safetensors"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
    settings = settings_of(folder)
    _write(folder / "config_sentence_transformers.json", {**settings, "prompts": {**(settings.get("prompts") or {}), **encoder.prompts}})
    # fastembed reads max_length before model_max_length.
    path, limit = folder / "tokenizer_config.json", encoder.loaded.model.max_seq_length
    if limit:
        own = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        _write(path, {**own, "max_length": limit, "model_max_length": limit})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _write_transformer(encoder: LocalEncoder, target: Path) -> None:
    import torch

    # A copy of its own: the export changes settings of the model.
    model = load_model(encoder.folder, encoder.prompts, encoder.pooling, portable(encoder.loading)).to("cpu").eval()
    transformer: Any = model.transformers_model
    features = model.preprocess(["a text", "and one that is a little longer"], prompt=None, task="document")
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in features]

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return self.transformer(input_ids=input_ids, attention_mask=attention_mask, **kinds).last_hidden_state

    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    size = sum(weight.numel() * 4 for weight in transformer.parameters())
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                Tokens().eval(),
                args=(),
                kwargs={name: features[name] for name in names},
                f=str(target),
                dynamo=True,
                dynamic_shapes=dict.fromkeys(names, dynamic),
                external_data=size > _LARGEST,
                input_names=names,
                output_names=["last_hidden_state"],
                verbose=False,
            )
    except Exception as error:  # whatever the exporter raises
        raise ModelError(f"{encoder.name}: cannot be exported to ONNX: {str(error).strip().splitlines()[0]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Switch off the warnings of the exporter and of the quantizer."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
