"""The model card."""

import re
import subprocess
import sys

import pytest

from embedfit.config import make_config
from embedfit.hub import public_name
from embedfit.pipeline import experiment, publishing


def test_the_card_shows_the_comparison_with_intervals_data_and_settings(finished, card):
    _, text = card
    assert finished.alone.sentence in text
    for metric in ("recall@1", "recall@10", "mrr@10", "ndcg@10"):
        found = finished.alone[metric]
        assert (
            f"| {found.metric} | {found.base:.3f} | {found.tuned:.3f} | {found.difference:+.3f} | {found.low:+.3f} to {found.high:+.3f} |"
            in text
        )
    assert "20 labelled queries, 4 documents" in text
    assert "Queries: 16 for training, 0 for development, 4 held out" in text
    assert "Text of a document: `{title}. {text}`" in text
    assert "| epochs | 1 |" in text
    assert "| base model | tiny (fingerprint" in text
    assert 'Prompt before each query: `"query: "`' in text
    assert "of 384 dimensions" in text
    assert "## Intended use" in text
    assert finished.manifest["forgetting"]["sentence"] in text


def test_the_cards_metadata_is_what_the_hub_shows(finished, card):
    from huggingface_hub import ModelCard

    data = ModelCard(card[1]).data
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "sentence-similarity"
    assert "base_model" not in data.to_dict()  # a folder of this machine is none
    metrics = {result.metric_type: result.metric_value for result in data.eval_results}
    assert metrics["cosine_mrr@10"] == round(finished.alone["mrr@10"].tuned, 4)
    assert list(metrics) == [f"cosine_{name}" for name in ("recall@1", "recall@3", "recall@5", "recall@10", "mrr@10", "ndcg@10")]


@pytest.mark.slow
def test_the_cards_snippets_run(card, tmp_path):
    _, text = card
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 2
    code = "\n".join(snippets)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'ids': [['" in done.stdout
    assert '"prompt_name": "query"' in text


@pytest.mark.slow
def test_a_router_is_not_offered_to_a_server_that_does_not_know_it(project, tiny_model, tmp_path):
    said = {
        "output": str(tmp_path),
        "data": {"queries": str(project / "queries.jsonl"), "documents": str(project / "documents.jsonl")},
        "model": {"name": str(tiny_model)},
        "split": {"folds": 0},
        "tune": {"method": "adapter"},
    }
    result = experiment.run(make_config(said))
    [publication] = publishing.prepare_publications(result.folder, str(tmp_path / "adapted"))
    assert publishing.publish_run(result.folder, publication).cosine > 0.99
    text = (tmp_path / "adapted" / "README.md").read_text()
    assert "which text-embeddings-inference does not support" in text
    assert "docker run" not in text
    assert "of 384 dimensions" in text


def test_the_name_of_a_folder_is_all_that_is_told_of_it(tmp_path):
    assert public_name(str(tmp_path / "secret" / "model")) == "model"
    assert public_name("BAAI/bge-base-en-v1.5") == "BAAI/bge-base-en-v1.5"
