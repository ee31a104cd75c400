"""Forms that are cheaper to run: kept if they hold the quality, in the report, and published."""

import json
from dataclasses import replace

import pytest

from embedfit.config import make_config
from embedfit.encode.local import LocalEncoder
from embedfit.encode.named import encoder_of
from embedfit.encode.onnx import OnnxEncoder
from embedfit.errors import ConfigError, DataError
from embedfit.pipeline import deploying
from embedfit.pipeline.experiment import run
from embedfit.pipeline.result import read_result
from embedfit.searcher.searcher import Searcher
from embedfit.sections import ModelConfig
from embedfit.serve.searching import Served


@pytest.fixture
def exported(copied, said):
    code, out, err = said("export", copied, "--form", "onnx-int8", "--json")
    assert code == 0, out + err
    return copied, json.loads(out)


def test_a_form_that_passes_is_in_the_run_the_report_and_the_publication(exported, said, tmp_path):
    folder, measured = exported
    assert measured["passed"]
    assert measured["bytes"] < measured["model_bytes"] / 3
    assert measured["cosine"] > 0.9
    assert min(measured["texts_per_second"], measured["query_milliseconds"]) > 0
    code, out, _ = said("export", folder, "--form", "onnx")
    assert code == 0
    assert f"Exported: {folder / 'deploy'}" in out
    rows = read_result(folder).deployables
    assert [row.name for row in rows] == ["onnx", "onnx-int8"]
    assert rows[0].difference.difference == 0
    assert rows[0].cosine > 0.9999
    assert OnnxEncoder(folder / "deploy", "onnx-int8").encode(["a"], "query").shape == (1, 384)  # the first export was kept
    report = (folder / "report.html").read_text()
    assert report.count("<h2>Forms to deploy</h2>") == 1
    assert report.count('<td class="name">onnx-int8</td>') == 1
    assert encoder_of(ModelConfig(name=str(folder / "deploy"))).form == "onnx-int8"
    searcher = read_result(folder).searcher
    deployed = Searcher(replace(searcher.parts, encoder=OnnxEncoder(folder / "deploy", "onnx")))
    deployed.save(tmp_path / "searcher")
    assert isinstance(Searcher.load(tmp_path / "searcher").parts.encoder, OnnxEncoder)
    for text in ("where is my receipt", "stop charging me"):
        assert Searcher.load(tmp_path / "searcher").search(text)[0].id == searcher.search(text)[0].id
    check_the_searcher_runs_it(folder, searcher, measured)
    code, out, _ = said("publish", folder, tmp_path / "model", "--yes")
    assert code == 0
    assert (tmp_path / "model" / "onnx" / "model_quantized.onnx").stat().st_size == measured["bytes"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| `onnx-int8` | " in card
    assert LocalEncoder(tmp_path / "model").identity == LocalEncoder(folder / "model").identity


def check_the_searcher_runs_it(run, searcher, measured):
    answers = measured["answers"]
    assert answers["same"] >= 0.75
    assert 0 <= answers["difference"]["tuned"] <= 1
    assert Searcher.load(run / "searcher", "onnx-int8").parts.encoder.form == "onnx-int8"
    form = Searcher.load(run / "searcher", "onnx")
    assert form.parts.base is None or isinstance(form.parts.base, OnnxEncoder)
    for text in ("where is my receipt", "stop charging me"):
        assert form.search(text)[0].id == searcher.search(text)[0].id
    whole, eight, four = (Served.load(run, name).fingerprint for name in (None, "onnx-int8", "onnx"))
    assert eight.startswith(f"{whole}:onnx-int8:")
    assert four.startswith(f"{whole}:onnx:")
    rows = json.loads((run / "deploy" / "forms.json").read_text())
    (run / "deploy" / "forms.json").write_text(json.dumps([{**row, "model": "another"} for row in rows]))
    with pytest.raises(DataError, match="has the form onnx of another model than the searcher's"):
        Searcher.load(run / "searcher", "onnx")
    (run / "deploy" / "forms.json").write_text(json.dumps(rows))


def test_a_static_form_is_measured_on_queries_that_it_was_not_trained_on(copied, said, monkeypatch):
    monkeypatch.setattr("embedfit.tune.distil._STEPS", 10)
    assert said("export", copied, "--form", "onnx")[0] == 0
    code, out, err = said("export", copied, "--form", "static", "--tolerance", 1, "--json")
    assert code == 0, err
    measured = json.loads(out)
    assert measured["files"][0].startswith("static/")
    assert measured["difference"]["wins"] + measured["difference"]["ties"] + measured["difference"]["losses"] == 4  # the held-out queries
    assert [row.name for row in read_result(copied).deployables] == ["onnx", "static"]
    assert OnnxEncoder(copied / "deploy", "onnx").encode(["a"], "query").shape == (1, 384)
    static = encoder_of(ModelConfig(name=str(copied / "deploy" / "static")))
    assert static.encode(["a receipt"], "query").shape == (1, 256)
    with pytest.raises(ConfigError, match="a static model has other vectors, and needs an index of its own"):
        Searcher.load(copied / "searcher", "static")


def test_a_run_exports_the_forms_that_its_settings_ask_for(copied, said, monkeypatch):
    monkeypatch.chdir(copied.parents[1])
    settings = {
        "name": "support",
        "data": {"queries": "queries.jsonl", "documents": "documents.jsonl", "document_template": "{title}. {text}"},
        "model": {"name": "models/tiny", "query_prompt": "query: "},
        "split": {"folds": 0},
        "tune": {"epochs": 1},
    }
    with pytest.raises(DataError, match=r"has no form onnx; expected one that passed; fix: embedfit export .* --form onnx"):
        Searcher.load(copied / "searcher", "onnx")
    result = run(make_config({**settings, "deploy": {"forms": ["onnx"]}}))
    assert (result.folder.resolve(), result.reused) == (copied, True)
    assert [row.name for row in result.deployables] == ["onnx"]
    assert Searcher.load(copied / "searcher", "onnx").parts.encoder.form == "onnx"

    class Spoilt(OnnxEncoder):
        def encode(self, texts, kind):
            return super().encode(texts, kind) * (-1 if kind == "query" else 1)

    monkeypatch.setattr(deploying, "OnnxEncoder", Spoilt)
    result = run(make_config({**settings, "deploy": {"forms": ["onnx", "onnx-int8"]}}))
    assert result.rejected_forms["onnx-int8"].startswith("the loss is more than is allowed: onnx-int8: mrr@10 ")
    assert [row.name for row in result.deployables] == ["onnx"]
    assert not (copied / "deploy" / "onnx" / "model_quantized.onnx").exists()
    assert "<b>onnx-int8</b> is not exported" in result.report.read_text()
    code, _, _ = said("publish", copied, copied.parent / "published", "--yes")
    assert code == 0
    assert "The form `onnx-int8` is not published: " in (copied.parent / "published" / "README.md").read_text()


def test_a_form_that_loses_quality_is_written_nowhere(copied, said, monkeypatch):
    class Spoilt(OnnxEncoder):
        def encode(self, texts, kind):
            return super().encode(texts, kind) * (-1 if kind == "query" else 1)

    before = (copied / "report.html").read_text()
    monkeypatch.setattr(deploying, "OnnxEncoder", Spoilt)
    code, out, _ = said("export", copied, "--form", "onnx")
    assert code == 1
    assert "Not exported: the loss is more than is allowed." in out
    assert "allowed -0.250" in out  # one of four queries
    assert not (copied / "deploy").exists()
    assert (copied / "report.html").read_text() == before
    assert read_result(copied).deployables == []


def test_a_model_that_changed_since_the_run_is_not_exported(copied, said):
    path = copied / "model" / "1_Pooling" / "config.json"
    path.write_text(path.read_text().replace("mean", "max"))
    code, out, err = said("export", copied, "--form", "onnx")
    assert (code, out) == (2, "")
    assert "is not the model that was measured: a file in it has changed" in err
    (copied / "model").rename(copied / "elsewhere")
    for arguments in (("export", copied, "--form", "onnx"), ("parity", copied, "--endpoint", "openai:m@http://127.0.0.1:9/v1")):
        code, out, err = said(*arguments)
        assert (code, out) == (2, "")
        assert f"{copied / 'model'}: the run's model is gone; fix: restore it, or run again" in err
