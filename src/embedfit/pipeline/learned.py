"""What a run with folds would answer to its held-out queries, had it learned picks since, as its searcher does when it is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from embedfit.data.split import Split
from embedfit.encode.encoder import Encoder
from embedfit.encode.named import encoder_of
from embedfit.errors import DataError
from embedfit.evaluation.score import Scores
from embedfit.pipeline.job import Job
from embedfit.pipeline.picked import PREFIX, Picked
from embedfit.pipeline.result import Result, config_of, data_of
from embedfit.pipeline.searching import Bench, merged_with_base
from embedfit.searcher.fusion import Evidence, folds_of
from embedfit.searcher.gather import Examples, Views
from embedfit.searcher.learn import Learnt, run_of_evidence
from embedfit.searcher.views import EXAMPLES, Array, ExamplesView
from embedfit.tune.result import read_tuned


def scores_with(run: Result, picks: Mapping[str, tuple[str, str]], picked: Picked | None) -> Scores:
    """Return the scores of a run with folds on its held-out queries, each by the model that was trained without it.

    Picks are examples, as they are when a server learns them: the linear models and the weights stay as they were fitted. A pick is
    no example for the queries that it has something to do with (see `Picked.joined`).

    Args:
        run: Finished run with folds.
        picks: Pick's id -> (text, document id).
        picked: Data set of these picks; None without picks.

    Raises:
        DataError: The data of the run is gone or has changed.
    """
    job = _job_of(run)
    bench, weight = Bench(job), _weight(run)
    before: list[Evidence] = []
    after: list[Evidence] = []
    ids: tuple[str, ...] = ()
    for number, part in enumerate(bench.parts):
        folder = run.folder / "folds" / str(number)
        tuned = read_tuned(folder, job.base, job.template).encoder
        encoder = bench.encoder(merged_with_base(job, tuned, weight, folder / "kept"))
        corpus, examples, views = bench.built(encoder, part.known, tuned=True)
        ids = corpus.ids
        base = bench.base
        before.append(views.gather(part.asked, encoder, ids, base))
        asked = tuple(id for id in part.asked.queries if picked and id in picked.labelled.queries)
        joined = picked.joined(Split((), (), asked), job.config).train if picked else ()
        more = _with_picks(examples, encoder, {id: picks[id] for id in joined}, ids)
        view = ExamplesView(more.vectors, more.owners, more.members, views.count, views.scale)
        after.append(Views({**views.views, EXAMPLES: view}, views.count, views.scale).gather(part.asked, encoder, ids, base))
    groups = np.array([job.groups[id] for id in Evidence.joined(before).query_ids])
    scores = _fitted_before(Evidence.joined(before), Evidence.joined(after), groups, bench.views, job.config.split.seed)
    return job.scored(run_of_evidence(Evidence.joined(after), scores, ids, job.depth), "live")


def _job_of(run: Result) -> Job:
    """Return the job of a finished run.

    Raises:
        DataError: Its data has changed, or it was split otherwise.
    """
    config, data = config_of(run), data_of(run)
    ids = tuple(id for id in data.queries if id.startswith(PREFIX))
    labelled = data.select(id for id in data.queries if id not in set(ids))
    picked = Picked(labelled, data, data, ids, data.select(()), {}) if ids else None
    split = config.split.model_copy(update={"folds": len(run.manifest["split"])})  # a manifest names all settings, also defaults
    job = Job(config.model_copy(update={"split": split}), data, encoder_of(config.model), picked)
    if set(job.test.queries) != set(run.comparison.tuned.query_ids):
        raise DataError(str(run.folder), "was split otherwise")
    return job


def _weight(run: Result) -> float:
    """Return the weight of the tuned model in the merge with the base; 1 without a merge."""
    forgetting = run.manifest["forgetting"]
    return float(forgetting["weight"]) if forgetting and config_of(run).general.keep is not None else 1.0


def _with_picks(examples: Examples, encoder: Encoder, picks: Mapping[str, tuple[str, str]], ids: tuple[str, ...]) -> Examples:
    """Return examples and picks. Picks of unknown documents, and those that are among the examples, are left out."""
    place = {id: number for number, id in enumerate(ids)}
    known = set(examples.query_ids)
    new = {id: (text, place[document]) for id, (text, document) in picks.items() if document in place and id not in known}
    if not new:
        return examples
    count, texts = len(examples.query_ids), [text for text, _ in new.values()]
    return replace(
        examples,
        query_ids=(*examples.query_ids, *new),
        texts=(*examples.texts, *texts),
        vectors=np.concatenate([examples.vectors, encoder.encode(texts, "query")]),
        owners=np.append(examples.owners, [owner for _, owner in new.values()]),
        members=np.append(examples.members, np.arange(count, count + len(new))),
        base=None,
    )


def _fitted_before(before: Evidence, after: Evidence, groups: np.ndarray, views: tuple[str, ...], seed: int) -> Array:
    """Return the fused scores of each query with the picks, by weights that were fitted without the picks and without the query."""
    folds = folds_of(groups, seed)
    scores = np.full(after.candidates.shape, -np.inf, np.float32)
    for fold in np.unique(folds):
        test = folds == fold
        scores[test] = Learnt.of(before.take(~test), views, seed=seed).scores(after.take(test))
    return scores
