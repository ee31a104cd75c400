"""The ladder's methods of improving retrieval, cheapest first, and how each is fitted."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from embedfit.config import Config, with_method
from embedfit.data.dataset import Dataset
from embedfit.data.mix import with_further
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder
from embedfit.encode.local import local_of
from embedfit.generate.relevance import relevance_judge
from embedfit.retrieve.engine import Engine, LocalEngine
from embedfit.retrieve.retrievers import BM25Retriever, DenseRetriever
from embedfit.retrieve.run import Retriever
from embedfit.searcher.fit import SearcherRetriever, fit_searcher
from embedfit.searcher.gather import labels_repeat
from embedfit.searcher.searcher import Searcher
from embedfit.searcher.views import CLASSES, DOCUMENTS, EXAMPLES, TERMS, VIEWS, WORDS
from embedfit.template import Template
from embedfit.tune.result import Tuned
from embedfit.tune.training import Training

_MERGED = 0.5
"""Weight of the tuned model in the rung of merged weights: WiSE-FT's default (Wortsman et al. 2022), chosen by no data."""


@dataclass(frozen=True)
class Setting:
    """Input of every method.

    Attributes:
        base: Model to start from.
        config: Settings.
        template: Document template.
        richer: Document template with further fields; None if the documents have none.
        engine: Engine that encodes, searches and mines negatives.
        further: Further training sets with their document templates, for the methods that train a model or a map.
    """

    base: Encoder
    config: Config
    template: str
    richer: str | None
    engine: Engine = field(default_factory=LocalEngine)
    further: tuple[tuple[Dataset, str], ...] = ()

    @property
    def vectors(self) -> CachedEncoder:
        """Base model whose vectors are cached for all rungs."""
        return CachedEncoder(self.engine.encoder(self.base))

    def searcher(self, known: Dataset, views: Sequence[str] = VIEWS, *, trusted: bool = True) -> Searcher:
        """Return a searcher over the base model.

        Args:
            known: Labelled queries.
            views: Views to fuse.
            trusted: Whether to learn probabilities.
        """
        settings, split = self.config.searcher, self.config.split
        return fit_searcher(
            known,
            self.vectors,
            template=self.template,
            views=views,
            precision=settings.precision,
            coverage=settings.coverage,
            trusted=trusted,
            group_by=split.group_by,
            seed=split.seed,
        )

    def dense(self, encoder: Encoder, template: str) -> DenseRetriever:
        """Return the retriever that searches with an encoder's vectors."""
        return DenseRetriever(CachedEncoder(self.engine.encoder(encoder)), template, self.engine.top_k)

    def mixed(self, train: Dataset, dev: Dataset | None, template: str) -> tuple[Dataset, Dataset | None, str]:
        """Return the training set, with the further sets mixed in, the dev set, and the template of both."""
        return with_further(train, dev, template, self.further, temperature=self.config.mix.temperature, seed=self.config.tune.seed)


@dataclass(frozen=True)
class Method:
    """One way to improve retrieval.

    Attributes:
        name: Name for tables.
        deploys: Components that the method puts into production, in words.
        encodes: Whether queries go through the embedding model.
        fit: Function from (setting, train, dev, folder) to the result.
        missing: Function from (setting, train) to the reason why the method does not suit the data, or an empty string.
        views: Views of the searcher over the base model that the method is; empty for another method.
        fit_to_keep: Function like ``fit``, which also writes what a saved searcher needs; None if ``fit`` does.
    """

    name: str
    deploys: str
    encodes: bool
    fit: Callable[[Setting, Dataset, Dataset | None, Path], Tuned]
    missing: Callable[[Setting, Dataset], str] = lambda setting, train: ""
    views: tuple[str, ...] = ()
    fit_to_keep: Callable[[Setting, Dataset, Dataset | None, Path], Tuned] | None = None

    @property
    def kept(self) -> Callable[[Setting, Dataset, Dataset | None, Path], Tuned]:
        """``fit``, with a result that can be saved."""
        return self.fit_to_keep or self.fit


def richer_template(dataset: Dataset, template: str) -> str | None:
    """Return a template with the text fields that this one leaves out, or None if there are none.

    A field is added if it is text, or a list of texts, that most documents have and that their present text does not contain.
    """
    named = set(Template(template).fields)
    documents = list(dataset.corpus.values())
    present = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True))
    extra = []
    for name in dict.fromkeys(name for document in documents for name in document.fields):
        values = [document.fields.get(name) for document in documents]
        texts = [" ".join(map(str, value)) if isinstance(value, list) else value for value in values]
        has_text = [isinstance(text, str) and bool(text.strip()) for text in texts]
        rows = zip(has_text, texts, documents, strict=True)
        new = sum(has and str(text) not in present[document.id] for has, text, document in rows)
        if name not in named and name != "id" and new > len(documents) / 2:
            extra.append(f"{{{name}}}")
    return f"{template}: {'. '.join(extra)}" if extra else None


def _untrained(make: Callable[[Setting], Retriever]) -> Callable[[Setting, Dataset, Dataset | None, Path], Tuned]:
    return lambda setting, train, dev, folder: Tuned(make(setting), 0.0)


def _no_richer(setting: Setting, train: Dataset) -> str:
    return "" if setting.richer else "the documents have no other field of text"


def _no_weights(setting: Setting, train: Dataset) -> str:
    return "" if local_of(setting.base) else f"{setting.base.name} has no weights here to train"


def _no_weights_or_richer(setting: Setting, train: Dataset) -> str:
    return _no_weights(setting, train) or _no_richer(setting, train)


def _no_weights_or_peft(setting: Setting, train: Dataset) -> str:
    return _no_weights(setting, train) or ("" if importlib.util.find_spec("peft") else "it needs pip install 'embedfit[lora]'")


def _no_reranker(setting: Setting, train: Dataset) -> str:
    return _no_weights(setting, train) or ("" if setting.config.tune.reranker else "tune.reranker names no model to start from")


def _no_labels(setting: Setting, train: Dataset) -> str:
    return "" if labels_repeat([label for id in train.judged for label in train.relevant(id)]) else "labels hardly repeat"


def _views(*views: str) -> Callable[[Setting, Dataset, Dataset | None, Path], Tuned]:
    """Return how to fit a searcher over the base model with some of its views."""

    def fit(setting: Setting, train: Dataset, dev: Dataset | None, folder: Path) -> Tuned:
        setting.vectors.encode(train.query_texts(), "query")  # cached, so that only the fit is timed
        setting.vectors.encode(train.document_texts(setting.template), "document")
        start = time.perf_counter()
        searcher = setting.searcher(train, views, trusted=False)
        return Tuned(SearcherRetriever(searcher, f"{setting.base.name}, {' + '.join(views)}"), time.perf_counter() - start)

    return fit


def _adapter(setting: Setting, train: Dataset, dev: Dataset | None, folder: Path) -> Tuned:
    from embedfit.tune.adapter import query_adapter
    from embedfit.tune.frozen import AdapterConfig

    config = AdapterConfig(scale=setting.config.tune.scale, seed=setting.config.tune.seed)
    tuned = query_adapter(setting.vectors, *setting.mixed(train, dev, setting.template), config)
    return replace(tuned, held=DenseRetriever(tuned.encoder, setting.template, setting.engine.top_k))


def _kept_adapter(setting: Setting, train: Dataset, dev: Dataset | None, folder: Path) -> Tuned:
    from embedfit.tune.adapter import tune_adapter
    from embedfit.tune.frozen import AdapterConfig

    config = AdapterConfig(scale=setting.config.tune.scale, seed=setting.config.tune.seed)
    train, dev, template = setting.mixed(train, dev, setting.template)
    return tune_adapter(setting.vectors, train, dev, folder, config, template=template)


def _index(name: str) -> Callable[[Setting, Dataset, Dataset | None, Path], Tuned]:
    def fit(setting: Setting, train: Dataset, dev: Dataset | None, folder: Path) -> Tuned:
        method: Callable[..., Tuned] = getattr(importlib.import_module("embedfit.tune.index"), name)
        return method(setting.vectors, train, dev, setting.template)

    return fit


def _tuned(
    method: str, template: Callable[[Setting], str], documents: Literal["trained", "frozen"] = "trained"
) -> Callable[[Setting, Dataset, Dataset | None, Path], Tuned]:
    def fit(setting: Setting, train: Dataset, dev: Dataset | None, folder: Path) -> Tuned:
        from embedfit.tune.full import tune_weights

        base = local_of(setting.base)
        assert base  # checked by `_no_weights`
        own_template, config = template(setting), setting.config
        train, dev, mixed_template = setting.mixed(train, dev, own_template)
        settings = with_method(config.tune, method).model_copy(update={"documents": documents})
        llm = relevance_judge(settings.judge, config.generate, Path(config.output))
        training = Training(train, dev, folder, settings, mixed_template, config.track.report_to, setting.engine, llm)
        tuned = tune_weights(base, training)
        return replace(tuned, held=setting.dense(tuned.encoder, own_template))

    return fit


_full = _tuned("full", lambda setting: setting.template)


def _merged(setting: Setting, train: Dataset, dev: Dataset | None, folder: Path) -> Tuned:
    from embedfit.tune.merge import merge_models

    tuned = folder.parent.parent / "full" / folder.name
    base = local_of(setting.base)
    assert base
    full = _full(setting, train, dev, tuned)  # shared with the rung of that name: trained once, then read from its folder
    merged = merge_models(base, tuned / "model", _MERGED, folder)
    return Tuned(setting.dense(merged, setting.template), full.seconds)


def _reranked(setting: Setting, train: Dataset, dev: Dataset | None, folder: Path) -> Tuned:
    from embedfit.tune.reranker import tune_reranker

    full = _full(setting, train, dev, folder.parent.parent / "full" / folder.name)  # shared, like that of `_merged`
    config, start = setting.config, setting.config.tune.reranker
    base = local_of(setting.base)
    assert base is not None  # both checked by `_no_reranker`
    assert start is not None
    settings = with_method(config.tune, "reranker")
    llm = relevance_judge(settings.judge, config.generate, Path(config.output))
    training = Training(train, dev, folder, settings, setting.template, config.track.report_to, setting.engine, llm)
    encoder = CachedEncoder(setting.engine.encoder(full.encoder))
    return tune_reranker(encoder, training, start=start, top=config.evaluate.rerank_top, precision=base.precision)


def _base(setting: Setting) -> Retriever:
    return setting.dense(setting.base, setting.template)


METHODS: dict[str, Method] = {
    "bm25": Method("BM25", "a word index", False, _untrained(lambda setting: BM25Retriever(setting.template)), views=(WORDS,)),
    "words": Method(
        "TF-IDF classifier",
        "a scikit-learn model, no vectors",
        False,
        _views(TERMS),
        _no_labels,
        (TERMS,),
    ),
    "base": Method("base model", "the base model", True, _untrained(_base)),
    "richer": Method(
        "base, richer documents",
        "the base model, other document texts",
        True,
        _untrained(lambda setting: setting.dense(setting.base, setting.richer or setting.template)),
        _no_richer,
    ),
    "fused": Method(
        "base + BM25",
        "the base model and a word index",
        True,
        _views(DOCUMENTS, WORDS),
        views=(DOCUMENTS, WORDS),
    ),
    "nearest": Method(
        "nearest training queries",
        "the base model, training queries in the index",
        True,
        _views(DOCUMENTS, EXAMPLES),
        views=(DOCUMENTS, EXAMPLES),
    ),
    "centroids": Method("class centroids", "the base model, other vectors in the index", True, _index("class_centroids")),
    "vectors": Method(
        "logistic regression on vectors",
        "the base model and a scikit-learn model",
        True,
        _views(CLASSES),
        _no_labels,
        (CLASSES,),
    ),
    "searcher": Method(
        "untuned searcher",
        "the base model, training queries and linear models",
        True,
        _views(*VIEWS),
        views=VIEWS,
    ),
    "documents": Method("tuned document vectors", "the base model, other vectors in the index", True, _index("tuned_documents")),
    "adapter": Method("query adapter", "the base model and a matrix", True, _adapter, fit_to_keep=_kept_adapter),
    "queries": Method(
        "index untouched",
        "a tuned model for queries, the base model's index",
        True,
        _tuned("full", lambda setting: setting.template, "frozen"),
        _no_weights,
    ),
    "lora": Method("LoRA", "the tuned model", True, _tuned("lora", lambda setting: setting.template), _no_weights_or_peft),
    "full": Method("full fine-tuning", "the tuned model", True, _full, _no_weights),
    "merged": Method("half base, half tuned", "the merged model", True, _merged, _no_weights),
    "reranked": Method(
        "full, reranked by a tuned cross-encoder",
        "the tuned model and a cross-encoder",
        True,
        _reranked,
        _no_reranker,
    ),
    "full-richer": Method(
        "full, richer documents",
        "the tuned model, other document texts",
        True,
        _tuned("full", lambda setting: setting.richer or setting.template),
        _no_weights_or_richer,
    ),
}
