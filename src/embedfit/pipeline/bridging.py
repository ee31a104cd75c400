"""A new model over the live index: a bridge is measured, answers at once, and gives way to documents that are embedded again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.config import Config
from embedfit.data.dataset import Dataset, text_key
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.named import encoder_of
from embedfit.errors import ConfigError
from embedfit.pipeline.job import engine_of
from embedfit.pipeline.needs import check_installed
from embedfit.pipeline.parts import read
from embedfit.store.base import Stamp
from embedfit.store.bridged import bridge_documents
from embedfit.store.open import open_store
from embedfit.store.opening import open_encoder, searcher_folder
from embedfit.store.versions import Indexed
from embedfit.studies.bridged import TOLERANCE, MeasuredBridge, measure_bridge


@dataclass(frozen=True)
class BridgedIndex:
    """The result of indexing with a bridge.

    Attributes:
        measured: The bridge's measurement; None if an earlier call had taken it live.
        indexed: The finished version; None if the bridge did not go live.
    """

    measured: MeasuredBridge | None
    indexed: Indexed | None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return {
            "bridge": self.measured.to_dict() if self.measured else None,
            "index": self.indexed.to_dict() if self.indexed else None,
        }


def bridge_index(config: Config, model: str | None = None, *, tolerance: float = TOLERANCE) -> BridgedIndex:
    """Measure a bridge from the live index to another model; unless it loses too much, let it answer while documents are embedded again.

    A killed call leaves a state that answers. The next call continues there.

    Args:
        config: Settings.
        model: New model; by default the configured one.
        tolerance: Largest loss of the metric, against the old model, with which the bridge goes live.

    Raises:
        EmbedfitError: Something is missing or wrong; the message is one line and names the fix. The live index is unchanged.
    """
    if model and searcher_folder(model):
        raise ConfigError(f"--bridge --model {model}: is a run, and a bridge is for its model alone; fix: --model {Path(model) / 'model'}")
    check_installed(config, stores=True, model=model)
    dataset, engine = read(config.data, model=config.model), engine_of(config.engine)
    template, measurements = config.data.document_template, list[MeasuredBridge]()
    new = engine.encoder(encoder_of(config.model, model))
    with open_store(config.store) as store:

        def measured(stamp: Stamp) -> Path | None:
            old = open_encoder(stamp, f"{store.where}: the index {store.index!r}")
            found = measure_bridge(
                _unseen(dataset, new),
                engine.encoder(old),
                new,
                template,
                config.evaluate.metric,
                tolerance=tolerance,
                group_by=config.split.group_by,
                seed=config.split.seed,
            )
            measurements.append(found)
            console.note(found.sentence)
            if not found.passed:
                return None
            path = Path(config.output) / "bridges" / f"{found.bridge.fingerprint[:12]}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            return found.bridge.save(path)

        def went_live() -> None:
            console.note(f"The bridge answers searches in {store.where}; documents are embedded again meanwhile")

        indexed = bridge_documents(store, dataset, new, template, measured, min_recall=config.store.min_recall, went_live=went_live)
    return BridgedIndex(measurements[-1] if measurements else None, indexed)


def _unseen(dataset: Dataset, model: Encoder) -> Dataset:
    """Return the data set with the labelled queries that a model was not trained on; with all, said in a line, if there are none."""
    from embedfit.tune.result import seen_by

    path = complete(model).saved_at
    seen = set(seen_by(path, "seen")) if path else set()
    unseen = [id for id in dataset.judged if text_key(dataset.queries[id].text) not in seen]
    if not unseen and dataset.judged:
        console.note("Warning: the model was trained on all labelled queries, so the bridge is measured on queries that it has seen")
    return dataset.select(unseen or dataset.judged)
