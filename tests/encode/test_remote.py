import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers import Embeddings, running, word_vectors
from small_start import write_start

from embedfit.config import make_config
from embedfit.encode import remote
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.providers import Address
from embedfit.encode.remote import RemoteEncoder
from embedfit.errors import ConfigError, ModelError, OfflineError
from embedfit.hosts import key_variable
from embedfit.pipeline import experiment
from embedfit.pipeline.result import read_result

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    """No key of this machine's, and short pauses."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote, "_RETRIES", replace(remote._RETRIES, first_wait=0.02))


@pytest.fixture
def server():
    with running(Embeddings()) as one:
        yield one


@pytest.fixture
def encoder(server):
    return RemoteEncoder(f"openai:some-model@{server.address}/v1")


def texts(count):
    return [f"text number {number} of {count}" for number in range(count)]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai:text-embedding-3-large", Address("openai", "text-embedding-3-large", "https://api.openai.com/v1")),
        ("openai:text-embedding-3-large?dimensions=256", Address("openai", "text-embedding-3-large", "https://api.openai.com/v1", 256)),
        ("openai:BAAI/bge-m3@http://localhost:8080/v1/", Address("openai", "BAAI/bge-m3", "http://localhost:8080/v1")),
        (
            "openai:nomic-embed-text:latest@http://localhost:11434/v1",
            Address("openai", "nomic-embed-text:latest", "http://localhost:11434/v1"),
        ),
        ("openai:m?dimensions=8@https://a.example/v1", Address("openai", "m", "https://a.example/v1", 8)),
        (
            "openai:ada?dimensions=8@https://me.openai.azure.com/openai/deployments/ada?api-version=2024-06-01",
            Address("openai", "ada", "https://me.openai.azure.com/openai/deployments/ada?api-version=2024-06-01", 8),
        ),
        ("hf-inference:BAAI/bge-base-en-v1.5", Address("hf-inference", "BAAI/bge-base-en-v1.5", None)),
        ("hf-inference:https://x.endpoints.huggingface.cloud", Address("hf-inference", *2 * ["https://x.endpoints.huggingface.cloud"])),
    ],
)
def test_a_name_gives_provider_model_server_and_dimensions(name, expected):
    assert Address.of(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openai:", "names no model"),
        ("openai:@https://a.example", "names no model"),
        ("openai:m?size=3", "option 'size=3' is unknown"),
        ("openai:m?dimensions=0", "option 'dimensions=0' is unknown"),
        ("openai:m@https://me:hunter2@a.example/v1", "has a password in its URL"),
        ("hf-inference:https://me:hunter2@a.example", "has a password in its URL"),
        ("openai:m@https://a.example/v1?key=hunter2", "does not belong there"),
        ("openai:m@https://a.example/v1?api-version=1&key=hunter2", "does not belong there"),
        ("openai:m@https://a.example/v1#hunter2", "does not belong there"),
        ("openai:m@https://[hunter2/v1", "does not belong there"),
        ("openai:m@ftp://me:hunter2@a.example/v1", "not http"),
        ("openai:m?key=hunter2@https://a.example/v1", "option 'key' is unknown"),
        ("hf-inference:https://a.example?token=hunter2", "does not belong there"),
    ],
)
def test_a_malformed_name_is_refused_in_one_line_without_its_password(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        RemoteEncoder(name)
    assert "hunter2" not in str(caught.value)


def test_a_folder_or_hub_name_is_not_remote(tmp_path):
    for name in ("BAAI/bge-base-en-v1.5", "all-MiniLM-L6-v2", str(tmp_path), "./openai:x"):
        assert not remote.is_remote(name)


def test_a_key_belongs_to_one_host(monkeypatch):
    assert Address.of("openai:m").variable == "OPENAI_API_KEY"
    assert Address.of("openai:m@https://vllm.example.com:8000/v1").variable == "EMBEDFIT_KEY_VLLM_EXAMPLE_COM_8000"
    assert Address.of("hf-inference:a/b").variable == "HF_TOKEN"
    assert Address.of("hf-inference:https://x.us-east-1.aws.endpoints.huggingface.cloud").variable == "HF_TOKEN"
    assert Address.of("hf-inference:https://huggingface.co.evil.example").variable == "EMBEDFIT_KEY_HUGGINGFACE_CO_EVIL_EXAMPLE"
    monkeypatch.setenv("OPENAI_BASE_URL", "https://proxy.example/v1")
    assert Address.of("openai:m").url == "https://proxy.example/v1"
    assert Address.of("openai:m").variable == "OPENAI_API_KEY"
    assert Address.of("openai:m@https://api.openai.com/v1").variable == "EMBEDFIT_KEY_API_OPENAI_COM"


def test_openai_without_a_key_gives_a_one_line_error():
    with pytest.raises(ModelError, match="openai:text-embedding-3-large needs a key; fix: set OPENAI_API_KEY"):
        RemoteEncoder("openai:text-embedding-3-large")


# What comes back


def test_vectors_are_of_unit_length_and_in_the_order_of_the_texts(server, encoder):
    server.in_order = False
    found = encoder.encode(texts(100), "query")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, unit(word_vectors(texts(100))), atol=1e-6)
    assert encoder.encode([], "query").shape[0] == 0


def test_prompts_are_put_before_the_text_and_change_the_fingerprint(server):
    name = f"openai:m@{server.address}/v1"
    one, other = RemoteEncoder(name, query_prompt="query: "), RemoteEncoder(name)
    one.encode(["a"], "query")
    one.encode(["a"], "document")
    assert list(server.bought) == ["query: a", "a"]
    assert one.fingerprint != other.fingerprint


def test_dimensions_are_asked_for_and_change_the_fingerprint(server):
    name = f"openai:m?dimensions=16@{server.address}/v1"
    encoder = RemoteEncoder(name)
    assert encoder.encode(["a", "b"], "query").shape == (2, 16)
    assert server.requests[0].json["dimensions"] == 16
    assert encoder.fingerprint != RemoteEncoder(f"openai:m@{server.address}/v1").fingerprint


def test_a_hugging_face_endpoint_gives_the_same_vectors(server):
    encoder = RemoteEncoder(f"hf-inference:{server.address}/embed")
    np.testing.assert_allclose(encoder.encode(texts(70), "query"), unit(word_vectors(texts(70))), atol=1e-6)
    assert {request.path for request in server.requests} == {"/embed"}
    assert server.requests[0].json["truncate"] is True
    assert encoder.spent.tokens is None
    assert "tokens not reported, price unknown" in str(encoder.spent)


def test_a_model_that_hugging_face_serves_by_name_is_asked_for_there(server, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.inference._providers import PROVIDERS

    task = PROVIDERS["hf-inference"]["feature-extraction"]
    monkeypatch.setattr(task, "base_url", f"{server.address}/hf-inference")
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.hf_api.HfApi.model_info", lambda *args, **more: _Info())
        encoder = RemoteEncoder("hf-inference:someone/embedder")
        np.testing.assert_allclose(encoder.encode(texts(3), "query"), unit(word_vectors(texts(3))), atol=1e-6)
    [request] = server.requests
    assert request.path == "/hf-inference/models/someone/embedder/pipeline/feature-extraction"
    assert request.headers["authorization"] == "Bearer hf_abc"


class _Info:
    pipeline_tag, tags = "feature-extraction", ("feature-extraction",)


def test_vectors_of_tokens_are_refused(server):
    server.faults = [(200, {}, json.dumps([[[1.0, 2.0], [3.0, 4.0]]]).encode())]
    with pytest.raises(ModelError, match="returned a vector for each token; expected one vector for each of 1 texts"):
        RemoteEncoder(f"hf-inference:{server.address}/embed").encode(["a"], "query")


@pytest.mark.parametrize("bad", [[[0.0, 0.0]], [[float("nan"), 1.0]]])
def test_vectors_that_have_no_direction_are_refused(server, bad):
    server.faults = [(200, {}, json.dumps(bad).encode())]
    with pytest.raises(ModelError, match="not finite, or all zero"):
        RemoteEncoder(f"hf-inference:{server.address}/embed").encode(["a"], "query")


def test_fewer_vectors_than_texts_are_refused(server, encoder):
    body = json.dumps({"object": "list", "model": "m", "data": [{"index": 0, "embedding": [1.0, 0.0]}]}).encode()
    server.faults = [(200, {"Content-Type": "application/json"}, body)]
    with pytest.raises(ModelError, match="expected one vector for each of 2 texts"):
        encoder.encode(["a", "b"], "query")


# Batches


def test_requests_stay_within_what_openai_takes():
    os.environ["OPENAI_API_KEY"] = KEY
    try:
        encoder = RemoteEncoder("openai:text-embedding-3-large")
    finally:
        del os.environ["OPENAI_API_KEY"]
    many = ["short"] * 5000
    assert [len(batch) for batch in encoder._cut(many)] == [2048, 2048, 904]
    long = ["x" * 90_000] * 7
    assert [len(batch) for batch in encoder._cut(long)] == [3, 3, 1]
    assert [position for batch in encoder._cut([*many, *long]) for position in batch] == list(range(5007))


def test_other_servers_get_requests_that_any_server_takes_and_halves_if_they_are_too_large(server, encoder):
    server.at_most = 10
    found = encoder.encode(texts(64), "query")
    np.testing.assert_allclose(found, unit(word_vectors(texts(64))), atol=1e-6)
    assert max(len(request.json["input"]) for request in server.requests) == 32
    assert set(server.bought.values()) == {1}


def test_a_single_text_that_is_too_long_gives_a_one_line_error(server, encoder):
    server.faults = [(413, {}, b'{"error": {"message": "`inputs` must have less than 512 tokens"}}')]
    with pytest.raises(ModelError, match=r"refuses a text of 6 characters as too long \(413: .*less than 512 tokens"):
        encoder.encode(["a text"], "query")


def test_an_empty_text_has_a_vector(server, encoder):
    assert encoder.encode(["", "a"], "document").shape == (2, 64)


def test_requests_run_in_parallel(server, encoder):
    server.delay = 0.3
    started = time.monotonic()
    encoder.encode(texts(8 * 32), "query")
    assert time.monotonic() - started < 4 * 0.3  # eight, one after the other, take 2.4 s


# Trouble


@pytest.mark.parametrize("fault", [429, 500, 503, "drop", (429, {"retry-after-ms": "30"}, b"{}")])
def test_passing_errors_are_retried(server, encoder, fault):
    encoder.encode(["first"], "query")
    server.faults = [fault, fault, fault]
    np.testing.assert_allclose(encoder.encode(texts(100), "query"), unit(word_vectors(texts(100))), atol=1e-6)
    assert set(server.bought.values()) == {1}


@pytest.mark.parametrize("address", ["openai:m@{}/v1", "hf-inference:{}/embed"])
def test_retry_after_delays_all_requests(server, address):
    encoder = RemoteEncoder(address.format(server.address), concurrent=4)
    server.faults = [(429, {"Retry-After": "1"}, b'{"error": {"message": "slow down"}}')]
    server.delay = 0.05
    started = time.monotonic()
    encoder.encode(texts(8 * 32), "query")
    assert time.monotonic() - started > 1.0
    assert set(server.bought.values()) == {1}


def test_a_third_of_requests_failing_changes_nothing(server, encoder):
    encoder.encode(["first"], "query")
    server.faults = [[None, 500, "drop", None, 429, None, 503, None, None][number % 9] for number in range(40)]
    server.fault = lambda request: server.faults.pop(0) if server.faults else None
    np.testing.assert_allclose(encoder.encode(texts(900), "query"), unit(word_vectors(texts(900))), atol=1e-6)
    assert set(server.bought.values()) == {1}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            (401, {}, b'{"error": {"message": "Incorrect API key provided: %s"}}' % KEY.encode()),
            r"refuses the key in EMBEDFIT_KEY_\w+ \(401\)",
        ),
        ((403, {}, b"{}"), r"refuses the key in EMBEDFIT_KEY_\w+ \(403\)"),
        (
            (429, {}, b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'),
            "has no quota left; what was answered before is kept",
        ),
        ((402, {}, b"{}"), "has no quota left"),
        ((404, {}, b'{"error": {"message": "The model `m` does not exist"}}'), "answered 404: .*The model `m` does not exist"),
        ((400, {}, b'{"error": {"message": "bad key %s"}}' % KEY.encode()), r"answered 400: .*bad key \*\*\*"),
    ],
)
def test_permanent_errors_stop_at_once_with_one_line_and_no_key(server, monkeypatch, fault, message):
    monkeypatch.setenv(key_variable(server.address), KEY)
    encoder = RemoteEncoder(f"openai:m@{server.address}/v1", concurrent=1)
    server.fault = lambda request: fault
    with pytest.raises(ModelError, match=message) as caught:
        encoder.encode(texts(1000), "query")
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1


def test_it_gives_up_in_the_end_with_the_servers_message(server, encoder, monkeypatch):
    monkeypatch.setattr(remote, "_RETRIES", replace(remote._RETRIES, tries=3))
    server.fault = lambda request: 500
    with pytest.raises(ModelError, match=r"answered 500 3 times: .*a fault"):
        encoder.encode(["a"], "query")


def test_an_unreachable_server_quickly_gives_a_one_line_error():
    started = time.monotonic()
    with pytest.raises(OfflineError, match=r"127\.0\.0\.1:9 cannot be reached"):
        RemoteEncoder("openai:m@http://127.0.0.1:9/v1").encode(["a"], "query")
    assert time.monotonic() - started < 5


# Keys


@pytest.mark.parametrize("name", ["openai:m@{}/v1", "hf-inference:{}/embed"])
def test_a_key_is_sent_without_surrounding_white_space_and_never_shown_if_it_cannot_be_sent(server, monkeypatch, name):
    variable = key_variable(server.address)
    monkeypatch.setenv(variable, KEY + "\r\n")
    RemoteEncoder(name.format(server.address)).encode(["a"], "query")
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    for secret in ("sk-SEC\nRET", "sk-SEC\rRET", "sk-SECRETé", "\u200bsk-SECRET"):
        monkeypatch.setenv(variable, secret)
        with pytest.raises(ConfigError, match=f"{variable} holds a character that cannot be sent in a header") as caught:
            RemoteEncoder(name.format(server.address))
        assert "SEC" not in repr(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["openai:m@http://model.example/v1", "hf-inference:http://model.example"])
def test_a_socks_proxy_without_its_package_gives_a_one_line_error_without_its_password(name, monkeypatch):
    from huggingface_hub import close_session

    monkeypatch.setenv("ALL_PROXY", "socks5h://me:hunter2@127.0.0.1:9")
    close_session()  # the Hub's client is kept once it is made
    with pytest.raises(ConfigError) as caught:
        RemoteEncoder(name).encode(["a"], "query")
    assert str(caught.value) == "ALL_PROXY is a SOCKS proxy; fix: pip install socksio, or unset it"


def test_a_redirect_takes_no_key_to_another_host(server, encoder):
    with running(Embeddings()) as other:
        server.fault = lambda request: (307, {"Location": f"{other.address}/v1/embeddings?token=hunter2"}, b"")
        with pytest.raises(ModelError, match="answered 307") as caught:
            encoder.encode(["a"], "query")
        assert other.requests == []
    assert "hunter2" not in str(caught.value)


def test_an_azure_address_keeps_its_version_and_gets_the_key_in_azures_header(server, monkeypatch):
    monkeypatch.setenv(key_variable(server.address), KEY)
    encoder = RemoteEncoder(f"openai:ada@{server.address}/openai/deployments/ada/?api-version=2024-06-01")
    np.testing.assert_allclose(encoder.encode(texts(3), "query"), unit(word_vectors(texts(3))), atol=1e-6)
    [request] = server.requests
    assert request.path == "/openai/deployments/ada/embeddings?api-version=2024-06-01"
    assert request.headers["api-key"] == KEY
    assert "authorization" not in request.headers


# What is none


def body_of(*rows, **more):
    return {"object": "list", "model": "m", "data": list(rows), **more}


def row_of(index, embedding=(1.0, 0.0)):
    return {"index": index, "embedding": list(embedding) if isinstance(embedding, tuple) else embedding}


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"<!doctype html><title>Log in</title>", "an HTML page"),
        (b"", "an empty body"),
        (b"OK", "text that is not JSON"),
        (b"null", "JSON that is not an object"),
        (b"[[1.0, 0.0], [0.0, 1.0]]", "JSON that is not an object"),
        ({"embeddings": [[1.0]]}, "JSON with 'embeddings'"),
        ({"data": "text"}, "JSON with 'data'"),
        (body_of(), "0 vectors; expected one vector for each of 2 texts"),
        (body_of(row_of(0), {"embedding": [1.0, 0.0]}), "index is none"),
        (body_of(row_of(0), row_of(None)), "index is None"),
        (body_of(row_of(0), row_of(0)), "index is 0; expected each of 0 to 1 once"),
        (body_of(row_of(0), row_of(2)), "index is 2"),
        (body_of(row_of(0), row_of(-1)), "index is -1"),
        (body_of(row_of(0), row_of("1")), "index is '1'"),
        (body_of(row_of(0), row_of(True)), "index is True"),
        (body_of(row_of(0), row_of(1.0)), "index is 1.0"),
        (body_of(row_of(0), [1.0, 0.0]), "index is none"),
        (body_of(row_of(0), row_of(1, (1.0,))), "different lengths"),
        (body_of(row_of(0), row_of(1, "not base64!")), "'not base64!' as embedding"),
        (body_of(row_of(0), row_of(1, "AAAA")), "'AAAA' as embedding"),
        (body_of(row_of(0), row_of(1, None)), "None as embedding"),
        (body_of(row_of(0), row_of(1, ("1.0", "0.0"))), "as embedding; expected numbers"),
        (body_of(row_of(0), row_of(1, (None, 0.0))), "as embedding; expected numbers"),
        (body_of(row_of(0), row_of(1, (True, False))), "as embedding; expected numbers"),
        (body_of(row_of(0), row_of(1, ([1.0], [2.0]))), "as embedding; expected numbers"),
        (body_of(row_of(0), row_of(1, (10**400, 1))), "as embedding; expected numbers"),
        (body_of(row_of(0), row_of(1, (float("nan"), 1.0))), "not finite"),
    ],
)
def test_a_body_without_vectors_gives_a_one_line_error_that_describes_it(server, encoder, body, what):
    server.fault = lambda request: (200, {}, body if isinstance(body, bytes) else json.dumps(body).encode())
    with pytest.raises(ModelError) as caught:
        encoder.encode(["a", "b"], "query")
    assert what in str(caught.value)
    assert "not finite" in what or f"{encoder.address.host} answered 200 with " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "body", [b"<html>", b"", b"{}", b'"text"', b"[1, 2]", b'[["1.0"], ["2.0"]]', b"[[1.0], [1.0, 2.0]]", b"[[null], [1]]"]
)
def test_a_hugging_face_endpoint_without_vectors_gives_a_one_line_error(server, body):
    server.fault = lambda request: (200, {}, body)
    with pytest.raises(ModelError) as caught:
        RemoteEncoder(f"hf-inference:{server.address}/embed").encode(["a", "b"], "query")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "usage", ["many", None, [], {"total_tokens": None}, {"total_tokens": "12"}, {"total_tokens": -1}, {"total_tokens": True}]
)
def test_a_usage_that_is_not_a_number_is_ignored(server, encoder, usage):
    server.faults = [(200, {}, json.dumps(body_of(row_of(0), usage=usage)).encode())]
    assert encoder.encode(["a"], "query").shape == (1, 2)
    assert encoder.spent.tokens is None
    assert "tokens not reported" in str(encoder.spent)


@pytest.mark.parametrize("name", ["openai:m@{}/v1", "hf-inference:{}/embed"])
@pytest.mark.parametrize(
    "body",
    [
        {"error": "no room left"},
        {"error": {"message": "no room left", "code": 503}},
        {"detail": "no room left"},
        {"message": "no room left"},
        {"code": 41, "msg": "no room left"},
        {"Error": {"Message": "no room left"}},
        {"base_resp": {"status_code": 1013, "status_msg": "no room left"}},
        "no room left",
    ],
)
def test_an_error_under_status_200_keeps_its_reason(server, monkeypatch, name, body):
    monkeypatch.setattr(remote, "_RETRIES", replace(remote._RETRIES, tries=2))
    server.fault = lambda request: (200, {}, body.encode() if isinstance(body, str) else json.dumps(body).encode())
    with pytest.raises(ModelError, match="no room left"):
        RemoteEncoder(name.format(server.address)).encode(["a"], "query")
    assert len(server.requests) == (2 if "503" in str(body) else 1)


def anything(*words):
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(words)
    keys = st.sampled_from(words) | st.text(max_size=4)
    return st.recursive(leaves, lambda some: st.lists(some, max_size=3) | st.dictionaries(keys, some, max_size=4), max_leaves=12)


WORDS = ("data", "index", "embedding", "usage", "total_tokens", "error", "message", "detail")


@pytest.fixture(scope="module")
def one_server():
    with running(Embeddings()) as one:
        yield one


@given(
    body=anything(*WORDS), status=st.sampled_from([200, 200, 400, 404]), name=st.sampled_from(["openai:m@{}/v1", "hf-inference:{}/embed"])
)
@example(body=body_of(row_of(0), row_of(1), usage={"total_tokens": "x"}), status=200, name="openai:m@{}/v1")
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_json_gives_vectors_or_a_one_line_error(one_server, body, status, name):
    one_server.fault = lambda request: (status, {}, json.dumps(body).encode())
    try:
        found = RemoteEncoder(name.format(one_server.address)).encode(["a", "b"], "query")
    except ModelError as error:
        line = str(error)
    else:
        line = "fine"
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert len(line.splitlines()) == 1
    assert line.isprintable()


# What one text causes


@pytest.mark.parametrize("status", [400, 413, 422, 200])
@pytest.mark.parametrize("message", ["the batch is not to my taste", ["no"], {"reason": 7}])
def test_any_refusal_of_many_texts_is_retried_with_fewer(server, encoder, status, message):
    def picky(request):
        return (status, {}, json.dumps({"error": message}).encode()) if len(request.json["input"]) > 5 else None

    server.fault = picky
    np.testing.assert_allclose(encoder.encode(texts(64), "query"), unit(word_vectors(texts(64))), atol=1e-6)
    assert set(server.bought.values()) == {1}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (424, "CUDA OOM"),
        (400, "API key batch too large: invalid key count"),
        (400, "the key of the row is not to my taste"),
        (429, "batch too large"),
        (429, "Request too large for this model: Limit 30000, Requested 60000"),
        (413, "no"),
    ],
)
def test_a_batch_that_is_too_large_is_halved_at_once_whatever_the_status(server, encoder, status, message):
    def picky(request):
        return (status, {}, json.dumps({"error": message}).encode()) if len(request.json["input"]) > 5 else None

    server.fault = picky
    np.testing.assert_allclose(encoder.encode(texts(32), "query"), unit(word_vectors(texts(32))), atol=1e-6)
    assert len(server.requests) == 1 + 2 + 4 + 8  # 32, 16, 8, 4
    assert set(server.bought.values()) == {1}


def test_too_many_requests_do_not_count_as_a_large_batch_and_424_is_retried(server, encoder):
    passing = [(429, {}, b'{"error": "Rate limit reached: too many requests per minute"}'), (424, {}, b'{"error": "CUDA OOM"}')]
    server.faults = passing[:1]
    encoder.encode(texts(8), "query")
    assert [len(request.json["input"]) for request in server.requests] == [8, 8]
    server.faults = passing[1:]
    encoder.encode(["a"], "query")
    assert len(server.requests) == 4


@pytest.mark.parametrize("message", ["Unauthorized", "invalid api key", "Incorrect API key provided", "no authorization"])
def test_a_wrong_key_answered_with_400_is_not_retried_with_fewer_texts(server, encoder, message):
    server.fault = lambda request: (400, {}, json.dumps({"error": message}).encode())
    with pytest.raises(ModelError, match=message):
        encoder.encode(texts(32), "query")
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["openai:m@{}/v1", "hf-inference:{}/embed"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_takes_no_text_to_another_host(server, name, status):
    with running(Embeddings()) as other:
        server.fault = lambda request: (status, {"Location": f"{other.address}{request.path}?token=hunter2"}, b"")
        with pytest.raises(ModelError, match=f"answered {status}: it redirects requests to {other.address[7:]}; fix: give the") as caught:
            RemoteEncoder(name.format(server.address)).encode(["a"], "query")
        assert other.requests == []
    assert "hunter2" not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [400, 422, 500, 503, "drop", (200, {}, b'{"error": "no"}')])
def test_the_text_that_breaks_a_server_is_found_and_named(server, fault):
    encoder = RemoteEncoder(f"openai:m@{server.address}/v1", concurrent=1)
    many = [*texts(40), "poison\x1b[31m \u202e text", *texts(20)]
    server.fault = lambda request: fault if any("poison" in text for text in request.json["input"]) else None
    with pytest.raises(ModelError) as caught:
        encoder.encode(many, "query")
    assert len(server.requests) <= 20
    alone = [request for request in server.requests if request.json["input"] == [many[40]]]
    assert len(alone) == (3 if fault in (500, 503, "drop") else 1)
    if fault != "drop":
        assert r"text 41 of 61, 'poison\x1b[31m \u202e text'" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_server_that_is_down_gets_no_more_requests_for_many_texts_than_for_one(server, encoder):
    server.fault = lambda request: 500
    with pytest.raises(ModelError, match="answered 500 7 times"):
        RemoteEncoder(f"openai:m@{server.address}/v1", concurrent=1).encode(texts(32), "query")
    assert len(server.requests) == 7


@pytest.mark.parametrize("value", ["inf", "nan", "-3", "soon", "Fri, 99 Foo 99999 99:99:99 GMT", ""])
def test_a_malformed_retry_after_is_ignored(server, encoder, value):
    server.faults = [(429, {"Retry-After": value}, b"{}"), (503, {"Retry-After": value, "retry-after-ms": value}, b"{}")]
    assert encoder.encode(["a"], "query").shape == (1, 64)


def test_a_host_that_asks_to_wait_for_hours_gives_an_error(server, encoder):
    server.faults = [(429, {"Retry-After": "1e300"}, b"{}")]
    with pytest.raises(ModelError, match="answered 429 and asks to wait for 86,400 s; fix: run the same command then"):
        encoder.encode(["a"], "query")


def test_a_lone_surrogate_can_be_encoded(server, encoder):
    assert encoder.encode(["a \ud800 b"], "query").shape == (1, 64)


# Nothing is bought twice


def test_a_text_is_bought_once_for_each_model_and_its_parameters(server, tmp_path):
    name = f"openai:m@{server.address}/v1"
    for _ in range(2):
        CachedEncoder(RemoteEncoder(name), tmp_path).encode(["a", "b", "a"], "query")
    assert server.bought == {"a": 1, "b": 1}
    CachedEncoder(RemoteEncoder(f"openai:m?dimensions=8@{server.address}/v1"), tmp_path).encode(["a"], "query")
    CachedEncoder(RemoteEncoder(f"openai:other@{server.address}/v1"), tmp_path).encode(["a"], "query")
    CachedEncoder(RemoteEncoder(name, query_prompt="q: "), tmp_path).encode(["a"], "query")
    assert server.bought == {"a": 3, "b": 1, "q: a": 1}


def test_answers_before_a_refusal_are_kept(server, tmp_path):
    faults = iter([None, None, None])
    server.fault = lambda request: next(faults, (401, {}, b"{}"))
    cached = CachedEncoder(RemoteEncoder(f"openai:m@{server.address}/v1", concurrent=2), tmp_path)
    with pytest.raises(ModelError):
        cached.encode(texts(320), "query")
    assert len(server.bought) == 96
    server.fault = lambda request: None
    cached.encode(texts(320), "query")
    assert len(server.bought) == 320
    assert set(server.bought.values()) == {1}


def test_the_answered_half_of_a_request_is_kept(server, tmp_path):
    server.at_most = 4
    faults = iter([None] * 5)  # 32, 16, 8, 4 and 4 of one request: the next 8 are refused
    server.fault = lambda request: next(faults, (401, {}, b"{}"))
    cached = CachedEncoder(RemoteEncoder(f"openai:m@{server.address}/v1", concurrent=1), tmp_path)
    with pytest.raises(ModelError):
        cached.encode(texts(32), "query")
    assert len(server.bought) == 8
    server.fault = lambda request: None
    cached.encode(texts(32), "query")
    assert set(server.bought.values()) == {1}


def test_after_a_kill_no_finished_request_is_bought_again(server, tmp_path):
    code = (
        "import sys; from pathlib import Path; from embedfit.encode.cache import CachedEncoder\n"
        "from embedfit.encode.remote import RemoteEncoder\n"
        f"encoder = RemoteEncoder('openai:m@{server.address}/v1', concurrent=2)\n"
        f"CachedEncoder(encoder, Path({str(tmp_path)!r})).encode([f'text number {{i}} of 640' for i in range(640)], 'query')"
    )
    server.delay = 0.25
    process = subprocess.Popen([sys.executable, "-c", code])
    while len(server.bought) < 200:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.delay = 0.0
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(server.bought) == 640
    assert sum(server.bought.values()) <= 640 + 3 * 32  # what was under way, or answered but not yet written


# What it costs


def test_the_cost_is_what_the_server_counted_at_the_price_given(server, capsys):
    encoder = RemoteEncoder(f"openai:m@{server.address}/v1", price=2.5)
    encoder.encode(texts(40), "query")
    assert encoder.spent.tokens == 200
    assert encoder.spent.dollars == pytest.approx(200 * 2.5 / 1e6)
    assert "40 texts in 2 requests, 200 tokens, US$0.0005" in capsys.readouterr().err


def test_openai_has_a_price_and_others_have_none(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert RemoteEncoder("openai:text-embedding-3-large").price == 0.13
    assert RemoteEncoder("openai:text-embedding-3-large", price=0.1).price == 0.1
    assert RemoteEncoder(f"openai:text-embedding-3-large@{server.address}/v1").price is None
    with pytest.raises(ConfigError, match="price is -1; expected US dollars"):
        RemoteEncoder("openai:text-embedding-3-large", price=-1)


# In every command


@pytest.fixture
def project(server, tmp_path, monkeypatch):
    """A folder as of 'embedfit init' whose model is at the loopback server."""
    write_start(tmp_path)
    monkeypatch.setenv(key_variable(server.address), KEY)
    toml = tmp_path / "embedfit.toml"
    toml.write_text(toml.read_text().replace("all-MiniLM-L6-v2", f"openai:text-embedding-3-large@{server.address}/v1"))
    return toml


def test_evaluate_and_compare_take_remote_and_local_models_and_buy_only_timed_queries_again(server, project, said, tiny_model):
    name = f"openai:text-embedding-3-large@{server.address}/v1"
    code, out, err = said("evaluate", project, "--model", name, "--model", tiny_model, "--price", "0.13", "--json")
    assert code == 0
    assert {row["model"] for row in json.loads(out)} == {name, str(tiny_model)}
    assert "US$0.00" in err
    code, out, _ = said("compare", project, tiny_model, name, "--part", "all")
    assert code == 0
    assert "on 20 queries" in out
    again = {text for text, times in server.bought.items() if times > 1}
    lines = (project.parent / "queries.jsonl").read_text().splitlines()
    assert again == {json.loads(line)["query"] for line in lines[:5]}  # each alone, to see how long one takes


def test_check_reports_that_truncation_cannot_be_measured(project, said):
    code, out, _ = said("check", project)
    assert code == 0
    assert "truncation was not checked: openai:text-embedding-3-large" in out


@pytest.mark.parametrize("command", [["run"], ["curve"], ["tune", "--output", "tuned"]])
def test_full_fine_tuning_of_a_remote_model_is_refused_before_anything_is_bought(server, project, said, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = said(command[0], project, *command[1:])
    assert code == 2
    assert 'has no weights here to train; fix: method = "adapter" in [tune]' in err
    assert len(err.splitlines()) == 1
    assert server.requests == []


def with_adapter(project):
    text = project.read_text().replace("[tune]\n", '[tune]\nmethod = "adapter"\n')
    project.write_text(text.replace("# folds = 5 ", "folds = 0 "))


def test_run_improves_a_remote_model_by_an_adapter_that_other_commands_take(server, project, said):
    with_adapter(project)
    code, out, _ = said("run", project, "--json")
    assert code == 0
    folder = json.loads(out)["folder"]
    result = read_result(folder)
    assert result.model.name == "adapter.safetensors"
    assert result.manifest["bought"]["texts"] == len(server.bought)
    assert set(server.bought.values()) == {1}
    name = f"openai:text-embedding-3-large@{server.address}/v1"
    code, out, err = said("compare", project, name, result.model, "--part", "all")
    assert code == 0
    assert "was trained on" in err
    assert set(server.bought.values()) == {1}
    code, out, _ = said("run", project)
    assert "nothing had changed" in out


def test_an_adapter_over_a_remote_model_helps_on_held_out_queries(server, transactions, tmp_path):
    from embedfit.samples import TRANSACTIONS

    said = {
        "output": str(tmp_path),
        "data": {
            "queries": str(TRANSACTIONS / "transactions.jsonl"),
            "documents": str(TRANSACTIONS / "categories.json"),
            "record": "transaction",
        },
        "model": {"name": f"openai:m@{server.address}/v1"},
        "split": {"folds": 0},
        "tune": {"method": "adapter"},
    }
    result = experiment.run(make_config(said))
    assert result.comparison.verdict == "better"
    assert set(server.bought.values()) == {1}


def test_tune_writes_the_adapter_of_a_remote_model(project, said, tmp_path):
    with_adapter(project)
    code, out, _ = said("tune", project, "--output", tmp_path / "tuned", "--json")
    assert code == 0
    assert json.loads(out)["folder"].endswith("adapter.safetensors")
    assert json.loads(out)["over"].startswith("openai:")


def test_ladder_leaves_out_methods_that_need_weights_and_says_why(server, project, said):
    with_adapter(project)
    code, out, _ = said("ladder", project, "--json")
    assert code == 0
    found = json.loads(out)
    assert {rung["key"] for rung in found["rungs"]} >= {"bm25", "base", "fused", "nearest", "centroids", "documents", "adapter"}
    assert {"LoRA", "full fine-tuning", "half base, half tuned", "full, richer documents"} <= set(found["skipped"])
    assert "has no weights here to train" in found["skipped"]["full fine-tuning"]
    assert sum(server.bought.values()) <= len(server.bought) + 6  # the queries that were timed, one by one


def test_an_adapter_is_refused_over_another_remote_model(server, project, said, tmp_path):
    with_adapter(project)
    said("tune", project, "--output", tmp_path / "tuned")
    project.write_text(project.read_text().replace("[model]\n", '[model]\nquery_prompt = "q: "\n'))
    code, _, err = said("compare", project, tmp_path / "tuned" / "adapter.safetensors", tmp_path / "tuned" / "adapter.safetensors")
    assert code == 2
    assert "the adapter was fitted on" in err


# Secrets


def test_a_key_is_sent_to_its_own_host_alone_and_written_nowhere(project, said, server, tmp_path, monkeypatch):
    secrets = {
        "OPENAI_API_KEY": "sk-openai-0123456789",
        "OPENAI_ORG_ID": "org-openai-0123456789",
        "OPENAI_PROJECT_ID": "proj-openai-0123456789",
        "OPENAI_CUSTOM_HEADERS": "X-Gateway: gateway-0123456789",
        "OPENAI_ADMIN_KEY": "sk-admin-0123456789",
        "HF_TOKEN": "hf_0123456789abcdef",
        "LANGWATCH_API_KEY": "",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    others = [value.split(": ")[-1] for value in secrets.values() if value]
    with_adapter(project)
    with running(Embeddings()) as second:
        printed = [*said("--debug", "run", project), *said("ladder", project)]
        printed += said("compare", project, f"openai:m@{second.address}/v1", f"hf-inference:{second.address}/embed")
        assert len(second.requests) >= 4
        for request in second.requests:
            assert "authorization" not in request.headers
            assert not [value for value in [KEY, *others] if value in str(request)]
        for request in server.requests:
            assert request.headers["authorization"] == f"Bearer {KEY}"
            assert not [value for value in others if value in str(request)]
    written = [path for root in (tmp_path, os.environ["EMBEDFIT_CACHE"]) for path in pathlib_files(root)]
    assert written
    for value in [KEY, *others]:
        assert value not in str(printed)
        assert not [path for path in written if value.encode() in path.read_bytes()]


def pathlib_files(root):
    from pathlib import Path

    return [path for path in Path(root).rglob("*") if path.is_file()]


def test_the_key_of_openai_goes_where_its_base_url_says(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    RemoteEncoder("openai:text-embedding-3-large").encode(["a"], "query")
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert server.requests[0].path == "/v1/embeddings"
