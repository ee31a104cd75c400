"""One server process for all tests that look at a real model."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from serve_data import searcher, serving

from embedfit.config import make_config
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.score import Scores

DOCUMENTS = {
    "travel": "Taxi, train and airport rides",
    "meals": "Restaurant dinners and coffee",
    "hosting": "Cloud servers and storage",
    "rent": "Office rent and desks",
}


@pytest.fixture(scope="session")
def run_folder(tiny_model, tmp_path_factory):
    """A finished run of the one-layer model, with prompts, as its files describe it."""
    folder = tmp_path_factory.mktemp("served") / "expenses-0123456789"
    shutil.copytree(tiny_model, folder / "model")
    (folder / "documents.jsonl").write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in DOCUMENTS.items()))
    (folder / "queries.jsonl").write_text(json.dumps({"id": "q", "query": "a ride", "expected": "travel"}) + "\n")
    config = make_config(
        {
            "data": {"queries": str(folder / "queries.jsonl"), "documents": str(folder / "documents.jsonl")},
            "model": {"name": str(folder / "model"), "query_prompt": "query: ", "document_prompt": "passage: ", "precision": "fp32"},
        }
    )
    base, tuned = (Scores(name, ("q",), {"mrr@10": np.array([1.0])}, np.array([1])) for name in ("base", "tuned"))
    (folder / "comparison.json").write_text(json.dumps(compare_scores(base, tuned).to_dict()))
    frame = pd.DataFrame({"query_id": ["q"], "base_mrr@10": [1.0], "base_rank": [1], "tuned_mrr@10": [1.0], "tuned_rank": [1]})
    frame.to_parquet(folder / "queries.parquet")
    manifest = {"model": "model", "config": config.model_dump(mode="json"), "others": [], "findings": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def process(run_folder):
    """The address of `embedfit serve`, the process, and the lines that it printed."""
    command = [sys.executable, "-m", "embedfit", "serve", str(run_folder), "--port", "0", "--log"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    lines = []
    for line in server.stderr:
        lines.append(line)
        if found := re.search(r"at (http://\S+)", line):
            break
    else:
        pytest.fail("".join(lines))
    yield found[1], server, lines
    server.terminate()
    server.communicate()


@pytest.fixture(scope="session")
def address(process):
    return process[0]


@pytest.fixture
def client(word_encoder, tmp_path):
    """A client of a server whose model counts words."""
    with serving(searcher(word_encoder), tmp_path) as client:
        yield client
