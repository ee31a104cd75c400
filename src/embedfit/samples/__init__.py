"""The bundled transactions and the general set, and what ``embedfit init`` writes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from embedfit.config import Config, DataConfig, ModelConfig, SplitConfig

TRANSACTIONS = Path(str(resources.files(__name__) / "transactions"))
GENERAL = Path(str(resources.files(__name__) / "general"))
"""Questions and passages from many fields, to measure what tuning forgot; a BEIR folder, written for embedfit."""


def demo_config(output: Path, model: str) -> Config:
    """Return the configuration of a run on the bundled transactions."""
    return Config(
        name="transactions",
        output=str(output),
        data=DataConfig(
            queries=str(TRANSACTIONS / "transactions.jsonl"), documents=str(TRANSACTIONS / "categories.json"), record="transaction"
        ),
        split=SplitConfig(folds=0),  # one split, to be quick; `run --folds 5` holds out every query once
        model=ModelConfig(name=model),
    )
