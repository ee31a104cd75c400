"""The whole circle: from labels without a single labelled pair to a search that is watched, through every service on the way."""

import json
import os
import re
import sys
from base64 import b64encode
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from loopback import running_services
from nbclient import NotebookClient
from small_start import write_start

from embedfit.cli.app import main
from embedfit.data.dataset import Dataset, Query
from embedfit.data.documents import read_documents
from embedfit.encode.local import LocalEncoder
from embedfit.hosts import key_variable
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.samples import TRANSACTIONS

EXAMPLES = Path(__file__).parents[1] / "examples"

TOML = """
name = "expenses"
[data]
queries = "records.jsonl"
documents = "{categories}"
record = "transaction"
[generate]
records = 135
base_url = "{llm}/v1"
key = "LLM_API_KEY"
model = "rote"
price = [0.4, 1.6]
budget = 1.0
[split]
folds = 0
[model]
name = "{model}"
[tune]
epochs = 2
[general]
queries = "general/queries.jsonl"
documents = "general/documents.jsonl"
"""


@pytest.fixture
def services(monkeypatch, tmp_path):
    with running_services() as services:
        for name, value in services.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # HF_HUB_DISABLE_XET is read once
        monkeypatch.setenv("EMBEDFIT_CACHE", str(tmp_path / "cache"))
        yield services


@pytest.fixture
def said(capsys, monkeypatch, tmp_path):
    """Run a command in a folder of its own; whatever it prints is kept in ``said.all``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        call.all += out + err
        assert not caught.value.code, err
        return out

    call.all = ""
    return call


def search_here(model, query, corpus):
    """Return the documents' ids, best first, for each of one query, by exact search with the weights on this machine."""
    run = DenseRetriever(LocalEncoder(model)).search(Dataset({"q": Query("q", query)}, corpus, {}), len(corpus))
    return [[run.document_ids[position] for position in row] for row in run.ranked]


def content_of(path):
    """Return what is in a file; Parquet compresses its texts."""
    return pd.read_parquet(path).to_csv().encode() if path.suffix == ".parquet" else path.read_bytes()


@pytest.mark.slow
def test_the_whole_circle_and_each_key_goes_to_its_own_host_alone(services, said, tiny_model, tmp_path):
    toml = TOML.format(categories=TRANSACTIONS / "categories.json", llm=services.llm.address, model=tiny_model)
    Path("embedfit.toml").write_text(toml)
    write_start(Path("general"))  # any other task will do
    config, large = "embedfit.toml", "openai:text-embedding-3-large"

    written = json.loads(said("generate", "records", "--config", config, "--json"))
    assert (written["accepted"], len(written["labels"])) == (135, 27)

    checked = json.loads(said("check", config, "--json"))
    assert (checked["queries"], checked["documents"], checked["bad_rows"]) == (135, 27, [])

    rows = json.loads(said("evaluate", config, "--model", large, "--model", tiny_model, "--json"))
    assert {row["model"] for row in rows} == {large, str(tiny_model)}

    run = json.loads(said("run", config, "--json"))
    folder = Path(run["folder"])
    assert run["verdict"] == "better"
    assert (folder / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert "written by an LLM (rote)" in (folder / "report.html").read_text()
    tuned = folder / "model"
    against = json.loads(said("compare", config, large, tuned, "--json"))
    assert against["tuned"] == str(tuned)

    said("publish", folder, "someone/expenses", "--yes")
    repo = services.hub.repos["model", "someone/expenses"]
    assert repo["private"]
    served = f"hf-inference:{services.endpoint.deploy(services.hub, 'someone/expenses')}"

    indexed = json.loads(said("index", config, "--model", served, "--json"))
    assert (indexed["documents"], indexed["recall"]) == (27, 1.0)
    query = "Lufthansa, Frankfurt to New York, two seats in economy"
    hits = json.loads(said("search", query, config, "--model", served, "--json", "--k", "3"))
    corpus = read_documents(TRANSACTIONS / "categories.json")
    # The model came from the Hub, and its vectors over the network, out of Chroma: it is still the one that was measured.
    [best] = search_here(tuned, query, corpus)
    assert [hit["id"] for hit in hits] == best[:3]

    experiment = services.langwatch.results(folder.name)
    held_out = run["queries"]
    assert {row["targetId"] for row in experiment["dataset"]} == {tiny_model.name, f"{tiny_model.name}, searcher"}
    assert len(experiment["dataset"]) == 2 * held_out
    mean = sum(one["score"] for one in experiment["evaluations"] if one["name"] == "mrr@10" and "searcher" in one["targetId"]) / held_out
    assert mean == pytest.approx(next(row["tuned"] for row in run["differences"] if row["metric"] == "mrr@10"), abs=1e-5)
    *_, (name, _, search) = services.langwatch.spans()
    assert (name, json.loads(search["langwatch.input"])["value"]) == ("retrieval", query)
    assert [context["document_id"] for context in json.loads(search["langwatch.rag_contexts"])] == best[:3]

    published = {f"hub:{path}": content for path, content in repo["files"].items()}
    written = {str(path): content_of(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {Path(path).suffix for path in written} >= {".jsonl", ".html", ".parquet", ".sqlite3", ".safetensors", ".png"}
    for name, secret in services.secrets.items():
        assert secret not in said.all, name
        for form in (secret.encode(), b64encode(secret.encode())):
            assert not [path for path, content in {**written, **published}.items() if form in content], name
    seen = {service: keys for service, (_, keys) in services.keys_seen().items()}
    assert seen == {
        "llm": {"LLM_API_KEY"},
        "openai": {"OPENAI_API_KEY", "OPENAI_ORG_ID"},
        "hub": {"HF_TOKEN"},
        "storage": set(),
        "endpoint": {key_variable(services.endpoint.address)},
        "langwatch": {"LANGWATCH_API_KEY"},
    }


@pytest.mark.slow
def test_the_notebook_of_the_circle_runs_from_top_to_bottom(tiny_model, tmp_path, monkeypatch):
    """With a model of one layer in place of all six."""
    notebook = nbformat.read(EXAMPLES / "circle.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("all-MiniLM-L6-v2", str(tiny_model))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), *sys.path]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "\n".join(one.get("text", "") + one.get("data", {}).get("text/plain", "") for one in shown)
    assert "189 of 189 records" in text
    assert re.search(r"Better: MRR@10 rose from .* on 62 held-out queries", text)
    assert "Fetched again: the vectors of 89 texts are the same" in text
    assert "recall@10 against exact search 1.0000 on 189 queries" in text
    assert "'storage': (2, set())" in text
    assert len([one for one in shown if "image/png" in one.get("data", {})]) == 1


def test_the_notebook_is_kept_with_what_it_shows_and_no_path_of_anybodys_machine():
    notebook = nbformat.read(EXAMPLES / "circle.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert not re.findall(r"/(?:home|root|Users|tmp|work|usr)/", json.dumps([cell.outputs for cell in code]))
