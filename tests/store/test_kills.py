"""Two writers, killed writers, and readers during a switch."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from store_data import TEMPLATE, Numbers, numbered

from embedfit.encode.cache import CachedEncoder
from embedfit.errors import StorageError
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.store.base import Live
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import index_documents, roll_back

HOLD = """
import sys, time
from embedfit.config import StoreConfig
from embedfit.store.open import open_store
with open_store(StoreConfig.model_validate_json(sys.argv[1])) as store, store.writing():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_gone_even_by_kill(config):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, config.model_dump_json()], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with open_store(config) as store:
        with pytest.raises(StorageError, match="another process is writing to it"):
            index_documents(store, numbered(), Numbers(), TEMPLATE)
        with pytest.raises(StorageError, match="another process is writing to it"):
            roll_back(store)
        holder.kill()
        holder.wait()
        assert index_documents(store, numbered(), Numbers(), TEMPLATE).written == 60


INDEX = """
import sys, os
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/.."]
from embedfit.config import StoreConfig
from embedfit.store.open import open_store; from embedfit.store import filling, versions
from store_data import TEMPLATE, Numbers, numbered

config, count, seed, dimension = StoreConfig.model_validate_json(sys.argv[1]), *map(int, sys.argv[3:6])
filling.BATCH_BYTES = int(sys.argv[6])
with open_store(config) as store:
    for name in ("create", "add", "finish", "nearest", "switch"):
        def told(*args, name=name, method=getattr(store, name)):
            print(name, flush=True)
            return method(*args)
        setattr(store, name, told)
    found = versions.index_documents(store, numbered(count), Numbers(seed, count, dimension), TEMPLATE)
    print("written", found.written, flush=True)
"""


def indexing(config, count, seed, dimension, batch_bytes):
    command = [sys.executable, "-c", INDEX, config.model_dump_json(), str(Path(__file__).parent)]
    command += map(str, (count, seed, dimension, batch_bytes))
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed_at(process, moment, times):
    """Kill a process without warning shortly after it said a word for the n-th time; returns whether it got there."""
    for line in process.stdout:
        times -= line.strip() == moment
        if times == 0:
            time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
    return False


def killed_and_resumed(config, count, dimension, batch_bytes, moments, reads):
    """Index while killing at some moments, and go on to the end; `reads` says whether another process reads meanwhile."""
    old, new = Numbers(0, count, dimension), Numbers(1, count, dimension)
    CachedEncoder(new).encode([f"doc {i}" for i in range(count)], "document")
    small = numbered(50)
    with open_store(config) as store:
        index_documents(store, small, old, TEMPLATE)
        before = store.live()
    answers, failures, stop = [], [], threading.Event()

    def read():
        with open_store(config) as store:
            while not stop.is_set():
                try:
                    version = LiveIndex(store, old, new).version()
                    answers.append((version.collection, version.find("query 7", 1)[0].id))
                except Exception as error:  # every failure is one
                    failures.append(error)
                time.sleep(0.01)

    reader = threading.Thread(target=read)
    if reads:
        reader.start()
    try:
        for moment, times in moments:
            process = indexing(config, count, 1, dimension, batch_bytes)
            assert killed_at(process, moment, times), f"never came to {moment} {times}"
            if moment != "switch" and reads:
                with open_store(config) as store:
                    assert store.live() == before
        process = indexing(config, count, 1, dimension, batch_bytes)
        said = process.communicate()[0]
        assert process.returncode == 0
        for _ in range(3000 if reads else 0):  # a reader that was there all the while sees the new version too
            if failures or (answers and answers[-1][0] != before.current):
                break
            time.sleep(0.01)
    finally:
        stop.set()
        if reads:
            reader.join()
    assert not failures
    with open_store(config) as store:
        collection = store.live().current
        assert not reads or (len(answers) > 20 and set(answers) == {(before.current, "d7"), (collection, "d7")})
        assert store.live() == Live(collection, before.current)
        assert store.ids(collection) == {f"d{i}" for i in range(count)}
        assert stores_count(config, store, collection) == count
        assert LiveIndex(store, new).find(f"query {count - 1}", 1)[0].id == f"d{count - 1}"
    return int(said.split()[-1])


def stores_count(config, store, collection):
    """Return how many rows there are, by the store's own count."""
    if config.kind == "chroma":
        return store._collection(collection).count()
    if config.kind == "qdrant":
        return store._client.count(collection, exact=True).count
    return store._query("SELECT count(*) FROM {table}", table=collection)[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "batch_bytes", "moments"),
    [
        ("pgvector", 12 * 2**20, [("create", 1), ("add", 2), ("add", 5), ("finish", 1), ("nearest", 1)]),
        ("chroma", 6 * 2**20, [("create", 1), ("add", 2), ("add", 3), ("nearest", 1), ("switch", 1)]),
    ],
)
def test_fifty_thousand_documents_killed_at_five_moments_are_all_there_once_and_the_live_index_answered(
    config_of, kind, batch_bytes, moments
):
    written = killed_and_resumed(config_of(kind), 50_000, 96, batch_bytes, moments, reads=True)
    assert written == 0  # all were there by the fourth kill


@pytest.mark.slow
def test_chromas_server_killed_goes_on_while_the_live_index_answers(config_of):
    assert killed_and_resumed(config_of("chroma server"), 3000, 64, 800_000, [("add", 2), ("switch", 1)], reads=True) == 0


@pytest.mark.slow
def test_qdrants_local_mode_killed_goes_on(config_of):
    assert 0 < killed_and_resumed(config_of("qdrant"), 200, 16, 20_000, [("add", 1), ("add", 2)], reads=False) < 200


KILLS = """
import json, os, random, sys, time, traceback
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/.."]
from embedfit.encode import encoder as encoders
from embedfit.config import StoreConfig
from embedfit.store import filling, live as live_index, versions
from embedfit.store.open import open_store
from store_data import TEMPLATE, Numbers, numbered
import chromadb, pgvector.psycopg, psycopg, qdrant_client

config, log, count, seed = StoreConfig.model_validate_json(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
encoders.SLICE, filling.BATCH_BYTES = 20, 30_000

class Paid(Numbers):
    def encode(self, texts, kind):
        with open(log, "a") as file:  # what was asked for is paid, whatever becomes of the answer
            file.writelines(text + os.linesep for text in texts if kind == "document")
        return super().encode(texts, kind)

def index(turn):
    encoder = Paid(size=count)
    with open_store(config) as store:
        data = numbered(count, colour=turn)
        found = versions.index_documents(store, data, encoder, f"turn {turn} {{title}} {{text}}")
        live = store.live()
        assert live.current == found.collection
        assert store.ids(live.current) == set(data.corpus)
        assert sorted(store.collections()) == sorted(filter(None, {live.current, live.previous})), (store.collections(), live)
        hit = live_index.LiveIndex(store, encoder).find("query 7", 1)[0]
        assert (hit.id, hit.metadata["colour"], hit.text) == ("d7", turn, f"turn {turn} doc 7")
        return live

def start(turn):
    process = os.fork()  # with all imported, so that what is killed is the work
    if process == 0:
        try:
            index(turn)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process

def finished(process, seconds):
    # Waits up to so many seconds, and says whether the process came to its end.
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            assert status == 0
            return True
        time.sleep(0.002)
    return False

seconds, killed = 5.0, 0
random.seed(seed)
for turn in range(60):
    if killed == 10:
        break
    if turn:
        log.unlink()
    begun, moment = time.monotonic(), random.uniform(0, seconds) if turn else 600  # the first one goes to its end
    process = start(turn)
    if finished(process, moment):  # this is how long it takes now: the next moment lies within
        seconds, extra = time.monotonic() - begun, 0
    else:
        os.kill(process, 9)
        gone = os.waitpid(process, 0)[1] == 9
        killed, extra = killed + gone, encoders.SLICE * gone
        assert os.waitpid(start(turn), 0)[1] == 0
    asked = log.read_text().splitlines()
    assert count <= len(asked) <= count + extra, (len(asked), extra)
    assert len(set(asked)) == count
    print(f"{turn} {min(moment / seconds, 1):.2f} killed {killed} asked {len(asked)}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("chroma", 200), ("pgvector", 200), ("qdrant", 60)])
def test_killed_at_ten_random_moments_nothing_is_lost_nothing_paid_twice_and_nothing_left_over(kind, count, config_of, tmp_path):
    config = config_of(kind)
    command = [sys.executable, "-c", KILLS, config.model_dump_json(), str(Path(__file__).parent), str(tmp_path / "log"), str(count), "14"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    assert "killed 10 " in done.stdout.splitlines()[-1]
    cache = Path(os.environ["EMBEDFIT_CACHE"])
    [vectors] = cache.glob("*.sqlite")
    assert {path.name for path in cache.iterdir()} <= {vectors.name, vectors.with_suffix(".lock").name, "locks"}
    with open_store(config) as store:
        collections = store.collections()
        assert len(collections) == 2
        if kind == "pgvector":
            tables = {name for (name,) in store._query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
            assert tables == {"embedfit_live", "embedfit_collections", *collections}
            assert {name for (name,) in store._query("SELECT collection FROM embedfit_collections")} == set(collections)
        elif kind == "qdrant":
            assert {path.name for path in (Path(config.location) / "collection").iterdir()} == set(collections)
    if kind == "chroma":
        with contextlib.closing(sqlite3.connect(Path(config.location) / "chroma.sqlite3")) as database:
            segments = {id for (id,) in database.execute("SELECT id FROM segments WHERE scope = 'VECTOR'")}
        assert {path.name for path in Path(config.location).iterdir() if path.is_dir()} <= segments


def test_switching_and_rolling_back_under_constant_reading_gives_no_failed_and_no_mixed_answer(config):
    data, old, new = numbered(), Numbers(0), Numbers(1)
    templates = {"old doc": "old {title} {text}", "new doc": "new {title} {text}"}
    expected = {}
    for (said, template), encoder in zip(templates.items(), (old, new), strict=True):
        run = DenseRetriever(encoder, template).search(data, 5)
        expected |= {(said, row): run.scores[row] for row in range(20)}
    answers, failures, stop = [], [], threading.Event()
    with open_store(config) as store:
        index_documents(store, data, old, templates["old doc"])

        def read(start):
            # A server's clients have a connection each; an embedded store is one for all threads.
            with open_store(config) if config.kind == "pgvector" else contextlib.nullcontext(store) as own:
                live, row = LiveIndex(own, old, new), start
                while not stop.is_set():
                    row = (row + 1) % 20
                    try:
                        answers.append((row, live.find(f"query {row}", 5)))
                    except Exception as error:  # every failure is one
                        failures.append(error)

        readers = [threading.Thread(target=read, args=(start,)) for start in (0, 7, 13)]
        for reader in readers:
            reader.start()
        try:
            time.sleep(0.3)
            index_documents(store, data, new, templates["new doc"])
            for _ in range(10):
                time.sleep(0.1)
                roll_back(store)
        finally:
            stop.set()
            for reader in readers:
                reader.join()
    assert not failures
    seen = set()
    for row, hits in answers:
        [said] = {hit.text.rpartition(" ")[0] for hit in hits}
        assert len(hits) == 5
        np.testing.assert_allclose([hit.score for hit in hits], expected[said, row], atol=1e-5)
        seen.add(said)
    assert seen == set(templates)
