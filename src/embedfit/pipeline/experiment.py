"""Whole experiments: a run, a curve, a ladder, and what they leave behind."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedfit import console, processes
from embedfit.config import Config, GeneralConfig, placed_in
from embedfit.data.check import Finding, warnings
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.encode.encoder import Encoder
from embedfit.encode.local import LocalEncoder
from embedfit.encode.remote import RemoteEncoder
from embedfit.errors import ConfigError, DataError, check_package, did_you_mean
from embedfit.evaluation.compare import Comparison, compare_scores
from embedfit.evaluation.score import Scores
from embedfit.files import writing
from embedfit.hub import public_name
from embedfit.metrics import metric_label
from embedfit.pipeline.job import LISTED, Job, check_installed, check_method, local, locked, note_unused
from embedfit.pipeline.training import help_training, train_all, tune_part
from embedfit.report.pages import curve_html, html, ladder_html
from embedfit.report.tables import Report, per_query
from embedfit.retrieve.retrievers import BM25Retriever, DenseRetriever
from embedfit.retrieve.run import Run, joined
from embedfit.studies.curve import Curve, learning_curve
from embedfit.studies.forgetting import WEIGHTS, Forgetting, general_set, measure_forgetting, merged_runs
from embedfit.studies.forms import Form, check_forms
from embedfit.studies.ladder import Ladder, check_rungs, climb
from embedfit.studies.methods import Setting, richer_template
from embedfit.studies.suspects import find_suspects, write_suspects
from embedfit.track.tracker import tracking

if TYPE_CHECKING:
    import pandas as pd

    from embedfit.tune.result import Tuned

_CANDIDATES = {
    "all": "all documents",
    "mined": "the batch's documents, mined and random ones",
    "batch": "the batch's documents and random ones",
}


_MIXED = "The further data of [mix] trains the query adapter, LoRA and full fine-tuning; the other methods learn from [data] alone."

_CHEAP_CHARACTERS = 500_000
"""Of documents and queries that are encoded again for each weight of a merge, only to draw a line through them."""


@dataclass(frozen=True)
class Result:
    """What a finished run directory holds.

    Attributes:
        folder: The run directory.
        comparison: Base and tuned on the test queries.
        others: Scores of further baselines on the same queries.
        findings: What was odd about the data.
        manifest: Configuration, identities, times.
        reused: Whether the run directory was there already, and nothing was done.
    """

    folder: Path
    comparison: Comparison
    others: tuple[Scores, ...]
    findings: tuple[Finding, ...]
    manifest: dict[str, Any]
    reused: bool = False

    @property
    def model(self) -> Path:
        """The model to use: an ordinary sentence-transformers folder."""
        return self.folder / str(self.manifest["model"])

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric and k."""
        return self.comparison.to_frame()

    def __repr__(self) -> str:
        return f"Result({str(self.folder)!r}, {self.comparison.sentence!r})"

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()


def run(config: Config) -> Result:
    """Measure a model, tune it, measure it again on the same held-out queries, and write down what came of it.

    The run directory's name holds a hash of the data, the base weights and the settings. The same call again finds
    the finished directory and does nothing; after a crash it goes on where it was.

    Raises:
        EmbedfitError: With one line that says what to do.
    """
    processes.join()
    check_installed(config, trains=True)
    if config.tune.method == "adapter" and config.general.keep is not None:
        raise ConfigError("general.keep merges weights, which an adapter does not change; fix: leave it out, or tune.method = 'full'")
    job, general = Job.of(config), read_general(config.general)
    check_method(job.base, config.tune, config.track.report_to)
    folder = job.folder("", "general", more=[general.digest()])
    if not (folder / "manifest.json").exists():
        job.checked  # noqa: B018 (refused before there is a folder)
    with locked(folder):
        if processes.agreed((folder / "manifest.json").exists()):
            return read_result(folder)
        if not processes.main():
            help_training(job, folder)
        started = time.monotonic()
        findings = job.findings
        others = [job.scored(BM25Retriever(job.template).search(job.test, job.depth), "BM25")] if config.evaluate.bm25 else []
        base_run = job.dense(job.base).search(job.test, job.depth)
        trainings, final = train_all(job, folder)
        forgetting = _forgetting(job, trainings[0], final, general)
        weight = forgetting.weight if forgetting and config.general.keep is not None else 1.0
        model = _merged(local(job.base), local(final.encoder), weight, folder / "kept") if weight < 1 else final.encoder
        runs = [_searched(job, training, weight) for training in trainings]
        comparison = compare_scores(
            job.scored(base_run, job.base.name),
            [job.scored(one, f"{job.base.name}, tuned") for one in runs],
            metric=job.metric,
            seed=config.split.seed,
            held_out=True,
            seen=[job.seen[id] for id in base_run.query_ids],
        )
        suspects = find_suspects(job.test, base_run, runs[0], scale=config.tune.scale)
        lora = final.model.parent / "lora"
        forms: tuple[Form, ...] = ()
        if isinstance(model, LocalEncoder):  # an adapter over an API is a matrix in a file, and has no other forms
            forms = check_forms(
                model,
                job.test,
                job.template,
                metric=job.metric,
                ks=config.evaluate.k,
                matryoshka=final.matryoshka,
                lora=lora if lora.is_dir() and weight == 1 else None,
            )
        tuned = [*trainings[0], final] if len(trainings[0]) > 1 else [final]
        placed, is_local = placed_in(config, Path.cwd()), isinstance(job.base, LocalEncoder)  # whoever reads it may stand elsewhere
        manifest = {
            "embedfit": version("embedfit"),
            "config": placed.model_dump(),
            "data": {"digest": job.dataset.digest(), "queries": len(job.dataset.judged), "documents": len(job.dataset.corpus)},
            "base": {"name": placed.model.name if is_local else job.base.name, "fingerprint": job.base.fingerprint},
            "model": str((model.folder if isinstance(model, LocalEncoder) else final.model).relative_to(folder)),
            "fingerprint": model.fingerprint,
            "identity": model.identity if isinstance(model, LocalEncoder) else None,
            "split": [
                {part: len(getattr(split, part)) for part in ("train", "dev", "test")} | {"seen": sum(job.seen[id] for id in split.test)}
                for split in job.splits
            ],
            "tuning": [{"epoch": one.epoch, "tokens": one.tokens, "seconds": one.seconds, "candidates": one.candidates} for one in tuned],
            "seconds": round(time.monotonic() - started, 3),
            "findings": [vars(finding) for finding in findings],
            "others": [other.name for other in others],
            "forms": [{**vars(form), "passed": form.passed} for form in forms],
            "forgetting": forgetting.to_dict() if forgetting else None,
            "bought": vars(job.base.spent) if isinstance(job.base, RemoteEncoder) else None,
        }
        queries = per_query(job.dataset, comparison, base_run, runs[0])
        published = _own_scores(job, model) if len(tuned) > 1 or len(runs) > 1 else None
        report = Report(
            config.name,
            comparison,
            queries,
            _facts(job, tuned),
            tuple(others),
            _notes(job, forgetting, final=True),
            tuned[0].history if len(tuned) == 1 and tuned[0].epoch else (),
            alerts=alerts(findings),
            documents=dict(zip(job.dataset.corpus, job.dataset.document_texts(job.template), strict=True)),
            suspects=suspects,
            seeds=_seeds(comparison),
            forms=forms,
            forgetting=forgetting,
        )
        _write(folder, comparison, tuple(others), queries, suspects, manifest, report, published)
        with tracking(config.name, folder, wanted=config.track.langwatch) as tracker:
            if tracker:
                measured = [(comparison.base, base_run), (comparison.tuned, runs[0])]
                for scores, run in measured:
                    tracker.add(public_name(scores.name), job.test, run, scores, template=job.template)
    return read_result(folder, reused=False)


def run_curve(config: Config, points: int) -> tuple[Path, Curve]:
    """Measure models that were trained on more and more of the train part. Returns the run directory and the curve.

    Args:
        config: All settings.
        points: How many sizes there are, each twice the one before.

    Raises:
        EmbedfitError: With one line that says what to do.
    """
    check_installed(config, trains=True)
    note_unused(config, "curve")
    job = Job.of(config)
    check_method(job.base, config.tune, config.track.report_to)
    findings = job.findings
    most = min(len(split.train) for split in job.splits)
    if not most >> (points - 1):
        raise ConfigError(f"{points} points, each half of the next, are too many for {most:,} training queries; fix: fewer points")
    folder = job.folder("-curve", more=[str(points)])
    with locked(folder):
        base = job.dense(job.base).search(job.test, job.depth)

        def train_and_search(train: Dataset, test: Dataset, where: Path) -> Run:
            tuned = tune_part(job, train, None, where, {})
            using = job.engine.encoder(tuned.encoder)  # not cached: the model is not kept
            return DenseRetriever(using, job.template, job.engine.top_k).search(test, job.depth)

        found = learning_curve(
            job.dataset,
            job.splits,
            train_and_search,
            folder,
            base=base,
            metric=job.metric,
            sizes=sorted({most >> step for step in range(points)}),
            identity=folder.name,
            group_by=config.split.group_by,
            seed=config.split.seed,
        )
        page = curve_html(
            f"{config.name}: learning curve",
            found.sentence,
            found.points[1:],
            metric=found.metric,
            untuned=found.points[0].value,
            fitted=[(point.pairs, point.value) for point in found.fitted if point.pairs],
            predictions=found.forecasts,
            notes=_notes(job),
            alerts=alerts(findings),
        )
        _write_found(folder, "curve", found, page)
    return folder, found


def run_ladder(config: Config) -> tuple[Path, Ladder]:
    """Measure every method on the same held-out queries. Returns the run directory and the ladder.

    Raises:
        EmbedfitError: With one line that says what to do.
    """
    chosen = check_rungs(config.ladder.rungs)
    check_installed(config, trains=True)
    if "lora" in config.ladder.rungs:
        check_package("peft", extra="lora")
    note_unused(config, "ladder")
    job = Job.of(config)
    findings = job.findings
    richer = config.ladder.document_template or richer_template(job.dataset, job.template)
    folder = job.folder("-ladder", more=[richer or ""])
    with locked(folder):
        console.note(f"{len(job.test.queries):,} held-out queries; what is found is kept in {folder}")
        setting = Setting(job.base, config, job.template, richer, job.engine, tuple(job.others))
        found = climb(setting, job.dataset, job.splits, folder, chosen)
        page = ladder_html(
            f"{config.name}: ladder",
            found,
            notes=(*_notes(job), *([_MIXED] if job.others else [])),
            alerts=alerts(findings),
        )
        _write_found(folder, "ladder", found, page)
    return folder, found


def read_result(folder: str | Path, *, reused: bool = True) -> Result:
    """Read a finished run directory.

    Raises:
        DataError: It is not finished, or not a run directory.
    """
    import pandas as pd

    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        said = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        queries = pd.read_parquet(folder / "queries.parquet")
    except (OSError, ValueError) as error:
        if not folder.is_dir():
            siblings = [path.name for path in folder.parent.glob("*") if path.is_dir()]
            raise DataError(str(folder), f"does not exist{did_you_mean(folder.name, siblings)}", expected="a run directory") from None
        raise DataError(
            str(folder), f"is not a finished run directory: {error}", fix="run 'embedfit run' again; it goes on where it was"
        ) from None
    ids = tuple(queries.query_id)

    def scores(prefix: str, name: str) -> Scores:
        columns = {
            name.removeprefix(prefix): queries[name].to_numpy() for name in map(str, queries) if name.startswith(prefix) and "@" in name
        }
        groups = queries["group"].to_numpy() if "group" in queries else None
        return Scores(name, ids, columns, queries[f"{prefix}rank"].to_numpy(), groups)

    seen = queries.seen.tolist() if "seen" in queries else None
    comparison = Comparison.from_dict(said, scores("base_", said["base"]), scores("tuned_", said["tuned"]), seen)
    others = tuple(scores(f"{name.lower()}_", name) for name in manifest["others"])
    findings = tuple(Finding(**{**row, "ids": tuple(row["ids"])}) for row in manifest["findings"])
    return Result(folder, comparison, others, findings, manifest, reused)


def _forgetting(job: Job, training: Sequence[Tuned], final: Tuned, general: Dataset) -> Forgetting | None:
    """Return what the merges of base and tuned model keep; None for an adapter, which cannot be merged."""
    keep = job.config.general.keep
    if job.config.tune.method == "adapter":
        return None
    # The sweep encodes the corpus once for each weight: too much where the corpus is what takes the time.
    cheap = sum(map(len, job.dataset.document_texts(job.template))) <= _CHEAP_CHARACTERS
    return measure_forgetting(
        local(job.base),
        local(final.encoder),
        general,
        held_out=[(local(one.encoder), test) for one, (_, _, test) in zip(training, job.parts, strict=True)],
        template=job.template,
        weights=WEIGHTS if cheap or keep is not None else (0.0, 1.0),
        keep=keep,
        metric=job.metric,
        ks=job.config.evaluate.k,
    )


def _own_scores(job: Job, model: Encoder) -> Scores | None:
    """Return the scores of the run directory's model itself, for the check after publishing; None where it cannot be published.

    With folds it was trained on these queries, and with several seeds it is one of several: its scores are no evidence.
    """
    return job.scored(job.dense(model).search(job.test, job.depth), "published") if isinstance(model, LocalEncoder) else None


def _merged(base: LocalEncoder, tuned: LocalEncoder, weight: float, folder: Path) -> LocalEncoder:
    from embedfit.tune.merge import merge_models

    return merge_models(base, tuned, weight, folder)


def _searched(job: Job, training: Sequence[Tuned], weight: float) -> Run:
    """Return the Run on all held-out queries: each part by the model that was trained without it, merged with the base if asked for."""
    tests = [test for _, _, test in job.parts]
    if weight < 1:
        held_out = [(local(one.encoder), test) for one, test in zip(training, tests, strict=True)]
        return merged_runs(local(job.base), held_out, [weight], job.template, job.depth)[weight]
    return joined([job.dense(one.encoder).search(test, job.depth) for one, test in zip(training, tests, strict=True)])


def read_general(config: GeneralConfig) -> Dataset:
    """Return the general set that a configuration names; by default the one that ships with embedfit."""
    return load(config.queries, config.documents) if config.queries else general_set()


def alerts(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Return what must not be missed of some findings: leaks that were allowed."""
    leaks = [finding for finding in findings if finding.kind == "leak"]
    if not leaks:
        return ()
    said = f"{len(leaks):,} held-out queries say what training queries say, and were allowed to: the figures below are too good."
    return (said, *(leak.message for leak in leaks[:LISTED]))


def _notes(job: Job, forgetting: Forgetting | None = None, *, final: bool = False) -> tuple[str, ...]:
    """Return what should be known of the figures."""
    notes = []
    writers = Counter(str(query.metadata["generated"]["model"]) for query in job.test.queries.values() if _written_by_llm(query.metadata))
    if writers:
        names = ", ".join(name for name, _ in writers.most_common())
        notes.append(
            f"{writers.total():,} of the {len(job.test.queries):,} held-out queries were written by an LLM ({names}): "
            "the figures say how well such queries are answered, and people may ask otherwise."
        )
    if len(job.splits) > 1:
        notes.append(
            f"Every query is scored by a model that never saw it: {len(job.splits)} models, each on the fold that it was trained without."
        )
    if job.config.split.by == "documents":
        notes.append(_of_new_answers(job))
    elif job.config.split.group_by and len(job.splits) == 1 and _left_out(job):
        field = job.config.split.group_by
        notes.append(f"Queries left out of training, because they share a {field} with a held-out one or leak: {_left_out(job):,}.")
    if len(job.splits) > 1 and final:
        notes.append(
            f"The model in this directory was trained in the same way on all {len(job.dataset.judged):,} queries; the figures stand for it."
        )
    if forgetting and forgetting.warning:
        notes.append(forgetting.warning)
    return (*notes, *warnings(job.findings))


def _of_new_answers(job: Job) -> str:
    """Return what a split by documents means for the figures."""
    asked = {id: set(job.dataset.relevant(id)) for id in job.dataset.judged}
    total = len(set().union(*asked.values()))
    counts = [len(set().union(*(asked[id] for id in split.test))) for split in job.splits]
    held_out = f"{counts[0]:,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
    each = "" if len(counts) == 1 else " in each fold"
    sentence = (
        f"{held_out} of the {total:,} documents that are asked for were held out{each}, with all of their queries: "
        "the figures say how well answers are found that training never saw."
    )
    if len(counts) == 1 and _left_out(job):
        sentence += f" Queries left out of training, because they share an answer with a held-out one or leak: {_left_out(job):,}."
    return sentence


def _left_out(job: Job) -> int:
    """Return how many judged queries are in no part of the one split."""
    [split] = job.splits
    return len(job.dataset.judged) - sum(map(len, (split.train, split.dev, split.test)))


def _written_by_llm(metadata: Mapping[str, Any]) -> bool:
    origin = metadata.get("generated")
    return isinstance(origin, dict) and "model" in origin


def _seeds(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Return what each seed came to, in words."""
    seeds, metric = comparison.seeds, comparison.metric
    if not seeds:
        return ()
    each = [(f"{metric_label(metric)}, seed {number + 1}", f"{value:.3f}") for number, value in enumerate(seeds.means[metric])]
    spread = ("standard deviation over seeds", f"{seeds.spread[metric]:.3f}")
    return (*each, spread, ("standard error from the draw of queries", f"{seeds.query_error[metric]:.3f}"))


def _facts(job: Job, tuned: Sequence[Tuned]) -> dict[str, str]:
    """Return how it was done, in words."""
    config, settings, first = job.config, job.config.tune, job.splits[0]
    parts = f"{len(first.train):,} train / {len(first.dev):,} dev / {len(first.test):,} test queries"
    weights = "all weights" if settings.train_embeddings else "all weights but the token embeddings"
    trained = f"LoRA of rank {settings.lora_rank} on all linear layers" if settings.method == "lora" else weights
    kind = tuned[0].candidates
    spent = f"{sum(one.seconds for one in tuned):.0f} s"
    if kind is None:
        tuning = f"a linear map of the query's vector, fitted on frozen vectors; scale {settings.scale:g}"
    else:
        tuning = (
            f"{trained}; softmax over {_CANDIDATES[kind]}, scale {settings.scale:g}, "
            f"AdamW at {settings.learning_rate_with(kind):g}, batch {settings.batch_size}, at most {settings.epochs_with(kind)} epochs; "
            f"kept: epoch {', '.join(str(one.epoch) for one in tuned)}"
        )
        spent += f" for {sum(one.tokens or 0 for one in tuned):,} tokens"
    return {
        "Data": f"{len(job.dataset.judged):,} labelled queries, {len(job.dataset.corpus):,} documents ({Path(config.data.queries).name})",
        "Split": f"{len(job.splits)} folds, each {parts}" if len(job.splits) > 1 else f"{parts}, seed {config.split.seed}",
        "A document says": job.template,
        "Base model": f"{job.base.name} (fingerprint {job.base.fingerprint[:12]})",
        "Tuning": tuning,
        "Training time": spent,
        "Software": ", ".join(f"{name} {version(name)}" for name in ("embedfit", "sentence-transformers", "transformers", "torch")),
    }


def _write(
    folder: Path,
    comparison: Comparison,
    others: tuple[Scores, ...],
    queries: pd.DataFrame,
    suspects: pd.DataFrame,
    manifest: dict[str, Any],
    report: Report,
    published: Scores | None,
) -> None:
    """Write the run directory's files, the manifest last."""
    whole = queries.assign(
        **{f"{other.name.lower()}_{name}": values for other in others for name, values in other.values.items()},
        **{f"{other.name.lower()}_rank": other.ranks for other in others},
        **({f"published_{comparison.metric}": published.values[comparison.metric]} if published else {}),
    )
    with writing(folder / "queries.parquet") as file:
        whole.to_parquet(file, index=False)
    write_suspects(suspects, folder / "suspects.csv")
    with writing(folder / "comparison.json") as file:
        file.write(json.dumps(comparison.to_dict(), indent=1).encode())
    with writing(folder / "recall.png") as file:
        comparison.plot().savefig(file, dpi=150, format="png")
    with writing(folder / "report.html") as file:
        file.write(html(report).encode())
    with writing(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1, default=_plain).encode())


def _write_found(folder: Path, name: str, found: Curve | Ladder, page: str) -> None:
    """Write what a curve or a ladder found: as JSON, as a chart, and as a page."""
    with writing(folder / f"{name}.json") as file:
        file.write(json.dumps(found.to_dict(), indent=1, default=_plain).encode())
    with writing(folder / f"{name}.png") as file:
        found.plot().savefig(file, dpi=150, format="png")
    with writing(folder / "report.html") as file:
        file.write(page.encode())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot stand in JSON")
