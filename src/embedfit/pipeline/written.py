"""The files of a run directory. The manifest is written last and marks the directory as complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedfit.evaluation.comparison import Comparison
from embedfit.evaluation.score import Scores
from embedfit.files import writing
from embedfit.report.pages import html
from embedfit.report.tables import Report
from embedfit.studies.forecast import Curve
from embedfit.studies.ladder import Ladder
from embedfit.studies.suspects import write_suspects

if TYPE_CHECKING:
    import pandas as pd


def write_run(
    folder: Path,
    comparison: Comparison,
    alone: Comparison,
    baselines: tuple[Scores, ...],
    queries: pd.DataFrame,
    suspects: pd.DataFrame,
    manifest: dict[str, Any],
    report: Report,
    published: Scores | None,
) -> None:
    """Write the run directory's files, the manifest last."""
    import pandas as pd

    columns: dict[str, Any] = {f"{scores.name.lower()}_{name}": values for scores in baselines for name, values in scores.values.items()}
    columns |= {f"{scores.name.lower()}_rank": scores.ranks for scores in baselines}
    columns |= {f"alone_{name}": values for name, values in alone.tuned.values.items()} | {"alone_rank": alone.tuned.ranks}
    if published:
        columns[f"published_{comparison.metric}"] = published.values[comparison.metric]
    frame = pd.concat([queries, pd.DataFrame(columns, index=queries.index)], axis=1)
    with writing(folder / "queries.parquet") as file:
        frame.to_parquet(file, index=False)
    write_suspects(suspects, folder / "suspects.csv")
    with writing(folder / "comparison.json") as file:
        file.write(json.dumps(comparison.to_dict(), indent=1).encode())
    with writing(folder / "alone.json") as file:
        file.write(json.dumps(alone.to_dict(), indent=1).encode())
    with writing(folder / "recall.png") as file:
        comparison.plot().savefig(file, dpi=150, format="png")
    with writing(folder / "report.html") as file:
        file.write(html(report).encode())
    with writing(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1, default=_plain).encode())


def write_study(folder: Path, name: str, study: Curve | Ladder, page: str) -> None:
    """Write a curve or a ladder as JSON, as a chart and as an HTML page."""
    with writing(folder / f"{name}.json") as file:
        file.write(json.dumps(study.to_dict(), indent=1, default=_plain).encode())
    with writing(folder / f"{name}.png") as file:
        study.plot().savefig(file, dpi=150, format="png")
    with writing(folder / "report.html") as file:
        file.write(page.encode())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot stand in JSON")
