"""What is odd about a data set, before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from embedfit.data import Dataset, normalised
from embedfit.errors import shown

if TYPE_CHECKING:
    from embedfit.encode import Kind, ModelEncoder

Level: TypeAlias = Literal["problem", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something worth knowing.

    Attributes:
        level: ``problem`` makes figures wrong, ``warning`` may, ``note`` does not.
        kind: A short name, for filtering.
        message: One line.
        ids: The queries or documents concerned.
    """

    level: Level
    kind: str
    message: str
    ids: tuple[str, ...] = field(default=(), repr=False)


def check_dataset(dataset: Dataset) -> list[Finding]:
    """Return what a data set's owner should know: conflicts, copies, rare and unused labels.

    Args:
        dataset: To look at.
    """
    return [*_conflicts(dataset), *_copies(dataset), *_one_label(dataset), *_rare(dataset), *_unasked(dataset), *_unjudged(dataset)]


def check_truncation(dataset: Dataset, encoder: ModelEncoder, template: str) -> list[Finding]:
    """Return which texts are longer than a model reads.

    Args:
        dataset: To look at.
        encoder: Whose tokens are counted.
        template: What a document says.
    """
    texts: dict[Kind, list[str]] = {"query": dataset.query_texts(), "document": dataset.document_texts(template)}
    ids: dict[Kind, tuple[str, ...]] = {"query": tuple(dataset.queries), "document": tuple(dataset.corpus)}
    findings = []
    for kind in texts:
        found = encoder.truncation(texts[kind], kind)
        cut = tuple(id for id, is_cut in zip(ids[kind], found.cut, strict=True) if is_cut)
        if cut:
            findings.append(Finding("warning", "truncated", found.describe(kind), cut))
    return findings


def warnings(findings: Iterable[Finding], each: int = 3) -> list[str]:
    """Return the warnings' messages, of each kind the first few, and how many more there are."""
    messages: dict[str, list[str]] = {}
    for finding in findings:
        if finding.level == "warning":
            messages.setdefault(finding.kind, []).append(finding.message)
    lines = []
    for kind, said in messages.items():
        more = len(said) - each
        lines += said[:each] + ([f"... and {more:,} more of the kind '{kind}'; 'embedfit check' lists them"] if more > 0 else [])
    return lines


def _conflicts(dataset: Dataset) -> list[Finding]:
    same: dict[str, list[str]] = {}
    for id in dataset.judged:
        same.setdefault(normalised(dataset.queries[id].text), []).append(id)
    findings = []
    for ids in same.values():
        if len({tuple(sorted(dataset.relevant(id))) for id in ids}) > 1:
            labels = ", ".join(sorted({label for id in ids for label in dataset.relevant(id)}))
            text = shown(dataset.queries[ids[0]].text)
            message = f"{len(ids)} queries say {text} and have different labels ({labels}); if all are right, give each query all of them"
            findings.append(Finding("warning", "conflict", message, tuple(ids)))
    return findings


def _copies(dataset: Dataset) -> list[Finding]:
    same: dict[str, list[str]] = {}
    for id, document in dataset.corpus.items():
        same.setdefault(normalised(f"{document.title} {document.text}"), []).append(id)
    return [
        Finding("warning", "copy", f"documents {', '.join(ids[:5])} say the same: {shown(dataset.corpus[ids[0]].text)}", tuple(ids))
        for ids in same.values()
        if len(ids) > 1
    ]


def _one_label(dataset: Dataset) -> list[Finding]:
    answers = {tuple(sorted(dataset.relevant(id))) for id in dataset.judged}
    if len(answers) > 1:
        return []
    return [
        Finding("problem", "one label", f"all {len(dataset.judged):,} queries have the same answer: nothing can be learned or measured")
    ]


def _rare(dataset: Dataset) -> list[Finding]:
    counts = Counter(label for id in dataset.judged for label in dataset.relevant(id))
    single = tuple(label for label, count in counts.items() if count == 1)
    # Where hardly any label repeats, these are passages, and one query each is normal.
    if not single or len(single) > len(counts) / 2:
        return []
    return [
        Finding("warning", "rare", f"{len(single):,} of {len(counts):,} labels have a single query, which cannot be in two parts", single)
    ]


def _unasked(dataset: Dataset) -> list[Finding]:
    asked = {label for id in dataset.judged for label in dataset.relevant(id)}
    unasked = tuple(id for id in dataset.corpus if id not in asked)
    if not unasked:
        return []
    return [Finding("note", "not asked for", f"{len(unasked):,} of {len(dataset.corpus):,} documents are right for no query", unasked)]


def _unjudged(dataset: Dataset) -> list[Finding]:
    judged = set(dataset.judged)
    rest = tuple(id for id in dataset.queries if id not in judged)
    return [Finding("note", "unjudged", f"{len(rest):,} queries have no relevant document and are left out", rest)] if rest else []
