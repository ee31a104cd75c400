import asyncio
import datetime
import json
import time

import pytest
from openai_server import Server, completion, error

from embedfit.endpoint import Asker, BudgetError, Endpoint, Limits, Request, Stopped, _Pace, retry_after
from embedfit.errors import ConfigError, EndpointError
from embedfit.ledger import open_ledger

KEY = "sk-very-secret-0123456789"


def asked(folder, url, count=1, *, limits=None, prices=None, key=KEY, headers=None, body=None):
    """Ask for so many things at once; returns (lines, Asker, seconds)."""
    limits = limits or Limits(first_wait=0.01)

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
            if isinstance(one, BaseException) and not isinstance(one, Stopped):
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
        asked(tmp_path, server.url, 6, limits=Limits(concurrency=1, first_wait=0.01))
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
        (429, error("insufficient_quota", "You exceeded your current quota"), "says that the quota is spent"),
        (402, error("payment_required"), "says that the quota is spent"),
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
        _, asker, _ = asked(tmp_path / "a", server.url, limits=Limits(first_wait=0.001))
        assert len(server.bodies) == 8
    stopped(asker, "failed 8 times in a row (HTTP 503)")
    _, asker, _ = asked(tmp_path / "b", "http://127.0.0.1:9/v1", limits=Limits(first_wait=0.001))
    stopped(asker, "cannot be reached")
    assert asker.ledger.lost_requests == 0
    with Server(respond=lambda number, body: (429, {}, b"{}")) as server:
        _, asker, seconds = asked(tmp_path / "c", server.url, limits=Limits(first_wait=0.01, patience=0.4))
        stopped(asker, "has been saying 429 for")
        assert 0.4 < seconds < 30
    with Server(respond=lambda number, body: (429, {"Retry-After": "7200"}, b"{}")) as server:
        _, asker, _ = asked(tmp_path / "d", server.url)
        stopped(asker, "asks for 7200 s more")


def test_a_reply_that_trickles_beyond_the_time_is_given_up_and_may_have_been_charged(tmp_path):
    with Server(faults=1.0, kinds=("slow",), answer=lambda body, draw: {"content": "x" * 20}) as server:
        _, asker, _ = asked(tmp_path, server.url, limits=Limits(timeout=0.02, first_wait=0.001))
    stopped(asker, "no answer within 0.02 s")
    assert asker.ledger.lost_requests == 8
    assert asker.ledger.lost.tokens > 8 * 50


@pytest.mark.parametrize(
    "body", [b"<html>login</html>", b"{}", b'{"choices": []}', b'{"choices": [null]}', b'{"choices": [{"message": null}]}', b"[1]", b"null"]
)
def test_what_is_no_completion_is_asked_again(tmp_path, body):
    with Server(respond=lambda number, asked: (200, {}, body) if number == 1 else plain(number, asked)) as server:
        [line], asker, _ = asked(tmp_path, server.url)
    assert line["tries"] == 2
    assert asker.ledger.lost_requests == 1


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

    limits = Limits(concurrency=concurrency, budget=0.01, first_wait=0.01)
    with Server(respond=costly, delay=0.01) as server:
        _, asker, _ = asked(tmp_path, server.url, 200, limits=limits, prices={"m": (1.0, 2.0)})
    assert isinstance(asker.stopping, BudgetError)
    assert "stopped before the budget of 0.01 would be passed" in str(asker.stopping)
    assert " US dollars is spent" in str(asker.stopping)
    assert 0.9 * 10_000 < sum(spent) <= 10_000
    _, asker, _ = asked(tmp_path, server.url, 200, limits=limits, prices={"m": (1.0, 2.0)})  # again: all runs count together
    assert isinstance(asker.stopping, BudgetError)
    assert len(spent) == len(server.bodies)


def test_a_limit_of_tokens_is_never_passed(tmp_path):
    with Server(respond=plain) as server:
        _, asker, _ = asked(tmp_path, server.url, 200, limits=Limits(tokens=2000, first_wait=0.01))
    assert "stopped before 2,000 tokens would be passed" in str(asker.stopping)
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


@pytest.mark.parametrize("address", ["ftp://host/v1", "localhost:8000", "https://me:secret@host/v1", "https://host/v1?key=secret"])
def test_an_address_with_a_password_or_of_another_kind_is_refused_without_saying_it(address):
    with pytest.raises(ConfigError, match="expected http") as caught:
        Endpoint(address)
    assert "secret" not in str(caught.value)
