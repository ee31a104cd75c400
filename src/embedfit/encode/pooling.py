"""The pooling of token vectors: what a model's folder says about it, and what to do if it says nothing."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from embedfit import console
from embedfit.encode.encoder import PROMPT_NAMES
from embedfit.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Pooling: TypeAlias = Literal["auto", "mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean"]
"""Pooling of the token vectors of a text, by the names of sentence-transformers; ``auto`` is the one that the folder names."""


def set_pooling(model: SentenceTransformer, mode: str, folder: Path) -> None:
    """Give a model another pooling than its folder names."""
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

    include_prompt = _json(folder / _POOLING_CONFIG, dict).get("include_prompt", True)
    modes = mode if "+" not in mode else tuple(mode.split("+"))
    for place, module in enumerate(model):
        if isinstance(module, PoolingModule):
            model[place] = PoolingModule(module.embedding_dimension, modes, include_prompt)
            return
    if not _is_bare_transformer(folder):
        raise ModelError(f"model folder {folder} gives one vector for each text already; fix: remove model.pooling")
    width = model[0].get_embedding_dimension()  # type: ignore[operator]
    model.insert(1, PoolingModule(width, modes, include_prompt))


def pooling_of(folder: Path) -> str | None:
    """Return the pooling that a model's folder names, with several modes joined by ``+``; None if it names none."""
    paths = [folder / str(module.get("path")) / "config.json" for module in _modules(folder) if _is_a(module, "Pooling")]
    if not pools_itself(folder) and (folder / _POOLING_CONFIG).exists():  # a copy may lack modules.json alone
        paths.append(folder / _POOLING_CONFIG)
    for path in paths:
        settings = _json(path, dict)
        mode = settings.get("pooling_mode")
        # Up to sentence-transformers 5 each mode had a flag.
        modes = [name for flag, name in POOLING_FLAGS.items() if settings.get(flag)] if mode is None else mode
        return modes if isinstance(modes, str) else "+".join(modes) or "mean"
    return None


def pools_itself(folder: Path) -> bool:
    """Return whether ``modules.json`` tells sentence-transformers how the model makes one vector of a text."""
    return (folder / "modules.json").exists() and not _is_bare_transformer(folder)


def _is_bare_transformer(folder: Path) -> bool:
    """Return whether ``modules.json`` names a transformer that outputs token vectors, and no layer that pools them."""
    modules = _modules(folder)
    if not modules or not _is_a(modules[0], "Transformer") or not all(_is_a(module, "Normalize") for module in modules[1:]):
        return False
    settings = _json(folder / str(modules[0].get("path")) / "sentence_bert_config.json", dict)
    return bool(settings.get("module_output_name", "token_embeddings") == "token_embeddings")


def _is_a(module: dict[str, Any], name: str) -> bool:
    return str(module.get("type")).endswith(f".{name}")


_POOLING_CONFIG = Path("1_Pooling", "config.json")
"""File in which sentence-transformers keeps the pooling of nearly every model."""
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flag of sentence-transformers before version 6 -> mode since version 6, in the order in which several modes are joined."""


def missing_pooling(name: str, folder: Path, settings: dict[str, Any], asked: Pooling) -> str | None:
    """Return the pooling to add because a folder names none; None if it names one.

    Raises:
        ConfigError: The pooling asked for is unknown.
        ModelError: The folder names another pooling than was asked for, or the model is of another type.
    """
    kind = settings.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise ModelError(f"model {name!r} is a {kind}; expected a model that gives one vector for each text, a SentenceTransformer")
    own = pooling_of(folder)
    if asked not in (own, *typing.get_args(Pooling)):
        raise ConfigError(f"pooling {asked!r} is unknown; expected one of {', '.join(typing.get_args(Pooling))}")
    if own or pools_itself(folder):
        if asked not in ("auto", own):
            seen = f"has pooling {own!r}" if own else "has no layer that pools tokens"
            raise ModelError(f"model {name!r} {seen}, and model.pooling is {asked!r}; fix: remove model.pooling")
        return None if pools_itself(folder) else own
    if asked != "auto":
        return asked
    config = _json(folder / "config.json", dict)
    # The library's own guess.
    last = str((config.get("architectures") or [""])[0]).endswith("ForCausalLM") and config.get("is_causal", True)
    mode = "lasttoken" if last else "mean"
    has_modules = (folder / "modules.json").exists()
    seen = "its modules.json does not name a pooling" if has_modules else "the folder has no modules.json to name a pooling"
    _note_once(
        f"{name}: {seen}; pooling {mode!r} is used; "
        'if the model was trained with another one, set model.pooling, such as pooling = "cls" in [model]'
    )
    return mode


def note_changes(name: str, folder: Path, settings: dict[str, Any], *, both_prompts: bool) -> None:
    """Note what a model's folder asks for and embedfit does not do."""
    similarity = settings.get("similarity_fn_name") or "cosine"
    unit = any(str(module.get("type")).endswith(".Normalize") for module in _modules(folder)[-1:])
    if similarity not in ("cosine", "dot", "euclidean") or (similarity != "cosine" and not unit):
        _note_once(
            f"{name}: made for {similarity} similarity, but measured with cosine similarity, like every model; "
            "a model tuned from it is saved with cosine similarity and unit vectors"
        )
    default = settings.get("default_prompt_name")
    prompt = (settings.get("prompts") or {}).get(default)
    if prompt and not both_prompts and not any(default in names for names in PROMPT_NAMES.values()):
        _note_once(
            f"{name}: its default prompt {default!r} is put before neither queries nor documents; "
            f"fix: query_prompt or document_prompt = {json.dumps(prompt, ensure_ascii=False)} in [model], if it should be"
        )


_noted: set[str] = set()


def _note_once(line: str) -> None:
    """Note something about a model once, however often a command opens it."""
    if line not in _noted:
        _noted.add(line)
        console.note(line)


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings that sentence-transformers keeps beside the modules of a model."""
    return dict(_json(folder / "config_sentence_transformers.json", dict))


def _modules(folder: Path) -> list[dict[str, Any]]:
    return list(_json(folder / "modules.json", list))


def _json(path: Path, expected: type) -> Any:
    """Return the content of a JSON file; an empty value of the expected type if there is no file."""
    if not path.exists():
        return expected()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, expected):
        raise ModelError(f"{path}: is a {type(content).__name__}; expected a {expected.__name__}")
    return content
