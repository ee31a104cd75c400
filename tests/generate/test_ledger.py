import asyncio
import json
import os
import stat
import subprocess
import sys

import pytest

from embedfit.errors import DataError, StorageError
from embedfit.generate import ledger as ledger_module
from embedfit.generate.ledger import Cost, digest, open_ledger

START = {"prompt": "p", "model": "m"}


def reply(text="hello", tokens=(10, 5), price=0.5):
    return {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "price": price, "reply": {"text": text}}


def kept(ledger, id, **more):
    line = reply(**more)
    ledger.sent(id, Cost(100, 1.0))
    asyncio.run(ledger.keep(id, Cost(15, line["price"]), line))


def test_what_was_kept_is_there_when_it_is_opened_again(tmp_path):
    with open_ledger(tmp_path, START) as ledger:
        kept(ledger, "a", text="naïve 😀 \ud800 line\nbreak")
        ledger.decide("a", "accepted", record={"x": 1})
        assert ledger.reply("b") is None
    with open_ledger(tmp_path, START) as ledger:
        assert ledger.reply("a")["reply"]["text"] == "naïve 😀 \ud800 line\nbreak"
        assert ledger.verdict("a")["record"] == {"x": 1}
        assert (ledger.paid, ledger.requests, ledger.lost) == (Cost(15, 0.5), 1, Cost())
        [row] = ledger.rows()
        assert (row["id"], row["outcome"], row["completion_tokens"]) == ("a", "accepted", 5)


def test_a_reply_is_synced_before_keep_returns_and_replies_that_wait_are_synced_together(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(ledger_module.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with open_ledger(tmp_path, START) as ledger:

        async def all_at_once():
            async def one(id):
                await ledger.keep(id, Cost(), reply())
                assert synced
                line_ends = ledger._replies[id] + len(json.dumps({"event": "reply", "id": id, **reply()}))
                assert synced[-1] >= line_ends

            await asyncio.gather(*(one(str(number)) for number in range(20)))

        asyncio.run(all_at_once())
        assert 1 <= len(synced) <= 3


@pytest.fixture
def disk(monkeypatch):
    """What of each file would outlast a power cut: inode -> its size when it was synced last. Folders are there with size -1."""
    synced = {}

    def sync(handle):
        state = os.fstat(handle)
        synced[state.st_ino] = -1 if stat.S_ISDIR(state.st_mode) else state.st_size

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "fdatasync", sync)
    return synced


def test_a_reply_is_on_disk_when_keep_returns_and_so_is_the_ledgers_place(tmp_path, disk):
    folder = tmp_path / "new" / "r.ledger"
    with open_ledger(folder, START) as ledger:
        inode = ledger.path.stat().st_ino
        for number in range(3):
            kept(ledger, f"id{number}")
            assert disk[inode] >= ledger._replies[f"id{number}"] + len(f'{{"event": "reply", "id": "id{number}"')
            assert disk[inode] == ledger.path.stat().st_size
        assert disk[folder.stat().st_ino] == disk[folder.parent.stat().st_ino] == -1
        ledger.decide("id0", "accepted")
        ledger.refuse("id9", "filtered", "no")
    assert disk[inode] == ledger.path.stat().st_size


def test_two_replies_at_once_are_both_on_disk_when_their_keep_returns(tmp_path, disk):
    with open_ledger(tmp_path, START) as ledger:
        inode = ledger.path.stat().st_ino

        async def keep(id):
            await ledger.keep(id, Cost(), reply())
            assert disk[inode] > ledger._replies[id]

        async def staggered():
            first = asyncio.ensure_future(keep("a"))
            await asyncio.sleep(0)  # "a" is being synced when "b" and "c" are written
            await asyncio.gather(first, keep("b"), keep("c"))

        asyncio.run(staggered())


def test_a_request_that_was_refused_stays_so_and_costs_nothing(tmp_path):
    with open_ledger(tmp_path, START) as ledger:
        ledger.sent("a", Cost(100, 1.0))
        ledger.refuse("a", "too long", "the words of the endpoint")
        assert (ledger.under_way, ledger.spent) == (0, Cost())
    with open_ledger(tmp_path, START) as ledger:
        assert ledger.refusal("a") == ("too long", "the words of the endpoint")
        assert ledger.refusal("b") is None
        assert (ledger.lost_requests, ledger.spent) == (0, Cost())


def test_a_line_that_was_cut_off_is_dropped_and_the_next_one_stands_by_itself(tmp_path):
    with open_ledger(tmp_path, START) as ledger:
        kept(ledger, "a")
        path = ledger.path
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "reply", "id": "b", "repl')
    with open_ledger(tmp_path, START) as ledger:
        assert ledger.reply("b") is None
        kept(ledger, "c")
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["start", "sent", "reply", "sent", "reply"]
    path.write_bytes(whole[:-1])  # only the end of the line is missing
    with open_ledger(tmp_path, START) as ledger:
        assert ledger.reply("a")
        kept(ledger, "c")
    assert len(path.read_text().splitlines()) == 5


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    with open_ledger(tmp_path, START) as ledger:
        path = ledger.path
    path.write_bytes(path.read_bytes() + b"nonsense\n" + b'{"event": "sent", "id": "a", "tokens": 1, "price": 0}\n')
    with pytest.raises(DataError, match=r"jsonl:2: is not a line of a ledger"):
        open_ledger(tmp_path, START)
    path.unlink()
    open_ledger(tmp_path, START).__exit__()  # and it let go of the lock


def test_what_was_under_way_when_the_process_died_counts_at_its_most(tmp_path):
    ledger = open_ledger(tmp_path, START)
    ledger.sent("a", Cost(100, 1.0))
    ledger.sent("b", Cost(100, 1.0))
    ledger.failed("b", "HTTP 500", charged=False)
    ledger.sent("c", Cost(100, 1.0))
    ledger.failed("c", "no answer", charged=True)
    assert ledger.spent == Cost(200, 2.0)
    ledger.__exit__()
    for again in range(2):
        with open_ledger(tmp_path, START) as ledger:
            assert (ledger.spent, ledger.lost_requests) == (Cost(200 + 100 * again, 2.0 + again), 2 + again)
            ledger.sent("a", Cost(100, 1.0))  # and died again


def test_another_prompt_begins_a_new_ledger_and_says_so(tmp_path, capsys):
    with open_ledger(tmp_path, START) as ledger:
        kept(ledger, "a")
    with open_ledger(tmp_path, {**START, "prompt": "other"}) as other:
        assert other.reply("a") is None
    assert capsys.readouterr().err.startswith("Changed since the last run: prompt. The new ledger is ")
    with open_ledger(tmp_path, START) as ledger:
        assert ledger.reply("a")
    assert capsys.readouterr().err == ""


def test_a_second_process_is_kept_out(tmp_path):
    code = f"from embedfit.generate.ledger import open_ledger; from pathlib import Path; open_ledger(Path({str(tmp_path)!r}), {START!r})"
    with open_ledger(tmp_path, START):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another embedfit is writing to this ledger" in done.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_full_disk_is_one_line_and_leaves_no_half_line(tmp_path, monkeypatch):
    with open_ledger(tmp_path, START) as ledger:
        kept(ledger, "a")
        write = os.write

        def full(file, data):
            if len(data) < 20:
                raise OSError(28, "No space left on device")
            return write(file, data[:19])

        monkeypatch.setattr(ledger_module.os, "write", full)
        with pytest.raises(StorageError, match="No space left on device; nothing that stands in it is lost"):
            ledger.decide("a", "accepted")
        monkeypatch.undo()
        ledger.decide("a", "accepted")
    with open_ledger(tmp_path, START) as ledger:
        assert ledger.verdict("a")["outcome"] == "accepted"


def test_a_verdict_that_stands_there_is_not_written_again(tmp_path):
    with open_ledger(tmp_path, START) as ledger:
        kept(ledger, "a")
        for _ in range(3):
            ledger.decide("a", "invalid", "why")
        ledger.decide("a", "accepted", record={})
        assert ledger.verdict("a")["outcome"] == "accepted"
        assert ledger.path.read_text().count('"verdict"') == 2


def test_digests_depend_on_everything_and_not_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
