"""How token vectors become one: what a model's folder says, and what it does not."""

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
"""How the vectors of a text's tokens become one, by sentence-transformers' names; ``auto``: by what the model's folder says."""


def set_pooling(model: SentenceTransformer, mode: str, folder: Path) -> None:
    """Give a model another pooling than its folder says."""
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

    include_prompt = _json(folder / _POOLING_CONFIG, dict).get("include_prompt", True)
    modes = mode if "+" not in mode else tuple(mode.split("+"))
    for place, module in enumerate(model):
        if isinstance(module, PoolingModule):
            model[place] = PoolingModule(module.embedding_dimension, modes, include_prompt)
            return
    if not _is_bare_transformer(folder):
        raise ModelError(f"model folder {folder} gives one vector for each text already; fix: leave model.pooling out")
    width = model[0].get_embedding_dimension()  # type: ignore[operator]
    model.insert(1, PoolingModule(width, modes, include_prompt))


def pooling_of(folder: Path) -> str | None:
    """Return the pooling that a model's folder says, modes joined by ``+``; None if it says none."""
    paths = [folder / str(module.get("path")) / "config.json" for module in _modules(folder) if _is_a(module, "Pooling")]
    if not pools_itself(folder) and (folder / _POOLING_CONFIG).exists():  # a copy may have lost modules.json alone
        paths.append(folder / _POOLING_CONFIG)
    for path in paths:
        said = _json(path, dict)
        mode = said.get("pooling_mode")
        # Up to sentence-transformers 5 each mode had a flag.
        modes = [name for flag, name in POOLING_FLAGS.items() if said.get(flag)] if mode is None else mode
        return modes if isinstance(modes, str) else "+".join(modes) or "mean"
    return None


def pools_itself(folder: Path) -> bool:
    """Return whether sentence-transformers finds out from ``modules.json`` how a model makes one vector of a text."""
    return (folder / "modules.json").exists() and not _is_bare_transformer(folder)


def _is_bare_transformer(folder: Path) -> bool:
    """Return whether ``modules.json`` names a transformer that gives token vectors, and no layer that pools them."""
    modules = _modules(folder)
    if not modules or not _is_a(modules[0], "Transformer") or not all(_is_a(module, "Normalize") for module in modules[1:]):
        return False
    settings = _json(folder / str(modules[0].get("path")) / "sentence_bert_config.json", dict)
    return bool(settings.get("module_output_name", "token_embeddings") == "token_embeddings")


def _is_a(module: dict[str, Any], name: str) -> bool:
    return str(module.get("type")).endswith(f".{name}")


_POOLING_CONFIG = Path("1_Pooling", "config.json")
"""Where sentence-transformers keeps the pooling of nearly every model."""
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flag of sentence-transformers before 6 -> mode since then, in the order in which several are joined."""


def missing_pooling(name: str, folder: Path, settings: dict[str, Any], asked: Pooling) -> str | None:
    """Return the pooling to put in where a folder does not say its own; None where it does.

    Raises:
        ModelError: It says another than was asked for, or the model is of another type.
    """
    kind = settings.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise ModelError(f"model {name!r} is a {kind}; expected a model that gives one vector for each text, a SentenceTransformer")
    own = pooling_of(folder)
    if asked not in (own, *typing.get_args(Pooling)):
        raise ConfigError(f"pooling {asked!r} is unknown; expected one of {', '.join(typing.get_args(Pooling))}")
    if own or pools_itself(folder):
        if asked not in ("auto", own):
            seen = f"says pooling {own!r}" if own else "has no layer that pools tokens"
            raise ModelError(f"model {name!r} {seen}, and model.pooling is {asked!r}; fix: leave model.pooling out")
        return None if pools_itself(folder) else own
    if asked != "auto":
        return asked
    config = _json(folder / "config.json", dict)
    # As the library guesses.
    last = str((config.get("architectures") or [""])[0]).endswith("ForCausalLM") and config.get("is_causal", True)
    mode = "lasttoken" if last else "mean"
    seen = "its modules.json does not say" if (folder / "modules.json").exists() else "the folder has no modules.json, which would say"
    _note_once(
        f"{name}: {seen} how token vectors become one; pooling {mode!r} is used; "
        'if the model was trained with another one, set model.pooling, such as pooling = "cls" in [model]'
    )
    return mode


def note_changes(name: str, folder: Path, settings: dict[str, Any], *, both_prompts: bool) -> None:
    """Say what a model's folder asks for and is not done."""
    similarity = settings.get("similarity_fn_name") or "cosine"
    unit = any(str(module.get("type")).endswith(".Normalize") for module in _modules(folder)[-1:])
    if similarity not in ("cosine", "dot", "euclidean") or (similarity != "cosine" and not unit):
        _note_once(
            f"{name}: made for {similarity} similarity, and measured with cosine similarity, as everything here; "
            "a model tuned from it is saved so, with vectors of unit length"
        )
    default = settings.get("default_prompt_name")
    prompt = (settings.get("prompts") or {}).get(default)
    if prompt and not both_prompts and not any(default in names for names in PROMPT_NAMES.values()):
        _note_once(
            f"{name}: its default prompt {default!r} stands before neither queries nor documents; "
            f"fix: query_prompt or document_prompt = {json.dumps(prompt, ensure_ascii=False)} in [model], if it should"
        )


_noted: set[str] = set()


def _note_once(line: str) -> None:
    """Say something of a model once, however often a command makes an encoder of it."""
    if line not in _noted:
        _noted.add(line)
        console.note(line)


def settings_of(folder: Path) -> dict[str, Any]:
    """Return what sentence-transformers keeps of a model beside its modules."""
    return dict(_json(folder / "config_sentence_transformers.json", dict))


def _modules(folder: Path) -> list[dict[str, Any]]:
    return list(_json(folder / "modules.json", list))


def _json(path: Path, expected: type) -> Any:
    """Return what a JSON file holds; where there is none, nothing of the expected type."""
    if not path.exists():
        return expected()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, expected):
        raise ModelError(f"{path}: is a {type(content).__name__}; expected a {expected.__name__}")
    return content
