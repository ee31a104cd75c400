"""A finished run, read from its directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit.config import Config
from embedfit.data.check import Finding
from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder
from embedfit.encode.local import LocalEncoder
from embedfit.encode.named import encoder_of
from embedfit.errors import ConfigError, DataError, ModelError, did_you_mean
from embedfit.evaluation.comparison import Comparison, Verdict
from embedfit.evaluation.score import Scores
from embedfit.loading import usable
from embedfit.pipeline.parts import read
from embedfit.retrieve.rerank import LocalReranker
from embedfit.studies.deployable import Deployable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from embedfit.searcher.searcher import Searcher


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: Run directory.
        comparison: Base model and searcher on the held-out queries, paired by query.
        alone: Base and tuned model on the same queries, each by its documents' vectors alone.
        others: Scores of further baselines on the same queries.
        findings: Problems, warnings and notes about the data.
        manifest: Contents of manifest.json: configuration, identities, sizes and times.
        reused: Whether the run was already finished, so that nothing was computed.
        today: Base model and searcher on the newest picks; None if the run was not given any.
    """

    folder: Path
    comparison: Comparison
    alone: Comparison
    others: tuple[Scores, ...]
    findings: tuple[Finding, ...]
    manifest: dict[str, Any]
    reused: bool = False
    today: Comparison | None = None

    @property
    def model(self) -> Path:
        """The model to use: an ordinary sentence-transformers folder."""
        return self.folder / str(self.manifest["model"])

    @property
    def searcher(self) -> Searcher:
        """What is to be deployed: the tuned model, the documents, the labelled queries, and probabilities. Loaded at each access."""
        from embedfit.searcher.searcher import Searcher

        if is_reranker(self):
            raise ConfigError(f"{self.folder}: tuned a reranker, and has no searcher; fix: tune.method = 'full' for one")
        return Searcher.load(self.folder / "searcher")

    @property
    def deployed(self) -> str:
        """What the base is compared with, in a word: ``searcher``, or ``tuned`` for the tuned model alone."""
        return str(self.manifest.get("deployed", "tuned"))

    @property
    def advice(self) -> tuple[str, ...]:
        """Sentences on what was gained by tuning, and on the answers that need no person."""
        return tuple(self.manifest.get("advice", ()))

    @property
    def verdict(self) -> Verdict:
        """The verdict on the configured metric: better, worse, or no difference shown."""
        return self.comparison[self.comparison.metric].verdict

    @property
    def encoder(self) -> Encoder:
        """The tuned model, at the precision of its measurement. Each access returns a new encoder."""
        return encoder_of(config_of(self).model, str(self.model))

    @property
    def reranker(self) -> LocalReranker:
        """The tuned reranker, at the precision of its measurement.

        Raises:
            ModelError: The run tuned no reranker.
        """
        return LocalReranker(self.model, precision=config_of(self).model.precision)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    @property
    def deploy(self) -> Path:
        """Folder of the forms that are cheaper to run, which ``embedfit export`` makes."""
        return self.folder / "deploy"

    @property
    def deployables(self) -> list[Deployable]:
        """Measurements of these forms.

        Raises:
            DataError: Their file is damaged, or of another version.
        """
        path = self.deploy / "forms.json"
        try:
            return [Deployable.from_dict(row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DataError(str(path), "cannot be read", fix=f"remove {self.deploy}, and export again") from None

    @property
    def rejected_forms(self) -> dict[str, str]:
        """Forms that the settings asked for and that are not there -> the reason."""
        path = self.folder / "rejected_forms.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric and k."""
        return self.comparison.to_frame()

    def plot(self) -> Figure:
        """Return the bar chart of base and tuned, with intervals."""
        return self.comparison.plot()

    def __repr__(self) -> str:
        return f"Result({str(self.folder)!r}, {self.comparison.sentence!r})"

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()


def read_result(folder: str | Path, *, reused: bool = True) -> Result:
    """Read a finished run directory.

    Raises:
        DataError: The folder does not exist, or is not a finished run directory.
    """
    import pandas as pd

    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        payload = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        queries = pd.read_parquet(folder / "queries.parquet")
    except (OSError, ValueError) as error:
        if not folder.is_dir():
            siblings = [path.name for path in folder.parent.glob("*") if path.is_dir()]
            raise DataError(str(folder), f"does not exist{did_you_mean(folder.name, siblings)}", expected="a run directory") from None
        raise DataError(
            str(folder), f"is not a finished run directory: {error}", fix="run 'embedfit run' again; it continues where it stopped"
        ) from None

    def scores(prefix: str, name: str) -> Scores:
        return _scores(queries, prefix, name)

    seen = queries.seen.tolist() if "seen" in queries else None
    comparison = Comparison.from_dict(payload, scores("base_", payload["base"]), scores("tuned_", payload["tuned"]), seen)
    alone = comparison
    if (folder / "alone.json").exists():  # not in a run of an earlier version
        payload = json.loads((folder / "alone.json").read_text(encoding="utf-8"))
        alone = Comparison.from_dict(payload, scores("base_", payload["base"]), scores("alone_", payload["tuned"]), seen)
    baselines = tuple(scores(f"{name.lower()}_", name) for name in manifest["others"])
    findings = tuple(Finding(**{**row, "ids": tuple(row["ids"])}) for row in manifest["findings"])
    return Result(folder, comparison, alone, baselines, findings, manifest, reused, _today(folder))


def _scores(queries: pd.DataFrame, prefix: str, name: str) -> Scores:
    """Return the scores in the columns of a frame whose names begin with a prefix."""
    columns = {column.removeprefix(prefix): queries[column].to_numpy() for column in map(str, queries) if _is_of(column, prefix)}
    groups = queries["group"].to_numpy() if "group" in queries else None
    return Scores(name, tuple(queries.query_id), columns, queries[f"{prefix}rank"].to_numpy(), groups)


def _is_of(column: str, prefix: str) -> bool:
    return column.startswith(prefix) and "@" in column


def _today(folder: Path) -> Comparison | None:
    """Return the comparison on the newest picks; None if there are none."""
    import pandas as pd

    if not (folder / "today.json").exists():
        return None
    payload = json.loads((folder / "today.json").read_text(encoding="utf-8"))
    queries = pd.read_parquet(folder / "today.parquet")
    return Comparison.from_dict(payload, _scores(queries, "base_", payload["base"]), _scores(queries, "tuned_", payload["tuned"]))


def check_unchanged(result: Result) -> None:
    """Check that the model of a run is the one that was measured.

    Raises:
        ModelError: A file of the model has changed.
    """
    identity = result.manifest.get("identity")
    if not identity:
        return
    if is_reranker(result):
        now = LocalReranker(result.model).fingerprint
    else:
        now = LocalEncoder(result.model, model_kwargs=config_of(result).model.loading).whole_identity
    if now != identity:
        raise ModelError(f"{result.model}: is not the model that was measured: a file in it has changed; fix: restore it, or run again")


def check_there(result: Result) -> None:
    """Check that the model of a run is where the run put it.

    Raises:
        ModelError: It is gone.
    """
    if not result.model.exists():
        raise ModelError(f"{result.model}: the run's model is gone; fix: restore it, or run again")


def is_reranker(result: Result) -> bool:
    """Return whether a run tuned a reranker."""
    return bool(result.manifest.get("reranker"))


def config_of(result: Result) -> Config:
    """Return the settings of a run, without an implementation of attention that this machine does not have."""
    config = Config.model_validate(result.manifest["config"])
    loading = usable(config.model.loading, config.name)
    if loading == config.model.loading:
        return config
    model = config.model.model_copy(update={"attn_implementation": None, "model_kwargs": loading})
    return config.model_copy(update={"model": model})


def data_of(result: Result) -> Dataset:
    """Return the data of a run, if it has not changed.

    Raises:
        DataError: The data is gone or has changed, or the run is too old to have recorded its digest.
    """
    settings = config_of(result)
    config = settings.data
    recorded = result.manifest.get("data")
    if not recorded:
        raise DataError(str(result.folder), "was made before runs kept a digest of their data", fix="run again to publish any of it")
    data = read(config, model=settings.model)
    if data.digest() != recorded["digest"]:
        raise DataError(
            config.queries,
            "has changed since the run (or its documents have)",
            expected=f"{recorded['queries']:,} labelled queries and {recorded['documents']:,} documents as they were",
            fix="restore it, run again, or publish the model alone",
        )
    return data


def held_out_of(result: Result, metric: str) -> tuple[dict[str, str], dict[str, float]]:
    """Return (held-out query id -> text, query id -> score of the run's model); the scores are empty if the run did not keep them."""
    import pandas as pd

    frame = pd.read_parquet(result.folder / "queries.parquet")
    texts = dict(zip(frame.query_id, frame["query"], strict=True))
    column = next((name for name in (f"published_{metric}", f"alone_{metric}", f"tuned_{metric}") if name in frame), None)
    if column is None or (not column.startswith("published_") and len(result.manifest["split"]) > 1):
        return texts, {}
    return texts, dict(zip(frame.query_id, map(float, frame[column]), strict=True))
