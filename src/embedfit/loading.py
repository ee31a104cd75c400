"""Options for loading a model's weights: checked, and sorted by what they change."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from embedfit import console
from embedfit.errors import ConfigError, did_you_mean, shown

Attention: TypeAlias = Literal["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"]
"""Implementations of attention in transformers that run no code from the Hub."""
_PACKAGES = {"flash_attention_2": ("flash_attn", "flash-attn"), "flash_attention_3": ("flash_attn_interface", "flash-attn-3")}
"""Implementations that need a GPU and a package: its module and its name."""
_NUMBER_FORMATS = ("float32", "bfloat16", "float16")
ATTENTION, _FORMAT, _QUANTIZED = "attn_implementation", "dtype", "quantization_config"
_PLACES = (ATTENTION, "device_map", "max_memory", "low_cpu_mem_usage", "offload_folder", "offload_state_dict", "offload_buffers")
"""Options that say how and where to compute, and change vectors by rounding alone."""
_REFUSED = {
    **dict.fromkeys(("trust_remote_code", "use_kernels"), "code that comes with a model is never run"),
    **dict.fromkeys(("token", "use_auth_token"), "a token comes from the environment: HF_TOKEN"),
    **dict.fromkeys(
        ("revision", "code_revision", "subfolder", "cache_dir", "force_download", "proxies"), "the model's name says its folder"
    ),
    **dict.fromkeys(("use_safetensors", "weights_only", "local_files_only", "state_dict", "config"), "embedfit sets it"),
}
"""Options that are not the caller's to set, with the reason."""


def loading_options(model_kwargs: Mapping[str, Any] | None = None, attention: str | None = None) -> dict[str, Any]:
    """Return sentence-transformers' ``model_kwargs`` as values of JSON, with the implementation of attention among them.

    Args:
        model_kwargs: Options for transformers' ``from_pretrained``. A ``torch.dtype`` may stand for its name, and an object with
            ``to_dict``, such as a BitsAndBytesConfig, for its dict.
        attention: Implementation of attention; by default that in ``model_kwargs``, else the model's own choice.

    Raises:
        ConfigError: An option is not the caller's to set, is no value of JSON, or names an unknown number format; or the implementation of
            attention is unknown, or given twice.
    """
    if not isinstance(model_kwargs or {}, Mapping) or not all(isinstance(key, str) for key in model_kwargs or {}):
        raise ConfigError(f'model_kwargs is {shown(model_kwargs)}; expected a table such as {{dtype = "bfloat16"}}')
    given = dict(model_kwargs or {})
    if "torch_dtype" in given:
        given.setdefault(_FORMAT, given.pop("torch_dtype"))  # its older name
    options = {key: _plain(value, key) for key, value in given.items() if value is not None}
    for key in options:
        if key in _REFUSED:
            raise ConfigError(f"model_kwargs may not hold {key!r}: {_REFUSED[key]}; fix: leave it out")
    number_format = options.get(_FORMAT, "float32")
    if number_format not in _NUMBER_FORMATS:
        raise ConfigError(f"model_kwargs.dtype is {shown(number_format)}; expected {', '.join(_NUMBER_FORMATS)}")
    if attention is not None and options.setdefault(ATTENTION, attention) != attention:
        raise ConfigError(f"attn_implementation is {shown(attention)}, and in model_kwargs {shown(options[ATTENTION])}; fix: leave one out")
    name, known = options.get(ATTENTION), list(get_args(Attention))
    if name is not None and name not in known:
        near = did_you_mean(name, known) if isinstance(name, str) else ""
        raise ConfigError(f"attn_implementation {shown(name)} is unknown{near}; expected {', '.join(known)}")
    return options


def _plain(value: Any, key: str) -> Any:
    """Return a value as JSON holds it."""
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping) and all(isinstance(inner, str) for inner in value):
        return {inner: _plain(given, f"{key}.{inner}") for inner, given in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(given, key) for given in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(f"model_kwargs has {shown(value)} at {shown(key)}; expected text, a number, a list or a table")


def why_no_attention(options: Mapping[str, Any]) -> str | None:
    """Return why the implementation of attention cannot run on this machine; None if it can."""
    name = options.get(ATTENTION)
    if name not in _PACKAGES:
        return None
    module, package = _PACKAGES[name]
    if importlib.util.find_spec(module) is None:
        return f"attn_implementation {name!r} needs a GPU and the package {package}, which is not installed; fix: install it, or 'sdpa'"
    import torch

    return None if torch.cuda.is_available() else f"attn_implementation {name!r} needs a GPU, and there is none; fix: 'sdpa'"


def usable(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options of a saved model, without an implementation of attention that this machine does not have.

    The vectors are the same to within rounding.
    """
    reason = why_no_attention(options)
    if reason:
        console.note(f"{name}: {reason.partition(';')[0]}; the model's own implementation is used")
    return {key: value for key, value in options.items() if not (reason and key == ATTENTION)}


def another_model(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that make another model of the same files, such as quantized weights."""
    return {key: value for key, value in options.items() if key not in (*_PLACES, _FORMAT)}


def changing_vectors(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that change vectors by more than the rounding of fp32."""
    return {key: value for key, value in options.items() if key not in _PLACES and (key, value) != (_FORMAT, "float32")}


def whole_weights(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which weights are in fp32, to be trained, merged or saved."""
    return {key: value for key, value in options.items() if key not in (_FORMAT, _QUANTIZED)}


def portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which a model is exported: weights in fp32, and the model's own attention, on any processor."""
    return {key: value for key, value in whole_weights(options).items() if key != ATTENTION}


def is_half(options: Mapping[str, Any]) -> bool:
    """Return whether weights are in half precision."""
    return bool(options.get(_FORMAT, "float32") != "float32")


def is_quantized(options: Mapping[str, Any]) -> bool:
    """Return whether weights are quantized when they are loaded."""
    return bool(options.get(_QUANTIZED))


def uses_bitsandbytes(options: Mapping[str, Any]) -> bool:
    """Return whether bitsandbytes quantizes the weights."""
    quantization = options.get(_QUANTIZED)
    return isinstance(quantization, Mapping) and any(quantization.get(key) for key in ("load_in_4bit", "load_in_8bit"))
