"""Narrow matrices beside frozen weights (LoRA)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from embedfit.config import TuneConfig
from embedfit.errors import ModelError, require


def add_lora(model: SentenceTransformer, transformer: torch.nn.Module, config: TuneConfig) -> Any:
    """Freeze a model, and put a product of two narrow trainable matrices beside every linear layer of its transformer.

    LoRA: Hu et al. 2021. The product is scaled by alpha / rank = 2, as is usual, so that the rank can be changed
    without another learning rate. Its one factor begins at zero, so training begins with the very model.
    """
    peft = require("peft", extra="lora")
    model.requires_grad_(False)
    # What a pooler makes of the first token is used by no embedding model.
    layers = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear) and "pooler" not in name]
    if not layers:
        raise ModelError(f'LoRA needs linear layers, and a {type(transformer).__name__} has none; fix: method = "full" in [tune]')
    settings = peft.LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=layers)
    torch.manual_seed(config.seed)  # the other factor is random
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft and transformers about each other
        return peft.get_peft_model(transformer, settings)


def save_lora(lora: Any, base: str, folder: str) -> None:
    """Save LoRA's matrices alone, as peft and sentence-transformers (``load_adapter``) read them."""
    lora.peft_config["default"].base_model_name_or_path = base
    lora.save_pretrained(folder, save_embedding_layers=False)  # else it asks the Hub whether the vocabulary has grown
    (Path(folder) / "README.md").unlink()  # nothing but "more information needed"
