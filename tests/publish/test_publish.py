"""Targets, and what is sent to the Hub, a folder or an archive."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from publish_data import TOKEN, texts_of

from embedfit.data.load import load
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ConfigError, EmbedfitError, StorageError
from embedfit.pipeline import publishing
from embedfit.publish.publication import Publication, model_publication
from embedfit.publish.target import Target


@pytest.mark.parametrize(
    ("said", "kind"),
    [("someone/model", "hub"), ("./model", "folder"), ("/tmp/model", "folder"), ("model.tar", "archive"), ("a/b.tar", "archive")],
)
def test_a_target_is_a_name_on_the_hub_a_folder_or_an_archive(said, kind):
    assert Target.of(said).kind == kind


@pytest.mark.parametrize("said", ["model", "a/b/c", "../../etc/x y/..;", "owner/", "https://huggingface.co/a/b"])
def test_what_is_no_target_is_refused(said):
    if said.startswith("."):
        assert Target.of(said).kind == "folder"
    else:
        with pytest.raises(ConfigError, match="is not a place to publish to"):
            Target.of(said)


def test_a_model_goes_to_the_hub_in_private_and_comes_back_the_same(finished, hub, said, project):
    code, out, err = said("publish", finished.folder, "someone/support", "--yes")
    assert code == 0
    assert re.search(r"Published the model: someone/support\. Fetched again: the vectors of 8 texts are the same", out)
    assert "and so is mrr@10" in out
    assert "private. It contains none of the labelled text." in err
    assert "model.safetensors" in err
    repo = hub.repos["model", "someone/support"]
    assert repo["private"] is True
    assert {"README.md", "embedfit.json", "modules.json", "model.safetensors"} <= set(repo["files"])
    assert repo["files"]["model.safetensors"] == (finished.model / "model.safetensors").read_bytes()
    assert any("/resolve/" in request.path and request.method == "GET" for request in hub.requests)  # it was downloaded again


def test_nothing_that_is_sent_holds_training_text_a_path_of_this_machine_or_the_token(finished, hub, said, project, tiny_model):
    code, out, err = said("--debug", "publish", finished.folder, "someone/support", "--yes")
    assert code == 0
    files = hub.repos["model", "someone/support"]["files"]
    for name, body in files.items():
        for text in [*texts_of(project), str(project), str(tiny_model), str(tiny_model.parent), TOKEN, os.environ["EMBEDFIT_CACHE"]]:
            assert text.encode() not in body, (name, text)
    assert TOKEN not in out + err
    assert all(TOKEN not in str(request) for request in hub.storage.requests)  # its addresses are signed; it is another host
    assert all(TOKEN not in request.body.decode("latin-1") + request.path for request in hub.requests)
    commits = [request for request in hub.requests if "/commit/" in request.path]
    assert commits[0].headers["authorization"] == f"Bearer {TOKEN}"
    for path in finished.folder.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()


def test_examples_are_quoted_if_asked_for_and_cannot_break_out(finished, hub, said, project):
    code, _, err = said("publish", finished.folder, "someone/support", "--yes", "--include-examples")
    assert code == 0
    assert "It contains the labelled text." in err
    card = hub.repos["model", "someone/support"]["files"]["README.md"].decode()
    quoted = [json.loads(line) for line in card.splitlines() if line.startswith('    {"query"')]
    assert len(quoted) == 5
    dataset = load(project / "queries.jsonl", project / "documents.jsonl")
    tested = {dataset.queries[id].text for id in finished.comparison.base.query_ids}
    assert len(tested) == 4
    assert {row["query"] for row in quoted} <= set(texts_of(project)) - tested


def test_a_data_set_goes_along_if_asked_for_and_comes_back_the_same(finished, hub, said, project, tmp_path):
    code, out, err = said("publish", finished.folder, "someone/support", "--dataset", "someone/support-data", "--yes")
    assert code == 0
    assert "Published the dataset: someone/support-data. Fetched again: it is the same." in out
    assert err.count("private") == 2
    files = hub.repos["dataset", "someone/support-data"]["files"]
    for name in ("queries.jsonl", "documents.jsonl"):
        (tmp_path / name).write_bytes(files[name])
    sent = load(tmp_path / "queries.jsonl", tmp_path / "documents.jsonl")
    assert sent.digest() == load(project / "queries.jsonl", project / "documents.jsonl").digest()
    assert yaml.safe_load(files["README.md"].decode().split("---")[1])["task_categories"] == ["text-retrieval"]


def test_a_model_that_comes_back_another_is_an_error(finished, hub, said):
    hub.damaged = True
    code, out, err = said("publish", finished.folder, "someone/support", "--yes")
    assert code == 2
    assert out == ""
    assert "the fetched model is not the one that was measured" in err


def test_a_public_repository_is_not_filled_by_mistake(finished, hub, said):
    hub.repos["model", "someone/open"] = {"private": False, "files": {}}
    hub.repos["model", "someone/closed"] = {"private": True, "files": {}}
    code, _, err = said("publish", finished.folder, "someone/open", "--yes")
    assert code == 2
    assert "someone/open already exists and is public; fix: add --public, or choose another name" in err
    assert hub.repos["model", "someone/open"]["files"] == {}
    code, _, err = said("publish", finished.folder, "someone/closed", "--yes", "--public")
    assert code == 2
    assert "already exists and is private" in err
    code, _, err = said("publish", finished.folder, "someone/closed", "--yes")
    assert code == 0


def test_public_must_be_said_and_is_shown(finished, hub, said):
    code, _, err = said("publish", finished.folder, "someone/support", "--yes", "--public")
    assert code == 0
    assert "PUBLIC: anybody can see it" in err
    assert hub.repos["model", "someone/support"]["private"] is False


def test_without_yes_and_without_a_person_nothing_is_sent(finished, hub, said):
    code, _, err = said("publish", finished.folder, "someone/support")
    assert code == 2
    assert "model.safetensors" in err
    assert "nobody is there to agree to this; fix: --yes" in err
    assert hub.requests == []


@pytest.mark.parametrize(("answer", "sent"), [("n\n", False), ("y\n", True)])
def test_a_person_is_asked(finished, hub, answer, sent):
    import pty

    main_end, other = pty.openpty()
    command = [sys.executable, "-m", "embedfit", "publish", str(finished.folder), "someone/support"]
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen(command, env=environment, stdin=other, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.write(main_end, answer.encode())
    _, err = process.communicate(timeout=120)
    assert b"Publish this? [y/N]" in err
    assert bool(hub.repos) is sent


def test_what_the_hub_refuses_is_one_line_without_signature_or_token(finished, hub, said):
    hub.fault = lambda request: 403 if "/commit/" in request.path else None
    code, _, err = said("publish", finished.folder, "someone/support", "--yes")
    assert code == 2
    assert err.splitlines()[-1].startswith("embedfit: someone/support: the request to the Hub failed: ")
    assert "X-Signature" not in err


def test_the_whole_reason_of_a_refusal_is_shown_on_one_line_and_no_secret(finished, hub, said):
    reason = 'Invalid metadata in README.md.\n- "license" must be one of [apache-2.0, mit]\n- "language" must be a string'
    address = "https://someone:pass-word@storage.example/x?X-Signature=presigned&token=abc"
    body = json.dumps(
        {"error": f"{reason}\nsee {address} Authorization: Bearer {TOKEN} or hf_AnotherSecret123" + " and more" * 200}
    ).encode()
    hub.fault = lambda request: (400, {"Content-Type": "application/json"}, body) if "/commit/" in request.path else None
    code, out, err = said("publish", finished.folder, "someone/support", "--yes")
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert 'Invalid metadata in README.md. - "license" must be one of [apache-2.0, mit] - "language" must be a string' in line
    for secret in (TOKEN, "presigned", "pass-word", "hf_AnotherSecret123", "token=abc"):
        assert secret not in err
    assert len(line) < 800


def test_the_hubs_address_is_shown_without_its_password(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://me:pass-word@hub.example:8443/mirror?key=hidden")
    line = Publication(Target.of("someone/support"), "dataset", {}).describe().splitlines()[0]
    assert line.startswith("The dataset goes to https://hub.example:8443/mirror/datasets/someone/support, private.")


def test_a_reply_that_is_no_hubs_is_one_line():
    from embedfit.publish.target import refusals

    for error in (TypeError("no ETag"), KeyError("id"), json.JSONDecodeError("Expecting value", "<html>", 0)):
        with pytest.raises(EmbedfitError, match="someone/x: the request to the Hub failed: what it answered"), refusals("someone/x"):
            raise error


def test_files_of_an_earlier_push_go_with_the_same_commit_and_nobody_elses(finished, hub, said, monkeypatch):
    def with_more(*arguments, **options):
        made = publication(*arguments, **options)
        evidence = json.loads(made.files["embedfit.json"])
        more = {"2_Dense/config.json": b"{}", "old.txt": b"old"}
        files = {**made.files, **more, "embedfit.json": json.dumps({**evidence, "files": [*evidence["files"], *more]}).encode()}
        return replace(made, files=files)

    publication = model_publication
    with monkeypatch.context() as patch:
        patch.setattr("embedfit.pipeline.publishing.model_publication", with_more)
        assert said("publish", finished.folder, "someone/support", "--yes")[0] == 0
    repo = hub.repos["model", "someone/support"]
    assert {"2_Dense/config.json", "old.txt"} <= set(repo["files"])
    repo["files"] |= {".gitattributes": b"the Hub's", "notes.md": b"mine"}
    del repo["files"]["old.txt"]  # by hand; the Hub refuses to remove what is not there
    code, _, err = said("publish", finished.folder, "someone/support", "--yes")
    assert code == 0
    assert "Files of an earlier publication that are not in this list are deleted from the repository." in err
    published = set(json.loads(repo["files"]["embedfit.json"])["files"])
    assert set(repo["files"]) == published | {".gitattributes", "notes.md"}
    commits = [request for request in hub.requests if "/commit/" in request.path]
    assert len(commits) == 2
    assert [json.loads(line)["value"] for line in commits[1].body.splitlines() if b"deletedFile" in line] == [
        {"path": "2_Dense/config.json"}
    ]


@pytest.mark.parametrize("evidence", [None, b"{}", b"not JSON", b"[1]", b'{"files": null}', b'{"files": 7}'])
def test_where_nothing_says_what_an_earlier_push_wrote_nothing_is_removed(finished, hub, said, evidence):
    files = {"2_Dense/config.json": b"{}", **({"embedfit.json": evidence} if evidence else {})}
    hub.repos["model", "someone/support"] = {"private": True, "files": files}
    assert said("publish", finished.folder, "someone/support", "--yes")[0] == 0
    assert "2_Dense/config.json" in hub.repos["model", "someone/support"]["files"]


def test_without_a_hub_or_a_token_it_is_one_line(finished, said, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, err = said("publish", finished.folder, "someone/support", "--yes")
    assert code == 2
    assert "the Hub cannot be reached; fix: publish to a folder or an archive: ./support or support.tar" in err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    code, _, err = said("publish", finished.folder, "someone/support", "--yes")
    assert "needs a token with write access; fix: set HF_TOKEN" in err


def test_a_folder_and_an_archive_hold_the_same_files_and_are_checked(finished, said, tmp_path):
    code, out, _ = said("publish", finished.folder, tmp_path / "support", "--yes")
    assert code == 0
    assert "the vectors of 8 texts are the same" in out
    code, out, _ = said("publish", finished.folder, tmp_path / "support.tar", "--yes")
    assert code == 0
    assert "the vectors of 8 texts are the same" in out
    with tarfile.open(tmp_path / "support.tar") as archive:
        packed = {name.removeprefix("support/"): archive.extractfile(name).read() for name in archive.getnames()}
        assert {entry.uid for entry in archive} | {entry.mtime for entry in archive} == {0}
    laid_out = {
        str(path.relative_to(tmp_path / "support")): path.read_bytes() for path in (tmp_path / "support").rglob("*") if path.is_file()
    }
    assert set(packed) == set(laid_out)
    assert all(packed[name] == laid_out[name] for name in packed if name != "README.md")  # its snippets name the place
    code, _, err = said("publish", finished.folder, tmp_path / "support", "--yes")
    assert code == 2
    assert "already exists" in err


def test_a_hidden_folder_of_the_targets_name_stays(finished, said, tmp_path):
    for name in (".git", ".git.tar"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "HEAD").write_text("mine")
    for target in ("git", "git.tar"):
        code, _, _ = said("publish", finished.folder, tmp_path / target, "--yes")
        assert code == 0
    assert (tmp_path / ".git" / "HEAD").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", ".git.tar", "git", "git.tar"]


def test_an_empty_folder_is_filled_and_keeps_its_rights(finished, tmp_path):
    (tmp_path / "empty").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("empty")
    [publication] = publishing.prepare_publications(finished.folder, f"{tmp_path}/link/")
    publication.send()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "modules.json").exists()
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    "target", ["", ".", "./", "..", "../", "./x/..", "sub", "file", "link", "file.tar", "sub.tar", "file/below", "fifo"]
)
def test_a_target_where_something_is_is_one_line_and_nothing_there_changes(finished, said, tmp_path, monkeypatch, target):
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    for name in ("sub/notes", "file", "file.tar"):
        (here / name).write_text("mine")
    (here / "sub.tar").mkdir()
    (here / "link").symlink_to("sub")
    os.mkfifo(here / "fifo")
    monkeypatch.chdir(here)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = said("publish", finished.folder, target if target.startswith(".") else f"./{target}", "--yes")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"embedfit: .* (already exists; fix: .*|cannot be written: .*)", err.splitlines()[-1])
    assert sorted(tmp_path.rglob("*")) == before
    assert (here / "sub" / "notes").read_text() == "mine"


def test_the_folder_one_stands_in_is_one_line_even_if_it_is_empty(finished, said, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for target in (".", "./", tmp_path / "here"):
        code, _, err = said("publish", finished.folder, target, "--yes")
        assert code == 2
        assert err.endswith("is the current folder, which cannot be replaced; fix: use a new folder, like ./here\n")
    assert os.path.samefile(".", tmp_path / "here")


@pytest.mark.parametrize(
    "target", ["/", "//", "/..", ".tar", "./.tar", "..tar", "...tar", "~nobody-of-this-name/model", "./a\nb", "./\x1b[31m"]
)
def test_what_has_no_name_is_no_target(target):
    with pytest.raises(ConfigError, match="is not a place to publish to") as caught:
        Target.of(target)
    assert "\x1b" not in str(caught.value)


def test_a_home_is_expanded_and_a_relative_folder_is_still_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Target.of("~/model.tar").where == f"{tmp_path}/model.tar"
    assert Target.of("~/model/").where == f"{tmp_path}/model"
    assert Target.of("./model").where == "./model"  # what a card's snippets say: without the dot it were a name on the Hub
    assert Target.of("../model/").where == "./../model"
    assert Target.of(f"{tmp_path}/./x/../model").title == "model"


def test_what_appears_at_the_target_while_a_person_is_asked_stays(finished, tmp_path):
    for name in ("support", "support.tar"):
        [publication] = publishing.prepare_publications(finished.folder, f"{tmp_path}/{name}")
        (tmp_path / name).write_text("mine")
        with pytest.raises(StorageError, match="already exists"):
            publication.send()
        assert (tmp_path / name).read_text() == "mine"


def test_a_target_in_the_run_directory_is_refused(finished, said):
    before = sorted(finished.folder.rglob("*"))
    for target in (finished.folder / "model" / "more", finished.folder / "more.tar", finished.folder):
        code, _, err = said("publish", finished.folder, target, "--yes")
        assert code == 2
        assert "is inside the run directory, which embedfit manages" in err
    assert sorted(finished.folder.rglob("*")) == before


def test_a_published_model_is_the_one_of_the_run_for_an_index(finished, card):
    assert LocalEncoder(card[0]).identity == LocalEncoder(finished.model).identity
    assert (card[0] / "embedfit.json").exists()


def killed_at(seconds, work):
    """Do something in a process of its own that is killed, with no chance to tidy up, after some seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("kind", ["folder", "archive", "hub"])
def test_killed_at_any_moment_a_publication_is_whole_or_not_there_and_the_next_clears_up(finished, hub, tmp_path, monkeypatch, kind):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    target = {"folder": f"{tmp_path}/here/support", "archive": f"{tmp_path}/here/support.tar", "hub": "someone/support"}[kind]
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ".support").write_text("mine")
    [publication] = publishing.prepare_publications(finished.folder, target)
    wanted = set(publication.files)
    repos = hub.repos

    def published():
        if kind == "hub":
            return set(repos.get(("model", target), {"files": ()})["files"])
        if kind == "archive":
            with tarfile.open(target) as archive:
                return {name.removeprefix("support/") for name in archive.getnames()}
        return {str(path.relative_to(target)) for path in Path(target).rglob("*") if path.is_file()}

    def send_and_fetch():
        with publication.fetched(publication.send()):
            pass

    for moment in range(10):
        if kind != "hub" and Path(target).exists():
            assert published() == wanted  # whole, or it would not have this name
            shutil.rmtree(target) if kind == "folder" else Path(target).unlink()
        killed_at(random.Random(moment).uniform(0, 0.15 if kind != "hub" else 0.6), send_and_fetch)
        assert kind != "hub" or published() in (set(), wanted)  # one commit or none
    if kind != "hub" and Path(target).exists():
        shutil.rmtree(target) if kind == "folder" else Path(target).unlink()
    send_and_fetch()
    assert published() == wanted
    assert {path.name for path in (tmp_path / "here").iterdir()} == {".support", *([Path(target).name] if kind != "hub" else [])}
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.parametrize(("model", "dataset"), [("a", "a"), ("a/model", "a"), ("a", "a/data"), ("a.tar", "a.tar")])
def test_a_model_and_a_data_set_that_would_lie_in_each_other_are_refused(finished, model, dataset, tmp_path):
    with pytest.raises(ConfigError, match="is inside the other; fix: give the data set a place of its own"):
        publishing.prepare_publications(finished.folder, str(tmp_path / model), dataset=str(tmp_path / dataset))
    assert not list(tmp_path.iterdir())


def test_the_same_run_makes_the_same_archive(finished, tmp_path, said):
    said("publish", finished.folder, tmp_path / "one" / "support.tar", "--yes")
    said("publish", finished.folder, tmp_path / "two" / "support.tar", "--yes")
    with tarfile.open(tmp_path / "one" / "support.tar") as one, tarfile.open(tmp_path / "two" / "support.tar") as two:
        assert one.getnames() == two.getnames()
    assert len({(tmp_path / name / "support.tar").stat().st_size for name in ("one", "two")}) <= 2


def test_a_folder_that_cannot_be_written_is_one_line(finished):
    [publication] = publishing.prepare_publications(finished.folder, "/proc/none/model")
    with pytest.raises(StorageError, match="cannot be written"):
        publication.send()


def test_a_run_that_is_not_finished_is_one_line(tmp_path, said):
    code, _, err = said("publish", tmp_path, "someone/model", "--yes")
    assert code == 2
    assert "is not a finished run directory" in err
