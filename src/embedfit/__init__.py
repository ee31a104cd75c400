"""Fine-tune a text-embedding model on your own labelled pairs, and prove whether retrieval got better.

    import embedfit

    data = embedfit.load("transactions.jsonl", "categories.json", record="transaction")
    result = embedfit.run(data, model="all-MiniLM-L6-v2")
    print(result.comparison.sentence)
    result.encoder.encode(["a new query"], "query")

Names are imported on first use: ``import embedfit`` never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedfit.config import Config, TuneConfig, make_config, read_config
    from embedfit.data.check import Finding, check_dataset, check_leaks
    from embedfit.data.dataset import Dataset, Document, Query
    from embedfit.data.load import load
    from embedfit.data.records import RecordType, Transaction, record_type
    from embedfit.data.split import Split, answers_seen, split_dataset, split_folds, without_leaks
    from embedfit.data.write import write_beir, write_jsonl
    from embedfit.encode.adapted import AdaptedEncoder, load_adapter, save_adapted
    from embedfit.encode.cache import CachedEncoder
    from embedfit.encode.encoder import BaseEncoder, Encoder, WrappingEncoder
    from embedfit.encode.local import LocalEncoder
    from embedfit.encode.remote import RemoteEncoder
    from embedfit.errors import EmbedfitError
    from embedfit.evaluation.compare import compare_scores
    from embedfit.evaluation.comparison import Comparison, Seeds, Stratum
    from embedfit.evaluation.families import compare_many, may_be_best, not_worse
    from embedfit.evaluation.score import Scores, score_run
    from embedfit.evaluation.statistics import holm
    from embedfit.generate.outcome import Generated
    from embedfit.pipeline.checking import Check, check
    from embedfit.pipeline.choosing import Choice, choose_model
    from embedfit.pipeline.doctoring import diagnose_run
    from embedfit.pipeline.experiment import curve, ladder, run
    from embedfit.pipeline.generating import run_generate
    from embedfit.pipeline.measuring import evaluate, measure
    from embedfit.pipeline.parts import load_data
    from embedfit.pipeline.picked import Pick
    from embedfit.pipeline.publishing import prepare_publications, publish_run
    from embedfit.pipeline.result import Result, read_result
    from embedfit.retrieve.finder import BaseRetriever, Finder, Hit
    from embedfit.retrieve.rerank import LocalReranker, RerankedRetriever
    from embedfit.retrieve.retrievers import BM25Retriever, DenseRetriever, FusedRetriever
    from embedfit.retrieve.run import Retriever, Run
    from embedfit.searcher.fit import fit_searcher
    from embedfit.searcher.searcher import Reason, Searcher, SearchHit
    from embedfit.store.live import LiveIndex
    from embedfit.store.open import open_store
    from embedfit.store.versions import index_documents, index_searcher, roll_back
    from embedfit.studies.doctor import Diagnosis
    from embedfit.studies.forecast import Curve
    from embedfit.studies.forgetting import Forgetting, general_set, measure_forgetting
    from embedfit.studies.ladder import Ladder
    from embedfit.track.tracker import trace_search, tracking
    from embedfit.tune.adapter import tune_adapter
    from embedfit.tune.full import tune_model
    from embedfit.tune.merge import Merges, merge_models
    from embedfit.tune.result import Tuned

_ROOMS = {
    "config": (
        "Config",
        "TuneConfig",
        "make_config",
        "read_config",
    ),
    "data.check": (
        "Finding",
        "check_dataset",
        "check_leaks",
    ),
    "data.dataset": (
        "Dataset",
        "Document",
        "Query",
    ),
    "data.load": ("load",),
    "data.records": (
        "RecordType",
        "Transaction",
        "record_type",
    ),
    "data.split": (
        "Split",
        "answers_seen",
        "split_dataset",
        "split_folds",
        "without_leaks",
    ),
    "data.write": (
        "write_beir",
        "write_jsonl",
    ),
    "encode.adapted": (
        "AdaptedEncoder",
        "load_adapter",
        "save_adapted",
    ),
    "encode.cache": ("CachedEncoder",),
    "encode.encoder": (
        "BaseEncoder",
        "Encoder",
        "WrappingEncoder",
    ),
    "encode.local": ("LocalEncoder",),
    "encode.remote": ("RemoteEncoder",),
    "errors": ("EmbedfitError",),
    "evaluation.compare": ("compare_scores",),
    "evaluation.comparison": (
        "Comparison",
        "Seeds",
        "Stratum",
    ),
    "evaluation.families": (
        "compare_many",
        "may_be_best",
        "not_worse",
    ),
    "evaluation.score": (
        "Scores",
        "score_run",
    ),
    "evaluation.statistics": ("holm",),
    "generate.outcome": ("Generated",),
    "pipeline.checking": ("Check", "check"),
    "pipeline.choosing": ("Choice", "choose_model"),
    "pipeline.doctoring": ("diagnose_run",),
    "pipeline.experiment": (
        "run",
        "curve",
        "ladder",
    ),
    "pipeline.generating": ("run_generate",),
    "pipeline.parts": ("load_data",),
    "pipeline.measuring": (
        "evaluate",
        "measure",
    ),
    "pipeline.picked": ("Pick",),
    "pipeline.publishing": (
        "prepare_publications",
        "publish_run",
    ),
    "pipeline.result": (
        "Result",
        "read_result",
    ),
    "retrieve.finder": (
        "BaseRetriever",
        "Finder",
        "Hit",
    ),
    "retrieve.rerank": (
        "LocalReranker",
        "RerankedRetriever",
    ),
    "retrieve.retrievers": (
        "BM25Retriever",
        "DenseRetriever",
        "FusedRetriever",
    ),
    "retrieve.run": (
        "Retriever",
        "Run",
    ),
    "searcher.fit": ("fit_searcher",),
    "searcher.searcher": (
        "Reason",
        "SearchHit",
        "Searcher",
    ),
    "store.live": ("LiveIndex",),
    "store.open": ("open_store",),
    "store.versions": (
        "index_documents",
        "index_searcher",
        "roll_back",
    ),
    "studies.doctor": ("Diagnosis",),
    "studies.forecast": ("Curve",),
    "studies.forgetting": (
        "Forgetting",
        "general_set",
        "measure_forgetting",
    ),
    "studies.ladder": ("Ladder",),
    "track.tracker": (
        "trace_search",
        "tracking",
    ),
    "tune.adapter": ("tune_adapter",),
    "tune.full": ("tune_model",),
    "tune.merge": (
        "Merges",
        "merge_models",
    ),
    "tune.result": ("Tuned",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    *_ROOM_OF,
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'embedfit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"embedfit.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
