import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from embedfit.config import Config, json_schema, make_config, read_config
from embedfit.errors import ConfigError, StorageError
from embedfit.samples.starting import write_start

LEAST = {"data": {"queries": "pairs.jsonl"}}


def refusal(said, **kwargs):
    """Return the one line with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        make_config({**LEAST, **said}, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_data_file_is_all_that_must_be_said():
    config = make_config(LEAST)
    assert config.data.queries == "pairs.jsonl"
    assert (config.split.test, config.split.dev, config.evaluate.k, config.evaluate.metric) == (0.2, None, (1, 3, 5, 10), "mrr@10")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"splt": {}}, "key 'splt' is unknown; did you mean 'split'?"),
        ({"data": {"queries": "x", "querie": "y"}}, "key 'data.querie' is unknown; did you mean 'queries'?"),
        ({"split": {"fold": 5}}, "key 'split.fold' is unknown; did you mean 'folds'?"),
        ({"model": {"precison": "fp32"}}, "key 'model.precison' is unknown; did you mean 'precision'?"),
        ({"evaluate": {"metrics": "mrr@10"}}, "key 'evaluate.metrics' is unknown; did you mean 'metric'?"),
        ({"tune": {"epoch": 3}}, "key 'tune.epoch' is unknown; did you mean 'epochs'?"),
        ({"split": {"zzz": 1}}, "key 'split.zzz' is unknown; known: test, dev, folds, leaks, seed, group_by, by"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_at_every_level(said, line):
    assert refusal(said, where="embedfit.toml") == f"embedfit.toml: {line}"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"split": {"test": 0}}, "key 'split.test': Input should be greater than 0, seen 0"),
        ({"split": {"test": 1.0}}, "key 'split.test': Input should be less than 1, seen 1.0"),
        ({"split": {"dev": "half"}}, "key 'split.dev': Input should be a valid number, unable to parse string as a number, seen 'half'"),
        ({"split": 3}, "key 'split': Input should be a valid dictionary or instance of SplitConfig, seen 3"),
        ({"model": {"precision": "fp16"}}, "key 'model.precision': Input should be 'auto', 'bf16' or 'fp32', seen 'fp16'"),
        ({"tune": {"epochs": 0}}, "key 'tune.epochs': Input should be greater than or equal to 1, seen 0"),
        ({"tune": {"learning_rate": float("nan")}}, "key 'tune.learning_rate': Input should be"),
        ({"tune": {"learning_rate": float("inf")}}, "key 'tune.learning_rate': Input should be a finite number, seen inf"),
        ({"evaluate": {"k": []}}, "key 'evaluate.k': Tuple should have at least 1 item"),
        ({"evaluate": {"k": [0, 10]}}, "key 'evaluate.k.0': Input should be greater than or equal to 1, seen 0"),
        ({"evaluate": {"metric": "mrr@7"}}, "key 'evaluate.metric': metric 'mrr@7' is unknown; expected one of recall, mrr, ndcg"),
        ({"evaluate": {"metric": "accuracy@10"}}, "key 'evaluate.metric': metric 'accuracy@10' is unknown"),
        ({"evaluate": {"metric": "mrr@²"}}, "key 'evaluate.metric': metric 'mrr@²' is unknown"),
        ({"evaluate": {"metric": "mrr@010"}}, "key 'evaluate.metric': metric 'mrr@010' is unknown"),
        ({"evaluate": {"metric": "mrr"}}, "key 'evaluate.metric': metric 'mrr' is unknown"),
        ({"name": "a/b"}, "key 'name': String should match pattern"),
        ({"data": {}}, "key 'data.queries' is missing"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(said, line):
    assert refusal(said, where="embedfit.toml").startswith(f"embedfit.toml: {line}")


KEY = "sk-proj-0123456789"


@pytest.mark.parametrize(
    "said",
    [
        {"track": {"langwatch": KEY}},
        {"track": {"report_to": [KEY]}},
        {"generate": {"price": KEY}},
        {"generate": {"price": [KEY, 1]}},
        {"generate": {"model": [KEY]}},
        {"generate": {"personas": {"a": KEY}}},
        {"engine": f"ray://{KEY}@h"},
        {"model": {"name": [KEY]}},
        {"name": f"a/{KEY}"},
    ],
)
def test_a_key_in_the_wrong_setting_is_refused_without_showing_it(said):
    assert KEY not in refusal(said)


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ({"model": {"name": f"https://u:{KEY}@host/v1"}}, "model.name"),
        ({"model": {"name": f"https://host/v1?key={KEY}"}}, "model.name"),
        ({"data": {"queries": f"https://u:{KEY}@h/x.jsonl"}}, "data.queries"),
        ({"data": {"queries": "x", "documents": f"https://h/x.jsonl?sig={KEY}"}}, "data.documents"),
        ({"general": {"queries": f"https://u:{KEY}@h/x.jsonl"}}, "general.queries"),
        ({"mix": {"data": [{"queries": f"s3://u:{KEY}@h/x"}]}}, "mix.data.queries"),
        ({"evaluate": {"rerankers": [f"https://u:{KEY}@h"]}}, "evaluate.rerankers"),
        ({"tune": {"judge": f"u:{KEY}@h/judge"}}, "tune.judge"),
        ({"output": f"https://u:{KEY}@h"}, "output"),
    ],
)
def test_a_url_with_a_secret_is_refused_wherever_a_name_or_a_path_stands(said, key):
    line = refusal(said)
    assert f"key {key!r} has a user" in line
    assert KEY not in line


@pytest.mark.parametrize(
    "name",
    [
        "openai:m@http://localhost:8080/v1",
        "openai:m?dimensions=8@https://h/v1",
        "openai:m@https://h/v1?api-version=2024-10-21",
        "hf-inference:https://h/x",
        "a@b/c",
    ],
)
def test_an_address_of_a_model_without_a_secret_is_taken(name):
    assert make_config({**LEAST, "model": {"name": name}}).model.name == name


def test_the_metric_may_be_at_any_k_that_is_measured():
    assert make_config({**LEAST, "evaluate": {"k": [2, 20], "metric": "ndcg@20"}}).evaluate.metric == "ndcg@20"


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    data = 'queries = "data/pairs.jsonl"\ndocuments = "/else/where.jsonl"\nrecord = "ticket.json"'
    (folder / "embedfit.toml").write_text(f'output = "out"\n[data]\n{data}\n[model]\nname = "all-MiniLM-L6-v2"')
    monkeypatch.chdir(tmp_path)
    config = read_config("project/embedfit.toml")
    assert Path(config.data.queries) == Path("project/data/pairs.jsonl")
    assert config.data.documents == "/else/where.jsonl"
    assert Path(config.data.record) == Path("project/ticket.json")
    assert Path(config.output) == Path("project/out")


@pytest.mark.parametrize("record", ["transaction", "tickets:Ticket", None])
def test_names_are_no_paths(record):
    config = make_config({"data": {"queries": "hub:owner/name", "record": record}}, folder=Path("project"))
    assert (config.data.queries, config.data.record, config.data.documents) == ("hub:owner/name", record, None)


def test_a_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "embedfit.toml").write_bytes(b"\xef\xbb\xbf" + b'name = "bom"\r\n[data]\r\nqueries = "x.jsonl"\r\n')
    assert read_config(tmp_path / "embedfit.toml").name == "bom"


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.toml: No such file or directory; fix: 'embedfit init' writes one"):
        read_config(tmp_path / "gone.toml")
    (tmp_path / "broken.toml").write_text("[data\nqueries = 1")
    with pytest.raises(ConfigError, match=r"broken.toml: is not TOML: .*line 1"):
        read_config(tmp_path / "broken.toml")
    (tmp_path / "latin.toml").write_bytes('name = "caf\u00e9"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.toml: is not TOML: .*0xe9"):
        read_config(tmp_path / "latin.toml")


def test_every_setting_says_what_it_means():
    nested = {name: field.annotation for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")}
    sections = {"": Config, **nested}
    for name, section in sections.items():
        assert section.__doc__
        for key, field in section.model_fields.items():
            assert field.description or key in sections, f"{name}.{key} has no description"


def test_the_json_schema_takes_what_init_writes(tmp_path):
    written = {path.name: path for path in write_start(tmp_path)}
    schema = json.loads(written["embedfit.schema.json"].read_text())
    assert schema == json.loads(json_schema())
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    said = tomllib.loads(written["embedfit.toml"].read_text())
    assert list(validator.iter_errors(said)) == []
    assert read_config(written["embedfit.toml"]).data.queries == str(tmp_path / "queries.jsonl")
    for wrong in ({"splt": {}}, {"split": {"test": 2}}, {"evaluate": {"k": [0]}}, {"tune": {"epoch": 1}}):
        assert list(validator.iter_errors({**said, **wrong}))


def test_what_init_writes_can_be_loaded(tmp_path):
    from embedfit.data.load import load

    write_start(tmp_path)
    config = read_config(tmp_path / "embedfit.toml")
    found = load(config.data.queries, config.data.documents)
    assert (len(found.judged), len(found.corpus)) == (120, 12)
    assert found.document_texts(config.data.document_template)[0] == "Advertising & Marketing"


def test_init_overwrites_nothing(tmp_path):
    (tmp_path / "queries.jsonl").write_text("mine")
    with pytest.raises(StorageError, match=r"queries.jsonl already exists; fix: give another folder"):
        write_start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["queries.jsonl"]
