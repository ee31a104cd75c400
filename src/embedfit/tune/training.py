"""The inputs of a training: data, settings and output folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset
from embedfit.errors import DataError
from embedfit.generate.relevance import RelevanceJudge
from embedfit.retrieve.engine import Engine, LocalEngine
from embedfit.template import DOCUMENT_TEMPLATE


@dataclass(frozen=True)
class Training:
    """One training: the data, the settings and the output folder.

    Attributes:
        train: Training queries.
        dev: Dev queries, for early stopping and for choosing the epoch; None to train for all epochs.
        folder: Output folder.
        config: Settings; the defaults are the same for every data set.
        template: Document template.
        report_to: Trackers that the trainer logs to: ``mlflow``, ``wandb``, ``tensorboard``.
        engine: Engine that mines and judges negatives. Processes that train together share that work instead, each with a
            local engine.
        llm: LLM that judges hard negatives if the settings name one; by default one at the environment's endpoint.
    """

    train: Dataset
    dev: Dataset | None
    folder: Path
    config: TuneConfig = field(default_factory=TuneConfig)
    template: str = DOCUMENT_TEMPLATE
    report_to: tuple[str, ...] = ()
    engine: Engine = field(default_factory=LocalEngine)
    llm: RelevanceJudge | None = field(default=None, compare=False)

    def judged(self) -> Training:
        """Return the same training on the judged queries alone.

        Raises:
            DataError: No training query is judged, or all have the same answer.
        """
        dev = self.dev.select(self.dev.judged) if self.dev and self.dev.judged else None
        return replace(self, train=judged(self.train), dev=dev)


def judged(train: Dataset) -> Dataset:
    """Return the judged training queries.

    Raises:
        DataError: No training query is judged, or all have the same answer.
    """
    train = train.select(train.judged)
    answers = {tuple(sorted(train.relevant(id))) for id in train.queries}
    if not answers:
        raise DataError("data", "has no judged query to learn from", fix="add labelled queries")
    if len(answers) == 1:
        raise DataError(
            "data", f"all {len(train.queries):,} training queries have the one answer {min(answers)}", fix="add queries with other labels"
        )
    return train
