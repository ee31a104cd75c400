"""Small trainings on a run's training queries, cross-validated: what the training's settings do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset
from embedfit.data.split import Split, group_numbers, split_folds
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.lengths import Lengths
from embedfit.encode.local import local_of
from embedfit.errors import DataError
from embedfit.evaluation.score import Scores, score_run
from embedfit.files import digest, writing
from embedfit.pipeline.job import Job
from embedfit.pipeline.needs import number_of_layers
from embedfit.pipeline.result import Result
from embedfit.pipeline.searching import merged_with_base
from embedfit.pipeline.training import tune_part
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import joined
from embedfit.studies.ablations import Candidates, Resolved, ablations
from embedfit.studies.doctor import Change, Stage
from embedfit.studies.forms import spread

_QUERIES = 300
"""Largest number of queries to train and measure on."""
_FEWEST = 24
"""Fewest queries to train on."""
_FOLDS, _SEEDS = 3, 3
"""Number of folds, and of seeds with which the run's own settings are trained."""
_DOCUMENTS, _NEAREST = 2000, 10
"""Largest number of documents to search, besides the right ones: the nearest ones of each query first, then any."""
_KEEP = "general.keep"


@dataclass
class Bed:
    """A small data set to train on, and where the results are kept.

    Attributes:
        job: The run's job, which logs to no tracker.
        small: Queries to train and measure on, and documents.
        splits: Folds.
        resolved: The run's settings of the training.
        weight: Weight of the tuned model in the run's merge with the base; 1 for none.
        folder: Folder of the results and of trainings under way.
    """

    job: Job
    small: Dataset
    splits: list[Split]
    resolved: Resolved
    weight: float
    folder: Path

    @classmethod
    def of(cls, job: Job, result: Result, folder: Path) -> tuple[Bed | None, list[str]]:
        """Return the bed, or None with the reason why nothing can be trained.

        Args:
            job: Job of the run.
            result: The run.
            folder: Folder of the diagnosis.
        """
        train = job.parts[0][0]
        ids = list(train.judged)
        small = train.select([ids[row] for row in spread(len(ids), _QUERIES)])
        answers = {tuple(sorted(small.relevant(id))) for id in small.queries}
        if len(small.queries) < _FEWEST or len(answers) < 2:
            return None, [f"Settings of the training were not tried: {len(small.queries):,} training queries are too few."]
        small = _with_fewer_documents(small, job)
        settings = job.config.split
        try:
            splits = split_folds(small, _FOLDS, dev=0, seed=settings.seed, group_by=settings.group_by)
        except DataError as error:
            return None, [f"Settings of the training were not tried: {error}."]
        track = job.config.track.model_copy(update={"report_to": ()})
        silent = job.config.model_copy(update={"track": track, "tune": _without_defaults(job.config.tune)})
        resolved = _resolved(job, result)
        weight = float((result.manifest.get("forgetting") or {}).get("weight", 1.0)) if job.config.general.keep is not None else 1.0
        identity = digest([result.manifest["embedfit"], job.base.fingerprint, small.digest(), silent.model_dump(), vars(resolved.pinned)])
        bed = cls(Job(silent, job.dataset, job.base), small, splits, resolved, weight, folder / identity[:10])
        more = f"; {len(ids):,} queries may want other settings" if len(ids) > 2 * len(small.queries) else ""
        return bed, [f"After tuning: {_FOLDS} folds of {len(small.queries):,} training queries{more}."]

    @cached_property
    def groups(self) -> dict[str, int]:
        """Query id -> number of its group."""
        return group_numbers(self.small, self.job.config.split.group_by)

    def stage(self, name: str) -> Stage:
        """Return the changes of the training's settings."""
        pinned = self.resolved.pinned
        base = [self._measure(pinned, seed, self.weight) for seed in range(_SEEDS)]
        changes = [
            Change(ablation.values, self._measure(ablation.config, _SEEDS, self.weight), ablation.cost)
            for ablation in ablations(self.resolved)
        ]
        if self.weight < 1:
            changes.insert(0, Change({_KEEP: None}, self._measure(pinned, _SEEDS, 1.0)))
        folds = [number for number, split in enumerate(self.splits) for _ in split.test]
        return Stage(name, base, changes, np.array(folds))

    def _measure(self, config: TuneConfig, seed: int, weight: float) -> Callable[[], Scores]:
        return lambda: self.scores(config, seed, weight)

    def scores(self, config: TuneConfig, seed: int, weight: float) -> Scores:
        """Return the scores of the held-out queries of all folds: read from disk, or measured.

        Args:
            config: Settings of the training.
            seed: Number that is added to the seed.
            weight: Weight of the tuned model in a merge with the base.
        """
        job, metric = self.job, self.job.metric
        config = config.model_copy(update={"seed": config.seed + seed})
        name = digest([config.model_dump(), weight])[:10]
        path = self.folder / f"{name}.json"
        ids = tuple(id for split in self.splits for id in split.test)
        groups = np.array([self.groups[id] for id in ids])
        if path.exists():
            values = json.loads(path.read_text(encoding="utf-8"))["values"]
            return Scores(name, ids, {metric: np.array(values)}, np.zeros(len(ids), np.int64), groups)
        k, runs = int(metric.partition("@")[2]), []
        work = self.folder / "trainings" / name
        for number, split in enumerate(self.splits):
            train, _, test = split.datasets(self.small)
            changes = {key: value for key, value in config if value != getattr(job.config.tune, key)}
            tuned = tune_part(job, train, None, work / str(number), changes)
            encoder = merged_with_base(job, tuned.encoder, weight, work / str(number) / "kept")
            runs.append(DenseRetriever(job.engine.encoder(encoder), job.template, job.engine.top_k).search(test, max(k, 10)))
        scores = score_run(joined(runs), self.small.qrels, ks=(k,), name=name, groups=self.groups)
        with writing(path) as file:
            file.write(json.dumps({"values": scores.values[metric].tolist()}).encode())
        shutil.rmtree(work, ignore_errors=True)
        return replace(scores, values={metric: scores.values[metric]})


def _without_defaults(config: TuneConfig) -> TuneConfig:
    """Return the settings with only those marked as given that differ from the defaults; a manifest gives all of them."""
    return TuneConfig.model_validate({name: value for name, value in config if value != TuneConfig.model_fields[name].default})


def _resolved(job: Job, result: Result) -> Resolved:
    """Return what the run's training chose by itself."""
    config, tuning = job.config.tune, result.manifest["tuning"]
    local = local_of(job.base)
    usual: Candidates = "all"
    share = 0.0
    if local and config.method != "adapter":
        from embedfit.tune.prepared import choose_candidates, usual_share_frozen

        tokens = Lengths(local).count(job.dataset.document_texts(job.template)).sum()
        usual = cast(Candidates, choose_candidates(TuneConfig(), int(tokens)))
        share = usual_share_frozen(config, tuning[0].get("candidates") or usual, len(job.parts[0][0].queries))
    epochs = sorted(row["epoch"] for row in tuning if row.get("epoch"))
    has_dev = any(part["dev"] for part in result.manifest["split"])
    layers = (number_of_layers(local.folder) or 0) if local else 0
    return Resolved(
        config,
        tuning[0].get("candidates") or usual,
        usual,
        frozen=tuning[0].get("frozen") or 0,
        usually_frozen=int(layers * share),
        layers=layers,
        epochs=epochs[len(epochs) // 2] if has_dev and epochs else None,
    )


def _with_fewer_documents(train: Dataset, job: Job) -> Dataset:
    """Return the data set with its right answers, the nearest documents of each query, and others up to `_DOCUMENTS`."""
    if len(train.corpus) <= _DOCUMENTS:
        return train
    right = {document for id in train.queries for document in train.qrels.get(id, {})}
    retriever = DenseRetriever(CachedEncoder(job.engine.encoder(job.base)), job.template, job.engine.top_k)
    run = retriever.search(train, _NEAREST)
    rows = [run.documents_at(row, _NEAREST) for row in range(len(run.query_ids))]
    nearest = [document for rank in range(_NEAREST) for row in rows for document in row[rank : rank + 1]]
    others = list(train.corpus)
    order = dict.fromkeys([*nearest, *(others[row] for row in spread(len(others), _DOCUMENTS))])
    kept = right | set([id for id in order if id not in right][:_DOCUMENTS])
    return Dataset(train.queries, {id: document for id, document in train.corpus.items() if id in kept}, train.qrels)
