"""No knob is dropped: every key of the configuration, through every command.

The table in docs/config.md says which command uses which key. Here each command runs on a tiny project in which every key
that it could use is set, and what it reads of the settings is watched: what is marked "yes" must be read, what is not must not be, and
what is marked "said" must be named in a line. Reading a key to hash it, to check it or to make its path whole is no use.
"""

import json
import re
import sys
from pathlib import Path

import pytest
from openai_server import Server

from embedfit import config as configuration
from embedfit.cli.app import main
from embedfit.config import Config, make_config, unused_settings
from embedfit.encode.local import load_model
from embedfit.errors import ConfigError

TEMPLATES = Path(configuration.__file__).parent / "generate" / "templates"
DOCS = Path(__file__).parents[2] / "docs" / "config.md"
_CHECKS = {"check_installed", "unused_settings", "check_method", "check_package", "refuse_parts"}
NO_USE = {"make_config", "placed_in", "beside", "placed", "identity", "is_open", *_CHECKS}
"""Functions whose reading of a key is no use of it."""
SECTIONS = {field.annotation: f"{name}." for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")}
EVERY = {f"{prefix}{key}" for section, prefix in SECTIONS.items() for key in section.model_fields} | {"name", "output", "engine"}
ELSEWHERE = {"model.price", "deploy.loss", "tune.min_gradient"}
"""Keys of a remote encoder (tests/encode/test_remote.py), forms (tests/publish/test_export.py), labels (tests/tune/test_remembered.py)."""


def table():
    """Return {command: {key: "yes", "said" or ""}} as docs/config.md has it."""
    lines = DOCS.read_text().partition("## Which command uses what")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    (_, *commands), _, *rows = rows
    found = {command: {} for command in commands}
    for keys, *cells in rows:
        for key in re.findall(r"`([^`]+)`", keys):
            for command, cell in zip(commands, cells, strict=True):
                assert key not in found[command], f"{key} stands twice"
                found[command][key] = cell
    return found


TABLE = table()


def test_the_table_has_every_key_and_nothing_else():
    for command, keys in TABLE.items():
        assert set(keys) == EVERY, command
        assert set(keys.values()) <= {"yes", "said", ""}


def _reader():
    """Return the name of the function that reads an attribute, from within ``__getattribute__``."""
    frame = sys._getframe(2)
    while frame.f_code.co_name.startswith("<"):  # a comprehension in it
        frame = frame.f_back
    return frame.f_code.co_name


@pytest.fixture
def read(monkeypatch):
    """The keys that were read since the test began."""
    keys = set()

    def recorded(self, name):
        section = type(self)
        if not name.startswith("_") and name in section.__pydantic_fields__ and _reader() not in NO_USE:
            if section in SECTIONS:
                keys.add(SECTIONS[section] + name)
            elif section is Config and not hasattr(section.model_fields[name].annotation, "model_fields"):
                keys.add(name)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(configuration.Section, "__getattribute__", recorded, raising=False)
    return keys


@pytest.fixture(scope="module")
def cross_encoder(tiny_model, tmp_path_factory):
    """The folder of a cross-encoder that was never trained."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("cross")
    AutoModelForSequenceClassification.from_pretrained(str(tiny_model), num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(tiny_model)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small_model(tiny_model, tmp_path_factory):
    """The folder of the one-layer model that reads 16 tokens."""
    folder = tmp_path_factory.mktemp("small") / "small"
    model = load_model(tiny_model)
    model.max_seq_length = 16
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture
def project(tmp_path, small_model, cross_encoder, monkeypatch):
    """Write a configuration in which each key has a value of its own; returns what writes it with changes."""
    monkeypatch.delenv("LANGWATCH_API_KEY", raising=False)
    words = [f"{first}{second}" for first in ("ant", "bee", "cat", "dog", "elk", "fox") for second in ("egg", "nest", "tail", "wing")]

    def rows(name, start):
        lines = [
            json.dumps({"text": f"{start} {word} {number}", "right": f"d{number % 4}", "team": f"t{number}"})
            for number, word in enumerate(words)
        ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")

    def documents(name):
        lines = [json.dumps({"id": f"d{number}", "text": f"home number {number}", "kind": f"sort {number}"}) for number in range(4)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")

    rows("queries.jsonl", "where lives the"), rows("more.jsonl", "what eats the"), rows("general.jsonl", "sing of the")
    (tmp_path / "general.jsonl").write_text(
        (tmp_path / "general.jsonl").read_text().replace('"text"', '"query"').replace("right", "expected")
    )
    documents("documents.jsonl"), documents("others.jsonl"), documents("theirs.jsonl")
    (tmp_path / "record.json").write_text(
        json.dumps({"type": "object", "properties": {name: {"type": "string"} for name in ("text", "right", "team")}})
    )
    data = {"queries": "queries.jsonl", "documents": "documents.jsonl", "label": "right", "document_template": "{text}!"}
    record = {"record": "record.json", "query_template": "{text}?"}
    whole = {
        "name": "knobs",
        "output": "out",
        "data": {**data, **record},
        "split": {"test": 0.25, "dev": 0.2, "leaks": "allow", "seed": 1, "group_by": "team"},
        "model": {
            "name": str(small_model),
            "candidates": [str(small_model)],
            "query_prompt": "q: ",
            "document_prompt": "d: ",
            "precision": "fp32",
            "attn_implementation": "eager",
            "model_kwargs": {"dtype": "float32"},
        },
        "evaluate": {
            "k": [1, 3],
            "metric": "recall@3",
            "bm25": False,
            "retrieval": ["dense", "hybrid"],
            "rerankers": [str(cross_encoder)],
            "rerank_top": 2,
            "seeds": 2,
        },
        "tune": {
            "epochs": 1,
            "batch_size": 8,
            "learning_rate": 1e-4,
            "schedule": "averaged",
            "warmup": 0.2,
            "weight_decay": 0.02,
            "dropout": 0.1,
            "train_embeddings": True,
            "freeze": 0,
            "scale": 10.0,
            "candidates": "mined",
            "negatives": 1,
            "hard_negatives": 2,
            "mined_margin": 0.9,
            "judge": str(cross_encoder),
            "teacher": str(cross_encoder),
            "teacher_weight": 0.5,
            "mine_every": 2,
            "memory_gb": 1.0,
            "matryoshka": [32],
            "patience": 1,
            "seed": 3,
        },
        "mix": {"data": [{**data, "queries": "more.jsonl", "documents": "others.jsonl", "query": "text"}], "temperature": 2.0},
        "general": {"queries": "general.jsonl", "documents": "theirs.jsonl", "measure": "sweep", "keep": 0.5},
        "ladder": {"rungs": ["base", "richer", "adapter", "full"], "document_template": "{text} {kind}"},
        "store": {"location": "store", "index": "homes", "min_recall": 0.1},
        "track": {"report_to": ["tensorboard"]},
    }

    def write(**changes):
        said = {**whole, **{key: {**whole.get(key, {}), **value} for key, value in changes.items()}}
        lines = [f"{key} = {json.dumps(value)}" for key, value in said.items() if not isinstance(value, dict)]
        for section, settings in said.items():
            if isinstance(settings, dict):
                values = {key: value for key, value in settings.items() if value is not None and key != "data"}
                lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
                for row in settings.get("data", ()):
                    lines += [f"[[{section}.data]]", *(f"{key} = {_toml(value)}" for key, value in row.items())]
        (tmp_path / "embedfit.toml").write_text("\n".join(lines) + "\n")

    monkeypatch.chdir(tmp_path)
    write()
    return write


def _toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


def call(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, arguments)))
    assert caught.value.code in (0, None), arguments


def check_table(command, read, err, *, apart=()):
    """Compare what was read and said with the table.

    Args:
        command: As the table names it.
        read: The keys that were read.
        err: What stood on stderr.
        apart: Keys that only another test sets.
    """
    used = {key for key, cell in TABLE[command].items() if cell == "yes"} - ELSEWHERE - {*apart}
    assert used - read == set(), "used by the docs, and not read"
    assert {key for key in read if not TABLE[command][key]} == set(), "read, and not used by the docs"
    said = {key for key, cell in TABLE[command].items() if cell == "said" and key not in apart}
    [line] = [line for line in err.splitlines() if f"'embedfit {command}' does not use" in line] if said else [""]
    assert set(re.findall(r"[a-z]+\.[a-z0-9_]+", line)) == said


GENERATED = {key for key in EVERY if key.startswith("generate.")} | {"tune.lora_rank", "split.folds", "data.query"}
RERANKING = {"tune.reranker", "evaluate.rerank_top"}
"""Apart: writing by an LLM, what excludes what is set here, and the keys of a reranker and of a model for queries alone."""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "ladder", "curve", "tune"])
def test_a_training_command_uses_the_keys_that_the_docs_say(project, read, capsys, command):
    call(command, *{"ladder": ["--save", "kept"], "curve": ["--points", 2], "tune": ["--output", "tuned"]}.get(command, []))
    apart = GENERATED | RERANKING | {"tune.query_model"}
    check_table(command, read - {"generate.records", "generate.questions", "data.query"}, capsys.readouterr().err, apart=apart)


@pytest.mark.slow
def test_folds_and_the_rank_of_lora_are_used(project, read, capsys):
    project(split={"test": None, "folds": 2}, tune={"method": "lora", "lora_rank": 2, "train_embeddings": None})
    call("tune", "--output", "tuned")
    assert "tune.lora_rank" in read
    assert "split.folds" in re.search("'embedfit tune' does not use .*", capsys.readouterr().err)[0]
    found = json.loads(Path("tuned/lora/adapter_config.json").read_text())
    assert found["r"] == 2


@pytest.mark.slow
def test_the_keys_of_a_reranker_are_used(project, read, cross_encoder):
    project(tune={"method": "reranker", "reranker": str(cross_encoder)})
    call("tune", "--output", "tuned")
    assert {*RERANKING, "tune.hard_negatives", "tune.mined_margin", "tune.judge"} <= read


def test_the_commands_that_do_not_train_use_the_keys_that_the_docs_say(project, read, capsys, small_model):
    for command, arguments in {
        "check": [],
        "evaluate": ["--part", "test", "--store"],
        "compare": [small_model, small_model],
        "index": [],
        "search": [],
        "relabel": ["suspects.csv", "--output", "corrected"],
    }.items():
        read.clear()
        if command == "evaluate":
            call("index")
            read.clear(), capsys.readouterr()
        Path("suspects.csv").write_text("query_id,query,expected,suggested,kind,confidence,decision\n")
        config = [] if command == "search" else ["embedfit.toml"]
        call(command, *(["where"] if command == "search" else []), *config, *arguments)
        check_table(command, read - {"data.query"}, capsys.readouterr().err, apart=("store.api_key", "data.query", "split.folds"))


def test_generating_uses_the_keys_that_the_docs_say(tmp_path, read, capsys, monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-test")
    (tmp_path / "ask.jinja").write_text(TEMPLATES.joinpath("question.jinja").read_text() + "\n")
    (tmp_path / "judge.jinja").write_text("Which passage answers {{ text }}?")
    (tmp_path / "texts.txt").write_text("who sings\n")
    passages = [{"id": f"d{row}", "text": f"The {row}th passage tells of something else than the others."} for row in range(4)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    asked = {
        "model": "rote",
        "key": "A_KEY",
        "headers": {"X-Team": "A_KEY"},
        "mode": "json_schema",
        "prompt": "ask.jinja",
        "examples": "texts.txt",
        "styles": {"plain": "put plainly"},
        "personas": ["a beginner"],
        "temperature": 0.5,
        "max_tokens": 700,
        "tries": 2,
        "seed": 1,
        "budget": 5.0,
        "max_tokens_total": 10**6,
        "price": [1.0, 2.0],
        "concurrency": 2,
        "timeout": 30.0,
        "suspects": "drop",
        "judge": "judge",
        "judge_prompt": "judge.jinja",
        "judge_tries": 1,
        "judge_price": [1.0, 2.0],
    }
    data = {"queries": "q.jsonl", "documents": "d.jsonl"}
    with Server() as server:
        written = {"data": data, "generate": {"questions": 1, **asked, "base_url": server.url}}
        (tmp_path / "embedfit.toml").write_text(
            "".join(f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in keys.items()) for name, keys in written.items())
        )
        call("generate", "queries", "--config", tmp_path / "embedfit.toml")
    capsys.readouterr()
    # Those of records: tests/generate/test_writer.py.
    apart = ("data.record", "data.query_template", "data.label")
    check_table("generate", read, "", apart=apart)


@pytest.mark.parametrize("command", [["run"], ["ladder"], ["curve"], ["tune", "--output", "tuned"]])
def test_what_trains_begins_with_writing_queries_where_they_are_asked_for(project, capsys, command):
    project(
        data={"queries": "written.jsonl", "record": None, "query_template": None},
        generate={"questions": 1, "model": "rote", "base_url": "http://llm.invalid/v1"},
    )
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    assert "EMBEDFIT_KEY_LLM_INVALID is not set" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(("section", "key"), [("model", "name"), ("tune", "judge"), ("general", "queries")])
def test_a_missing_model_or_general_set_is_noticed_before_an_llm_is_paid(project, capsys, section, key):
    generate = {"questions": 1, "model": "rote", "base_url": "http://llm.invalid/v1"}
    project(data={"queries": "written.jsonl", "record": None, "query_template": None}, generate=generate, **{section: {key: "./nowhere"}})
    with pytest.raises(SystemExit) as caught:
        main(["run"])
    assert caught.value.code == 2
    assert "nowhere" in capsys.readouterr().err


def test_an_unused_key_is_said_only_where_it_is_set():
    assert unused_settings(make_config({"data": {"queries": "x"}}), "ladder") == []
    config = make_config({"data": {"queries": "x"}, "evaluate": {"seeds": 2}, "general": {"keep": 0.9}})
    assert unused_settings(config, "ladder") == ["evaluate.seeds", "general.keep"]
    assert unused_settings(config, "run") == []
    folds = make_config({"data": {"queries": "x"}, "split": {"folds": 3, "leaks": "allow"}})
    for command in ("compare", "evaluate"):  # they measure on one split, or on all queries
        assert unused_settings(folds, command) == ["split.folds", "split.leaks"]


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"split\.test = 0\.3 and split\.folds = 5 contradict each other.*fix: leave one of them out"):
        make_config({"data": {"queries": "x"}, "split": {"test": 0.3, "folds": 5}})
    assert make_config({"data": {"queries": "x"}, "split": {"test": 0.3, "folds": 0}}).split.test == 0.3
    with pytest.raises(ConfigError, match=r"general\.documents needs general\.queries"):
        make_config({"data": {"queries": "x"}, "general": {"documents": "y"}})
    for key, value in {"queries": "y", "keep": 0.9}.items():
        with pytest.raises(ConfigError, match=rf"general\.measure is 'off', and general\.{key} needs it; fix: leave one of them out"):
            make_config({"data": {"queries": "x"}, "general": {"measure": "off", key: value}})
