"""A finished run, read from its directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit.config import Config
from embedfit.data.check import Finding
from embedfit.encode.encoder import Encoder
from embedfit.encode.named import encoder_of
from embedfit.errors import DataError, did_you_mean
from embedfit.evaluation.comparison import Comparison, Verdict
from embedfit.evaluation.score import Scores

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
    """

    folder: Path
    comparison: Comparison
    alone: Comparison
    others: tuple[Scores, ...]
    findings: tuple[Finding, ...]
    manifest: dict[str, Any]
    reused: bool = False

    @property
    def model(self) -> Path:
        """The model to use: an ordinary sentence-transformers folder."""
        return self.folder / str(self.manifest["model"])

    @property
    def searcher(self) -> Searcher:
        """What is to be deployed: the tuned model, the documents, the labelled queries, and probabilities. Loaded at each access."""
        from embedfit.searcher.searcher import Searcher

        return Searcher.load(self.folder / "searcher")

    @property
    def verdict(self) -> Verdict:
        """The verdict on the configured metric: better, worse, or no difference shown."""
        return self.comparison[self.comparison.metric].verdict

    @property
    def encoder(self) -> Encoder:
        """The tuned model, at the precision of its measurement. Each access returns a new encoder."""
        return encoder_of(Config.model_validate(self.manifest["config"]).model, str(self.model))

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

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
    ids = tuple(queries.query_id)

    def scores(prefix: str, name: str) -> Scores:
        columns = {
            name.removeprefix(prefix): queries[name].to_numpy() for name in map(str, queries) if name.startswith(prefix) and "@" in name
        }
        groups = queries["group"].to_numpy() if "group" in queries else None
        return Scores(name, ids, columns, queries[f"{prefix}rank"].to_numpy(), groups)

    seen = queries.seen.tolist() if "seen" in queries else None
    comparison = Comparison.from_dict(payload, scores("base_", payload["base"]), scores("tuned_", payload["tuned"]), seen)
    alone = comparison
    if (folder / "alone.json").exists():  # not in a run of an earlier version
        payload = json.loads((folder / "alone.json").read_text(encoding="utf-8"))
        alone = Comparison.from_dict(payload, scores("base_", payload["base"]), scores("alone_", payload["tuned"]), seen)
    baselines = tuple(scores(f"{name.lower()}_", name) for name in manifest["others"])
    findings = tuple(Finding(**{**row, "ids": tuple(row["ids"])}) for row in manifest["findings"])
    return Result(folder, comparison, alone, baselines, findings, manifest, reused)
