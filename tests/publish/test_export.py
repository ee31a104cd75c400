"""Forms that are cheaper to run: kept if they hold the quality, in the report, and published."""

import json
from dataclasses import replace

import pytest

from embedfit.encode.local import LocalEncoder
from embedfit.encode.named import encoder_of
from embedfit.encode.onnx import OnnxEncoder
from embedfit.pipeline import deploying
from embedfit.pipeline.result import read_result
from embedfit.searcher.searcher import Searcher
from embedfit.sections import ModelConfig


@pytest.fixture
def exported(copied, said):
    code, out, err = said("export", copied, "--form", "onnx-int8", "--json")
    assert code == 0, err
    return copied, json.loads(out)


def test_a_form_that_passes_is_in_the_run_the_report_and_the_publication(exported, said, tmp_path):
    run, measured = exported
    assert measured["passed"]
    assert measured["bytes"] < measured["model_bytes"] / 3
    assert measured["cosine"] > 0.9
    assert min(measured["texts_per_second"], measured["query_milliseconds"]) > 0
    code, out, _ = said("export", run, "--form", "onnx")
    assert code == 0
    assert f"Exported: {run / 'deploy'}" in out
    rows = read_result(run).deployables
    assert [row.name for row in rows] == ["onnx", "onnx-int8"]
    assert rows[0].difference.difference == 0
    assert rows[0].cosine > 0.9999
    assert OnnxEncoder(run / "deploy", "onnx-int8").encode(["a"], "query").shape == (1, 384)  # the first export was kept
    report = (run / "report.html").read_text()
    assert report.count("<h2>Forms to deploy</h2>") == 1
    assert report.count('<td class="name">onnx-int8</td>') == 1
    assert encoder_of(ModelConfig(name=str(run / "deploy"))).form == "onnx-int8"
    searcher = read_result(run).searcher
    deployed = Searcher(replace(searcher.parts, encoder=OnnxEncoder(run / "deploy", "onnx")))
    deployed.save(tmp_path / "searcher")
    assert isinstance(Searcher.load(tmp_path / "searcher").parts.encoder, OnnxEncoder)
    for text in ("where is my receipt", "stop charging me"):
        assert Searcher.load(tmp_path / "searcher").search(text)[0].id == searcher.search(text)[0].id
    code, out, _ = said("publish", run, tmp_path / "model", "--yes")
    assert code == 0
    assert (tmp_path / "model" / "onnx" / "model_quantized.onnx").stat().st_size == measured["bytes"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| `onnx-int8` | " in card
    assert LocalEncoder(tmp_path / "model").identity == LocalEncoder(run / "model").identity


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
