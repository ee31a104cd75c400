import asyncio
import datetime
import json
import math
import socket
import threading
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai_server import Server, completion, error

from embedfit.errors import ConfigError, EndpointError
from embedfit.generate.asker import Asker, _Pace
from embedfit.generate.endpoint import BudgetError, Endpoint, Limits, Refused, Request, Stopped
from embedfit.generate.ledger import open_ledger
from embedfit.hosts import Retries, retry_after
from embedfit.replies import complaint_of, one_line

KEY = "sk-very-secret-0123456789"
QUICK = Retries(first_wait=0.001)


def asked(folder, url, count=1, *, limits=None, prices=None, key=KEY, headers=None, body=None):
    """Ask for so many things at once; returns (lines, Asker, seconds)."""
    limits = limits or Limits(retries=Retries(first_wait=0.01))

    async def ask_all(asker):
        bodies = [
            {"model": "m", "max_tokens": 50, "seed": n, "messages": [{"role": "user", "content": f"number {n}"}], **(body or {})}
            for n in range(count)
        ]
        found = await asyncio.gather(
            *(asker.ask(Request(f"id{n}", body, {"kind": "test"})) for n, body in enumerate(bodies)), return_exceptions=True
        )
        await asker.close()
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, (Stopped, Refused)):
                raise one
        return found

    with open_ledger(folder, {"model": "m"}) as ledger:
        asker = Asker(lambda: Endpoint(url, key, headers, key_name="MY_KEY"), ledger, limits, prices or {})
        began = time.monotonic()
        found = asyncio.run(ask_all(asker))
        asker.replies = {f"id{n}": ledger.reply(f"id{n}") for n in range(count)}
        return found, asker, time.monotonic() - began


def plain(number, body):
    return 200, {}, completion(body, {"content": "fine"})


def stopped(asker, words):
    assert isinstance(asker.stopping, EndpointError)
    assert words in str(asker.stopping)
    assert len(str(asker.stopping).splitlines()) == 1
    assert KEY not in str(asker.stopping)


@pytest.mark.parametrize("its_own", [False, True])
def test_what_the_sdk_reads_for_openai_goes_to_openais_host_alone(tmp_path, monkeypatch, its_own):
    secrets = {
        "OPENAI_ORG_ID": "org-0123456789",
        "OPENAI_PROJECT_ID": "proj-0123456789",
        "OPENAI_CUSTOM_HEADERS": "X-Gateway: gateway-0123456789",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    with Server(respond=plain) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url if its_own else "https://api.openai.com/v1")
        asked(tmp_path, server.url, headers={"X-Mine": "value-of-mine"})
    [headers] = server.headers
    assert headers["x-mine"] == "value-of-mine"
    assert [value.split(": ")[-1] in headers.values() for value in secrets.values()] == [its_own] * 3


def test_a_reply_is_kept_with_all_that_should_be_known_of_it(tmp_path):
    with Server(respond=plain) as server:
        [line], _, _ = asked(tmp_path, server.url, prices={"m": (1.0, 2.0)})
    assert line["reply"]["choices"][0]["message"]["content"] == "fine"
    usage = line["reply"]["usage"]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert line["price"] == pytest.approx((usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6)
    assert {"id", "kind", "prompt", "model", "seed", "parameters", "seconds", "tries"} <= set(line)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_what_is_in_the_ledger_is_not_asked_again(tmp_path):
    with Server(respond=plain) as server:
        asked(tmp_path, server.url, 5)
        asked(tmp_path, server.url, 8)
        assert len(server.bodies) == 8


@pytest.mark.parametrize("kind", ["429", "429 for a while", "500", "dropped", "cut in two", "slow"])
def test_faults_that_pass_are_overcome(tmp_path, kind):
    with Server(faults=0.4, kinds=(kind,), answer=lambda body, draw: {"content": f"answer {draw}"}) as server:
        found, _, _ = asked(tmp_path, server.url, 40)
        assert len(server.paid) == len(set(server.paid)) == 40
        assert server.met[kind] >= 5
    assert len({line["reply"]["choices"][0]["message"]["content"] for line in found}) == 40


def test_retry_after_is_waited_for_by_everybody(tmp_path):
    times = []

    def busy_once(number, body):
        times.append(time.monotonic())
        return (429, {"Retry-After": "1.2"}, error("rate_limit_exceeded")) if number == 1 else plain(number, body)

    with Server(respond=busy_once) as server:
        asked(tmp_path, server.url, 6, limits=Limits(concurrency=1, retries=Retries(first_wait=0.01)))
    assert times[1] - times[0] >= 1.2
    assert times[-1] - times[1] < 1.2


def test_retry_after_has_three_forms():
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=20)
    assert retry_after({"retry-after": soon.strftime("%a, %d %b %Y %H:%M:%S GMT")}) == pytest.approx(20, abs=2)
    assert retry_after({}) is retry_after({"retry-after": "soon"}) is None


def test_concurrency_is_bounded_halves_on_429_and_grows_back(tmp_path):
    with Server(respond=plain, delay=0.3) as server:
        asked(tmp_path, server.url, 20, limits=Limits(concurrency=7))
        assert server.most_under_way == 7

    async def paced():
        pace = _Pace(32, asyncio.sleep)
        async with pace.turn() as first:
            pace.slower(first, None)
            pace.slower(first, None)  # sent before the first slowing down: it says nothing new
            assert pace.limit == 16
            pace.slower(time.monotonic(), None)
            assert pace.limit == 8
        for _ in range(400):
            pace.faster()
        assert 20 < pace.limit <= 32

    asyncio.run(paced())


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, error("invalid_api_key", f"Incorrect API key provided: {KEY}"), "does not accept MY_KEY (401)"),
        (403, error("forbidden"), "does not accept MY_KEY (403)"),
        (429, error("insufficient_quota", "You exceeded your current quota"), "reports a spent quota"),
        (402, error("payment_required"), "reports a spent quota"),
        (404, error("model_not_found", f"no model for {KEY}"), "refuses the request (404 model_not_found): no model for ***"),
        (400, b'{"detail": "no"}', "refuses the request (400"),
    ],
)
def test_what_does_not_pass_stops_everything_at_once(tmp_path, status, body, words):
    with Server(respond=lambda number, asked: (status, {}, body)) as server:
        found, asker, seconds = asked(tmp_path, server.url, 200, limits=Limits(concurrency=4))
        assert len(server.bodies) <= 4
    assert all(isinstance(one, Stopped) for one in found)
    stopped(asker, words)
    assert seconds < 30


def test_what_was_under_way_when_it_stopped_is_kept(tmp_path):
    def one_bad(number, body):
        return (401, {}, error("no")) if "number 0" in body["messages"][0]["content"] else plain(number, body)

    with Server(respond=one_bad, delay=0.05) as server:
        _, asker, _ = asked(tmp_path, server.url, 50, limits=Limits(concurrency=8))
        assert len(server.bodies) <= 8
    assert sum(line is not None for line in asker.replies.values()) == len(server.bodies) - 1 >= 1


def test_errors_that_do_not_go_away_are_given_up_with_one_line(tmp_path):
    with Server(respond=lambda number, body: (503, {}, b"busy")) as server:
        _, asker, _ = asked(tmp_path / "a", server.url, limits=Limits(retries=QUICK))
        assert len(server.bodies) == 8
    stopped(asker, "failed 8 times in a row (HTTP 503: busy)")
    _, asker, _ = asked(tmp_path / "b", "http://127.0.0.1:9/v1", limits=Limits(retries=QUICK))
    stopped(asker, "cannot be reached")
    assert asker.ledger.lost_requests == 0
    with Server(respond=lambda number, body: (429, {}, b"{}")) as server:
        _, asker, seconds = asked(tmp_path / "c", server.url, limits=Limits(retries=Retries(first_wait=0.01, patience=0.4)))
        stopped(asker, "has answered nothing but 429 for")
        assert 0.4 < seconds < 30
    with Server(respond=lambda number, body: (429, {"Retry-After": "7200"}, b"{}")) as server:
        _, asker, _ = asked(tmp_path / "d", server.url)
        stopped(asker, "asks for 7200 s more")


def test_a_reply_that_trickles_beyond_the_time_is_given_up_and_may_have_been_charged(tmp_path):
    with Server(faults=1.0, kinds=("slow",), answer=lambda body, draw: {"content": "x" * 20}) as server:
        _, asker, _ = asked(tmp_path, server.url, limits=Limits(timeout=0.02, retries=QUICK))
    stopped(asker, "no answer within 0.02 s")
    assert asker.ledger.lost_requests == 8
    assert asker.ledger.lost.tokens > 8 * 50


@pytest.mark.parametrize(
    ("body", "charged"),
    [
        (b"{}", 0),
        (b"", 0),
        (b"[1]", 0),
        (b"null", 0),
        (b"Bad gateway, try again", 0),
        (b'{"choices": null, "message": "try again"}', 0),
        (b'{"choices": []}', 1),
        (b'{"choices": [null]}', 1),
        (b'{"choices": [{"message": null}]}', 1),
        (b'{"choices": [{"message": {"content": "fi', 1),
        (b'data: {"choices": [{"delta": {"content": "fine"}}]}\n\ndata: [DONE]', 1),
        (b'{"output": "fine", "usage": {"completion_tokens": 3}}', 1),
    ],
)
def test_what_is_no_completion_is_asked_again_and_charged_if_it_has_choices(tmp_path, body, charged):
    with Server(respond=lambda number, asked: (200, {}, body) if number == 1 else plain(number, asked)) as server:
        [line], asker, _ = asked(tmp_path, server.url)
    assert line["tries"] == 2
    assert asker.ledger.lost_requests == charged


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><title>Sign in</title>", b"<html>login</html>", b"\xef\xbb\xbf\n<HTML>login</HTML>"])
def test_a_page_in_place_of_the_api_stops_at_once_and_costs_nothing(tmp_path, body):
    with Server(respond=lambda number, asked: (200, {"Content-Type": "text/html"}, body)) as server:
        _, asker, _ = asked(tmp_path, server.url, 20, limits=Limits(concurrency=1, budget=0.02), prices={"m": (1.0, 1.0)})
        assert len(server.bodies) == 1
    stopped(asker, f"{server.url} answered 200 with an HTML page")
    assert "base_url" in str(asker.stopping)
    assert asker.ledger.spent.price == 0


@pytest.mark.parametrize(
    "body",
    [
        {"code": 41, "msg": "out of cards"},
        {"base_resp": {"status_code": 1013, "status_msg": "out of cards"}},
        {"fault": {"faultstring": "out of cards", "detail": {"errorcode": "x"}}},
        {"status": "error", "message": "out of cards"},
        {"error_code": 17, "error_msg": "out of cards"},
        {"errcode": 45009, "errmsg": "out of cards"},
        {"Error": {"Code": "Busy", "Message": "out of cards"}},
        {"Response": {"Error": {"Code": "Busy", "Message": "out of cards"}}},
        {"choices": None, "message": "out of cards"},
        {"success": False, "errors": [{"code": 7, "message": "out of cards"}]},
        "out of cards",
        b"out of cards",
    ],
)
@pytest.mark.parametrize("status", [200, 500])
def test_an_error_in_any_form_costs_nothing_and_keeps_its_reason(tmp_path, status, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Server(respond=lambda number, asked: (status, {}, content)) as server:
        _, asker, _ = asked(tmp_path, server.url, limits=Limits(retries=QUICK, budget=0.02), prices={"m": (1.0, 1.0)})
        assert len(server.bodies) == 8
    stopped(asker, "out of cards")
    assert asker.ledger.spent.price == 0
    assert asker.ledger.lost_requests == 0


@pytest.mark.parametrize(
    "body",
    [
        {"message": "Unauthorized"},
        {"code": 401, "msg": "token"},
        {"base_resp": {"status_code": 1004, "status_msg": "login fail"}},
        {"fault": {"faultstring": "Invalid ApiKey"}},
        {"error_code": 110, "error_msg": "Access token invalid or no longer valid"},
        {"Error": {"Code": "Unauthenticated", "Message": "no"}},
        {"choices": None, "message": "Missing API key"},
    ],
)
def test_a_refused_key_in_any_form_under_status_200_stops_at_once_and_costs_nothing(tmp_path, body):
    with Server(respond=lambda number, asked: (200, {}, json.dumps(body).encode())) as server:
        _, asker, _ = asked(tmp_path, server.url, 20, limits=Limits(concurrency=1, budget=0.02), prices={"m": (1.0, 1.0)})
        assert len(server.bodies) == 1
    stopped(asker, "does not accept MY_KEY (401)")
    assert asker.ledger.spent.price == 0


def test_parameters_that_a_model_does_not_know_are_renamed_or_left_out(tmp_path, capsys):
    def choosy(number, body):
        for parameter in ("max_tokens", "seed", "temperature"):
            if parameter in body:
                return 400, {}, error("unsupported_parameter", f"Unsupported parameter: '{parameter}'", param=parameter)
        return plain(number, body)

    with Server(respond=choosy, delay=0.01) as server:
        found, _, _ = asked(tmp_path, server.url, 20, body={"temperature": 1.0})
        assert len(found) == len(server.paid) == 20 or all(isinstance(one, dict) for one in found)
        assert server.bodies[-1]["max_completion_tokens"] == 50
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "m takes no 'max_tokens': 'max_completion_tokens' is sent instead",
        "m takes no 'seed': it is left out",
        "m takes no 'temperature': it is left out",
    ]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_budget_is_never_passed_and_nearly_used(tmp_path, concurrency):
    spent = []

    def costly(number, body):
        answered = completion(body, {"content": "x" * 160}, prompt_tokens=100)
        spent.append(100 * 1.0 + 40 * 2.0)
        return 200, {}, answered

    limits = Limits(concurrency=concurrency, budget=0.01, retries=Retries(first_wait=0.01))
    with Server(respond=costly, delay=0.01) as server:
        _, asker, _ = asked(tmp_path, server.url, 200, limits=limits, prices={"m": (1.0, 2.0)})
    assert isinstance(asker.stopping, BudgetError)
    assert "stopped before the budget of 0.01 would be exceeded" in str(asker.stopping)
    assert " US dollars is spent" in str(asker.stopping)
    assert 0.9 * 10_000 < sum(spent) <= 10_000
    _, asker, _ = asked(tmp_path, server.url, 200, limits=limits, prices={"m": (1.0, 2.0)})  # again: all runs count together
    assert isinstance(asker.stopping, BudgetError)
    assert len(spent) == len(server.bodies)


def test_a_limit_of_tokens_is_never_passed(tmp_path):
    with Server(respond=plain) as server:
        _, asker, _ = asked(tmp_path, server.url, 200, limits=Limits(tokens=2000, retries=Retries(first_wait=0.01)))
    assert "stopped before 2,000 tokens would be exceeded" in str(asker.stopping)
    assert 1000 < asker.ledger.paid.tokens <= 2000


def test_an_endpoint_that_counts_no_tokens_is_taken_at_its_most(tmp_path):
    def uncounted(number, body):
        whole = json.loads(completion(body, {"content": "fine"}))
        return 200, {}, json.dumps({**whole, "usage": None}).encode()

    with Server(respond=uncounted) as server:
        [line], _, _ = asked(tmp_path, server.url)
    assert line["counted"] is False
    assert line["prompt_tokens"] >= len("number 0")
    assert 1 <= line["completion_tokens"] <= 50


def test_a_key_that_the_endpoint_says_back_is_written_nowhere(tmp_path):
    headers = {"X-Gateway": 'gate"way-secret-77'}

    def telling(number, body):
        if number == 1:
            return 500, {}, f"{KEY} {headers}".encode()
        return 200, {"X-Echo": KEY}, completion(body, {"content": f"your key is {KEY}, your header {headers['X-Gateway']}"})

    with Server(respond=telling) as server:
        [line], asker, _ = asked(tmp_path, server.url, headers=headers)
        assert server.headers[0]["x-gateway"] == headers["X-Gateway"]
    assert line["reply"]["choices"][0]["message"]["content"] == "your key is ***, your header ***"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY not in path.read_text()
            assert "way-secret-77" not in path.read_text()
    assert KEY not in repr(asker._endpoint)


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/v1",
        "localhost:8000",
        "https://me:secret@host/v1",
        "https://host/v1?key=secret",
        "https://host/v1?api-version=a secret",
        "https://host/v1?api-version=1&api-version=secret",
        "https://host/v1#secret",
        "http://[secret/v1",
        "https://host:99999/secret",
        "https://host:secret/v1",
        "secret",
        "secret.me:hunter@host:8000/v1",
        "https://ho\nst/secret",
        "",
    ],
)
def test_an_address_with_a_password_or_of_another_kind_is_refused_without_saying_it(address):
    with pytest.raises(ConfigError, match="expected http") as caught:
        Endpoint(address)
    assert "secret" not in str(caught.value)


# Keys


@pytest.mark.parametrize("key", [KEY + "\n", "  " + KEY + "\r\n"])
def test_white_space_around_a_key_is_not_part_of_it(tmp_path, key):
    with Server(respond=plain) as server:
        [line], asker, _ = asked(tmp_path, server.url, key=key, headers={"X-Gateway": "value-of-a-header\n"})
    assert line["tries"] == 1
    assert asker.ledger.lost_requests == 0
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["x-gateway"] == "value-of-a-header"


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\0", "\x7f", "é", "ключ", "\u200b", "\x85"])
@pytest.mark.parametrize("place", ["key", "header"])
def test_what_cannot_stand_in_a_header_is_refused_before_anything_is_sent_or_booked(tmp_path, break_, place):
    secret = f"sk-very{break_}secret-0123456789"
    given = {"key": secret} if place == "key" else {"headers": {"X-Gateway": secret}}
    with Server(respond=plain) as server:
        _, asker, _ = asked(tmp_path, server.url, **given)
        assert server.bodies == []
    assert isinstance(asker.stopping, ConfigError)
    assert ("MY_KEY" if place == "key" else "X-Gateway") in str(asker.stopping)
    assert "secret" not in repr(asker.stopping)
    assert asker.ledger.lost_requests == 0
    assert "very" not in asker.ledger.path.read_text()
    with open_ledger(tmp_path, {"model": "m"}) as ledger:
        assert (ledger.lost_requests, ledger.spent.tokens) == (0, 0)


# What is charged


def closing(after):
    """Serve one connection after the other, each closed after so many bytes: 0 at once, None never."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            connection, _ = listening.accept()
            if after:
                connection.recv(after)
            if after is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1", "https://{tls}/v1", "https://{silent}/v1"],
    ids=["refused", "no such host", "no TLS", "a handshake that never ends"],
)
def test_what_never_left_is_not_booked(tmp_path, address):
    url = address.format(tls=closing(1), silent=closing(None))
    _, asker, _ = asked(tmp_path, url, limits=Limits(retries=QUICK, timeout=0.5), prices={"m": (1.0, 2.0)})
    stopped(asker, "cannot be reached")
    assert asker.ledger.lost_requests == 0
    assert asker.ledger.spent.price == 0


def test_what_was_sent_and_not_answered_is_booked_and_an_error_is_not_whatever_its_status(tmp_path):
    url = f"http://{closing(65536)}/v1"
    _, asker, _ = asked(tmp_path / "a", url, limits=Limits(retries=QUICK))
    assert asker.ledger.lost_requests == 8
    for number, body in enumerate(
        [
            b'{"error": {"message": "overloaded", "code": 502}}',
            b'{"error": "overloaded"}',
            b'[{"error": {"message": "overloaded"}}]',
            b'{"object": "error", "message": "overloaded", "code": 50301}',
            b'{"detail": [{"loc": ["body"], "msg": "overloaded"}]}',
            b'{"choices": [{"message": {"content": ""}, "finish_reason": "error", "error": {"message": "overloaded"}}]}',
        ]
    ):
        with Server(respond=lambda _, asked, body=body: (200, {}, body)) as server:
            _, asker, _ = asked(tmp_path / str(number), server.url, limits=Limits(retries=QUICK))
        stopped(asker, "overloaded")
        assert asker.ledger.lost_requests == 0


def test_a_refused_key_under_status_200_stops_at_once(tmp_path):
    with Server(respond=lambda number, body: (200, {}, b'{"error": {"message": "no", "code": 401}}')) as server:
        _, asker, _ = asked(tmp_path, server.url, 20, limits=Limits(concurrency=1))
        assert len(server.bodies) == 1
    stopped(asker, "does not accept MY_KEY (401)")


def test_a_redirect_takes_no_key_to_another_host(tmp_path):
    with Server(respond=plain) as other, Server() as server:
        server.respond = lambda number, body: (307, {"Location": f"{other.url}/chat/completions?token=abc"}, b"")
        _, asker, _ = asked(tmp_path, server.url, headers={"X-Gateway": "value-of-a-header"})
        assert other.bodies == []
    stopped(asker, f"redirects requests to {other.url.removeprefix('http://').removesuffix('/v1')} (307)")
    assert "token" not in str(asker.stopping)


# What is refused for what it says


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (
            400,
            error("content_filter", "The response was filtered due to the prompt triggering Azure's content management policy"),
            "filtered",
        ),
        (400, error(None, "no", innererror={"code": "ResponsibleAIPolicyViolation"}), "filtered"),
        (400, error("invalid_prompt", "Your prompt was flagged as potentially violating our usage policy"), "filtered"),
        (403, error(403, "x requires moderation on y. Your input was flagged for violence", metadata={}), "filtered"),
        (
            400,
            b'{"type":"error","error":{"type":"invalid_request_error","message":"Output blocked by content filtering policy"}}',
            "filtered",
        ),
        (200, b'{"error": {"message": "no", "code": "content_filter"}}', "filtered"),
        (400, error("context_length_exceeded", "This model's maximum context length is 8192 tokens"), "too long"),
        (400, error(None, "Your input exceeds the context window of this model."), "too long"),
        (400, error(None, "Please reduce the length of the messages or completion."), "too long"),
        (400, b'{"type":"error","error":{"message":"prompt is too long: 210000 tokens > 200000 maximum"}}', "too long"),
        (400, b'[{"error": {"message": "The input token count (12) exceeds the maximum number of tokens allowed (8)."}}]', "too long"),
        (400, b'{"object":"error","message":"Prompt contains 9 tokens, too large for model with 8 maximum context length"}', "too long"),
        (
            422,
            b'{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096","error_type":"validation"}',
            "too long",
        ),
        (400, b'{"error":{"type":"exceed_context_size_error","message":"the request exceeds the available context size"}}', "too long"),
        (413, b"<html>413 Request Entity Too Large</html>", "too long"),
    ],
)
def test_one_request_that_is_refused_for_what_it_says_is_refused_alone_and_not_sent_again(tmp_path, status, body, reason):
    def choosy(number, asked):
        return (status, {}, body) if "number 1" in asked["messages"][0]["content"] else plain(number, asked)

    with Server(respond=choosy) as server:
        for _ in range(2):
            found, asker, _ = asked(tmp_path, server.url, 5)
            assert [type(one) for one in found] == [dict, Refused, dict, dict, dict]
            assert found[1].reason == reason
            assert asker.stopping is None
            assert asker.ledger.lost_requests == 0
            assert len(server.bodies) == 5


def test_a_request_that_breaks_the_server_is_given_up_alone_where_others_are_answered(tmp_path):
    def breaking(number, asked):
        return (500, {}, b"{}") if "number 1" in asked["messages"][0]["content"] else plain(number, asked)

    with Server(respond=breaking) as server:
        found, asker, _ = asked(tmp_path, server.url, 5, limits=Limits(retries=QUICK))
        assert [type(one) for one in found] == [dict, Refused, dict, dict, dict]
        assert len(server.bodies) == 4 + 8
    assert found[1].why == "failed 8 times in a row (HTTP 500)"
    assert asker.ledger.refusal("id1") is None  # the server may be mended


def test_an_endpoint_that_breaks_at_one_request_after_the_other_is_to_blame_itself(tmp_path):
    def dying(number, asked):
        return (500, {}, b"{}") if number > 3 else plain(number, asked)

    with Server(respond=dying) as server:
        found, asker, _ = asked(tmp_path, server.url, 20, limits=Limits(concurrency=1, retries=QUICK))
        assert len(server.bodies) < 3 + 17 * 8
    assert [type(one).__name__ for one in found].count("Refused") == 5
    stopped(asker, "failed 8 times in a row (HTTP 500)")


def test_a_request_that_was_paid_for_eight_times_in_vain_is_not_sent_again_by_the_next_run(tmp_path):
    class Cutting(Server):
        async def serve(self, body, writer):
            if "number 1" in body["messages"][0]["content"]:
                self.bodies.append(body)
                return False
            return await super().serve(body, writer)

    with Cutting(respond=plain) as server:
        for _ in range(2):
            found, asker, _ = asked(tmp_path, server.url, 5, limits=Limits(retries=Retries(first_wait=0.03)))
            assert [type(one) for one in found] == [dict, Refused, dict, dict, dict]
            assert asker.ledger.lost_requests == 8
        assert len(server.bodies) == 4 + 8


def test_a_quota_and_a_flagged_account_concern_everybody(tmp_path):
    for status, message in [(429, "insufficient_quota"), (403, "Your account has been flagged")]:
        with Server(respond=lambda number, body, status=status, message=message: (status, {}, error(message, message))) as server:
            _, asker, _ = asked(tmp_path / message[:4], server.url, 9, limits=Limits(concurrency=1))
            assert len(server.bodies) == 1
        assert isinstance(asker.stopping, EndpointError)


# Parameters


def fastapi(name):
    return {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": 7}


@pytest.mark.parametrize("name", ["seed", "temperature", "max_tokens"])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, lambda name: {"error": {"message": f"Unsupported parameter: '{name}' is not supported with this model.", "param": name}}),
        (400, lambda name: {"error": {"message": f"Unrecognized request argument supplied: {name}", "param": None}}),
        (400, lambda name: {"error": {"message": f"Unknown parameter: '{name}'.", "code": "unknown_parameter", "param": name}}),
        (422, lambda name: {"detail": [fastapi(name)]}),
        (422, lambda name: {"object": "error", "message": {"detail": [fastapi(name)]}, "type": "invalid_request_error"}),
        (400, lambda name: {"object": "error", "message": f"[{fastapi(name)}]", "type": "BadRequestError", "code": 400}),
        (400, lambda name: [{"error": {"code": 400, "message": f'Invalid JSON payload. Unknown name "{name}": Cannot find field.'}}]),
        (422, lambda name: {"error": f"unknown field `{name}`, expected one of `model`, `max_tokens`, `seed`, `temperature`, `x`"}),
        (400, lambda name: {"type": "error", "error": {"message": f"{name}: Extra inputs are not permitted"}}),
        (400, lambda name: {"error": {"message": f"property '{name}' is unsupported"}}),
        (400, lambda name: {"error": {"message": f"`{name}` is deprecated for this model."}}),
        (400, lambda name: {"error": {"message": f"This model does not support the {name} parameter"}}),
        (500, lambda name: {"detail": f"create() got an unexpected keyword argument '{name}'"}),
        (400, lambda name: {"message": f"Additional properties are not allowed ('{name}' was unexpected)"}),
        (200, lambda name: {"error": {"message": f"{name} is not allowed"}}),
    ],
)
def test_an_unknown_parameter_is_recognised_however_it_is_said(tmp_path, capsys, status, body, name):
    def choosy(number, asked):
        return (status, {}, json.dumps(body(name)).encode()) if name in asked else plain(number, asked)

    with Server(respond=choosy) as server:
        found, asker, _ = asked(tmp_path, server.url, 6, limits=Limits(concurrency=2, retries=QUICK), body={"temperature": 1.0})
        last = server.bodies[-1]
    assert asker.stopping is None
    assert all(isinstance(one, dict) for one in found)
    assert asker.ledger.lost_requests == 0
    assert {"seed", "temperature", "max_tokens"} - set(last) == {name}  # and no other
    assert capsys.readouterr().err.count("m takes no ") == 1


def test_of_two_parameters_in_a_refusal_the_first_is_to_blame(tmp_path):
    def choosy(number, asked):
        refusal = error(None, "Unsupported: seed is not supported with temperature.")
        return (400, {}, refusal) if "seed" in asked else plain(number, asked)

    with Server(respond=choosy) as server:
        asked(tmp_path, server.url, body={"temperature": 1.0})
    assert [set(body) & {"seed", "temperature"} for body in server.bodies] == [{"seed", "temperature"}, {"temperature"}]


@pytest.mark.parametrize(
    "message",
    [
        "temperature must be between 0 and 2",
        "Invalid value for temperature: 5",
        "Unknown model m; the seed and the temperature are right",
        "'response_format' of type 'json_schema' is not supported with this model",
        "unknown field `tools`, expected one of `model`, `seed`, `temperature`, `max_tokens`",
    ],
)
def test_what_is_no_unknown_parameter_or_is_needed_is_not_left_out(tmp_path, message):
    with Server(respond=lambda number, body: (400, {}, error(None, message))) as server:
        _, asker, _ = asked(tmp_path, server.url, body={"temperature": 5.0})
        assert len(server.bodies) == 1
    stopped(asker, "refuses the request (400")
    assert ("another 'mode'" in str(asker.stopping)) == ("response_format" in message or "tools" in message)


# Azure


def test_an_azure_address_keeps_its_version_and_takes_the_key_as_azure_does(tmp_path):
    lines = []

    class Azure(Server):
        async def connected(self, reader, writer):
            original = reader.readuntil

            async def readuntil(mark):
                head = await original(mark)
                lines.append(head.split(b"\r\n")[0].decode())
                return head

            reader.readuntil = readuntil
            await super().connected(reader, writer)

    with Azure(respond=plain) as server:
        url = server.url.removesuffix("/v1") + "/openai/deployments/gpt/?api-version=2024-06-01"
        asked(tmp_path / "a", url)
        asked(tmp_path / "b", url, key="eyJhbGciOi.J9eyJzdWIi.OiIxMjM0NTY3")
    assert lines == ["POST /openai/deployments/gpt/chat/completions?api-version=2024-06-01 HTTP/1.1"] * 2
    assert server.headers[0]["api-key"] == KEY
    assert "authorization" not in server.headers[0]
    assert "api-key" not in server.headers[1]
    assert server.headers[1]["authorization"] == "Bearer eyJhbGciOi.J9eyJzdWIi.OiIxMjM0NTY3"


# Whatever comes back


def anything(*words):
    """Draw any JSON, with the keys that matter more often than others."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(words)
    keys = st.sampled_from(words) | st.text(max_size=4)
    return st.recursive(leaves, lambda some: st.lists(some, max_size=3) | st.dictionaries(keys, some, max_size=4), max_leaves=12)


WORDS = ("error", "message", "code", "detail", "loc", "msg", "choices", "content", "usage", "prompt_tokens", "completion_tokens", "param")


@given(body=anything(*WORDS), status=st.sampled_from([200, 400, 500]), usage=anything(*WORDS))
@example(body={"choices": [{"message": {"content": "fine"}}]}, status=200, usage={"prompt_tokens": "many", "completion_tokens": None})
@example(body={"choices": [{"message": {"content": "fine"}}]}, status=200, usage={"prompt_tokens": -1, "completion_tokens": math.nan})
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_json_is_a_completion_or_a_refusal_or_one_line(tmp_path_factory, rote, body, status, usage):
    if isinstance(body, dict) and isinstance(usage, dict):
        body = {**body, "usage": usage}
    rote.respond = lambda number, asked: (status, {}, json.dumps(body).encode())
    [found], asker, _ = asked(tmp_path_factory.mktemp("any"), rote.url, limits=Limits(retries=QUICK), prices={"m": (1.0, 1.0)})
    if isinstance(found, dict):
        assert 0 <= found["price"] < 1e11
        assert found["prompt_tokens"] >= 0 <= found["completion_tokens"]
    elif not isinstance(found, Refused):
        assert isinstance(asker.stopping, EndpointError)
        assert len(str(asker.stopping).splitlines()) == 1
        assert str(asker.stopping).isprintable()


@pytest.fixture(scope="module")
def rote():
    with Server() as server:
        yield server


@given(st.binary(max_size=60) | anything(*WORDS).map(lambda body: json.dumps(body).encode()))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_body_can_complain(content):
    complaint = complaint_of(content)
    assert isinstance(complaint.message, str)
    assert one_line(complaint.message).isprintable()
    assert complaint.unknown(("seed",)) in ("seed", None)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999", "soon", "", "Wed, 99 Foo 99999 99:99:99 GMT", "0x10"])
def test_a_retry_after_that_is_no_time_is_none(value):
    assert retry_after({"retry-after": value}) is None
    assert retry_after({"retry-after-ms": value}) is None


def test_a_retry_after_is_neither_negative_nor_longer_than_a_day():
    assert retry_after({"retry-after": "-5"}) == 0
    assert retry_after({"retry-after": "1e12"}) == 86_400
    assert retry_after({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}) == 86_400
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0


def test_a_socks_proxy_without_its_package_is_one_line_without_the_proxys_password(tmp_path, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://me:hunter2@127.0.0.1:9")
    _, asker, _ = asked(tmp_path, "http://model.example/v1")
    assert str(asker.stopping) == "ALL_PROXY is a SOCKS proxy; fix: pip install socksio, or unset it"
    assert asker.ledger.lost_requests == 0
    monkeypatch.setenv("ALL_PROXY", "gopher://me:hunter2@127.0.0.1:9")
    _, asker, _ = asked(tmp_path, "http://model.example/v1")
    assert "ALL_PROXY cannot be used" in str(asker.stopping)
    assert "hunter2" not in str(asker.stopping)
