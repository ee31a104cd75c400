"""Conventions of other services: what a server answers in them, also to their own clients."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from embedfit.encode.local import LocalEncoder

READERS = Path(os.environ.get("EMBEDFIT_TEST_READERS", Path(sys.prefix) / "readers"))
TEXTS = ["a ride to the airport", "dinner with a client", "storage for backups"]


@pytest.fixture(scope="session")
def encoder(run_folder):
    return LocalEncoder(run_folder / "searcher" / "model", query_prompt="query: ", document_prompt="passage: ", precision="fp32")


@pytest.fixture(scope="session")
def vectors(encoder):
    return {kind: encoder.encode(TEXTS, kind) for kind in ("query", "document")}


@pytest.fixture(scope="session")
def asked(address, encoder, run_folder):
    """Return a function that runs clients in a process of their own, and returns what they were given."""

    def run(*clients, packages=None):
        if packages and not (READERS / packages / "cohere").is_dir():
            pytest.skip(f"no packages in {READERS / packages}; 'make test' installs them")
        tokens = encoder.loaded.model.tokenizer(TEXTS[1])["input_ids"]
        said = {"address": address, "model": run_folder.name, "texts": TEXTS, "tokens": tokens, "clients": clients}
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "ANONYMIZED_TELEMETRY": "False"}
        if packages:
            environment["PYTHONPATH"] = os.pathsep.join([str(READERS / packages), environment.get("PYTHONPATH", "")])
        command = [sys.executable, str(Path(__file__).with_name("clients.py"))]
        done = subprocess.run(command, env=environment, input=json.dumps(said), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def given(asked):
    return asked("openai", "huggingface_hub", "chromadb")


def near(found, expected):
    return bool(np.abs(np.array(found) - np.array(expected)).max() < 1e-5)


def test_openais_client_is_given_the_models_vectors_in_every_form(given, vectors, run_folder):
    openai, name = given["openai"], run_folder.name
    assert all(near(found, vectors["document"]) for found in openai["documents"])
    assert all(near(found, vectors["query"][0]) for found in openai["queries"])
    short = vectors["document"][:, :8]
    assert near(openai["short"], short / np.linalg.norm(short, axis=1, keepdims=True))
    assert all(near(found, vectors["document"][1]) for found in openai["tokens"])
    assert openai["models"] == [name, f"{name}:query", f"{name}:document"]
    assert openai["model"] == name
    assert [status for status, _ in openai["errors"]] == [404, 422, 422, 422]
    assert openai["errors"][0][1] == f"this model is not served here; expected {name!r}"
    assert "check_embedding_ctx_length=False" in openai["errors"][1][1]
    assert openai["errors"][2][1] == "text 1: is empty; expected a text"
    assert openai["errors"][3][1] == "dimensions: expected at most 384"


def test_the_usage_is_the_number_of_tokens_with_the_prompt(given, encoder):
    assert given["openai"]["usage"] == encoder.loaded.truncation(TEXTS, "document").counts.sum()


def test_the_hubs_and_chromas_clients_are_given_the_models_vectors(given, vectors):
    assert near(given["huggingface_hub"]["documents"], [vectors["document"]])
    assert near(given["huggingface_hub"]["queries"], vectors["query"][:1])
    assert near(given["chromadb"]["documents"], [vectors["document"]] * 2)


@pytest.mark.slow
def test_clients_beside_the_environment_are_given_the_models_vectors_and_rankings(asked, vectors):
    answers = asked("cohere", "langchain", "llama_index", packages="clients")
    scores = vectors["document"] @ vectors["query"][0]
    best = np.argsort(-scores)[:2].tolist()
    for ranked in (answers["cohere"]["ranked"]["v1"], answers["cohere"]["ranked"]["v2"]):
        assert [index for index, _ in ranked] == best
        assert near([score for _, score in ranked], scores[best])
    assert answers["cohere"]["ranked"]["error"].startswith("this model is not served here")
    assert near(answers["langchain"]["documents"], [vectors["document"]])
    assert near(answers["langchain"]["queries"], vectors["query"][:1])
    assert near(answers["llama_index"]["documents"], [vectors["document"]] * 2)


@pytest.fixture(scope="module")
def http(address):
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        yield client


def test_jinas_rerank_takes_texts_and_objects_and_returns_them_on_request(http, vectors):
    documents = [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]
    answer = http.post("/v1/rerank", json={"query": TEXTS[0], "documents": documents, "return_documents": True}).json()
    scores = vectors["document"] @ vectors["query"][0]
    assert [result["index"] for result in answer["results"]] == np.argsort(-scores).tolist()
    assert answer["results"][0]["document"] == {"text": TEXTS[answer["results"][0]["index"]]}
    assert answer["usage"]["total_tokens"] > 0
    refused = http.post("/v1/rerank", json={"query": TEXTS[0], "documents": []})
    assert refused.status_code == 422
    assert refused.json()["message"] == refused.json()["detail"]


def test_text_embeddings_inference_ranks_texts_and_its_errors_have_its_shape(http, vectors):
    answer = http.post("/rerank", json={"query": TEXTS[0], "texts": TEXTS, "return_text": True}).json()
    scores = vectors["document"] @ vectors["query"][0]
    assert [row["index"] for row in answer] == np.argsort(-scores).tolist()
    assert near([row["score"] for row in answer], sorted(scores, reverse=True))
    assert answer[0]["text"] == TEXTS[answer[0]["index"]]
    refused = http.post("/embed", json={"inputs": TEXTS, "prompt_name": "poem"})
    assert (refused.status_code, refused.json()) == (
        422,
        {"error": "prompt_name: expected 'query' or 'document'", "error_type": "validation"},
    )


def test_base64_is_the_float32_bytes_little_endian(http, vectors, run_folder):
    answer = http.post("/v1/embeddings", json={"model": run_folder.name, "input": TEXTS[0], "encoding_format": "base64"}).json()
    found = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    assert near(found, vectors["document"][0])
    floats = http.post("/v1/embeddings", json={"input": TEXTS[0]}).json()["data"][0]["embedding"]
    assert np.array_equal(np.array(floats, np.float32), found)  # written with as many digits as it takes
