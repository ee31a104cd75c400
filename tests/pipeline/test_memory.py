import json

import numpy as np
import pytest

import embedfit
from embedfit.config import ModelConfig, TuneConfig
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.data.write import write_jsonl
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ConfigError, DataError
from embedfit.pipeline.publishing import prepare_publications
from embedfit.pipeline.source import Inputs


@pytest.fixture(scope="module")
def some(transactions):
    return transactions.select(transactions.judged[::3])


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    output = str(tmp_path_factory.mktemp("runs"))
    return {"output": output, "split": {"folds": 2}, "tune": {"method": "adapter"}, "data": {"document_template": "{category}"}}


@pytest.fixture(scope="module")
def result(some, tiny_model, settings):
    return embedfit.run(some, model=tiny_model, **settings)


def test_a_data_set_in_memory_is_run_as_one_in_files_is(some, tiny_model, settings, result, tmp_path):
    write_jsonl(some, tmp_path)
    files = {"queries": str(tmp_path / "queries.jsonl"), "documents": str(tmp_path / "documents.jsonl")}
    config = embedfit.make_config({**settings, "data": {**settings["data"], **files}, "model": {"name": str(tiny_model)}})
    again = embedfit.run(config)
    assert again.folder == result.folder  # the name holds the data, the weights and the settings
    assert again.reused
    assert not result.reused
    assert again.verdict == result.verdict


def test_a_result_has_what_is_asked_of_it(result, some):
    assert result.verdict in ("better", "worse", "no difference shown")
    assert result.encoder.encode(["a taxi"], "query").shape == (1, 384)
    assert result.encoder.fingerprint == result.manifest["fingerprint"]
    assert set(result.to_frame().columns) >= {"metric", "base", "tuned", "low", "high"}
    assert result.plot().axes
    assert "<table" in result._repr_html_()
    assert result.report.is_file()


def test_the_run_directory_stands_alone_and_can_be_published(result, some, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load(result.folder / "data" / "queries.jsonl", result.folder / "data" / "documents.jsonl")
    assert data.digest() == some.digest() == result.manifest["data"]["digest"]
    _, dataset = prepare_publications(result.folder, "./model", dataset="./data")
    assert dataset.kind == "dataset"


def test_an_encoder_can_be_given_in_place_of_a_name(some, tiny_model, settings, result):
    assert embedfit.run(some, model=LocalEncoder(tiny_model), **settings).folder == result.folder


def test_an_encoder_of_ones_own_is_tuned_by_an_adapter(some, word_encoder, settings, tmp_path):
    result = embedfit.run(some, model=word_encoder, **{**settings, "output": str(tmp_path)})
    assert result.manifest["base"]["name"] == "words"
    assert result.model.name == "adapter.safetensors"


def test_a_ladder_and_a_curve_in_memory(some, tiny_model, settings):
    ladder = embedfit.ladder(some, model=tiny_model, **settings, ladder={"rungs": ["bm25", "base"]})
    assert [rung.key for rung in ladder.rungs] == ["bm25", "base"]
    assert ladder.report.is_file()
    curve = embedfit.curve(some, 2, model=tiny_model, **settings)
    assert len(curve.points) == 3
    assert curve.report.is_file()
    assert json.loads((curve.folder / "curve.json").read_text())["points"]


def test_a_data_set_in_memory_is_checked(some, tiny_model):
    checked = embedfit.check(some)
    assert checked.ok
    assert checked.skipped == "truncation was not checked: no model was given"
    assert embedfit.check(some, model=tiny_model).skipped == ""
    first, second = list(some.queries)[:2]
    rows = {id: query for id, query in some.queries.items() if id in (first, second)}
    twice = Dataset({**rows, second: type(rows[second])(second, rows[first].text)}, some.corpus, {id: some.qrels[id] for id in rows})
    assert any(finding.kind in ("conflict", "duplicate") for finding in embedfit.check(twice).findings)
    assert repr(embedfit.check(some)).splitlines()[1:]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tune": {"epoch": 2}}, "settings: key 'tune.epoch' is unknown"),
        ({"data": {"queries": "a.csv"}}, "a Dataset is used as it is"),
        ({"generate": {"records": 3}}, "a Dataset is used as it is"),
        ({"data": 5}, "a Dataset is used as it is"),
        ({"split": 5}, "settings: key 'split'"),
        ({"model": {"nam": "m"}}, "settings: key 'model.nam' is unknown"),
        ({"model": 5}, "model is 5; expected a name, a folder"),
        ({"nothing": 1}, "settings: key 'nothing' is unknown"),
    ],
)
def test_wrong_settings_are_one_line(some, given, message):
    with pytest.raises(ConfigError) as error:
        embedfit.run(some, **given)
    assert message in str(error.value)


def test_something_else_than_data_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a Dataset, a Config or .* not ndarray"):
        embedfit.run(np.zeros(3))
    with pytest.raises((ConfigError, DataError), match="No such file"):
        embedfit.check(tmp_path / "embedfit.toml")


def test_settings_change_a_config_and_a_file(some, tiny_model, settings, result, tmp_path):
    config = embedfit.make_config(
        {**settings, "data": {**settings["data"], "queries": str(result.folder / "data" / "queries.jsonl")}, "model": {"name": "missing"}}
    )
    documents = str(result.folder / "data" / "documents.jsonl")
    assert embedfit.run(config, model=tiny_model, data={"documents": documents}).folder == result.folder


def test_the_section_of_a_model_is_taken_as_its_name_is(some, tiny_model):
    inputs = Inputs.of(some, {"name": str(tiny_model), "query_prompt": "query: "})
    assert (inputs.config.model.name, inputs.config.model.query_prompt) == (str(tiny_model), "query: ")
    assert Inputs.of(some, ModelConfig(name="m", precision="fp32")).config.model.precision == "fp32"
    assert Inputs.of(some, settings={"tune": TuneConfig(epochs=2)}).config.tune.epochs == 2


def test_folds_replace_a_single_split_in_a_config_as_in_a_file(tmp_path):
    settings = {"data": {"queries": "q.jsonl"}, "split": {"test": 0.3, "seed": 4}}
    (tmp_path / "embedfit.toml").write_text('[data]\nqueries = "q.jsonl"\n[split]\ntest = 0.3\nseed = 4\n')
    for source in (embedfit.make_config(settings), tmp_path / "embedfit.toml"):
        split = Inputs.of(source, settings={"split": {"folds": 5}}).config.split
        assert (split.folds, split.seed) == (5, 4)
        assert "test" not in split.model_fields_set


def test_a_path_of_labelled_queries_is_a_source_as_on_the_command_line(tmp_path):
    (tmp_path / "tickets.csv").write_text("Subject,Category\nA car,red\n")
    settings = {"data": {"query": "Subject", "label": "Category"}, "split": {"folds": 3}}
    config = Inputs.of(tmp_path / "tickets.csv", settings=settings).config
    assert (config.name, config.data.queries, config.data.query) == ("tickets", str(tmp_path / "tickets.csv"), "Subject")
    assert (config.model.name, config.split.folds) == ("all-MiniLM-L6-v2", 3)
    (tmp_path / "embedfit.toml").write_text('name = "here"\n[data]\nqueries = "tickets.csv"\n')
    assert Inputs.of(tmp_path).config.name == "here"
    assert embedfit.check(tmp_path / "tickets.csv", **settings).findings
