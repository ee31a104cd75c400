"""A searcher's model in a form that is cheaper to run, as `embedfit export` made and measured it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedfit.encode.onnx import FILES, OnnxEncoder
from embedfit.errors import ConfigError, DataError

FOLDER, MEASURED, BASE_MODEL = "deploy", "forms.json", "base"
"""Names of the folder beside a searcher, of the file of the measurements in it, and of the folder of the model before tuning."""


def form_of(folder: Path, form: str, models: Mapping[str, Mapping[str, Any]]) -> dict[str, OnnxEncoder]:
    """Return a searcher's models in another form: ``model``, and ``base`` where a view reads the vectors before tuning.

    Args:
        folder: Folder of the searcher, in a run directory.
        form: ``onnx`` or ``onnx-int8``.
        models: What the searcher says about each of its models.

    Raises:
        DataError: The run has no such form, or it was made from another model.
        ConfigError: The model is not one that can be exported.
    """
    if form not in FILES:
        known = ", ".join(FILES)
        raise ConfigError(f"--form {form}: expected one of {known}; a static model has other vectors, and needs an index of its own")
    deploy, fix = folder.parent / FOLDER, f"embedfit export {folder.parent} --form {form}"
    if not all(kept.get("local") for kept in models.values()):
        raise ConfigError(f"--form {form}: {models['model']['name']} does not run in this process, so it has no other form")
    path = deploy / MEASURED
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        row = next((row for row in rows if row["name"] == form), None)
    except (ValueError, TypeError, KeyError):
        raise DataError(str(path), "cannot be read", fix=f"remove {deploy}, and export again") from None
    if row is None:
        raise DataError(str(folder.parent), f"has no form {form}", expected="one that passed", fix=fix)
    if row.get("model") != models["model"]["identity"]:
        raise DataError(str(deploy), f"has the form {form} of another model than the searcher's", fix=fix)
    made = {}
    for name, place in (("model", deploy), ("base", deploy / BASE_MODEL)):
        if name in models:
            kept = models[name]
            made[name] = OnnxEncoder(place, form, query_prompt=kept["query_prompt"], document_prompt=kept["document_prompt"])
            made[name].name = f"{kept['name']}, {form}"
    return made
