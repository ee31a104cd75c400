"""A live index that is taught: killed at any moment, by several writers, and on the command line."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import index_searcher

KILLS = """
import os, random, signal, sys, time, traceback, torch
torch.set_num_threads(1)
from dataclasses import replace
from pathlib import Path
from embedfit.config import StoreConfig
from embedfit.searcher.fusion import Fusion
from embedfit.searcher.searcher import Searcher
from embedfit.store import live, versions
from embedfit.store.open import open_store
import chromadb, pgvector.psycopg, psycopg, qdrant_client

config, folder, log = StoreConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
weights = Fusion({"warm": {"documents": 1.0, "examples": 2.0}, "new": {"documents": 1.0, "examples": 2.0}, "cold": {"documents": 9.0}})
parts = Searcher.load(folder).parts
second = log.with_name("second")
Searcher(replace(parts, fusion=weights, base=None)).save(second)
loaded = {folder.resolve(): parts, second.resolve(): replace(parts, fusion=weights, base=None)}
Searcher(parts).encode(["loaded before the forks"])
versions.read_parts = lambda place: loaded[place]
live.open_searcher = lambda stamp, where, path: loaded[Path(stamp.opens)]
answer = parts.corpus.ids[3]

def child(work):
    process = os.fork()
    if process == 0:
        try:
            with open_store(config) as store:
                work(store)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process

def teach(turn):
    def work(store):
        index = live.LiveIndex(store)
        for number in range(10_000):
            key = index.add(f"example {turn} {number}", answer, key=f"{turn}-{number}")
            if number % 3 == 2:
                index.remove(f"{turn}-{number - 1}")
                key += " " + f"{turn}-{number - 1}"
            with open(log, "a") as file:
                file.write(key + os.linesep)
    return work

def deploy(moment, times, after):
    def work(store):
        for name in ("create", "add", "finish", "nearest", "switch", "drop"):
            def watched(*args, name=name, method=getattr(store, name), calls=[]):
                calls.append(name)
                dies = name == moment and len(calls) == times
                if dies and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = method(*args)
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            setattr(store, name, watched)
        versions.index_searcher(store, second, {"q": "taxi"})
    return work

def taught():
    # What the log says was added, and what was taken back.
    there = set()
    for line in log.read_text().splitlines() if log.exists() else ():
        key, _, gone = line.partition(" ")
        there.add(key)
        there.discard(gone)
    return there

def finished(work):
    # Chroma's client does not survive a fork, so this process opens no store itself.
    assert os.waitpid(child(work), 0)[1] == 0

def known(store):
    return {change.key for change in live.LiveIndex(store).taught() if not change.gone}

def after_teaching(turn):
    def work(store):
        index, there = live.LiveIndex(store), known(store)
        assert len(there ^ taught()) <= 2, (there, taught())  # the changes that were not logged any more
        assert index.find(f"example {turn} 0", 27)
        index.remove(sorted(there)[0])
        log.write_text("".join(f"{key}{os.linesep}" for key in sorted(there)[1:]))
    return work

def after_deploying(is_live, kept):
    def work(store):
        index = live.LiveIndex(store)
        assert (index.stamp().opens == str(second.resolve())) == is_live
        assert known(store) == kept
        assert len(index.find("taxi", 27)) == 27
    return work

def at_the_end(store):
    assert len(store.collections()) == 6, store.collections()
    index = live.LiveIndex(store)
    index.add("another", answer, key="another")
    assert known(store) == kept | {"another"}
    expected = index.version().exact(loaded[second.resolve()]).searcher.search("taxi", 3)
    assert [(hit.id, round(hit.score, 3)) for hit in index.find("taxi", 3)] == [(hit.id, round(hit.score, 3)) for hit in expected]

finished(lambda store: versions.index_searcher(store, folder, {"q": "taxi"}))
random.seed(3)
for turn in range(3):
    process = child(teach(turn))
    while not log.exists() or f"{turn}-2" not in log.read_text():
        assert os.waitpid(process, os.WNOHANG)[0] == 0
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    os.kill(process, signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    finished(after_teaching(turn))
kept = taught()
moments = [("create", 1, 0), ("create", 3, 1), ("add", 1, 1), ("add", 1, 0), ("finish", 2, 1), ("nearest", 1, 0), ("add", 1, 1)]
for moment, times, after in [*moments, ("switch", 1, 0), ("switch", 1, 1)]:
    process = child(deploy(moment, times, after))
    assert os.waitpid(process, 0)[1] == signal.SIGKILL, (moment, times)
    finished(after_deploying((moment, after) == ("switch", 1), kept))
finished(deploy("never", 0, 0))
finished(at_the_end)
print("done")
"""


@pytest.mark.parametrize(
    "kind", ["chroma", pytest.param("pgvector", marks=pytest.mark.slow), pytest.param("qdrant", marks=pytest.mark.slow)]
)
def test_killed_while_it_is_taught_and_while_it_is_replaced_the_index_answers_and_loses_nothing(config_of, kind, searcher_folder, tmp_path):
    command = [sys.executable, "-c", KILLS, config_of(kind).model_dump_json(), str(searcher_folder), str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["done"]), done.stdout + done.stderr


def test_several_writers_and_a_reader_at_once(config, searcher_folder, in_memory):
    answer, failures, read, stop = in_memory.parts.corpus.ids[3], [], [], threading.Event()
    shared = open_store(config).__enter__()
    index_searcher(shared, searcher_folder, {})

    def run(work):
        try:
            if config.kind == "pgvector":  # a connection is for one thread
                with open_store(config) as own:
                    work(LiveIndex(own))
            else:
                work(LiveIndex(shared))
        except Exception as error:  # every failure is one
            failures.append(error)

    def write(number):
        def work(index):
            for place in range(4):
                key = index.add(f"crane {number} {place}", answer, key=f"{number} {place}")
                assert key in {change.key for change in index.taught()}
                assert index.find(f"crane {number} {place}", 1)[0].because[0].text == f"crane {number} {place}"
            index.remove(f"{number} 0")

        return work

    def search(index):
        while not stop.is_set():
            read.append(len(index.find("crane", 27)))

    threads = [threading.Thread(target=run, args=(work,)) for work in (write(0), write(1), search)]
    for thread in threads:
        thread.start()
    for thread in threads[:2]:
        thread.join()
    stop.set()
    threads[2].join()
    keys = {change.key for change in LiveIndex(shared).taught() if not change.gone}
    shared.close()
    assert not failures
    assert set(read) == {27}
    assert keys == {f"{number} {place}" for number in (0, 1) for place in (1, 2, 3)}


def test_a_run_is_indexed_searched_and_taught_on_the_command_line(tmp_path, searcher_folder, loaded_once, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("embedfit.toml").write_text(f'[data]\nqueries = "none.jsonl"\n[model]\nname = "{tmp_path}"\n')
    code, out, err = said("index", "--model", searcher_folder.parent)
    assert code == 0, err
    assert "27 documents and 226 examples (253 written now); recall@10 against exact search" in out
    code, out, err = said("search", "taxi to the airport", "--k", "2", "--json")
    assert code == 0, err
    hits = json.loads(out)
    assert [set(hit) for hit in hits] == [{"id", "score", "text", "metadata", "probability", "because"}] * 2
    assert "probability" in said("search", "taxi")[1].splitlines()[0]
    assert said("live", "add-document", "Zoo", "Zoo", "--field", "category=Zoo animals", "--field", "kind=new")[0] == 0
    code, key, _ = said("live", "add", "hay for elephants", "Zoo", "--source", "ticket")
    assert code == 0
    assert json.loads(said("search", "hay for elephants", "--json", "--filter", "kind=new")[1])[0]["id"] == "Zoo"
    rows = json.loads(said("live", "list", "--json")[1])
    assert [(row["what"], row["key"], row["document"], row["source"], row["taken_back"]) for row in rows] == [
        ("document", "Zoo", "", "", False),
        ("example", key.strip(), "Zoo", "ticket", False),
    ]
    assert said("live", "remove", key.strip())[0] == 0
    assert said("live", "remove", "Zoo", "--document")[0] == 0
    assert "yes" in said("live", "list")[1]
    assert json.loads(said("search", "hay for elephants", "--json")[1])[0]["id"] != "Zoo"
    assert said("live", "remove", "hay")[::2] == (2, "embedfit: example: 'hay' is unknown; expected the key of an example\n")
    assert said("search", "taxi", "--model", str(tmp_path))[0] == 2
    assert said("index", "--model", tmp_path / "nowhere")[0] == 2
