"""Checks of the data before anything is trained."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from typing import Any

from embedfit.data.check import Finding, check_dataset
from embedfit.data.dataset import Dataset
from embedfit.encode.named import encoder_of
from embedfit.errors import ConfigError, DataError, ModelError
from embedfit.pipeline.job import check_truncation
from embedfit.pipeline.needs import local
from embedfit.pipeline.parts import leaks, read
from embedfit.pipeline.source import Inputs, Model, Source


@dataclass(frozen=True)
class Check:
    """Result of checking a data set.

    Attributes:
        dataset: Data set without its bad rows.
        bad_rows: One error per row that could not be read.
        findings: Problems, warnings and notes.
        skipped: Reason why text lengths were not compared with the model's limit; empty if they were.
    """

    dataset: Dataset
    bad_rows: tuple[DataError, ...]
    findings: tuple[Finding, ...]
    skipped: str = ""

    @property
    def ok(self) -> bool:
        """Whether the data can be used: no bad row and no problem."""
        return not self.bad_rows and not any(finding.level == "problem" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return counts, bad rows and findings as JSON values, as ``embedfit check --json`` prints them."""
        return {
            "queries": len(self.dataset.judged),
            "documents": len(self.dataset.corpus),
            "bad_rows": [str(row) for row in self.bad_rows],
            "findings": [asdict(finding) for finding in self.findings],
            "skipped": self.skipped,
        }

    def __repr__(self) -> str:
        return "\n".join([repr(self.dataset), *self._lines()])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def _lines(self) -> list[str]:
        lines = [f"bad row: {row}" for row in self.bad_rows]
        lines += [f"{finding.level}: {finding.message}" for finding in self.findings]
        lines += [f"note: {self.skipped}"] if self.skipped else []
        return lines or ["No problems found."]


def check(source: Source, *, model: Model | None = None, **settings: Any) -> Check:
    """Check the data: labels, conflicts, leaks between the parts, bad rows, and texts that are too long for the model.

    Args:
        source: A Dataset, a Config, or the path of an embedfit.toml.
        model: Model whose maximum length applies; by default that of the settings, and none for a Dataset.
        settings: Sections of embedfit.toml, such as ``split={"folds": 5}``.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The data cannot be read at all.
    """
    inputs = Inputs.of(source, model, settings)
    config, bad_rows = inputs.config, list[DataError]()
    dataset = read(config.data, bad_rows, model=config.model) if inputs.dataset is None else inputs.dataset
    findings = check_dataset(dataset) if dataset.judged else []
    skipped = ""
    # From here on, an error becomes a finding, so that it does not hide the bad rows.
    try:
        findings += leaks(config, dataset) if dataset.judged else []
    except (ConfigError, DataError) as error:
        findings.append(Finding("problem", "parts", str(error)))
    try:
        if not dataset.corpus:
            raise ModelError("there are no documents")
        if inputs.dataset is not None and model is None:
            raise ModelError("no model was given")
        base = local(inputs.base or encoder_of(config.model))
        findings += check_truncation(dataset, base.loaded, config.data.document_template)
    except ModelError as error:
        skipped = f"truncation was not checked: {error}"
    except (ConfigError, DataError) as error:
        findings.append(Finding("problem", "texts", str(error)))
    return Check(dataset, tuple(bad_rows), tuple(findings), skipped)
