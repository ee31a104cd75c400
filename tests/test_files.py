import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.write import write_beir
from embedfit.encode.saving import save_in_place
from embedfit.errors import StorageError
from embedfit.files import cache_folder, clear_leftovers, digest, replace_folder, temporary_folder, temporary_path, writing
from embedfit.pipeline.job import locked
from embedfit.tune.result import claim

MARK = "embedfit is writing here: model"

WRITES = """
import sys, time
from pathlib import Path
from embedfit.files import writing
with writing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def writer(tmp_path):
    """A process that is writing to ``file``, and half done."""
    with subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path / "file")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def test_what_a_killed_process_left_is_cleared_by_the_next_one(writer, tmp_path):
    (tmp_path / "file").write_bytes(b"as it was")
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(names(tmp_path)) == 2
    with writing(tmp_path / "other") as file:
        file.write(b"whole")
    assert names(tmp_path) == ["file", "other"]
    assert (tmp_path / "file").read_bytes() == b"as it was"


def test_what_a_living_process_is_writing_is_left_alone(writer, tmp_path):
    with writing(tmp_path / "other") as file:
        file.write(b"whole")
    clear_leftovers(tmp_path)
    [temporary] = [path for path in tmp_path.iterdir() if path.name.startswith(".embedfit-partial-")]
    assert (temporary / "content").read_bytes() == b"half"


@pytest.mark.parametrize(
    "files",
    [
        {".embedfit-partial-abcdefgh/notes.txt": "mine"},
        {".embedfit-partial-abcdefgh/content": "no mark beside it", ".embedfit-partial-abcdefgh/embedfit.lock": ""},
        {".embedfit-partial-abcdefgh/content": "another mark", ".embedfit-partial-abcdefgh/embedfit.name": "mine"},
        {".embedfit-partial-abcdefgh/embedfit.name": MARK, ".embedfit-partial-abcdefgh/more": "mine"},
        {".embedfit-partial-backup-of-mine/embedfit.lock": "of another length than our names have"},
        {".embedfit-partial-notes123": "a file"},
        {".file.abcdefgh": "a file that looks like another program's", ".file": "mine", ".embedfit": "mine"},
    ],
)
def test_what_was_not_made_by_embedfit_is_never_removed(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    clear_leftovers(tmp_path, deep=True)
    with writing(tmp_path / "file") as file:
        file.write(b"new")
    assert all((tmp_path / name).exists() for name in files)


def test_a_link_with_the_name_of_a_leftover_is_not_followed(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "embedfit.name").write_text(MARK)
    (real / "content").write_text("mine")
    (tmp_path / ".embedfit-partial-abcdefgh").symlink_to(real)
    clear_leftovers(tmp_path)
    assert (real / "content").read_text() == "mine"


def test_a_process_killed_before_its_lock_leaves_an_empty_folder_that_is_cleared(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".embedfit-partial-abcdefgh").mkdir()
    clear_leftovers(tmp_path)
    assert names(tmp_path / "deep") == [".embedfit-partial-abcdefgh"]
    clear_leftovers(tmp_path, deep=True)
    assert names(tmp_path / "deep") == []


def test_a_file_has_the_rights_that_the_user_gives_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        with writing(tmp_path / "file") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with writing(tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(StorageError, match="exists and is not a file"), writing(tmp_path / name) as file:
            file.write(b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_folder_takes_the_place_of_another_in_one_piece(tmp_path):
    target = tmp_path / "model"
    for text in ("old", "new"):
        with temporary_path(target) as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
            replace_folder(temporary, target)
        assert names(target) == [text]
    assert names(tmp_path) == ["model"]


def test_a_folder_on_the_temporary_disk_is_gone_at_the_end_and_so_are_those_of_the_dead(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / ".embedfit-partial-abcdefgh").mkdir()
    with temporary_folder() as folder:
        assert names(folder) == []
        assert names(tmp_path) == [folder.parent.name]
    assert names(tmp_path) == []


def test_a_run_directory_is_cleared_in_all_its_folders_when_work_goes_on(tmp_path):
    left = tmp_path / "folds" / "0" / ".embedfit-partial-abcdefgh"
    left.mkdir(parents=True)
    (left / "embedfit.name").write_text(MARK)
    (left / "content").write_text("half a file")
    with locked(tmp_path):
        assert names(left.parent) == []


# What a tuning replaces


@pytest.mark.parametrize("name", ["model", "lora", "checkpoints", "mined"])
def test_a_tuning_takes_no_folder_in_which_something_of_that_name_lies(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("mine")
    with pytest.raises(StorageError, match=f"holds '{name}', which no tuning wrote there"):
        claim(tmp_path, ["tuning"], [], [])
    assert (tmp_path / name / "file").read_text() == "mine"
    assert names(tmp_path) == [name]


def test_a_model_is_saved_beside_a_hidden_folder_of_its_name(tmp_path):
    (tmp_path / ".model").mkdir()
    (tmp_path / ".model" / "file").write_text("mine")

    def save(folder):
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text("{}")

    save_in_place(save, tmp_path / "model")
    assert (tmp_path / ".model" / "file").read_text() == "mine"
    assert names(tmp_path) == [".model", "model"]


def test_judgements_of_another_data_set_are_not_removed(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("mine")
    data = Dataset({"a": Query("a", "lunch")}, {"food": Document("food", "meals")}, {"a": {"food": 1}})
    with pytest.raises(StorageError, match="would be read as a part of this data set"):
        write_beir(data, tmp_path)
    assert (tmp_path / "qrels" / "test.tsv").read_text() == "mine"
    assert names(tmp_path) == ["qrels"]


# Stopped in the middle of an exchange


@pytest.mark.parametrize("stop", ["raise KeyboardInterrupt", "os.kill(os.getpid(), 9)"])
def test_the_old_folder_is_put_back_where_nothing_took_its_place(stop, tmp_path):
    code = f"""
import os, sys
from pathlib import Path
from embedfit.files import replace_folder, temporary_path
target = Path(sys.argv[1]) / "model"
target.mkdir()
(target / "weights").write_text("old")
rename = Path.rename
def renamed(path, to):
    if path.name == "content":
        {stop}
    return rename(path, to)
Path.rename = renamed
with temporary_path(target) as temporary:
    temporary.mkdir()
    (temporary / "weights").write_text("new")
    replace_folder(temporary, target)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True).returncode != 0
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


# Killed at any moment

MANY = """
import sys
from pathlib import Path
from embedfit.files import replace_folder, temporary_path, writing
folder, number = Path(sys.argv[1]), 0
print("begun", flush=True)
while True:
    number += 1
    with writing(folder / "file") as file:
        file.write(str(number).encode() * 1000)
    with temporary_path(folder / "model") as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text(str(number) * 1000)
        replace_folder(temporary, folder / "model")
"""


def test_killed_at_any_moment_files_are_whole_and_nothing_is_left_over(tmp_path):
    for moment in range(10):
        with subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(0.02 + 0.0137 * moment)
            process.kill()
        clear_leftovers(tmp_path)
        assert set(names(tmp_path)) <= {"file", "model"}
        for path in tmp_path.rglob("*"):
            text = path.read_text() if path.is_file() else ""
            assert text == text[: len(text) // 1000] * 1000


@pytest.mark.parametrize(
    ("value", "sort_keys", "sha"),
    [
        (["merge", "é", 0.5], True, '["merge", "\\u00e9", 0.5]'),
        ({"query": "a", "document": None}, True, '{"document": null, "query": "a"}'),
        ({"query": "a", "document": None}, False, '{"query": "a", "document": null}'),
    ],
)
def test_a_digest_is_that_of_json_in_ascii_with_blanks_which_keys_what_is_on_disk(value, sort_keys, sha):
    assert digest(value, sort_keys=sort_keys) == hashlib.sha256(sha.encode()).hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
def test_the_cache_stays_where_it_was(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBEDFIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("EMBEDFIT_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "embedfit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "embedfit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache_folder() == tmp_path / "other" / "embedfit"
