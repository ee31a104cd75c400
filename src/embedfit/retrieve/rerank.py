"""Reranking: a cross-encoder reads a query and a document together.

It sees more than two vectors can express, at a price: for every query, each pair goes through the model. So only the top of a ranking
is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from embedfit import progress
from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, Precision
from embedfit.encode.local import quiet_libraries
from embedfit.encode.precision import autocast, use_bf16
from embedfit.errors import ConfigError, ModelError
from embedfit.files import digest, file_sha256
from embedfit.hub import model_folder, weights_of
from embedfit.retrieve.exact import best_pairs
from embedfit.retrieve.finder import BaseRetriever, prepared
from embedfit.retrieve.run import Retriever, Run
from embedfit.template import DOCUMENT_TEMPLATE

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

TOP = 50
"""Documents of each query that are read by default."""
_SLICE = 2048
"""Pairs between two steps of the progress bar."""


class Reranker(Protocol):
    """Anything that scores how well a document answers a query after reading both."""

    name: str

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Return one score for each pair (query text, document text); larger is better."""
        ...


class LocalReranker:
    """A sentence-transformers cross-encoder on this machine, loaded when first needed.

    Args:
        name: A folder or a Hub name, such as ``cross-encoder/ms-marco-MiniLM-L6-v2``.
        precision: ``bf16`` runs matrix products in bfloat16 under autocast; ``auto`` does so where it is faster.

    Raises:
        ModelError: The model cannot be found, or has no safetensors weights.
    """

    def __init__(self, name: str | Path, *, precision: Precision = "auto") -> None:
        self.name = str(name)
        self.folder = model_folder(self.name, proof="config.json")
        self.precision = precision
        if (self.folder / "modules.json").exists():
            kind = _json(self.folder / "config_sentence_transformers.json").get("model_type", "SentenceTransformer")
            if kind != "CrossEncoder":
                raise ModelError(f"model {self.name!r} is a {kind}; expected a cross-encoder; fix: use it as an embedding model")

    @cached_property
    def loaded(self) -> CrossEncoder:
        """The model in memory.

        Raises:
            ModelError: sentence-transformers cannot load the folder, or the model does not give one score for each pair.
        """
        from sentence_transformers import CrossEncoder

        quiet_libraries()
        try:
            model: CrossEncoder = CrossEncoder(
                str(self.folder), trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True, "dtype": "float32"}
            )
        except Exception as error:  # the library raises whatever its dependencies raise
            raise ModelError(f"cross-encoder {self.folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
        if model.num_labels != 1:
            raise ModelError(f"model {self.name!r} gives {model.num_labels} numbers for a pair; expected a cross-encoder that gives one")
        return model

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the model's files."""
        files = [*self.folder.glob("*.json"), *self.folder.glob("*.txt"), *weights_of(self.folder)]
        return digest(["teacher", sorted([path.relative_to(self.folder).as_posix(), file_sha256(path)] for path in files)])

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Return the logit of the model for each pair (query text, document text).

        Raises:
            ModelError: A score is not finite.
        """
        return score_pairs(self.loaded, pairs, bf16=use_bf16(self.precision, self.loaded.device.type), name=self.name)


def score_pairs(model: CrossEncoder, pairs: Sequence[tuple[str, str]], *, bf16: bool, name: str) -> npt.NDArray[np.float32]:
    """Return the logit of a cross-encoder in memory for each pair (query text, document text).

    Raises:
        ModelError: A score is not finite.
    """
    import torch

    scores = np.empty(len(pairs), np.float32)
    # Texts of like lengths go together, so that there is little padding. The library sorts within a slice alone.
    order = np.argsort([-len(query) - len(document) for query, document in pairs], kind="stable")
    with autocast(model.device.type, bf16), progress.bar("reranking", len(pairs)) as done:
        for start in range(0, len(pairs), _SLICE):
            some = order[start : start + _SLICE]
            # Logits, because the sigmoid that models end with by default rounds good scores to 1, which makes ties.
            logits = model.predict([pairs[index] for index in some], activation_fn=torch.nn.Identity(), show_progress_bar=False)
            scores[some] = np.asarray(logits, np.float32)
            done(len(some))
    if not np.isfinite(scores).all():
        raise ModelError(f"model {name!r} gives scores that are not finite; fix: precision = 'fp32', or another model")
    return scores


class RerankedRetriever(BaseRetriever):
    """The ranking of another retriever, with its top in the order of a reranker.

    Args:
        retriever: Retriever that finds the documents.
        reranker: Reranker that reads the top of the ranking.
        template: Template of the documents' texts.
        top: Number of documents read for each query.
    """

    def __init__(self, retriever: Retriever, reranker: Reranker, template: str = DOCUMENT_TEMPLATE, *, top: int = TOP) -> None:
        self.retriever, self.reranker, self.template, self.top = retriever, reranker, template, top
        self.name = f"{retriever.name}, reranked by {reranker.name}"

    @property
    def encoder(self) -> Encoder:
        """Encoder of the retriever that finds the documents."""
        encoder: Encoder = self.retriever.encoder  # type: ignore[attr-defined]
        return encoder

    def prepared(self, dataset: Dataset) -> RerankedRetriever:
        """Return the same reranking over the prepared retriever."""
        return RerankedRetriever(prepared(self.retriever, dataset), self.reranker, self.template, top=self.top)

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        first = self.retriever.search(dataset, max(k, self.top))
        run = rerank(first, dataset, self.reranker, self.template, top=self.top)
        return Run(run.query_ids, run.document_ids, run.ranked[:, :k], run.scores[:, :k])


def rerank(run: Run, dataset: Dataset, reranker: Reranker, template: str = DOCUMENT_TEMPLATE, *, top: int = TOP) -> Run:
    """Return a Run with the top of each ranking in the order of a reranker.

    The documents below keep their order. Their scores count down from the lowest score of the top in steps of 1.

    Args:
        run: Run on the queries of the data set.
        dataset: Data set with the texts.
        reranker: Reranker that reads the top. Equal pairs of texts are read once; their documents tie, in order of document id.
        template: Template of the documents' texts.
        top: Number of documents read for each query.

    Raises:
        ConfigError: ``top`` is under 1.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; expected the number of documents to rerank, at least 1")
    texts = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True))
    queries = [dataset.queries[id].text for id in run.query_ids]
    head, empty = run.ranked[:, :top], run.empty[:, :top]
    places: dict[tuple[str, str], int] = {}
    pairs = [(queries[row], texts[run.document_ids[head[row, rank]]]) for row, rank in np.argwhere(~empty).tolist()]
    index = [places.setdefault(pair, len(places)) for pair in pairs]
    of_pairs = reranker.score(list(places)) if places else np.empty(0, np.float32)
    of_head = np.full(head.shape, of_pairs.min(initial=0) - 1, np.float32)  # empty places stay last
    of_head[~empty] = of_pairs[index]
    scores = np.empty_like(run.scores)
    head, scores[:, : head.shape[1]] = best_pairs(head, of_head, head.shape[1])
    below = np.arange(1, run.ranked.shape[1] - head.shape[1] + 1, dtype=np.float32)
    scores[:, head.shape[1] :] = scores[:, head.shape[1] - 1 : head.shape[1]] - below
    ranked = np.concatenate([head, run.ranked[:, top:]], axis=1)
    return Run(run.query_ids, run.document_ids, ranked, scores)


def _json(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return settings
