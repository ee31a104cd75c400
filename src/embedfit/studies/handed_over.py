"""The recommended rung of a ladder as a searcher, which can be saved and searched."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from embedfit.data.dataset import Dataset
from embedfit.data.split import Split, group_numbers
from embedfit.errors import ConfigError
from embedfit.evaluation.calibrate import calibrate
from embedfit.retrieve.retrievers import DenseRetriever, VectorIndex
from embedfit.retrieve.run import NOTHING, Run
from embedfit.searcher.fit import fit_searcher
from embedfit.searcher.gather import Views
from embedfit.searcher.parts import Parts
from embedfit.searcher.searcher import Searcher
from embedfit.searcher.views import DOCUMENTS, DocumentsView
from embedfit.studies.ladder import Ladder, kept_run
from embedfit.studies.methods import METHODS, Setting
from embedfit.tune.result import Tuned


def recommended_searcher(ladder: Ladder, setting: Setting, dataset: Dataset, splits: Sequence[Split], folder: str | Path) -> Searcher:
    """Return the searcher of the recommended rung.

    It knows the train and dev queries of a single split; with folds, all labelled queries, on which a model is trained once more.
    Its probabilities are learnt on queries that its views, or the models of its method, did not know.

    Args:
        ladder: Measured ladder.
        setting: Model, settings and document templates of the ladder.
        dataset: Data set of the ladder.
        splits: Splits of the ladder.
        folder: Folder of the ladder's models and rankings.

    Raises:
        ConfigError: The recommended rung reranks, which a searcher does not.
    """
    key, folder = ladder.recommended, Path(folder)
    method, single = METHODS[key], len(splits) == 1
    known = dataset.select([*splits[0].train, *splits[0].dev] if single else dataset.judged)
    if method.views:
        return setting.searcher(known, method.views)
    tuned = _tuned(key, setting, dataset, splits, folder)
    if not isinstance(tuned.retriever, DenseRetriever | VectorIndex):
        raise ConfigError(f"{method.name} is recommended, and cannot be saved as a searcher; fix: leave it out of the rungs")
    parts = fit_searcher(known, tuned.encoder, template=tuned.retriever.template, views=(DOCUMENTS,), trusted=False).parts  # type: ignore[attr-defined]
    if isinstance(tuned.retriever, VectorIndex):
        parts = _moved(parts, tuned.retriever)
    return Searcher(_calibrated(parts, setting, dataset, kept_run(folder / f"{key}.npz")[0]))


def _tuned(key: str, setting: Setting, dataset: Dataset, splits: Sequence[Split], folder: Path) -> Tuned:
    """Return the tuning of a single split, or one on all labelled queries with the folds' median number of epochs."""
    fit, where = METHODS[key].kept, folder / key
    fitted = [
        fit(setting, train, dev, where / str(number)) for number, (train, dev, _) in enumerate(split.datasets(dataset) for split in splits)
    ]
    if len(fitted) == 1:
        return fitted[0]
    epochs = [tuned.epoch for tuned in fitted if tuned.epoch is not None]
    if epochs:
        tune = setting.config.tune.model_copy(update={"epochs": round(statistics.median(epochs))})
        setting = replace(setting, config=setting.config.model_copy(update={"tune": tune}))
    return fit(setting, dataset.select(dataset.judged), None, where / "all")


def _moved(parts: Parts, index: VectorIndex) -> Parts:
    """Return the parts with the document vectors of an index."""
    corpus = replace(parts.corpus, vectors=index.vectors)
    return replace(parts, corpus=corpus, views=Views({DOCUMENTS: DocumentsView(index.vectors)}, parts.views.count))


def _calibrated(parts: Parts, setting: Setting, dataset: Dataset, run: Run) -> Parts:
    """Return the parts with a calibration that is learnt on held-out rankings, which have the searcher's scores."""
    numbers = group_numbers(dataset, setting.config.split.group_by)
    groups = np.array([numbers[id] for id in run.query_ids])
    if len(np.unique(groups)) < 2:
        return parts
    relevant = [[id in dataset.relevant(query) for id in run.documents_at(row)] for row, query in enumerate(run.query_ids)]
    width = run.ranked.shape[1]
    settings = setting.config.searcher
    trust = calibrate(
        np.where(run.scores == NOTHING, -np.inf, run.scores),
        np.array([row + [False] * (width - len(row)) for row in relevant]),
        groups,
        answerable=[bool(dataset.relevant(id)) for id in run.query_ids],
        precision=settings.precision,
        coverage=settings.coverage,
        seed=setting.config.split.seed,
    ).trust
    return replace(parts, calibrator=trust.calibrator, threshold=trust.threshold, sets=trust.sets)
