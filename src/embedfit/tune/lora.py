"""LoRA: narrow trainable matrices beside frozen weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from embedfit.config import TuneConfig
from embedfit.errors import ModelError, require


def add_lora(model: SentenceTransformer, transformer: torch.nn.Module, config: TuneConfig, frozen: Sequence[torch.nn.Module] = ()) -> Any:
    """Freeze a model, and add a product of two narrow trainable matrices to every linear layer of its transformer.

    LoRA: Hu et al. 2021. The product is scaled by alpha / rank = 2, as is usual, so that a change of rank needs no other
    learning rate. One factor starts at zero, so training starts from the model itself.

    Args:
        model: Model to freeze.
        transformer: Transformer of the model.
        config: Rank and seed.
        frozen: Layers of the transformer that get no matrices.

    Returns:
        peft's model around the transformer.

    Raises:
        EmbedfitError: peft is not installed.
        ModelError: The transformer has no linear layers.
    """
    peft = require("peft", extra="lora")
    model.requires_grad_(False)
    # No embedding model uses the output of a pooler.
    below = {id(module) for layer in frozen for module in layer.modules()}
    layers = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name and id(module) not in below
    ]
    if not layers:
        raise ModelError(f'LoRA needs linear layers, and a {type(transformer).__name__} has none; fix: method = "full" in [tune]')
    settings = peft.LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=layers)
    torch.manual_seed(config.seed)  # the other factor starts at random
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # warnings of peft and transformers about each other
        return peft.get_peft_model(transformer, settings)


def merge_lora(model: SentenceTransformer, folder: Path) -> None:
    """Merge saved matrices into the model that they were trained beside.

    Args:
        model: Model with its weights in fp32.
        folder: Folder that `save_lora` wrote.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        require("peft", extra="lora").PeftModel.from_pretrained(model.transformers_model, str(folder)).merge_and_unload()


def save_lora(lora: Any, base: str, folder: str) -> None:
    """Save LoRA's matrices alone, in the format that peft and sentence-transformers (``load_adapter``) read.

    Args:
        lora: peft's model.
        base: Name of the base model, which peft writes beside the matrices.
        folder: Output folder.
    """
    lora.peft_config["default"].base_model_name_or_path = base
    lora.save_pretrained(folder, save_embedding_layers=False)  # otherwise peft asks the Hub whether the vocabulary has grown
    (Path(folder) / "README.md").unlink()  # it says only "more information needed"
