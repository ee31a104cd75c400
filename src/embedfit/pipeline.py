"""The whole way, from files to a verdict.

data -> check -> split -> encode -> retrieve -> score -> tune -> compare -> report
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedfit import console
from embedfit.check import Finding, check_dataset, check_truncation, warnings
from embedfit.compare import Comparison, Difference, compare_scores
from embedfit.config import Config, DataConfig, ModelConfig
from embedfit.data import DOCUMENT_TEMPLATE, Dataset, load, text_key, writing
from embedfit.encode import CachedEncoder, Encoder, LocalEncoder
from embedfit.errors import ConfigError, DataError, ModelError, StorageError
from embedfit.records import record_type
from embedfit.report import Report, html, per_query
from embedfit.retrieve import BM25Retriever, DenseRetriever, Run, joined
from embedfit.score import KS, Scores, score_run
from embedfit.split import Split, split_dataset, split_folds

if TYPE_CHECKING:
    import pandas as pd

    from embedfit.tune.full import Tuned

_DEPTH = 100
"""How far down a ranking the right answer is looked for."""


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
        """The tuned model: an ordinary sentence-transformers folder."""
        return self.folder / "model"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric and k."""
        return self.comparison.to_frame()

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()


def run(config: Config) -> Result:
    """Measure a model, tune it, measure it again on the same held-out queries, and write down what came of it.

    The run directory's name holds a hash of the data, the base weights and the settings. The same call again finds
    the finished directory and does nothing; after a crash it goes on where it was.

    Raises:
        EmbedfitError: With one line that says what to do.
    """
    dataset = read(config.data)
    findings = check_dataset(dataset)
    for finding in findings:
        if finding.level == "problem":
            raise DataError(config.data.queries, finding.message)
    template = config.data.document_template
    dataset.document_texts(template)  # refuse a wrong template now, not after the queries are encoded
    base = encoder(config.model)
    identity = _identity(config, dataset, base)
    folder = Path(config.output) / f"{config.name}-{identity[:10]}"
    with locked(folder):
        if (folder / "manifest.json").exists():
            return read_result(folder)
        started = time.monotonic()
        splits = _splits(config, dataset)
        test = dataset.select([id for part in splits for id in part.test])
        findings += check_truncation(dataset, base.loaded, template)
        depth = max(_DEPTH, *config.evaluate.k)
        others = []
        if config.evaluate.bm25:
            others.append(score_run(BM25Retriever(template).search(test, depth), test.qrels, ks=config.evaluate.k, name="BM25"))
        base_run = DenseRetriever(CachedEncoder(base), template).search(test, depth)
        base_scores = score_run(base_run, test.qrels, ks=config.evaluate.k, name=base.name)
        tuned, tuned_run, model = _tuned(config, dataset, splits, base, folder, depth)
        tuned_scores = score_run(tuned_run, test.qrels, ks=config.evaluate.k, name=f"{base.name}, tuned")
        comparison = compare_scores(base_scores, tuned_scores, metric=config.evaluate.metric, seed=config.split.seed, held_out=True)
        check_parity(model, test.query_texts()[:64])
        manifest = {
            "embedfit": version("embedfit"),
            "identity": identity,
            "config": config.model_dump(),
            "base": {"name": base.name, "fingerprint": base.fingerprint},
            "tuned": {"folder": "model", "fingerprint": model.fingerprint},
            "split": [{part: len(getattr(some, part)) for part in ("train", "dev", "test")} for some in splits],
            "tuning": [{"epoch": one.epoch, "tokens": one.tokens, "seconds": one.seconds, "candidates": one.candidates} for one in tuned],
            "seconds": round(time.monotonic() - started, 3),
            "findings": [vars(finding) for finding in findings],
            "others": [other.name for other in others],
        }
        queries = per_query(dataset, comparison, base_run, tuned_run)
        _write(
            folder,
            comparison,
            tuple(others),
            queries,
            manifest,
            _report(config, dataset, splits, tuned, comparison, others, queries, findings, base),
        )
    return read_result(folder, reused=False)


def read(config: DataConfig, problems: list[DataError] | None = None) -> Dataset:
    """Read the data set that a configuration names; see `load`."""
    if config.query_template and not config.record:
        raise ConfigError("data.query_template needs data.record: it is filled from a record's fields")
    if Path(config.queries).is_dir() and (config.documents or config.record):
        raise ConfigError(
            f"data.queries is the folder {config.queries}, which has its own documents; fix: drop data.documents and data.record"
        )
    record = record_type(config.record, template=config.query_template, label=config.label) if config.record else None
    return load(config.queries, config.documents, query=config.query, label=config.label, record=record, problems=problems)


def encoder(config: ModelConfig, name: str | None = None) -> LocalEncoder:
    """Return the encoder that a configuration names, or another model with its prompts and precision."""
    return LocalEncoder(
        name or config.name, query_prompt=config.query_prompt, document_prompt=config.document_prompt, precision=config.precision
    )


def measure(encoder: Encoder, dataset: Dataset, *, template: str = DOCUMENT_TEMPLATE, ks: Sequence[int] = KS) -> Scores:
    """Return how well an encoder retrieves, for each query of a data set; its vectors are cached on disk."""
    run = DenseRetriever(CachedEncoder(encoder), template).search(dataset, max(ks))
    return score_run(run, dataset.qrels, ks=ks, name=encoder.name)


def evaluate(dataset: Dataset, encoders: Sequence[Encoder], *, templates: Sequence[str], ks: Sequence[int] = KS) -> pd.DataFrame:
    """Measure every encoder with every document template.

    Args:
        dataset: Every judged query is scored.
        encoders: Their vectors are cached on disk.
        templates: What a document says.
        ks: Where to cut the rankings.

    Returns:
        A tidy frame: model, document, metric, k, value (the mean over queries).
    """
    import pandas as pd

    judged = dataset.select(dataset.judged)
    frames = []
    for one in encoders:
        for template in templates:
            frame = measure(one, judged, template=template, ks=ks).to_frame()
            frame.insert(1, "document", template)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def seen_in_training(model: LocalEncoder, dataset: Dataset) -> int:
    """Return how many queries of a data set a model was tuned on or chosen by, as far as its folder tells."""
    path = model.folder.parent / "tuning.json"
    if not path.exists():
        return 0
    seen = set(json.loads(path.read_text(encoding="utf-8")).get("seen", ()))
    return sum(text_key(query.text) in seen for query in dataset.queries.values())


def check_parity(encoder: LocalEncoder, texts: Sequence[str]) -> None:
    """Make sure that a saved model, loaded by the library alone, gives the vectors that were measured.

    Raises:
        ModelError: It does not.
    """
    from sentence_transformers import SentenceTransformer

    measured = CachedEncoder(encoder).encode(texts, "query")
    plain = SentenceTransformer(str(encoder.folder), local_files_only=True)
    loaded = plain.encode_query(list(texts), normalize_embeddings=True, show_progress_bar=False)
    similarity = (measured * loaded).sum(axis=1).min()
    # Measured in bfloat16, a vector is off by about one part in 250 (8 bits); in fp32 only the order of sums differs.
    tolerance = 5e-3 if encoder.loaded.bf16 else 1e-5
    if similarity < 1 - tolerance:
        raise ModelError(f"{encoder.folder}: the saved model gives other vectors than were measured (cosine {similarity:.6f}, expected 1)")


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
        raise DataError(
            str(folder), f"is not a finished run directory: {error}", fix="run 'embedfit run' again; it goes on where it was"
        ) from None
    ids = tuple(queries.query_id)

    def scores(prefix: str, name: str) -> Scores:
        columns = {
            name.removeprefix(prefix): queries[name].to_numpy() for name in map(str, queries) if name.startswith(prefix) and "@" in name
        }
        return Scores(name, ids, columns, queries[f"{prefix}rank"].to_numpy())

    differences = tuple(Difference(**{key: value for key, value in row.items() if key != "verdict"}) for row in said["differences"])
    comparison = Comparison(scores("base_", said["base"]), scores("tuned_", said["tuned"]), differences, said["metric"], held_out=True)
    others = tuple(scores(f"{name.lower()}_", name) for name in manifest["others"])
    findings = tuple(Finding(**{**row, "ids": tuple(row["ids"])}) for row in manifest["findings"])
    return Result(folder, comparison, others, findings, manifest, reused)


def _splits(config: Config, dataset: Dataset) -> list[Split]:
    said = config.split
    if said.folds:
        return split_folds(dataset, said.folds, dev=said.dev, seed=said.seed, group_by=said.group_by)
    return [one_split(config, dataset)]


def one_split(config: Config, dataset: Dataset) -> Split:
    """Return the train, dev and test parts that a configuration describes."""
    said = config.split
    return split_dataset(dataset, test=said.test, dev=said.dev, seed=said.seed, group_by=said.group_by)


def _tuned(
    config: Config, dataset: Dataset, splits: Sequence[Split], base: LocalEncoder, folder: Path, depth: int
) -> tuple[list[Tuned], Run, LocalEncoder]:
    """Tune once for each split. Returns what came of it, the Run on all test queries, and the final model."""
    from embedfit.tune.full import tune_model

    template = config.data.document_template
    runs, results = [], []
    for number, part in enumerate(splits):
        where = folder / "folds" / str(number) if config.split.folds else folder
        if config.split.folds:
            console.note(f"fold {number + 1} of {len(splits)}")
        results.append(
            tune_model(
                base, dataset.select(part.train), dataset.select(part.dev) if part.dev else None, where, config.tune, template=template
            )
        )
        encoder_of_fold = encoder(config.model, str(results[-1].folder))
        runs.append(DenseRetriever(CachedEncoder(encoder_of_fold), template).search(dataset.select(part.test), depth))
    if config.split.folds:
        # What was measured is the way of training; the model to use is trained that way on all there is.
        console.note("training on all queries")
        epochs = round(statistics.median(one.epoch for one in results))
        final = tune_model(
            base, dataset.select(dataset.judged), None, folder, config.tune.model_copy(update={"epochs": epochs}), template=template
        )
        results.append(final)
    return results, joined(runs), encoder(config.model, str(folder / "model"))


def _identity(config: Config, dataset: Dataset, base: LocalEncoder) -> str:
    """Return a hash of everything that the result depends on."""
    settings = config.model_dump(include={"split", "evaluate", "tune"})
    described = [version("embedfit"), dataset.digest(), config.data.document_template, base.fingerprint, settings]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _report(
    config: Config,
    dataset: Dataset,
    splits: Sequence[Split],
    tuned: Sequence[Tuned],
    comparison: Comparison,
    others: Sequence[Scores],
    queries: pd.DataFrame,
    findings: Sequence[Finding],
    base: LocalEncoder,
) -> Report:
    notes = []
    if config.split.folds:
        notes.append(
            f"Every query is scored by a model that never saw it: {len(splits)} models, each on the fold that it was trained without. "
            f"The model in this directory was trained in the same way on all {len(dataset.judged):,} queries; these figures stand for it."
        )
    notes += warnings(findings)
    first = splits[0]
    parts = f"{len(first.train):,} train / {len(first.dev):,} dev / {len(first.test):,} test queries"
    settings = config.tune
    trained = "all weights" if settings.train_embeddings else "all weights but the token embeddings"
    if settings.method == "lora":
        trained = f"LoRA of rank {settings.lora_rank} on all linear layers"
    candidates = "all documents" if tuned[0].candidates == "all" else "the batch's documents and random ones"
    facts = {
        "Data": f"{len(dataset.judged):,} labelled queries, {len(dataset.corpus):,} documents ({Path(config.data.queries).name})",
        "Split": f"{len(splits)} folds, each {parts}" if config.split.folds else f"{parts}, seed {config.split.seed}",
        "A document says": config.data.document_template,
        "Base model": f"{base.name} (fingerprint {base.fingerprint[:12]})",
        "Tuning": (
            f"{trained}; softmax over {candidates}, scale {settings.scale:g}, "
            f"AdamW at {settings.learning_rate:g}, batch {settings.batch_size}, at most {settings.epochs} epochs; "
            f"kept: epoch {', '.join(str(one.epoch) for one in tuned)}"
        ),
        "Training time": f"{sum(one.seconds for one in tuned):.0f} s for {sum(one.tokens for one in tuned):,} tokens",
        "Software": ", ".join(f"{name} {version(name)}" for name in ("embedfit", "sentence-transformers", "transformers", "torch")),
    }
    history = tuned[0].history if len(tuned) == 1 else ()
    return Report(config.name, comparison, queries, facts, tuple(others), tuple(notes), history)


def _write(
    folder: Path, comparison: Comparison, others: tuple[Scores, ...], queries: pd.DataFrame, manifest: dict[str, Any], report: Report
) -> None:
    """Write the run directory's files, the manifest last."""
    whole = queries.assign(
        **{f"{other.name.lower()}_{name}": values for other in others for name, values in other.values.items()},
        **{f"{other.name.lower()}_rank": other.ranks for other in others},
    )
    with writing(folder / "queries.parquet") as file:
        whole.to_parquet(file, index=False)
    with writing(folder / "comparison.json") as file:
        file.write(json.dumps(comparison.to_dict(), indent=1).encode())
    with writing(folder / "recall.png") as file:
        comparison.plot().savefig(file, dpi=150, format="png")
    with writing(folder / "report.html") as file:
        file.write(html(report).encode())
    with writing(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1, default=_plain).encode())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot stand in JSON")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a run directory.

    Raises:
        StorageError: There is one in it already, or the directory cannot be made.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise StorageError(f"{folder}: another embedfit is at work in it; fix: wait for it, or change 'name'") from None
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
