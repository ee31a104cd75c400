"""A saved model in the form that older readers understand: sentence-transformers since 5.1, text-embeddings-inference.

sentence-transformers 6 has new names for its modules and their settings, and still reads the old ones. If the old form can express
the same model, embedfit writes the old form. If not, the new form stays: an older reader then refuses the model and does not misread
it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from embedfit.encode.pooling import POOLING_FLAGS

OLDEST = "5.1"
"""The oldest sentence-transformers that reads the old form; a test loads a model with it."""
Settings: TypeAlias = dict[str, Any]
_MODULES = ("Transformer", "Pooling", "Normalize", "Dense", "Router")
_TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
"""Settings that the old form implies."""
_NAMES = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
_NO_LIMIT = 1_000_000


class _NotTheSame(Exception):
    """The old form cannot express the model."""


def older_form(folder: Path) -> dict[str, bytes] | None:
    """Return the files to change for older readers: path in the folder -> new content; None if the old form cannot express the model."""
    changed: dict[str, Settings | list[Settings]] = {}
    try:
        modules = _read(folder / "modules.json")
        changed["modules.json"] = [{**module, "type": _old_name(module["type"])} for module in modules]
        for module in modules:
            changed |= _module(folder, module["type"], module["path"])
        if _mentions_rope(_read(folder / "config.json")):
            raise _NotTheSame  # transformers 5 has other names for it, and older versions would use their defaults
        tokenizer = _read(folder / "tokenizer_config.json")
        if tokenizer.get("tokenizer_class") == "TokenizersBackend":
            changed["tokenizer_config.json"] = {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"}
    except (_NotTheSame, OSError, KeyError, TypeError, AttributeError, ValueError):
        return None
    return {name: json.dumps(content, indent=2).encode() for name, content in changed.items() if content != _read(folder / name)}


def write_older_form(folder: Path) -> None:
    """Rewrite a saved model in the old form, if that can express it."""
    for name, content in (older_form(folder) or {}).items():
        (folder / name).write_bytes(content)


def _module(folder: Path, type: str, path: str) -> dict[str, Any]:
    """Return the old settings of a module and of the modules in it, by path."""
    name = type.rpartition(".")[2]
    if name == "Transformer" and path == "":
        return {"sentence_bert_config.json": _transformer(_read(folder / "sentence_bert_config.json"), folder)}
    if name == "Router":
        settings = _read(folder / path / "router_config.json")
        parameters = {key: value for key, value in settings["parameters"].items() if (key, value) != ("route_mappings", {})}
        types = {part: _old_name(of) for part, of in settings["types"].items()}
        _only(parameters, "default_route", "allow_empty_key")
        inside = [_module(folder, of, f"{path}/{part}") for part, of in settings["types"].items()]
        merged = {name: content for files in inside for name, content in files.items()}
        return {f"{path}/router_config.json": {**settings, "types": types, "parameters": parameters}, **merged}
    if name == "Normalize":
        _only(_without_names(_read(folder / path / "config.json")) if (folder / path / "config.json").exists() else {})
        return {}  # older readers read no settings of it
    settings = _read(folder / path / "config.json")
    if name == "Dense":
        settings = _without_names(settings)
        _only(settings, "in_features", "out_features", "bias", "activation_function")
        return {f"{path}/config.json": settings}
    if name == "Pooling":
        return {f"{path}/config.json": _pooling(settings)}
    raise _NotTheSame


def _transformer(settings: Settings, folder: Path) -> Settings:
    if "max_seq_length" in settings:  # the old form
        _only(settings, "max_seq_length", "do_lower_case")
        return settings
    rest = {key: value for key, value in settings.items() if _TRANSFORMER.get(key) != value}
    _only(rest, "do_lower_case")
    limit = _read(folder / "tokenizer_config.json")["model_max_length"]
    if settings.keys() & _TRANSFORMER.keys() != _TRANSFORMER.keys() or limit > _NO_LIMIT:
        raise _NotTheSame
    return {"max_seq_length": int(limit), "do_lower_case": rest.get("do_lower_case", False)}


def _pooling(settings: Settings) -> Settings:
    if "pooling_mode" not in settings:  # the old form
        return settings
    modes = [settings["pooling_mode"]] if isinstance(settings["pooling_mode"], str) else list(settings["pooling_mode"])
    _only(settings, "embedding_dimension", "pooling_mode", "include_prompt")
    if modes != [mode for mode in POOLING_FLAGS.values() if mode in modes]:
        raise _NotTheSame
    flags = {flag: mode in modes for flag, mode in POOLING_FLAGS.items()}
    return {"word_embedding_dimension": settings["embedding_dimension"], **flags, "include_prompt": settings.get("include_prompt", True)}


def _old_name(type: str) -> str:
    package, _, name = type.rpartition(".")
    if name not in _MODULES or not package.startswith("sentence_transformers."):
        raise _NotTheSame
    return f"sentence_transformers.models.{name}"


def _only(settings: Settings, *known: str) -> None:
    if not settings.keys() <= set(known):
        raise _NotTheSame


def _without_names(settings: Settings) -> Settings:
    return {key: value for key, value in settings.items() if _NAMES.get(key) != value}


def _mentions_rope(settings: Any) -> bool:
    if isinstance(settings, dict):
        return any("rope" in key or _mentions_rope(value) for key, value in settings.items())
    return False


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
