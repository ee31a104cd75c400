"""The whole way, from files to a verdict.

(generate ->) data -> check -> split -> encode -> retrieve -> score -> tune -> compare -> report

generating   an LLM writes the queries, where it is asked to
job          the data, its parts without leaks, the model, and where results go
training     tuning, for each split and seed
measuring    encoders, retrievers and rerankers measured without tuning; a vector store filled and measured
experiment   run, ladder, curve: all of it, and what is written down
publishing   a finished run, published and fetched again
"""

from embedfit.pipeline.experiment import Result, alerts, read_general, read_result, run, run_curve, run_ladder
from embedfit.pipeline.generating import estimate_generate, run_generate
from embedfit.pipeline.job import (
    Job,
    check_installed,
    check_method,
    encoder,
    engine_of,
    gated,
    leaks,
    local,
    locked,
    note_unused,
    one_split,
    read,
    splits_of,
    without_held_out,
)
from embedfit.pipeline.measuring import answers_seen_in_training, evaluate, index, measure, seen_in_training
from embedfit.pipeline.publishing import prepare_publications, publish_run
from embedfit.pipeline.training import run_tune, tune

__all__ = [
    "Job",
    "Result",
    "alerts",
    "answers_seen_in_training",
    "check_installed",
    "check_method",
    "encoder",
    "engine_of",
    "estimate_generate",
    "evaluate",
    "gated",
    "index",
    "leaks",
    "local",
    "locked",
    "measure",
    "note_unused",
    "one_split",
    "prepare_publications",
    "publish_run",
    "read",
    "read_general",
    "read_result",
    "run",
    "run_curve",
    "run_generate",
    "run_ladder",
    "run_tune",
    "seen_in_training",
    "splits_of",
    "tune",
    "without_held_out",
]
