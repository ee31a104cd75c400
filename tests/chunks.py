"""Chunks of texts, as the trainer takes them from a collator's batch."""

import torch


def chunks_of(inputs, model):
    """Return the features of each chunk, on the model's device."""
    prefixes = [key.removesuffix("input_ids") for key in inputs if key.endswith("_input_ids")]
    chunks = [{key.removeprefix(prefix): value for key, value in inputs.items() if key.startswith(prefix)} for prefix in prefixes]
    return on_device(chunks, model)


def on_device(chunks, model):
    """Return chunks with their tensors on the model's device."""
    return [{key: value.to(model.device) if torch.is_tensor(value) else value for key, value in chunk.items()} for chunk in chunks]
