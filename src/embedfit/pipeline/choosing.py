"""The choice of a base model among several, on queries that the verdict is not about, or with intervals that count the choice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit import console, processes, progress
from embedfit.config import Config, SplitConfig
from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.local import local_of
from embedfit.encode.named import encoder_of
from embedfit.errors import ConfigError, EmbedfitError
from embedfit.evaluation.families import compare_many, may_be_best
from embedfit.evaluation.score import Scores, score_run
from embedfit.files import digest, writing
from embedfit.hub import parameters_of, public_name
from embedfit.metrics import metric_label
from embedfit.pipeline.job import Job, locked
from embedfit.pipeline.needs import check_installed, check_method
from embedfit.pipeline.parts import splits_of
from embedfit.pipeline.picked import Pick
from embedfit.pipeline.searching import Bench
from embedfit.pipeline.source import Inputs, Source
from embedfit.searcher.views import CLASSES, DOCUMENTS, EXAMPLES
from embedfit.studies.forms import spread

if TYPE_CHECKING:
    import pandas as pd

_QUERIES = 1000
"""Largest number of queries that the candidates are measured on."""
_FOLDS = 5
_VIEWS = (DOCUMENTS, EXAMPLES, CLASSES)
"""Views that read the model's vectors; those of words would hide the differences between models."""


@dataclass(frozen=True)
class CandidateModel:
    """A model that the base could be, and what it does before tuning.

    Attributes:
        name: Name or folder.
        parameters: Number of weights; None behind an API.
        dimensions: Number of dimensions of the vectors.
        alone: Metric of the documents' vectors alone, between 0 and 1.
        searched: Metric of the searcher over the model: documents, nearest examples and linear models, out of fold.
        low: Lower end of the 95% interval of ``searched`` minus that of the chosen model; 0 for the chosen one.
        high: Upper end of that interval.
        may_be_best: Whether it is not shown to be worse than any other.
    """

    name: str
    parameters: int | None
    dimensions: int
    alone: float
    searched: float
    low: float
    high: float
    may_be_best: bool


@dataclass(frozen=True)
class Choice:
    """The choice of a base model.

    Attributes:
        candidates: Candidates, the smallest first.
        chosen: Name of the smallest that is within chance of the best.
        metric: Metric of the choice.
        queries: Number of queries that it was made on.
        held_out: Whether these include queries that the run's verdict is about; its intervals then count the choice.
        folder: Folder with the record.
    """

    candidates: tuple[CandidateModel, ...]
    chosen: str
    metric: str
    queries: int
    held_out: bool
    folder: Path | None = field(default=None, compare=False)

    @property
    def sentence(self) -> str:
        """The choice with its evidence, as text."""
        model = next(row for row in self.candidates if row.name == self.chosen)
        best = max(self.candidates, key=lambda row: row.searched)
        label = f"{metric_label(self.metric)} {model.searched:.3f} before tuning"
        why = "the best" if best is model else f"the smallest within chance of the best, {public_name(best.name)} ({best.searched:.3f})"
        return f"Chosen: {public_name(self.chosen)} ({label}), {why}, of {len(self.candidates):,} models on {self.queries:,} queries."

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as choice.json has it."""
        rows = [asdict(row) for row in self.candidates]
        names = ("chosen", "metric", "queries", "held_out", "sentence")
        return {**{name: getattr(self, name) for name in names}, "candidates": rows}

    def to_frame(self) -> pd.DataFrame:
        """Return one row per candidate, the smallest first."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.candidates])


def choose_model(source: Source, models: Sequence[str] = (), **settings: Any) -> Choice:
    """Measure several models before tuning, and choose the smallest that is within chance of the best.

    In a single split, the choice is made on the queries outside the test part.

    Args:
        source: A Dataset, a Config, or the path of an embedfit.toml or of labelled queries.
        models: Names or folders of the models; by default ``model.candidates``.
        settings: Sections and keys of embedfit.toml.

    Raises:
        ConfigError: There is no candidate, or one cannot be loaded or tuned by the method of the settings.
        EmbedfitError: The data is missing or unusable.
    """
    inputs = Inputs.of(source, None, settings)
    config = inputs.config
    names = tuple(dict.fromkeys(models or config.model.candidates))
    if not names:
        raise ConfigError('there are no models to choose from; fix: candidates = ["NAME", "NAME"] in [model], or --model')
    model = config.model.model_copy(update={"name": names[0], "candidates": names})
    config = config.model_copy(update={"model": model})
    encoders = _encoders(config)
    return _choice(config, Job.of(config, inputs.dataset).dataset, encoders)


def job_with_choice(
    config: Config,
    dataset: Dataset | None = None,
    base: Encoder | None = None,
    *,
    trains: bool = False,
    picks: Sequence[Pick] | None = None,
) -> Job:
    """Return the job of a configuration whose model is chosen first, if it names candidates and no encoder is given; see `Job.of`."""
    if base is not None or not config.model.candidates:
        return Job.of(config, dataset, base, trains=trains, picks=picks)
    encoders = _encoders(config)
    first = config.model.model_copy(update={"name": config.model.candidates[0]})
    read = Job.of(config.model_copy(update={"model": first}), dataset, trains=trains).dataset
    choice = _choice(config, read, encoders) if processes.main() else None
    name = processes.agreed(choice.chosen if choice else "")
    if choice:
        console.note(choice.sentence)
    model = config.model.model_copy(update={"name": name})
    return Job.of(config.model_copy(update={"model": model}), dataset, trains=trains, picks=picks)


def config_with_choice(config: Config) -> Config:
    """Return a configuration whose model is chosen for one split, if it names candidates."""
    if not config.model.candidates:
        return config
    single = config.model_copy(update={"split": config.split.model_copy(update={"folds": 0})})
    return config.model_copy(update={"model": job_with_choice(single, trains=True).config.model})


def _choice(config: Config, dataset: Dataset, encoders: dict[str, Encoder]) -> Choice:
    """Return the choice: read from its folder, or measured."""
    splits = splits_of(config, dataset)
    test = set(splits[0].test) if len(splits) == 1 else set()
    ids = [id for id in dataset.judged if id not in test]
    part = dataset.select([ids[row] for row in spread(len(ids), _QUERIES)])
    split = SplitConfig(folds=_FOLDS, dev=0, seed=config.split.seed, group_by=config.split.group_by, by=config.split.by)
    views = tuple(view for view in _VIEWS if view in (DOCUMENTS, *config.searcher.views))
    searcher = config.searcher.model_copy(update={"views": views})
    settings = config.model_copy(update={"split": split, "searcher": searcher})
    described = [
        version("embedfit"),
        part.digest(),
        config.data.document_template,
        sorted(encoder.fingerprint for encoder in encoders.values()),
        settings.model_dump(include={"split", "evaluate"}),
        views,
        len(splits) > 1,
    ]
    folder = Path(config.output) / f"{config.name}-candidates-{digest(described)[:10]}"
    path = folder / "choice.json"
    with locked(folder):
        if not path.exists():
            choice = _measured(settings, part, encoders, held_out=len(splits) > 1)
            with writing(path) as file:
                file.write(json.dumps(choice.to_dict(), indent=1).encode())
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(CandidateModel(**row) for row in record["candidates"])
    return Choice(rows, record["chosen"], record["metric"], record["queries"], record["held_out"], folder)


def _encoders(config: Config) -> dict[str, Encoder]:
    """Return the encoder of each candidate, after it has encoded a word.

    Raises:
        ConfigError: One cannot be loaded, or not be tuned by the method of the settings.
    """
    encoders: dict[str, Encoder] = {}
    for name in dict.fromkeys(config.model.candidates):
        try:
            check_installed(config, model=name)
            encoder = encoder_of(config.model, name)
            check_method(encoder, config.tune)
            if not complete(encoder).remote:
                encoder.encode(["a"], "query")
        except EmbedfitError as error:
            raise ConfigError(f"model.candidates: {name} cannot be used: {error}") from None
        encoders[name] = encoder_of(config.model, name)  # not loaded, so that no two models stay in memory
    return encoders


def _measured(config: Config, part: Dataset, encoders: dict[str, Encoder], *, held_out: bool) -> Choice:
    metric = config.evaluate.metric
    sizes = {name: parameters_of(local.folder) if (local := local_of(encoder)) else None for name, encoder in encoders.items()}
    order = sorted(encoders, key=lambda name: (sizes[name] is None, sizes[name] or 0))  # behind an API last
    alone: dict[str, float] = {}
    searched: list[Scores] = []
    dimensions: dict[str, int] = {}
    with progress.plan("candidates", order) as plan:
        for name in order:
            with plan.step(name):
                job = Job(config, part, encoder_of(config.model, name))
                bench = Bench(job)
                run = job.dense(job.base).search(job.test, job.depth)
                scores = score_run(run, part.qrels, ks=config.evaluate.k, name=name, groups=job.groups)
                alone[name] = scores.mean(metric)
                if bench.views != (DOCUMENTS,):
                    run = bench.run([job.base] * len(bench.parts), job.base, tuned=False).run
                    scores = score_run(run, part.qrels, ks=config.evaluate.k, name=name, groups=job.groups)
                dimensions[name] = bench.encoder(job.base).encode(part.query_texts()[:1], "query").shape[1]
                searched.append(scores)
    seed = config.split.seed
    equal = may_be_best(searched, metric=metric, seed=seed)
    best = max(searched, key=lambda scores: scores.mean(metric))
    chosen = next(scores for scores, as_good in zip(searched, equal, strict=True) if as_good or scores is best)
    against = compare_many(searched, base=chosen, metric=metric, seed=seed)
    rows = []
    for scores, as_good, row in zip(searched, equal, against, strict=True):
        low, high = (0.0, 0.0) if scores is chosen else (row.low, row.high)
        name = scores.name
        rows.append(CandidateModel(name, sizes[name], dimensions[name], alone[name], scores.mean(metric), low, high, as_good))
    return Choice(tuple(rows), chosen.name, metric, len(part.queries), held_out)
