"""A finished run for tests of publishing, its card, and a Hub."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from publish_data import TOKEN
from servers import running_hub
from small_start import write_start

from embedfit.config import make_config
from embedfit.encode.adapted import Adapter, save_adapted
from embedfit.encode.local import LocalEncoder, load_model
from embedfit.encode.saving import save_in_place
from embedfit.pipeline import experiment, publishing
from embedfit.pipeline.result import read_result
from embedfit.publish.publication import model_publication
from embedfit.publish.target import Target


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """The folder of 'embedfit init': 20 queries over 4 documents."""
    folder = tmp_path_factory.mktemp("project")
    write_start(folder)
    return folder


@pytest.fixture(scope="session")
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
    return read_result(folder)


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # HF_HUB_DISABLE_XET is read once
        yield hub


@pytest.fixture(scope="session")
def card(finished, tmp_path_factory):
    """The published folder and its model card."""
    folder = tmp_path_factory.mktemp("card") / "support"
    [publication] = publishing.prepare_publications(finished.folder, str(folder))
    publication.send()
    return folder, (folder / "README.md").read_text()


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


@pytest.fixture(scope="session")
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
