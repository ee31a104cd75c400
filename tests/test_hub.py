"""Models by Hub name: the libraries' real download code against a Hub on loopback."""

import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from embedfit.errors import ConfigError, EmbedfitError, ModelError, check_package
from embedfit.files import file_sha256
from embedfit.hub import check_reachable, model_folder, reason_of, weights_of

COMMIT = "a" * 40


@pytest.fixture
def loopback_hub(tiny_model):
    """A Hub with one model, ``someone/tiny``; yields its address and the paths asked for."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            names = [str(path.relative_to(tiny_model)) for path in sorted(tiny_model.rglob("*")) if path.is_file()]
            names += ["onnx/model.onnx", "pytorch_model.bin"]
            if self.path.startswith("/api/models/someone/tiny/tree/"):
                tree = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
                self.answer(json.dumps(tree).encode(), "application/json")
            elif self.path.startswith("/api/models/someone/tiny"):
                siblings = [{"rfilename": name} for name in names]
                self.answer(json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": siblings}).encode(), "application/json")
            elif self.path.startswith(f"/someone/tiny/resolve/{COMMIT}/"):
                path = tiny_model / self.path.partition(f"{COMMIT}/")[2]
                self.answer(path.read_bytes(), "application/octet-stream")
            elif self.path == "/":
                self.answer(b"", "text/html")
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def answer(self, body, kind):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def folder_of(name, address, home):
    code = (
        "from embedfit.errors import EmbedfitError; from embedfit.hub import model_folder\n"
        f"try: print(model_folder({name!r}))\n"
        "except EmbedfitError as error: print('error:', error)"
    )
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_hub_name_is_downloaded_once_without_weights_that_can_run_code(loopback_hub, tiny_model, tmp_path):
    from pathlib import Path

    address, asked = loopback_hub
    folder = Path(folder_of("someone/tiny", address, tmp_path))
    assert file_sha256(weights_of(folder)[0].resolve()) == file_sha256(weights_of(tiny_model)[0])
    assert not any(path.endswith((".bin", ".onnx")) for path in asked)
    asked.clear()
    assert folder_of("someone/tiny", address, tmp_path) == str(folder)
    assert asked == []  # what is here is used as it is


def test_a_name_that_the_hub_does_not_know_is_one_line(loopback_hub, tmp_path):
    said = folder_of("someone/else", loopback_hub[0], tmp_path)
    assert said.startswith("error: model 'someone/else' cannot be downloaded:")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("all-MiniLM-L6-v3", "all-MiniLM-L6-v2"),
        ("all-minilm-l6-v2", "all-MiniLM-L6-v2"),
        ("runs/run-12/modle", "model"),
        ("./tund", "tuned"),
    ],
)
def test_a_misspelt_model_is_met_with_the_nearest_there_is(tmp_path, monkeypatch, name, near):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "run-12" / "model").mkdir(parents=True)
    (tmp_path / "tuned").mkdir()
    with pytest.raises(ModelError, match=f"did you mean {near!r}") as caught:
        model_folder(name)
    assert "\n" not in str(caught.value)


def test_a_model_like_nothing_that_is_here_brings_no_guess(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        model_folder("someone/else-entirely")
    assert "did you mean" not in str(caught.value)


def test_an_installed_package_is_known_and_a_missing_one_names_its_extra():
    check_package("json", extra="x")
    check_package("json.decoder", extra="x")
    for name in ("no_such_package", "no_such_package.inner", "json.no_such_module"):
        with pytest.raises(EmbedfitError, match=rf"{name} is not installed; fix: pip install 'embedfit\[that\]'"):
            check_package(name, extra="that")


# What a mirror, a proxy or a variable can do

SECRET = "s3cr3t-w0rd"


@pytest.fixture
def odd_hub():
    """A mirror that answers nothing as the Hub does; yields its address."""
    model = {"id": "x", "sha": COMMIT, "siblings": [{"rfilename": "modules.json"}]}
    bodies = {
        "html": (200, b"<!doctype html><p>Log in</p>"),
        "list": (200, b"[1]"),
        "empty": (200, b"{}"),
        "gated": (403, b'{"error": "Access to this model is restricted"}'),
        "untagged": (200, json.dumps(model).encode()),
    }

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            kind = next((kind for kind in bodies if f"/{kind}" in self.path), "empty")
            status, body = bodies[kind]
            if "/tree/" in self.path:
                body = json.dumps([{"type": "file", "path": "modules.json", "size": 1, "oid": "0" * 40}]).encode()
            self.send_response(status)
            if kind == "gated":
                self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("X-Error-Message", "Access to this model is restricted. Ask for access on its page.")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def test_what_no_hub_would_answer_is_one_line_with_its_whole_reason_and_no_password(odd_hub, tmp_path):
    names = ["html", "list", "empty", "gated", "untagged"]
    code = (
        "import sys; from embedfit.errors import EmbedfitError; from embedfit.hub import model_folder\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(model_folder('someone/' + name))\n"
        "    except EmbedfitError as error: print('error:', error)"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://me:{SECRET}@{odd_hub}", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(" cannot be downloaded: ")[0] for line in lines] == [f"error: model 'someone/{name}'" for name in names]
    for line in lines[:3]:
        assert "is not what the Hub answers" in line
    assert "Ask for access on its page" in lines[3]
    assert SECRET not in done.stdout + done.stderr


@pytest.fixture
def online(monkeypatch):
    for name in (
        "HF_HUB_OFFLINE",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "ALL_PROXY",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "all_proxy",
        "https_proxy",
        "http_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("endpoint", "line"),
    [
        (f"http://[{SECRET}", "HF_ENDPOINT is not a URL"),
        (f"http://127.0.0.1:{SECRET}", "HF_ENDPOINT is not a URL"),
        (f"http://me:x/{SECRET}@127.0.0.1:9", "HF_ENDPOINT is not a URL"),
        (f"me:{SECRET}@127.0.0.1", "HF_ENDPOINT is not a URL"),
        (
            f"http://me:{SECRET}@127.0.0.1:9/hub/?key={SECRET}#{SECRET}",
            "x is not on this machine and http://127.0.0.1:9/hub cannot be reached",
        ),
    ],
)
def test_an_address_of_the_hub_is_shown_without_what_may_be_secret(online, endpoint, line):
    online.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(EmbedfitError) as caught:
        check_reachable("x")
    assert str(caught.value).startswith(line)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("token", [f"hf_\x01{SECRET}", f"{SECRET}\x7f", f"{SECRET}é", f"a {SECRET}", f"a\t{SECRET}"])
def test_a_token_that_cannot_be_sent_is_refused_before_any_request_without_showing_it(online, odd_hub, token):
    online.setenv("HF_ENDPOINT", f"http://{odd_hub}")
    online.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match="HF_TOKEN ") as caught:
        check_reachable("x")
    assert SECRET not in str(caught.value)
    assert SECRET not in reason_of(ValueError(f"Illegal header value 'Bearer {SECRET}'"))


@pytest.mark.parametrize("proxy", [f"foo://me:{SECRET}@127.0.0.1:9", f"http://127.0.0.1:{SECRET}"])
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(online, odd_hub, proxy):
    online.setenv("HF_ENDPOINT", f"http://{odd_hub}")
    online.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigError, match="HTTPS_PROXY cannot be used") as caught:
        check_reachable("x")
    assert SECRET not in str(caught.value)


def test_a_socks_proxy_without_its_package_is_said_to_need_it(online, odd_hub):
    online.setenv("HF_ENDPOINT", f"http://{odd_hub}")
    online.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    online.setitem(sys.modules, "socksio", None)
    with pytest.raises(ConfigError, match="ALL_PROXY is a SOCKS proxy; fix: pip install socksio"):
        check_reachable("x")


def test_an_address_in_place_of_a_model_is_not_shown():
    with pytest.raises(ModelError, match="the model is an address, which is not shown") as caught:
        model_folder(f"https://me:{SECRET}@host/v1")
    assert SECRET not in str(caught.value)
