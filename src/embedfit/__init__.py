"""Fine-tune a text-embedding model on your own labelled pairs, and prove whether retrieval got better.

    import embedfit

    data = embedfit.load("transactions.jsonl", "categories.json", record="transaction")
    parts = embedfit.split_dataset(data)
    base = embedfit.LocalEncoder("all-MiniLM-L6-v2")
    tuned = embedfit.tune_model(base, data.select(parts.train), data.select(parts.dev), "out")
    test = data.select(parts.test)
    comparison = embedfit.compare_scores(embedfit.measure(base, test), embedfit.measure(tuned.encoder, test))
    print(comparison.sentence)

Names are imported when they are used: importing embedfit never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedfit.check import Finding, check_dataset, check_leaks
    from embedfit.compare import Comparison, Seeds, Stratum, compare_many, compare_scores, holm, may_be_best, not_worse
    from embedfit.config import Config, TuneConfig, make_config, read_config
    from embedfit.data import Dataset, Document, Query, load, write_beir, write_jsonl
    from embedfit.encode import CachedEncoder, Encoder, LocalEncoder
    from embedfit.errors import EmbedfitError
    from embedfit.general import Forgetting, general_set, measure_forgetting
    from embedfit.generate import Generated
    from embedfit.pipeline import (
        Result,
        evaluate,
        measure,
        prepare_publications,
        publish_run,
        read_result,
        run,
        run_curve,
        run_generate,
        run_ladder,
    )
    from embedfit.records import RecordType, Transaction, record_type
    from embedfit.remote import RemoteEncoder
    from embedfit.rerank import LocalReranker, RerankedRetriever
    from embedfit.retrieve import BM25Retriever, DenseRetriever, FusedRetriever, Retriever, Run
    from embedfit.score import Scores, score_run
    from embedfit.split import Split, answers_seen, split_dataset, split_folds, without_leaks
    from embedfit.store import open_store
    from embedfit.store.versions import LiveIndex, index_documents, roll_back
    from embedfit.track import trace_search, tracking
    from embedfit.tune.adapter import AdaptedEncoder, load_adapter, save_adapted, tune_adapter
    from embedfit.tune.full import tune_model
    from embedfit.tune.merge import Merges, merge_models
    from embedfit.tune.result import Tuned

_ROOMS = {
    "check": ("Finding", "check_dataset", "check_leaks"),
    "compare": ("Comparison", "Seeds", "Stratum", "compare_many", "compare_scores", "holm", "may_be_best", "not_worse"),
    "config": ("Config", "TuneConfig", "make_config", "read_config"),
    "data": ("Dataset", "Document", "Query", "load", "write_beir", "write_jsonl"),
    "encode": ("CachedEncoder", "Encoder", "LocalEncoder"),
    "errors": ("EmbedfitError",),
    "general": ("Forgetting", "general_set", "measure_forgetting"),
    "generate": ("Generated",),
    "pipeline": (
        "Result",
        "evaluate",
        "measure",
        "prepare_publications",
        "publish_run",
        "read_result",
        "run",
        "run_curve",
        "run_generate",
        "run_ladder",
    ),
    "records": ("RecordType", "Transaction", "record_type"),
    "remote": ("RemoteEncoder",),
    "rerank": ("LocalReranker", "RerankedRetriever"),
    "retrieve": ("BM25Retriever", "DenseRetriever", "FusedRetriever", "Retriever", "Run"),
    "score": ("Scores", "score_run"),
    "split": ("Split", "answers_seen", "split_dataset", "split_folds", "without_leaks"),
    "store": ("open_store",),
    "store.versions": ("LiveIndex", "index_documents", "roll_back"),
    "track": ("trace_search", "tracking"),
    "tune.adapter": ("AdaptedEncoder", "load_adapter", "save_adapted", "tune_adapter"),
    "tune.full": ("tune_model",),
    "tune.merge": ("Merges", "merge_models"),
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
