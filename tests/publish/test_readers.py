"""Other people's readers and clients of a published model."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from publish_data import TEXTS

from embedfit.encode.local import LocalEncoder
from embedfit.encode.readers import OLDEST, older_form
from embedfit.encode.saving import save_in_place

READERS = Path(os.environ.get("EMBEDFIT_TEST_READERS", Path(sys.prefix) / "readers"))


def run_with(packages, code, published):
    """Run code in a process of its own, with packages of tests/readers first; return what it prints as JSON."""
    if not (READERS / packages).is_dir():
        pytest.skip(f"no packages in {READERS / packages}; 'make test' installs them")
    said = json.dumps([str(published), TEXTS])
    environment = {**os.environ, "PYTHONPATH": str(READERS / packages), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, input=said, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def vectors_of(folder):
    encoder = LocalEncoder(folder, precision="fp32")
    return [encoder.encode(TEXTS, kind) for kind in ("query", "document")]


def same(found, expected):
    return bool(np.abs(np.array(found) - np.array(expected)).max() < 1e-5)


OLD = """
import json
import sentence_transformers
folder, texts = json.loads(input())
found = {}
for name in ("plain", "prompted", "adapted"):
    model = sentence_transformers.SentenceTransformer(f"{folder}/{name}")
    found[name] = [model.encode_query(texts).tolist(), model.encode_document(texts).tolist()]
print(json.dumps([sentence_transformers.__version__, found]))
"""


def test_an_older_sentence_transformers_gives_the_same_vectors(published):
    version, found = run_with("old", OLD, published)
    assert version.startswith(f"{OLDEST}.")
    for name, vectors in found.items():
        assert same(vectors, vectors_of(published / name)), name
        assert f"\n{OLDEST} or newer.\n" in (published / name / "README.md").read_text()


CLIENTS = """
import json, re
from langchain_huggingface import HuggingFaceEmbeddings
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
folder, texts = json.loads(input())
found = {}
for name in ("plain", "prompted", "adapted"):
    card = open(f"{folder}/{name}/README.md").read()
    for client, defaults in (("LangChain", HuggingFaceEmbeddings), ("LlamaIndex", HuggingFaceEmbedding)):
        made = {"defaults": defaults(model_name=f"{folder}/{name}")}
        lines = re.search(rf"### {client}\\n.*?```py\\n(.*?)```", card, re.DOTALL)
        if lines:
            here = {}
            exec(lines[1], here)
            made["lines"] = here["embeddings"]
        for how, embeddings in made.items():
            query = getattr(embeddings, "embed_query", None) or embeddings.get_query_embedding
            documents = getattr(embeddings, "embed_documents", None) or embeddings.get_text_embedding_batch
            found[f"{client} {name} {how}"] = [[query(text) for text in texts], documents(texts)]
print(json.dumps(found))
"""


def test_the_cards_lines_for_other_clients_give_the_measured_vectors_where_their_defaults_do_not(published):
    found = run_with("clients", CLIENTS, published)
    right = {key: same(unit(vectors), vectors_of(published / key.split()[1])) for key, vectors in found.items()}
    assert right == {
        f"{client} {name} {how}": how == "lines" or name == "plain"
        for client in ("LangChain", "LlamaIndex")
        for name in ("plain", "prompted", "adapted")
        for how in (["defaults"] if name == "plain" else ["defaults", "lines"])  # a plain model needs none
    }


def test_the_docs_give_the_lines_that_the_card_gives(published):
    card = (published / "adapted" / "README.md").read_text().replace(str(published / "adapted"), "runs/support-1a2b3c4d5e/model")
    page = (Path(__file__).parents[2] / "docs" / "stores.md").read_text()
    lines = [block.replace('"passage: "', '""') for block in re.findall(r"```py\n(.*?)```", card, re.DOTALL)]
    assert len(lines) == 2
    assert set(lines) <= set(re.findall(r"```py\n(.*?)```", page, re.DOTALL))


def unit(vectors):
    return np.array(vectors) / np.linalg.norm(vectors, axis=2, keepdims=True)


def test_chromas_own_function_is_right_for_a_plain_model_alone(published):
    from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction

    for name, right in (("plain", True), ("prompted", False), ("adapted", False)):
        embed = SentenceTransformerEmbeddingFunction(str(published / name))
        assert same(unit([embed.embed_query(TEXTS), embed(TEXTS)]), vectors_of(published / name)) is right
        assert ("Pass vectors to Chroma, as above." in (published / name / "README.md").read_text()) is not right


def test_what_older_readers_and_text_embeddings_inference_look_for_is_there(published):
    folder = published / "adapted"
    assert json.loads((folder / "sentence_bert_config.json").read_text()) == {"max_seq_length": 256, "do_lower_case": False}
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    assert (pooling["pooling_mode_cls_token"], pooling["word_embedding_dimension"]) == (False, 384)
    types = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    assert types == [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize", "Router")]


CHANGES = {
    "config.json": [("rope_parameters", {"rope_theta": 10_000}), ("text_config", {"rope_scaling": None})],
    "sentence_bert_config.json": [("transformer_task", "any-to-any"), ("modality_config", {}), ("unknown", 1)],
    "1_Pooling/config.json": [("pooling_mode", ["mean", "cls"]), ("unknown", 1)],
    "2_Normalize/config.json": [("module_input_name", "token_embeddings")],
    "tokenizer_config.json": [("model_max_length", 10**30)],
    "modules.json": [
        (0, {"type": "somebody.models.Transformer", "path": ""}),
        (1, {"type": "sentence_transformers.base.modules.Own", "path": ""}),
    ],
}


@pytest.mark.parametrize(("file", "key", "value"), [(file, *change) for file, changes in CHANGES.items() for change in changes])
def test_what_the_older_form_cannot_say_stays_in_the_new_one(tiny_model, tmp_path, file, key, value):
    shutil.copytree(tiny_model, tmp_path / "model")
    assert set(older_form(tmp_path / "model")) == {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"}
    path = tmp_path / "model" / file
    settings = json.loads(path.read_text())
    settings[key] = value
    path.write_text(json.dumps(settings))
    assert older_form(tmp_path / "model") is None


def test_joined_poolings_and_other_limits_come_back_as_they_were(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model))
    model[1].__init__(384, ("cls", "mean"))
    model.max_seq_length = 17
    expected = model.encode(TEXTS)
    save_in_place(partial(model.save_pretrained, create_model_card=False), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "sentence_bert_config.json").read_text())["max_seq_length"] == 17
    again = SentenceTransformer(str(tmp_path / "model"))
    assert (again.max_seq_length, again[1].pooling_mode) == (17, ("cls", "mean"))
    assert np.array_equal(again.encode(TEXTS), expected)
