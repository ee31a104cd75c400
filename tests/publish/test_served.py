"""The command that checks an endpoint against a finished run."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from serve_data import serving
from servers import Embeddings, running

from embedfit.encode.local import LocalEncoder
from embedfit.pipeline import deploying
from embedfit.serve.searching import Served


@dataclass
class Serving(Embeddings):
    """A server of a sentence-transformers folder.

    Attributes:
        encoder: The model, which puts its prompt of a document before every text.
        shift: Places by which the vectors of queries are shifted.
    """

    encoder: LocalEncoder | None = None
    shift: int = 0

    def vectors(self, texts, dimensions):
        vectors = self.encoder.encode(texts, "document")
        return np.roll(vectors, self.shift, axis=0) if texts[0].startswith("query: ") else vectors


@pytest.fixture
def check(finished, said):
    def call(encoder, *options, run=finished.folder, shift=0):
        with running(Serving(encoder=encoder, shift=shift) if encoder else Embeddings()) as server:
            code, out, err = said("parity", run, "--endpoint", f"openai:m@{server.address}/v1", *options)
            return code, out, err, server

    return call


def test_an_endpoint_that_serves_the_model_passes(check, finished):
    code, out, _, server = check(LocalEncoder(finished.model, document_prompt=""))
    assert code == 0
    assert "The same vectors." in out
    assert out.rstrip().endswith("serves what was measured.")
    assert any(text.startswith("query: ") for text in server.bought)


def test_an_endpoint_that_adds_prompts_is_sent_none(check, finished):
    _, out, _, server = check(LocalEncoder(finished.model, document_prompt=""), "--prompts", "endpoint", "--queries", 5)
    assert "Cause: queries: prompt: the prompt is missing; fix: put 'query: ' before each query" in out
    assert not any(text.startswith("query: ") for text in server.bought)


def test_an_endpoint_that_loses_quality_fails(check, finished):
    model = LocalEncoder(finished.model, document_prompt="")
    code, out, _, _ = check(model, shift=1)
    assert code == 1
    assert "Cause: queries: order: the vectors are those of other texts" in out
    assert out.rstrip().endswith("loses quality.")
    code, out, _, _ = check(model, "--json", shift=1)
    assert (code, json.loads(out)["lost"]) == (1, True)


def test_another_model_is_named_and_passes_if_it_finds_the_answers(check):
    code, out, _, _ = check(None)
    assert code == 0
    assert "Cause: another model: the endpoint gives 64 dimensions, the measured model 384" in out
    assert "serves other vectors than were measured, and loses no more than" in out


def test_embedfit_serve_serves_what_was_measured(finished, said):
    with serving(Served.load(finished.folder)) as client:
        name, url = finished.folder.name, f"{client.base_url}/v1".replace("//v1", "/v1")
        documents, queries = (f"openai:{name}:{kind}@{url}" for kind in ("document", "query"))
        options = ["--query-endpoint", queries, "--prompts", "endpoint"]
        code, out, err = said("parity", finished.folder, "--endpoint", documents, *options)
        assert (code, "The same vectors." in out) == (0, True), out + err
        # Without them, queries are encoded as documents: this model has a prompt for queries alone, so it is missing.
        code, out, _ = said("parity", finished.folder, "--endpoint", documents, "--prompts", "endpoint")
        assert "Cause: queries: prompt: the prompt is missing" in out


def test_the_base_model_is_tried_as_the_cause(finished):
    others = deploying._other_models(finished, LocalEncoder(finished.model))
    assert {name: model.folder.name for name, model in others.items()} == {"the base model": "tiny"}


def test_without_the_data_vectors_alone_decide(check, copied, finished):
    (copied.parents[1] / "documents.jsonl").unlink()
    code, out, _, _ = check(LocalEncoder(finished.model, document_prompt=""), run=copied)
    assert (code, "Sent 4 queries. The same vectors." in out) == (0, True)
    code, out, _, _ = check(None, run=copied)
    assert code == 1
    assert "the labelled data of the run was not available for scoring" in out


def test_what_cannot_be_an_endpoint_is_one_line(said, finished):
    code, out, err = said("parity", finished.folder, "--endpoint", "localhost:8080")
    assert (code, out) == (2, "")
    assert err == "embedfit: --endpoint localhost:8080: expected openai:MODEL@URL or hf-inference:URL\n"
    _, _, err = said("parity", finished.folder, "--endpoint", "openai:m@http://localhost:1/v1", "--query-endpoint", "m")
    assert err == "embedfit: --query-endpoint m: expected openai:MODEL@URL or hf-inference:URL\n"


def test_the_doctor_looks_at_training_queries_alone(said, finished):
    code, out, _ = said("doctor", finished.folder, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["queries"] == finished.manifest["split"][0]["train"] == 16
    assert [trial["setting"] for trial in found["trials"]] == ['model.query_prompt = ""']
    assert found["verdict"] == finished.alone.sentence
