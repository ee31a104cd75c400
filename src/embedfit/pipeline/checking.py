"""Checks of the data before anything is trained."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedfit.config import Config
from embedfit.data.check import Finding, check_dataset
from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Kind
from embedfit.encode.lengths import Lengths
from embedfit.encode.local import Truncation
from embedfit.encode.named import encoder_of
from embedfit.errors import ConfigError, DataError, ModelError
from embedfit.pipeline.job import truncated
from embedfit.pipeline.needs import local
from embedfit.pipeline.parts import leaks, read
from embedfit.pipeline.source import IN_MEMORY, Inputs, Model, Source
from embedfit.template import Template


@dataclass(frozen=True)
class Check:
    """Result of checking a data set.

    Attributes:
        dataset: Data set without its bad rows.
        bad_rows: One error per row that could not be read.
        findings: Problems, warnings and notes.
        summary: What was read, in up to five lines.
        examples: Two labelled queries and one right document of each, as the model reads them: (query, document).
        skipped: Reason why text lengths were not compared with the model's limit; empty if they were.
    """

    dataset: Dataset
    bad_rows: tuple[DataError, ...]
    findings: tuple[Finding, ...]
    skipped: str = ""
    summary: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()

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
        source: A Dataset, a Config, or the path of an embedfit.toml or of labelled queries.
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
    skipped, counted, prompts = "", dict[Kind, _Counted](), dict[Kind, str]()
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
        prompts = base.prompts
        texts: dict[Kind, list[str]] = {"query": dataset.query_texts(), "document": dataset.document_texts(config.data.document_template)}
        counted = {kind: _Counted.of(texts[kind], kind, Lengths(base), prompts[kind]) for kind in texts}
        findings += truncated(dataset, {kind: count.truncation for kind, count in counted.items()})
    except ModelError as error:
        skipped = f"truncation was not checked: {error}"
    except (ConfigError, DataError) as error:
        findings.append(Finding("problem", "texts", str(error)))
    summary = _summary(config, dataset, counted, "" if inputs.dataset is not None else config.model.name)
    return Check(dataset, tuple(bad_rows), tuple(findings), skipped, summary, _examples(config, dataset, prompts))


_SAMPLED = 20_000
"""Number of texts above which the tokens of short texts are counted in a sample of so many."""
_SPECIAL = 16
"""Maximum number of tokens that a model adds to a text."""
_LONGEST_FORM = 6
"""Maximum number of characters that a model's normalisation makes of a byte of UTF-8."""


@dataclass(frozen=True)
class _Counted:
    """Lengths of texts in the tokens of a model.

    Attributes:
        truncation: Number of tokens of each text. That of a short text outside the sample is an estimate by its characters.
        sample: Number of tokens of each text in the sample.
    """

    truncation: Truncation
    sample: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str], kind: Kind, lengths: Lengths, prompt: str) -> _Counted:
        """Count the tokens of a sample of texts, evenly spread, and of all texts that may exceed the model's limit."""
        if len(texts) <= _SAMPLED:
            truncation = lengths.truncation(texts, kind)
            return cls(truncation, truncation.counts)
        sizes, bounds = (np.fromiter(map(size, texts), np.int64, len(texts)) for size in (len, _most_tokens))
        sampled = np.linspace(0, len(texts) - 1, _SAMPLED).astype(np.int64)
        sample = lengths.truncation([texts[place] for place in sampled.tolist()], kind).counts
        counts = np.minimum((sizes * (sample.sum() / max(1, sizes[sampled].sum()))).astype(np.int64), lengths.limit)
        counts[sampled] = sample
        long = np.flatnonzero(bounds + len(prompt) * _LONGEST_FORM + _SPECIAL > lengths.limit)
        counts[long] = lengths.truncation([texts[place] for place in long.tolist()], kind).counts
        return cls(Truncation(counts, lengths.limit), sample)

    def span(self, kind: Kind) -> str:
        """Return the shortest, the median and the longest text in words."""
        count, total = len(self.sample), len(self.truncation.counts)
        known = f"; {count:,} of {total:,} counted" if count < total else ""
        least, most, median = self.sample.min(), self.sample.max(), np.median(self.sample)
        return f"{int(least):,} to {int(most):,} tokens a {kind} (median {int(median):,}{known})"


def _most_tokens(text: str) -> int:
    """Return the maximum number of tokens of a text, without those that the model adds. Each token has a character of its own."""
    return len(text) if text.isascii() else _LONGEST_FORM * len(text.encode("utf-8", "surrogatepass"))


def _summary(config: Config, dataset: Dataset, counted: Mapping[Kind, _Counted], model: str) -> tuple[str, ...]:
    """Return what was read, in up to five lines."""
    labels = Counter(label for id in dataset.judged for label in dataset.relevant(id))
    lines = [f"{len(dataset.judged):,} labelled queries, {len(dataset.corpus):,} documents, {sum(labels.values()):,} relevant pairs"]
    if labels:
        (most, often), (least, seldom) = labels.most_common(1)[0], labels.most_common()[-1]
        lines.append(f"{len(labels):,} documents are asked for: from {seldom:,} times ({least}) to {often:,} ({most})")
    wrong = sum(grade <= 0 for grades in dataset.qrels.values() for grade in grades.values())
    parts = ", ".join(f"{len(ids):,} {part}" for part, ids in dataset.parts.items())
    further = [f"{wrong:,} pairs judged not relevant"] * bool(wrong) + [f"parts: {parts}"] * bool(parts)
    source = "" if config.data.queries == IN_MEMORY else f"Read from {config.data.queries}"
    source += f", documents from {config.data.documents}" if source and config.data.documents else ""
    lines += [line for line in (source, "; ".join(further)) if line]
    if counted and len(dataset.queries):
        spans = "; ".join(count.span(kind) for kind, count in counted.items())
        lines.append(f"{spans}; {model or 'the model'} reads {counted['query'].truncation.limit:,}")
    return tuple(lines)


def _examples(config: Config, dataset: Dataset, prompts: Mapping[Kind, str]) -> tuple[tuple[str, str], ...]:
    """Return two queries with a right document each, as the model reads them."""
    judged = dataset.judged
    examples = []
    for id in dict.fromkeys((judged[0], judged[len(judged) // 2])) if judged else ():
        grades = dataset.relevant(id)
        document = dataset.corpus[max(grades, key=lambda name: grades[name])]
        text = Template(config.data.document_template).render(document.fields)
        examples.append((f"{prompts.get('query', '')}{dataset.queries[id].text}", f"{prompts.get('document', '')}{text}"))
    return tuple(examples)
