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
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from servers import running_hub

from embedfit.cli import main
from embedfit.config import make_config
from embedfit.data.dataset import Dataset, Query
from embedfit.data.load import load
from embedfit.encode.adapted import Adapter, save_adapted
from embedfit.encode.local import LocalEncoder, load_model
from embedfit.encode.readers import OLDEST, older_form
from embedfit.encode.saving import save_in_place
from embedfit.errors import ConfigError, DataError, EmbedfitError, ModelError, StorageError
from embedfit.evaluation.score import score_run
from embedfit.hub import public_name
from embedfit.pipeline import experiment, publishing
from embedfit.publish.parity import check_parity
from embedfit.publish.publication import Publication, model_publication
from embedfit.publish.target import Target
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.samples import write_start

TOKEN = "hf_very_secret_0123456789"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder of 'embedfit init': 20 queries over 4 documents."""
    folder = tmp_path_factory.mktemp("project")
    write_start(folder)
    return folder


@pytest.fixture(scope="module")
def finished(project, tiny_model):
    """A finished run of the one-layer model, whose configuration had relative paths; tests stand elsewhere."""
    shutil.copytree(tiny_model, project / "models" / "tiny")
    said = {
        "name": "support",
        "data": {"queries": "queries.jsonl", "documents": "documents.jsonl", "document_template": "{title}. {text}"},
        "model": {"name": "models/tiny", "query_prompt": "query: "},
        "split": {"folds": 0},
        "tune": {"epochs": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        folder = project / experiment.run(make_config(said)).folder
    return experiment.read_result(folder)


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # HF_HUB_DISABLE_XET is read once
        yield hub


@pytest.fixture
def said(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return call


def texts_of(project):
    """Return every query text of the data."""
    return [json.loads(line)["query"] for line in (project / "queries.jsonl").read_text().splitlines()]


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


# To the Hub


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
        patch.setattr("embedfit.publish.publication.model_publication", with_more)
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


# To a folder, to an archive


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
        assert "lies in the run directory, which is embedfit's own" in err
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
    with pytest.raises(ConfigError, match="lie in each other; fix: give the data set a place of its own"):
        publishing.prepare_publications(finished.folder, str(tmp_path / model), dataset=str(tmp_path / dataset))
    assert not list(tmp_path.iterdir())


def test_the_same_run_makes_the_same_archive(finished, tmp_path, said):
    said("publish", finished.folder, tmp_path / "one" / "support.tar", "--yes")
    said("publish", finished.folder, tmp_path / "two" / "support.tar", "--yes")
    with tarfile.open(tmp_path / "one" / "support.tar") as one, tarfile.open(tmp_path / "two" / "support.tar") as two:
        assert one.getnames() == two.getnames()
    assert len({(tmp_path / name / "support.tar").stat().st_size for name in ("one", "two")}) <= 2


# The card


@pytest.fixture(scope="module")
def card(finished, tmp_path_factory):
    """The published folder and its model card."""
    folder = tmp_path_factory.mktemp("card") / "support"
    [publication] = publishing.prepare_publications(finished.folder, str(folder))
    publication.send()
    return folder, (folder / "README.md").read_text()


def test_the_card_shows_the_comparison_with_intervals_data_and_settings(finished, card):
    _, text = card
    assert finished.comparison.sentence in text
    for metric in ("recall@1", "recall@10", "mrr@10", "ndcg@10"):
        found = finished.comparison[metric]
        assert (
            f"| {found.metric} | {found.base:.3f} | {found.tuned:.3f} | {found.difference:+.3f} | {found.low:+.3f} to {found.high:+.3f} |"
            in text
        )
    assert "20 labelled queries, 4 documents" in text
    assert "Queries: 16 for training, 0 for development, 4 held out" in text
    assert "Text of a document: `{title}. {text}`" in text
    assert "| epochs | 1 |" in text
    assert "| base model | tiny (fingerprint" in text
    assert 'Prompt before each query: `"query: "`' in text
    assert "of 384 dimensions" in text
    assert "## Intended use" in text
    assert finished.manifest["forgetting"]["sentence"] in text


def test_the_cards_metadata_is_what_the_hub_shows(finished, card):
    from huggingface_hub import ModelCard

    data = ModelCard(card[1]).data
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "sentence-similarity"
    assert "base_model" not in data.to_dict()  # a folder of this machine is none
    metrics = {result.metric_type: result.metric_value for result in data.eval_results}
    assert metrics["cosine_mrr@10"] == round(finished.comparison["mrr@10"].tuned, 4)
    assert list(metrics) == [f"cosine_{name}" for name in ("recall@1", "recall@3", "recall@5", "recall@10", "mrr@10", "ndcg@10")]


@pytest.mark.slow
def test_the_cards_snippets_run(card, tmp_path):
    _, text = card
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 2
    code = "\n".join(snippets)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'ids': [['" in done.stdout
    assert '"prompt_name": "query"' in text


@pytest.mark.slow
def test_a_router_is_not_offered_to_a_server_that_does_not_know_it(project, tiny_model, tmp_path):
    said = {
        "output": str(tmp_path),
        "data": {"queries": str(project / "queries.jsonl"), "documents": str(project / "documents.jsonl")},
        "model": {"name": str(tiny_model)},
        "split": {"folds": 0},
        "tune": {"method": "adapter"},
    }
    result = experiment.run(make_config(said))
    [publication] = publishing.prepare_publications(result.folder, str(tmp_path / "adapted"))
    assert publishing.publish_run(result.folder, publication).cosine > 0.99
    text = (tmp_path / "adapted" / "README.md").read_text()
    assert "which text-embeddings-inference does not support" in text
    assert "docker run" not in text
    assert "of 384 dimensions" in text


def test_the_name_of_a_folder_is_all_that_is_told_of_it(tmp_path):
    assert public_name(str(tmp_path / "secret" / "model")) == "model"
    assert public_name("BAAI/bge-base-en-v1.5") == "BAAI/bge-base-en-v1.5"


# The data, changed since


@pytest.fixture
def copied(finished, project, tmp_path):
    """A copy of the run whose data may be changed."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder, ignore=shutil.ignore_patterns("folds", "kept"))
    run = folder / "runs" / finished.folder.name
    manifest = json.loads((run / "manifest.json").read_text())
    for name in ("queries", "documents"):
        manifest["config"]["data"][name] = str(folder / f"{name}.jsonl")
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def rotate_labels(run):
    """Give every query another label, and add some rows."""
    path = run.parents[1] / "queries.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    labels = [row["expected"] for row in rows]
    rows = [{**row, "expected": label} for row, label in zip(rows, labels[5:] + labels[:5], strict=True)]
    rows += [{"query": f"new and secret {number}", "expected": labels[0]} for number in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_data_that_changed_since_the_run_is_not_published_and_lends_the_card_no_counts(copied, said, tmp_path):
    rotate_labels(copied)
    for option in (["--dataset", tmp_path / "data"], ["--include-examples"]):
        code, out, err = said("publish", copied, tmp_path / "model", *option, "--yes")
        assert (code, out) == (2, "")
        assert "queries.jsonl: has changed since the run" in err
        assert "expected 20 labelled queries and 4 documents as they were" in err
    assert not (tmp_path / "model").exists()
    code, out, _ = said("publish", copied, tmp_path / "model", "--yes")
    assert code == 0
    assert "the vectors of 4 texts are the same" in out
    assert "mrr@10" not in out
    card = (tmp_path / "model" / "README.md").read_text()
    assert "20 labelled queries, 4 documents" in card
    assert "new and secret" not in card


@pytest.mark.parametrize("change", ["documents", "label", "metadata", "order"])
def test_any_change_of_the_data_counts(copied, change):
    path = copied.parents[1] / ("documents.jsonl" if change == "documents" else "queries.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if change == "order":
        rows = rows[::-1]
    else:
        rows[0] |= {"documents": {"text": "something else"}, "label": {"expected": "export"}, "metadata": {"customer": 7}}[change]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="has changed since the run"):
        publishing.prepare_publications(copied, "./x", examples=True)


def test_a_run_of_before_digests_publishes_its_model_alone(copied, said, tmp_path):
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["data"], manifest["identity"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = said("publish", copied, tmp_path / "model", "--include-examples", "--yes")
    assert code == 2
    assert "was made before runs kept a digest of their data; fix: run again" in err
    code, out, _ = said("publish", copied, tmp_path / "model", "--yes")
    assert code == 0
    assert "the vectors of 4 texts are the same" in out
    assert "labelled queries, " not in (tmp_path / "model" / "README.md").read_text()


def test_a_run_is_published_from_any_folder(finished, project, tmp_path, monkeypatch, said):
    assert finished.manifest["config"]["data"]["queries"] == str(project / "queries.jsonl")
    monkeypatch.chdir(tmp_path)
    code, out, _ = said("publish", finished.folder, "./m", "--dataset", "./d", "--yes")
    assert code == 0
    assert "the vectors of 8 texts are the same" in out
    assert "base_model" not in (tmp_path / "m" / "README.md").read_text()  # models/tiny is a folder, not a name on the Hub
    assert "models/tiny" not in (tmp_path / "m" / "README.md").read_text() + (tmp_path / "m" / "embedfit.json").read_text()


def test_another_model_than_was_measured_is_not_published(copied, said, tmp_path):
    path = copied / "model" / "1_Pooling" / "config.json"
    path.write_text(path.read_text().replace("mean", "max"))
    code, _, err = said("publish", copied, tmp_path / "model", "--yes")
    assert code == 2
    assert "is not the model that was measured: a file in it has changed" in err
    assert not (tmp_path / "model").exists()


# Parity


def test_the_scores_of_the_fetched_model_are_held_against_those_that_the_run_kept(copied, said, tmp_path):
    kept = pd.read_parquet(copied / "queries.parquet")
    code, out, _ = said("publish", copied, tmp_path / "same", "--yes")
    assert code == 0
    assert f"and so is mrr@10 ({kept['tuned_mrr@10'].mean():.3f})" in out
    kept["tuned_mrr@10"] = (kept["tuned_mrr@10"] + 0.5) % 1  # off by a half, which is more than few queries are allowed
    kept.to_parquet(copied / "queries.parquet", index=False)
    code, out, err = said("publish", copied, tmp_path / "other", "--yes")
    assert (code, out) == (2, "")
    assert "is not the one that was measured: lowest cosine 1.0000" in err


def test_vectors_alone_are_enough_to_tell_another_model(finished, tiny_model):
    # No labels and no documents: only the cosine can tell.
    queries = Dataset({"a": Query("a", "where is my receipt")}, {}, {})
    with pytest.raises(ModelError, match=r"lowest cosine 0\.[0-9]+, mrr@10 differs by 0\.0000"):
        check_parity(LocalEncoder(finished.model), LocalEncoder(tiny_model, query_prompt="other: "), queries, "{text}", "mrr@10")


@pytest.mark.parametrize(("differs", "refused"), [(0.04, False), (0.06, True), (-0.06, True)])
def test_scores_alone_are_enough_to_tell_another_model(finished, project, differs, refused):
    # The very same vectors: only the scores that the run kept can tell. In fp32, 20 queries may be off by 1 / 20 on average.
    dataset = load(project / "queries.jsonl", project / "documents.jsonl")
    model = LocalEncoder(finished.model, precision="fp32")
    run = DenseRetriever(model, "{text}").search(dataset, 4)
    values = score_run(run, dataset.qrels, ks=(10,)).values["mrr@10"]
    # Half of the queries better and half of them worse: the mean hides it.
    scores = {id: value + differs * (-1) ** row for row, (id, value) in enumerate(zip(run.query_ids, values, strict=True))}
    if refused:
        with pytest.raises(ModelError, match=r"lowest cosine (1|0\.9999)"):
            check_parity(model, model, dataset, "{text}", "mrr@10", scores)
    else:
        assert check_parity(model, model, dataset, "{text}", "mrr@10", scores).fetched == pytest.approx(values.mean())


def test_parity_of_another_model_is_refused(finished, tiny_model, project):
    dataset = load(project / "queries.jsonl", project / "documents.jsonl")
    measured = LocalEncoder(finished.model)
    found = check_parity(measured, LocalEncoder(finished.model), dataset, "{text}", "mrr@10")
    assert found.measured == found.fetched
    assert found.cosine == pytest.approx(1, abs=1e-5)
    with pytest.raises(ModelError, match="is not the one that was measured"):
        check_parity(measured, LocalEncoder(tiny_model, query_prompt="other: "), dataset, "{text}", "mrr@10")


def test_where_the_data_is_gone_vectors_alone_are_compared(finished, said, tmp_path, project):
    (project / "queries.jsonl").rename(project / "moved.jsonl")
    try:
        code, out, _ = said("publish", finished.folder, tmp_path / "support", "--yes")
        assert code == 0
        assert "the vectors of 4 texts are the same" in out
        assert "the labelled data of the run was not available for scoring" in out
        with pytest.raises(EmbedfitError, match=r"queries\.jsonl"):
            publishing.prepare_publications(finished.folder, str(tmp_path / "x"), examples=True)
    finally:
        (project / "moved.jsonl").rename(project / "queries.jsonl")


def test_a_folder_that_cannot_be_written_is_one_line(finished):
    [publication] = publishing.prepare_publications(finished.folder, "/proc/none/model")
    with pytest.raises(StorageError, match="cannot be written"):
        publication.send()


def test_a_run_that_is_not_finished_is_one_line(tmp_path, said):
    code, _, err = said("publish", tmp_path, "someone/model", "--yes")
    assert code == 2
    assert "is not a finished run directory" in err


# Other people's readers and clients

READERS = Path(os.environ.get("EMBEDFIT_TEST_READERS", Path(sys.prefix) / "readers"))
TEXTS = ["where is my receipt", "stop charging me", "a long one " * 200]


def run_with(packages, code, published):
    """Run code in a process of its own, with packages of tests/readers first; return what it prints as JSON."""
    if not (READERS / packages).is_dir():
        pytest.skip(f"no packages in {READERS / packages}; 'make test' installs them")
    said = json.dumps([str(published), TEXTS])
    environment = {**os.environ, "PYTHONPATH": str(READERS / packages), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, input=said, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def published(finished, tiny_model, tmp_path_factory):
    """Published folders of three kinds: a plain model, one with prompts, and one with a query adapter and prompts."""
    folder = tmp_path_factory.mktemp("readers")
    prompts = {"query_prompt": "query: ", "document_prompt": "passage: "}
    prompted = load_model(tiny_model, {"query": "query: ", "document": "passage: "})
    save_in_place(partial(prompted.save_pretrained, create_model_card=False), folder / "models" / "prompted")
    save_in_place(partial(load_model(tiny_model).save_pretrained, create_model_card=False), folder / "models" / "plain")
    base = LocalEncoder(tiny_model, precision="fp32", **prompts)
    weight = np.eye(384, dtype=np.float32) + np.random.default_rng(0).normal(size=(384, 384)).astype(np.float32) / 20
    save_adapted(base, Adapter(weight, np.zeros(384, np.float32), base.fingerprint, "tiny"), folder / "models" / "adapted")
    for name in ("plain", "prompted", "adapted"):
        target = Target.of(str(folder / name))
        model_publication(target, folder / "models" / name, finished.manifest, finished.comparison).send()
    return folder


def vectors_of(folder):
    encoder = LocalEncoder(folder, precision="fp32")
    return [encoder.encode(TEXTS, kind) for kind in ("query", "document")]


def same(found, expected):
    return bool(np.abs(np.array(found) - np.array(expected)).max() < 1e-5)


OLD = """
import json
import sentence_transformers
folder, texts = json.loads(input())
found = {}
for name in ("plain", "prompted", "adapted"):
    model = sentence_transformers.SentenceTransformer(f"{folder}/{name}")
    found[name] = [model.encode_query(texts).tolist(), model.encode_document(texts).tolist()]
print(json.dumps([sentence_transformers.__version__, found]))
"""


def test_an_older_sentence_transformers_gives_the_same_vectors(published):
    version, found = run_with("old", OLD, published)
    assert version.startswith(f"{OLDEST}.")
    for name, vectors in found.items():
        assert same(vectors, vectors_of(published / name)), name
        assert f"\n{OLDEST} or newer.\n" in (published / name / "README.md").read_text()


CLIENTS = """
import json, re
from langchain_huggingface import HuggingFaceEmbeddings
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
folder, texts = json.loads(input())
found = {}
for name in ("plain", "prompted", "adapted"):
    card = open(f"{folder}/{name}/README.md").read()
    for client, defaults in (("LangChain", HuggingFaceEmbeddings), ("LlamaIndex", HuggingFaceEmbedding)):
        made = {"defaults": defaults(model_name=f"{folder}/{name}")}
        lines = re.search(rf"### {client}\\n.*?```py\\n(.*?)```", card, re.DOTALL)
        if lines:
            here = {}
            exec(lines[1], here)
            made["lines"] = here["embeddings"]
        for how, embeddings in made.items():
            query = getattr(embeddings, "embed_query", None) or embeddings.get_query_embedding
            documents = getattr(embeddings, "embed_documents", None) or embeddings.get_text_embedding_batch
            found[f"{client} {name} {how}"] = [[query(text) for text in texts], documents(texts)]
print(json.dumps(found))
"""


def test_the_cards_lines_for_other_clients_give_the_measured_vectors_where_their_defaults_do_not(published):
    found = run_with("clients", CLIENTS, published)
    right = {key: same(unit(vectors), vectors_of(published / key.split()[1])) for key, vectors in found.items()}
    assert right == {
        f"{client} {name} {how}": how == "lines" or name == "plain"
        for client in ("LangChain", "LlamaIndex")
        for name in ("plain", "prompted", "adapted")
        for how in (["defaults"] if name == "plain" else ["defaults", "lines"])  # a plain model needs none
    }


def test_the_docs_give_the_lines_that_the_card_gives(published):
    card = (published / "adapted" / "README.md").read_text().replace(str(published / "adapted"), "runs/support-1a2b3c4d5e/model")
    page = (Path(__file__).parents[2] / "docs" / "stores.md").read_text()
    lines = [block.replace('"passage: "', '""') for block in re.findall(r"```py\n(.*?)```", card, re.DOTALL)]
    assert len(lines) == 2
    assert set(lines) <= set(re.findall(r"```py\n(.*?)```", page, re.DOTALL))


def unit(vectors):
    return np.array(vectors) / np.linalg.norm(vectors, axis=2, keepdims=True)


def test_chromas_own_function_is_right_for_a_plain_model_alone(published):
    from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction

    for name, right in (("plain", True), ("prompted", False), ("adapted", False)):
        embed = SentenceTransformerEmbeddingFunction(str(published / name))
        assert same(unit([embed.embed_query(TEXTS), embed(TEXTS)]), vectors_of(published / name)) is right
        assert ("Pass vectors to Chroma, as above." in (published / name / "README.md").read_text()) is not right


def test_what_older_readers_and_text_embeddings_inference_look_for_is_there(published):
    folder = published / "adapted"
    assert json.loads((folder / "sentence_bert_config.json").read_text()) == {"max_seq_length": 256, "do_lower_case": False}
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    assert (pooling["pooling_mode_cls_token"], pooling["word_embedding_dimension"]) == (False, 384)
    types = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    assert types == [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize", "Router")]


CHANGES = {
    "config.json": [("rope_parameters", {"rope_theta": 10_000}), ("text_config", {"rope_scaling": None})],
    "sentence_bert_config.json": [("transformer_task", "any-to-any"), ("modality_config", {}), ("unknown", 1)],
    "1_Pooling/config.json": [("pooling_mode", ["mean", "cls"]), ("unknown", 1)],
    "2_Normalize/config.json": [("module_input_name", "token_embeddings")],
    "tokenizer_config.json": [("model_max_length", 10**30)],
    "modules.json": [
        (0, {"type": "somebody.models.Transformer", "path": ""}),
        (1, {"type": "sentence_transformers.base.modules.Own", "path": ""}),
    ],
}


@pytest.mark.parametrize(("file", "key", "value"), [(file, *change) for file, changes in CHANGES.items() for change in changes])
def test_what_the_older_form_cannot_say_stays_in_the_new_one(tiny_model, tmp_path, file, key, value):
    shutil.copytree(tiny_model, tmp_path / "model")
    assert set(older_form(tmp_path / "model")) == {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"}
    path = tmp_path / "model" / file
    settings = json.loads(path.read_text())
    settings[key] = value
    path.write_text(json.dumps(settings))
    assert older_form(tmp_path / "model") is None


def test_joined_poolings_and_other_limits_come_back_as_they_were(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model))
    model[1].__init__(384, ("cls", "mean"))
    model.max_seq_length = 17
    expected = model.encode(TEXTS)
    save_in_place(partial(model.save_pretrained, create_model_card=False), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "sentence_bert_config.json").read_text())["max_seq_length"] == 17
    again = SentenceTransformer(str(tmp_path / "model"))
    assert (again.max_seq_length, again[1].pooling_mode) == (17, ("cls", "mean"))
    assert np.array_equal(again.encode(TEXTS), expected)
