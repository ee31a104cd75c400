"""A second look at what was found: a cross-encoder reads a query and a document together.

It sees what two vectors cannot say, at a price: every pair goes through the model, for every query anew. So only the
top of a ranking is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from embedfit import console
from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Precision
from embedfit.encode.local import quiet_libraries
from embedfit.encode.precision import autocast, use_bf16
from embedfit.errors import ConfigError, ModelError
from embedfit.hub import model_folder
from embedfit.retrieve.exact import best_pairs
from embedfit.retrieve.finder import BaseRetriever, prepared
from embedfit.retrieve.run import Retriever, Run
from embedfit.template import DOCUMENT_TEMPLATE

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

TOP = 50
"""Documents of each query that are read, by default."""
_SLICE = 2048
"""Pairs between two steps of the progress bar."""


class Reranker(Protocol):
    """Anything that says how well a document answers a query, having read both."""

    name: str

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Return one number for each pair of a query's and a document's text; larger is better."""
        ...


class LocalReranker:
    """A sentence-transformers cross-encoder on this machine, loaded when first needed.

    Args:
        name: A folder or a Hub name, such as ``cross-encoder/ms-marco-MiniLM-L6-v2``.
        precision: As for `embedfit.LocalEncoder`.

    Raises:
        ModelError: The model cannot be found, or has no safetensors weights.
    """

    def __init__(self, name: str | Path, *, precision: Precision = "auto") -> None:
        self.name = str(name)
        self.folder = model_folder(self.name, proof="config.json")
        self.precision = precision
        if (self.folder / "modules.json").exists():
            said = _json(self.folder / "config_sentence_transformers.json").get("model_type", "SentenceTransformer")
            if said != "CrossEncoder":
                raise ModelError(f"model {self.name!r} is a {said}; expected a cross-encoder; fix: use it as an embedding model")

    @cached_property
    def loaded(self) -> CrossEncoder:
        """The model in memory.

        Raises:
            ModelError: sentence-transformers cannot load the folder, or the model gives no single score.
        """
        from sentence_transformers import CrossEncoder

        quiet_libraries()
        try:
            model: CrossEncoder = CrossEncoder(
                str(self.folder), trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True, "dtype": "float32"}
            )
        except Exception as error:  # the library raises whatever its parts raise
            raise ModelError(f"cross-encoder {self.folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
        if model.num_labels != 1:
            raise ModelError(f"model {self.name!r} gives {model.num_labels} numbers for a pair; expected a cross-encoder that gives one")
        return model

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Return the model's logit for each pair of a query's and a document's text.

        Raises:
            ModelError: A score is not finite.
        """
        import torch

        device = self.loaded.device.type
        scores = np.empty(len(pairs), np.float32)
        # Like texts beside each other, so that little is padding; the library sorts within a slice only.
        order = np.argsort([-len(query) - len(document) for query, document in pairs], kind="stable")
        with autocast(device, use_bf16(self.precision, device)), console.progress("reranking", len(pairs)) as done:
            for start in range(0, len(pairs), _SLICE):
                some = order[start : start + _SLICE]
                # Logits: the sigmoid that models end with by default rounds good scores to 1, and they would be ties.
                found = self.loaded.predict([pairs[index] for index in some], activation_fn=torch.nn.Identity(), show_progress_bar=False)
                scores[some] = np.asarray(found, np.float32)
                done(len(some))
        if not np.isfinite(scores).all():
            raise ModelError(f"model {self.name!r} gives scores that are not finite; fix: precision = 'fp32', or another model")
        return scores


class RerankedRetriever(BaseRetriever):
    """The top of another retriever's ranking, in a reranker's order.

    Args:
        retriever: Finds the documents.
        reranker: Reads them.
        template: What a document says.
        top: How many of each query are read.
    """

    def __init__(self, retriever: Retriever, reranker: Reranker, template: str = DOCUMENT_TEMPLATE, *, top: int = TOP) -> None:
        self.retriever, self.reranker, self.template, self.top = retriever, reranker, template, top
        self.name = f"{retriever.name}, reranked by {reranker.name}"

    def prepared(self, dataset: Dataset) -> RerankedRetriever:
        """Return the same order of what the retriever, prepared, finds."""
        return RerankedRetriever(prepared(self.retriever, dataset), self.reranker, self.template, top=self.top)

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        found = self.retriever.search(dataset, max(k, self.top))
        run = rerank(found, dataset, self.reranker, self.template, top=self.top)
        return Run(run.query_ids, run.document_ids, run.ranked[:, :k], run.scores[:, :k])


def rerank(run: Run, dataset: Dataset, reranker: Reranker, template: str = DOCUMENT_TEMPLATE, *, top: int = TOP) -> Run:
    """Return a Run with the top of each ranking in a reranker's order.

    What stands below keeps its order: its scores count down from the lowest one above, a whole number at a time.

    Args:
        run: On the queries of the data set.
        dataset: Where the texts are.
        reranker: Reads the top; texts that are the same are read once, and are ties, in order of document id.
        template: What a document says.
        top: How many of each query are read.

    Raises:
        ConfigError: ``top`` is under 1.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; expected the number of documents to rerank, at least 1")
    texts = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True))
    asked = [dataset.queries[id].text for id in run.query_ids]
    head, empty = run.ranked[:, :top], run.empty[:, :top]
    places: dict[tuple[str, str], int] = {}
    index = [
        places.setdefault((asked[row], texts[run.document_ids[head[row, rank]]]), len(places)) for row, rank in np.argwhere(~empty).tolist()
    ]
    read = reranker.score(list(places)) if places else np.empty(0, np.float32)
    found = np.full(head.shape, read.min(initial=0) - 1, np.float32)  # empty places stay last
    found[~empty] = read[index]
    scores = np.empty_like(run.scores)
    head, scores[:, : head.shape[1]] = best_pairs(head, found, head.shape[1])
    below = np.arange(1, run.ranked.shape[1] - head.shape[1] + 1, dtype=np.float32)
    scores[:, head.shape[1] :] = scores[:, head.shape[1] - 1 : head.shape[1]] - below
    ranked = np.concatenate([head, run.ranked[:, top:]], axis=1)
    return Run(run.query_ids, run.document_ids, ranked, scores)


def _json(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return said
