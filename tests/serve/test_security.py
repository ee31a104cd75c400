"""What a stranger may try: over real HTTP, with bytes that no client library would send."""

import gzip
import json
import logging
import re
import resource
import socket
import subprocess
import sys

import httpx
import pytest
from serve_data import searcher, serving

from embedfit.errors import ConfigError
from embedfit.serve.guard import same
from embedfit.serve.settings import is_loopback, token_from

SECRET = "a-secret-of-this-server"
PATHS = (
    "/search",
    "/feedback",
    "/info",
    "/metrics",
    "/openapi.json",
    "/v1/embeddings",
    "/v1/models",
    "/v1/rerank",
    "/embed",
    "/",
    "/suspects",
)


@pytest.fixture(scope="module")
def guarded(words, tmp_path_factory):
    with serving(searcher(words), tmp_path_factory.mktemp("guarded"), token=SECRET, body=20_000, patience=1) as client:
        yield client


@pytest.fixture
def known(guarded):
    with httpx.Client(base_url=guarded.base_url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=30, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer another", f"Bearer {SECRET}x", f"Basic {SECRET}", f"Bearer {SECRET[:-1]}", "Bearer \xff"]
)
def test_without_the_token_every_path_is_401_and_says_nothing_more(guarded, path, header):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for method in ("GET", "POST"):
        answer = guarded.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert SECRET not in answer.text
        assert "words" not in answer.text


def test_with_the_token_and_for_the_health_check_it_answers(guarded, known):
    assert guarded.get("/health").status_code == 200
    assert known.post("/search", json={"query": "uber"}).json()["hits"][0]["id"] == "taxi"


def test_secrets_are_compared_by_digests_of_equal_length(monkeypatch):
    compared = []
    monkeypatch.setattr("embedfit.serve.guard.hmac.compare_digest", lambda *both: compared.append(both) or both[0] == both[1])
    assert same(SECRET, SECRET)
    assert not same("", SECRET)
    assert not same("\udcff" * 1000, SECRET)
    assert {len(digest) for both in compared for digest in both} == {32}


def test_beyond_this_machine_a_token_is_needed_and_is_never_shown(monkeypatch):
    monkeypatch.delenv("EMBEDFIT_TOKEN", raising=False)
    assert token_from("EMBEDFIT_TOKEN", "127.0.0.1") == ""
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org", "127.0.0.1.example.org"):
        with pytest.raises(ConfigError, match="a token is needed; fix: set the variable EMBEDFIT_TOKEN"):
            token_from("EMBEDFIT_TOKEN", host)
    for weak in ("short", "x" * 15, "pass\nword-pass-word", "pässword-pässword"):
        monkeypatch.setenv("EMBEDFIT_TOKEN", weak)
        with pytest.raises(ConfigError, match="at least 16 printable ASCII") as error:
            token_from("EMBEDFIT_TOKEN", "0.0.0.0")
        assert weak not in str(error.value)
    with pytest.raises(ConfigError) as error:
        token_from("hf_" + 30 * "aB", "0.0.0.0")
    assert "aBaB" not in str(error.value)


def test_which_addresses_are_of_this_machine():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "localhost.evil.example", "1.127.0.0", "")))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", ""])
def test_a_name_that_was_made_to_lead_here_is_refused(client, host):
    assert client.get("/info", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_site_can_write_nothing(client, headers):
    for path in ("/search", "/feedback", "/v1/embeddings"):
        assert client.post(path, json={"query": "uber", "input": "uber"}, headers=headers).status_code == 403
    assert client.delete("/feedback", params={"person": "Ann"}, headers=headers).status_code == 403
    preflight = client.options("/search", headers={**headers, "Access-Control-Request-Method": "POST"})
    assert not [name for name in preflight.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"\xff\xfe", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b"[1, 2]", 422),
        (b'{"query": "x", "k": NaN}', 422),
        (b'{"query": "x", "k": 1e999}', 422),
        (b'{"query": "x", "k": 99999999999999999999999}', 422),
        (b'{"query": "\\ud800"}', 422),
        (b'{"query": "\\u0000\\u202e\\ufeff"}', 200),
        (b'{"query": ["x"]}', 422),
        (b'{"query": "x", "filter": {"__proto__": "x"}}', 200),
        (b'{"query": "x", "filter": {"__class__": "x"}}', 200),
        (b'{"query": "x", "__proto__": {"k": 9}}', 422),
        (b'{"query": "x", "person": "' + b"x" * 101 + b'"}', 422),
        (b"[" * 5_000 + b"]", 400),
        (b'{"query": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", 400),
    ],
)
def test_a_malformed_body_is_refused_in_one_line(known, body, status):
    answer = known.post("/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    if status != 200:
        message = answer.json()["error"]["message"]
        assert message
        assert "\n" not in message
        assert "Traceback" not in answer.text


def test_a_body_that_is_not_a_json_object_is_named(known):
    def message(body, kind="application/json"):
        return known.post("/search", content=body, headers={"Content-Type": kind}).json()["error"]["message"]

    assert message(b'{"query": ') == "the body is not JSON, from character 10 on; expected an object"
    assert message(b'["x"]') == "the body is not an object; expected JSON, with Content-Type: application/json"
    assert message(b"query=x", "application/x-www-form-urlencoded") == message(b'["x"]')
    assert message(b"{}") == "expected either 'query' or 'queries'"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/v1/rerank", "/rerank", "/feedback", "/picker/pick"])
def test_no_path_fails_on_rubbish(known, path):
    half = b'{"input": "\\ud83d", "inputs": "\\ud83d", "query": "\\ud83d", "documents": ["x"], "texts": ["x"]}'
    for body in (b"\x00", b"[" * 5000, half, b"csrf=%ff&a"):
        for kind in ("application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"):
            assert known.post(path, content=body, headers={"Content-Type": kind}).status_code in (400, 403, 415, 422)


def test_an_error_that_a_browser_shows_holds_no_markup_of_the_client(known):
    answer = known.post("/search", json={"query": "x", "<script>alert(1)</script>": 1}, headers={"Accept": "text/html"})
    assert answer.status_code == 422
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
    assert "<script>alert" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'nonce-")


def test_a_large_body_is_413_with_and_without_its_length(known):
    assert known.post("/search", content=b"x" * 20_001).status_code == 413
    assert known.post("/search", content=(b"x" * 5000 for _ in range(5))).status_code == 413
    assert known.post("/search", json={"query": "uber"}).status_code == 200


def test_a_compressed_body_is_not_unpacked(known):
    body = gzip.compress(json.dumps({"query": "uber", "more": " " * 10_000_000}).encode())
    assert known.post("/search", content=body, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"}).status_code == 415


def test_a_body_that_trickles_in_is_given_up(guarded):
    head = f"POST /search HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: 100\r\n\r\n{{"
    with socket.create_connection((guarded.base_url.host, guarded.base_url.port), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "//evil.example/",
        "/v1/models/../../etc/passwd",
        "/v1/models/%00",
        "/picker/../info%0d%0aX: y",
    ],
)
def test_no_path_leads_to_a_file_or_to_another_host(guarded, path):
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection((guarded.base_url.host, guarded.base_url.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert int(answer.split()[1]) in (400, 404)
    assert b"root:" not in answer
    assert b"\r\nX: y" not in answer


@pytest.mark.parametrize("name", ["__proto__", "constructor", "toString", "__class__", "hasOwnProperty"])
def test_names_of_prototypes_are_plain_ids(word_encoder, tmp_path, name):
    with serving(searcher(word_encoder, {name: "uber", "other": "dinner"}), tmp_path) as client:
        answer = client.post("/search", json={"query": "uber", "k": 1}).json()
        assert answer["hits"][0]["id"] == name
        assert client.post("/feedback", json={"search_id": answer["search_id"], "choice": name}).json()["learned"]


def test_no_text_key_or_name_is_logged_also_when_the_server_fails(word_encoder, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    private = "a-very-private-text"
    with serving(searcher(word_encoder), tmp_path, token=SECRET, log=True) as client:
        client.headers["Authorization"] = f"Bearer {SECRET}"
        answer = client.post("/search", json={"query": private, "person": "Private Ann"}).json()
        client.post("/feedback", json={"search_id": answer["search_id"], "choice": "taxi", "person": "Private Ann"})
        client.get(f"/{private}", params={"q": private})
        client.delete("/feedback", params={"person": "Private Ann"})

        def fail(*_):
            raise ValueError(f"cannot encode {private}")

        monkeypatch.setattr(word_encoder, "encode", fail, raising=False)
        failed = client.post("/search", json={"query": private})
        assert failed.status_code == 500
        assert private not in failed.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("embedfit", "uvicorn"))]
    assert any(re.match(r"POST /search 200 [\d.]+ ms", message) for message in ours)
    assert any("ValueError at " in message for message in ours)
    text = "\n".join(ours)
    assert not [word for word in (private, SECRET, "Private Ann") if word in text]


CONNECTIONS = 10_000


@pytest.mark.slow
def test_ten_thousand_open_connections_leave_room_for_one_more(address):
    code = (
        "import resource, socket, sys\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        "host, port = sys.argv[1].removeprefix('http://').split(':')\n"
        "open = [socket.create_connection((host, int(port))) for number in range(int(sys.argv[2]))]\n"
        "print(len(open), flush=True)\n"
        "sys.stdin.read()\n"
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + 200:
        pytest.skip(f"the system allows {hard:,} open files")
    command = [sys.executable, "-c", code, address, str(CONNECTIONS)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == f"{CONNECTIONS}\n"
        answer = httpx.post(f"{address}/search", json={"query": "a ride"}, timeout=60, trust_env=False)
        assert answer.status_code == 200
    finally:
        holder.stdin.close()
        holder.wait()
