"""A look at the data before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedfit.data.check import Finding
from embedfit.data.dataset import Dataset

if TYPE_CHECKING:
    from embedfit.encode.encoder import Kind
    from embedfit.encode.local import ModelEncoder


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
