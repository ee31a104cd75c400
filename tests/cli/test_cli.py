import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_start import write_start

from embedfit.cli import app
from embedfit.cli.app import main
from embedfit.cli.options import settings_of
from embedfit.config import read_config
from embedfit.errors import ConfigError
from embedfit.pipeline.parts import load_data
from embedfit.samples import TRANSACTIONS
from embedfit.searcher.searcher import Searcher

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, tiny_model):
    """A folder with 20 queries, the one-layer model and one epoch."""
    write_start(tmp_path)
    toml = tmp_path / "embedfit.toml"
    toml.write_text(
        toml.read_text()
        .replace("all-MiniLM-L6-v2", str(tiny_model))
        .replace("# epochs = 4", "epochs = 1")
        .replace("# folds = 5", "folds = 0")
    )
    return toml


def main_code(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_init_writes_files_that_check_finds_nothing_wrong_with(tmp_path, said):
    code, out, _ = said("init", tmp_path)
    assert code == 0
    assert f"Next: embedfit check {tmp_path / 'embedfit.toml'}" in out
    code, out, _ = said("check", tmp_path / "embedfit.toml")
    assert code == 0
    assert "120 labelled queries, 12 documents, 120 relevant pairs" in out
    assert "No problems found." in out


def test_init_overwrites_nothing(tmp_path, said):
    (tmp_path / "queries.jsonl").write_text("mine")
    code, _, err = said("init", tmp_path)
    assert code == 2
    assert "already exists" in err
    assert (tmp_path / "queries.jsonl").read_text() == "mine"
    assert not (tmp_path / "embedfit.toml").exists()


def test_run_prints_the_table_the_report_and_last_the_verdict(project, said):
    code, out, _ = said("run", project)
    assert code == 0
    lines = out.strip().splitlines()
    assert re.match(r"(Better|Worse|No difference shown): MRR@10 .* held-out queries: \d+ better, \d+ the same, \d+ worse\.", lines[-1])
    assert any(line.startswith("Report:") and Path(line.split()[-1]).exists() for line in lines)
    assert any("recall@1" in line for line in lines)


def test_run_again_says_that_nothing_was_done(project, said):
    said("run", project)
    code, out, _ = said("run", project)
    assert code == 0
    assert "nothing had changed" in out


def test_json_is_all_that_stdout_holds(project, said):
    code, out, _ = said("--quiet", "run", project, "--json")
    assert code == 0
    assert json.loads(out)["verdict"] in ("better", "worse", "no difference shown")
    code, out, _ = said("check", project, "--json")
    assert json.loads(out)["queries"] == 20
    code, out, _ = said("evaluate", project, "--k", 1, "--json")
    assert {row["metric"] for row in json.loads(out)} >= {"recall", "mrr"}


def test_evaluate_measures_a_grid_and_writes_it(project, said, tmp_path):
    code, out, _ = said(
        "evaluate", project, "--document", "{title}", "--document", "{title}. {text}", "--k", 1, "--csv", tmp_path / "grid.csv"
    )
    assert code == 0
    assert "{title}. {text}" in out
    assert "recall@1" in out
    assert "MRR@1 against the first" in out
    assert "A winner picked from these 2 rows must be confirmed on other queries" in " ".join(out.split())
    assert len((tmp_path / "grid.csv").read_text().splitlines()) == 1 + 2 * 6


def test_tune_and_compare_do_their_stage_alone(project, said, tmp_path, tiny_model):
    code, out, _ = said("tune", project, "--output", tmp_path / "tuned")
    assert code == 0
    assert (tmp_path / "tuned" / "model" / "model.safetensors").exists()
    code, out, err = said("compare", project, tiny_model, tmp_path / "tuned" / "model", "--part", "all")
    assert code == 0
    assert "on 20 queries" in out
    assert f"{tmp_path / 'tuned' / 'model'} was trained on 16 of these 20 queries" in err
    code, out, err = said("compare", project, tiny_model, tmp_path / "tuned" / "model")
    assert "was trained on" not in err
    code, out, _ = said("compare", project, tiny_model, tiny_model, "--json")
    assert json.loads(out)["verdict"] == "no difference shown"


def test_compare_takes_rankings_from_elsewhere(project, said, tmp_path, tiny_model):
    data = load_data(read_config(project))
    right = {id: next(iter(data.relevant(id))) for id in data.judged}
    lines = [f"{id}\tQ0\t{document}\t1\t9.5\tmine" for id, document in right.items()]
    lines[:2] = [lines[0].replace("\t9.5", "\t1"), lines[0].replace(right[data.judged[0]], "gone")]
    (tmp_path / "mine.run").write_text("\n".join(lines))
    code, out, err = said("compare", project, tiny_model, tmp_path / "mine.run", "--part", "all", "--json")
    assert code == 0
    comparison = json.loads(out)
    assert comparison["tuned"] == "mine.run"
    [recall] = [row for row in comparison["differences"] if row["metric"] == "recall@1"]
    assert recall["tuned"] == pytest.approx(18 / 20)
    assert "mine.run: queries without a ranking, for which nothing counts as found: 1" in err
    assert "mine.run: ranked documents that are not in the data, and count as wrong: 1" in err
    (tmp_path / "other.run").write_text("zz Q0 d 1 2.0 other\n")
    code, _, err = said("compare", project, tiny_model, tmp_path / "other.run", "--part", "all")
    assert code == 2
    assert "other.run: ranks documents for none of the 20 queries; expected ids such as" in err


def test_schema_is_the_one_that_init_wrote(project, said):
    _, out, _ = said("schema")
    assert json.loads(out) == json.loads((project.parent / "embedfit.schema.json").read_text())


def bad_rows(folder):
    lines = [json.dumps({"query": f"text {i}", "expected": "ab"[i % 2]}) for i in range(9)]
    lines[6] = '{"query": "text 6", "expected": '
    (folder / "bad.jsonl").write_text("\n".join(lines))
    (folder / "embedfit.toml").write_text('[data]\nqueries = "bad.jsonl"\n[model]\nname = "all-MiniLM-L6-v2"\n')


def test_a_bad_row_is_one_line_and_exit_code_2(tmp_path, said):
    bad_rows(tmp_path)
    code, out, err = said("run", tmp_path / "embedfit.toml")
    assert code == 2
    assert out == ""
    assert err.startswith(f"embedfit: {tmp_path / 'bad.jsonl'}:7: is not JSON")
    assert len(err.splitlines()) == 1


def test_check_lists_every_bad_row_and_goes_on(tmp_path, said):
    bad_rows(tmp_path)
    code, out, _ = said("check", tmp_path / "embedfit.toml")
    assert code == 2
    assert "8 labelled queries, 2 documents" in out
    assert "bad.jsonl:7: is not JSON" in out


@pytest.mark.parametrize("setting", ["", '[split]\ngroup_by = "merchant"\n'])
def test_check_suggests_a_field_to_group_by_until_it_is_set(tmp_path, said, setting):
    rows = [{"query": f"text {number}", "expected": "ab"[number % 2], "merchant": f"merchant {number % 15}"} for number in range(150)]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "embedfit.toml").write_text(f'[data]\nqueries = "queries.jsonl"\n{setting}')
    code, out, _ = said("check", tmp_path / "embedfit.toml", "--json")
    assert code == 0
    assert ('group_by = \\"merchant\\" in [split]' in out) == (not setting)


@pytest.mark.parametrize("settings", ["", '[split]\ngroup_by = "team"\n'])
def test_check_lists_the_bad_rows_of_a_beir_folder_with_a_test_part_alone(tmp_path, said, settings):
    (tmp_path / "set" / "qrels").mkdir(parents=True)
    rows = ["".join(json.dumps({"_id": f"{name}{n}", "text": f"{name} text {n}"}) + "\n" for n in range(4)) for name in "dq"]
    (tmp_path / "set" / "corpus.jsonl").write_text(rows[0])
    (tmp_path / "set" / "queries.jsonl").write_text(rows[1])
    (tmp_path / "set" / "qrels" / "test.tsv").write_text("q0\td0\t1\nq1\td9\t1\nq2\td2\tyes\nq3\td3\t1\n")
    (tmp_path / "embedfit.toml").write_text(f'[data]\nqueries = "set"\n[model]\nname = "all-MiniLM-L6-v2"\n{settings}')
    code, out, _ = said("check", tmp_path / "embedfit.toml")
    assert code == 2
    assert "test.tsv:2: document 'd9' is not among the 4 documents" in out
    assert "test.tsv:3: is 'q2\\td2\\tyes'; expected query id, document id, whole grade" in out
    assert "problem " in out


def test_a_document_template_that_no_document_has_does_not_hide_the_bad_rows(tmp_path, said):
    bad_rows(tmp_path)
    with (tmp_path / "embedfit.toml").open("a") as file:
        file.write("[split]\nfolds = 0\n")
    text = (tmp_path / "embedfit.toml").read_text()
    (tmp_path / "embedfit.toml").write_text(text.replace("[data]\n", '[data]\ndocument_template = "{nothing}"\n'))
    code, out, _ = said("check", tmp_path / "embedfit.toml")
    assert code == 2
    assert "bad.jsonl:7: is not JSON" in out
    assert "problem template '{nothing}': no field 'nothing'" in out


def test_check_names_a_wrong_column_once(tmp_path, said):
    (tmp_path / "rows.csv").write_text("query,outcome\na,x\nb,y\n")
    (tmp_path / "embedfit.toml").write_text('[data]\nqueries = "rows.csv"\n[model]\nname = "all-MiniLM-L6-v2"\n')
    code, out, _ = said("check", tmp_path / "embedfit.toml")
    assert code == 2
    assert out.count("bad row") == 1
    assert "rows.csv:2: key 'expected' is missing in all 2 rows (keys: query, outcome)" in out


def test_a_traceback_shows_controls_and_does_not_obey_them(tmp_path):
    path = str(tmp_path / "no\x1b[2Jthing\r\x9b31m.toml")
    done = subprocess.run([sys.executable, "-m", "embedfit", "--debug", "run", path], capture_output=True, timeout=60)
    err = done.stderr.decode()
    assert done.returncode == 1
    assert err.startswith("Traceback (most recent call last):\n")
    assert "no\\u001b[2Jthing\\r\\u009b31m.toml" in err.splitlines()[-1]
    assert not set("\x1b\r\x9b") & set(err)


def test_compare_says_that_it_does_not_use_folds(tmp_path, capsys):
    path = tmp_path / "embedfit.toml"
    path.write_text('[data]\nqueries = "none.jsonl"\n[split]\nfolds = 3\nleaks = "drop"\n')
    with pytest.raises(SystemExit):
        main(["compare", str(path), "all-MiniLM-L6-v2", "all-MiniLM-L6-v2"])
    assert "'embedfit compare' does not use split.folds, split.leaks\n" in capsys.readouterr().err


def test_debug_shows_where_an_error_comes_from(tmp_path):
    from embedfit.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["--debug", "run", str(tmp_path / "nothing.toml")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing.toml"], "nothing.toml: No such file or directory; fix: 'embedfit init' writes one"),
        (["demo", "--model", "./nowhere"], "model './nowhere' does not exist"),
        (["demo", "--output", "/proc/none"], "/proc/none"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(said, arguments, message):
    code, _, err = said(*arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become nobody")
def test_a_directory_of_somebody_else_is_named(tmp_path):
    # As nobody, who may not even read this interpreter's modules: so all are loaded before.
    code = (
        "import os, sys, filelock; from pathlib import Path\n"
        "from embedfit.errors import EmbedfitError; from embedfit.pipeline.job import locked\n"
        "os.seteuid(65534)\n"
        "try:\n"
        f"    with locked(Path({str(tmp_path)!r}) / 'theirs'): pass\n"
        "except EmbedfitError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'theirs'}: cannot be written: Permission denied\n"


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_line_and_what_was_finished_is_kept(project, tmp_path):
    # A limit on the size of files stands for the disk: the write fails in the middle, in real code.
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        f"from embedfit.cli.app import main; main(['--quiet', 'run', {str(project)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(project.parent.glob("runs/*/manifest.json"))
    assert main_code(["run", str(project)]) in (0, None)


def test_help_and_completion_load_nothing_heavy():
    code = (
        "import sys; from embedfit.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'pydantic', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_relabel_applies_what_was_decided_and_says_what_to_set(project, tmp_path, said):
    first = json.loads((project.parent / "queries.jsonl").read_text().splitlines()[0])
    documents = [json.loads(line)["id"] for line in (project.parent / "documents.jsonl").read_text().splitlines()]
    other = next(id for id in documents if id != first["expected"])
    csv = tmp_path / "suspects.csv"
    csv.write_text(
        f"query_id,query,expected,suggested,kind,confidence,decision\n{first.get('id', 'q1')},x,y,{other},mislabel,0.9,replace\n"
    )
    code, out, err = said("relabel", project, csv, "--output", tmp_path / "corrected")
    assert (code, err) == (0, "")
    assert "1 replace" in out
    corrected = json.loads((tmp_path / "corrected" / "queries.jsonl").read_text().splitlines()[0])
    assert corrected["expected"] == {other: 1}
    assert "Leave out" not in out
    project.write_text(project.read_text().replace("[data]", '[data]\nquery = "query"\nlabel = "expected"', 1))
    _, out, _ = said("relabel", project, csv, "--output", tmp_path / "again")
    assert "Leave out query and label there: the texts are written out, under the usual names." in out


@pytest.mark.slow
def test_ladder_and_curve_print_a_table_and_where_the_report_is(project, said, tmp_path):
    code, out, _ = said("ladder", project, "--rung", "bm25", "--rung", "base", "--rung", "adapter", "--save", tmp_path / "kept")
    assert code == 0
    assert Searcher.load(tmp_path / "kept").search("a query", 2)[0].probability is not None
    assert f"Searcher: {tmp_path / 'kept'}, of " in out.replace("\n", "")
    assert "query adapter" in out
    assert "Recommended: " in out
    code, out, _ = said("ladder", project, "--rung", "bm25", "--rung", "base", "--rung", "adapter", "--json")
    assert [rung["key"] for rung in json.loads(out)["rungs"]] == ["bm25", "base", "adapter"]
    code, out, _ = said("curve", project, "--points", "2")
    assert code == 0
    assert "measured" in out
    assert Path(re.search(r"Report: (\S+)", out)[1]).exists()


def test_set_gives_any_setting_of_a_file_or_of_bare_data(project):
    overrides = [
        "tune.epochs=2",
        "tune.method=lora",
        "model.name = other",
        "ladder.rungs=['bm25', 'base']",
        "data.document_template={title} = {text}",
    ]
    config = settings_of(project, None, False, {"model": {"name": None, "price": 1.0}, "data": {"query": None}}, overrides)
    assert (config.tune.epochs, config.tune.method, config.model.name, config.model.price) == (2, "lora", "other", 1.0)
    assert (config.ladder.rungs, config.data.document_template, config.split.folds) == (("bm25", "base"), "{title} = {text}", 0)
    assert settings_of(project, 3, False, {}, ["split.folds=4", "split.seed=7"]).split.folds == 3
    bare = project.parent / "rows.csv"
    bare.write_text("query,label\na,b\n")
    assert settings_of(bare, None, False, {}, ["tune.epochs=2"]).tune.epochs == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune.epocs=3"], "key 'tune.epocs' is unknown; did you mean 'epochs'?"),
        (["tune.epochs=many"], "key 'tune.epochs': Input should be a valid integer"),
        (["tune"], "--set 'tune'; expected KEY=VALUE"),
        (["=3"], "--set '=3'; expected KEY=VALUE"),
        (["tu ne=3"], "--set 'tu ne'; expected a key of embedfit.toml, such as tune.epochs"),
        (["a\nb=1"], "--set 'a\\nb'; expected a key"),
        (["tune.epochs=1", "tune=5"], "--set: the keys do not go together"),
        (["tune.epochs=1", "tune.epochs=2"], "--set names a key twice"),
    ],
)
def test_a_setting_that_is_wrong_is_one_line(project, overrides, message):
    with pytest.raises(ConfigError) as error:
        settings_of(project, None, False, {}, overrides)
    assert message in str(error.value)


def test_every_command_and_option_is_in_the_docs():
    import typer.main

    documented = (ROOT / "docs" / "cli.md").read_text()
    commands = dict(typer.main.get_command(app).commands)
    for name in [name for name, group in commands.items() if hasattr(group, "commands")]:
        commands.update({f"{name} {inner}": sub for inner, sub in commands.pop(name).commands.items()})
    for name, sub in commands.items():
        assert f"## embedfit {name}" in documented, name
        for parameter in sub.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    assert option in documented, f"{name} {option}"


def test_every_help_shows_flags_as_flags_and_whole_sentences(said):
    import typer.main

    commands = dict(typer.main.get_command(app).commands)
    groups = [name for name, group in commands.items() if hasattr(group, "commands")]
    names = [*commands, *(f"{name} {inner}" for name in groups for inner in commands[name].commands), ""]
    for name in names:
        code, out, _ = said(*name.split(), "--help")
        assert code == 0
        assert "<bool>" not in out, name
    assert "..." not in out.replace("[ARGS]...", "")  # the list of commands
    assert [*commands][:3] == ["demo", "init", "check"]
    _, out, _ = said("run", "--help")
    assert re.search(r"^  --json {5,}Print ", out, re.MULTILINE)
    _, out, _ = said("generate", "records", "--help")
    assert "[data]" in out
    module = subprocess.run([sys.executable, "-m", "embedfit", "generate", "records", "--help"], capture_output=True, text=True)
    assert module.stdout.split() == out.split()


def test_every_setting_is_in_the_docs():
    from embedfit.config import Config

    documented = (ROOT / "docs" / "config.md").read_text()
    for section, field in Config.model_fields.items():
        nested = getattr(field.annotation, "model_fields", None)
        for key in nested or [section]:
            assert f"`{key}`" in documented, f"{section}.{key}"


def test_the_sample_has_326_transactions():  # the demo itself runs from the wheel: tests/demo.py
    assert len((TRANSACTIONS / "transactions.jsonl").read_text().splitlines()) == 326


@pytest.mark.slow
def test_an_interrupted_run_says_that_it_can_go_on(project):
    command = [sys.executable, "-m", "embedfit", "run", str(project)]
    restore = "import signal, os, sys; signal.signal(signal.SIGINT, signal.default_int_handler); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", restore, *command], stderr=subprocess.PIPE, text=True)
    while not list(project.parent.glob("runs/*/.lock")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "embedfit: interrupted; the same command goes on from here\n"


def test_version_is_the_packages(said):
    from importlib.metadata import version

    assert said("--version") == (0, f"embedfit {version('embedfit')}\n", "")


def test_the_configuration_is_by_default_the_one_here(project, said, monkeypatch):
    monkeypatch.chdir(project.parent)
    code, out, _ = said("check", project)
    assert said("check")[:2] == (code, out.replace(f"{project.parent}/", ""))
    code, out, _ = said("evaluate", "--k", 1, "--retrieval", "bm25", "--json")
    assert (code, {row["model"] for row in json.loads(out)}) == (0, {"BM25"})
    (project.parent / "data").mkdir()
    monkeypatch.chdir(project.parent / "data")
    for command in (["run"], ["check"], ["ladder"], ["curve"], ["evaluate"], ["tune", "--output", "x"], ["index"], ["search", "x"]):
        code, out, err = said(*command)
        assert (code, out) == (2, "")
        assert err.startswith("embedfit: embedfit.toml: No such file or directory"), command
    assert list((project.parent / "data").iterdir()) == []


def test_a_misspelt_configuration_is_met_with_the_one_beside_it(project, said):
    _, _, err = said("run", project.with_name("embedfti.toml"))
    assert "did you mean 'embedfit.toml'?" in err


def leaky(project):
    """Have official parts of which the test part says what the train part says."""
    lines = [json.loads(line) for line in (project.parent / "queries.jsonl").read_text().splitlines()]
    rows = [{**row, "part": "test" if number % 5 == 0 else "train"} for number, row in enumerate(lines)]
    rows.append({**rows[0], "part": "train"})
    (project.parent / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        (["ladder", "--rung", "ful"], {}, "rung 'ful' is unknown; did you mean 'full'?"),
        (["ladder", "--rung", "bm25"], {}, "a ladder needs two rungs or more, there are 1"),
        (["run"], {"leaks": True}, "1 held-out queries repeat queries used for training"),
        (["curve"], {"leaks": True}, "1 held-out queries repeat queries used for training"),
        (["ladder"], {"leaks": True}, "1 held-out queries repeat queries used for training"),
        (["tune", "--output", "runs/tuned"], {"leaks": True}, "1 held-out queries repeat queries used for training"),
        (["tune", "--output", "tuned.json"], {}, "--output tuned.json: expected a folder; fix: such as tuned"),
        (["run"], {"tune": 'method = "adapter"', "general": "keep = 0.9"}, "general.keep merges weights"),
        (
            ["run"],
            {"tune": 'method = "adapter"', "track": 'report_to = ["tensorboard"]'},
            "track.report_to follows the training",
        ),
        (["tune", "--output", "runs/x"], {"tune": 'method = "adapter"', "track": 'report_to = ["wandb"]'}, "track.report_to follows"),
        (["curve", "--points", "9"], {}, "points"),
        (["evaluate", "--rerank-top", "3"], {}, "--rerank-top 3 is for rerankers, and there is none"),
        (["evaluate", "--retrieval", "bm25", "--model", "x"], {}, "--model is not used by bm25"),
        (["evaluate", "--csv", "."], {}, "--csv .: is a folder; expected a file to write"),
        (["index", "--rollback", "--model", "x"], {}, "--rollback writes nothing, and so has no use for --model"),
        (["index"], {"store": 'api_key = "env:HOME"'}, "store.api_key is for a server of Chroma or Qdrant"),
        (["init", "new.toml"], {}, "FOLDER new.toml: expected a folder; fix: such as new"),
        (["demo", "--output", "runs.json"], {}, "--output runs.json: expected a folder"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_made(project, said, monkeypatch, command, changes, message):
    monkeypatch.chdir(project.parent)
    if changes.pop("leaks", False):
        leaky(project)
        project.write_text(project.read_text().replace("folds = 0", ""))
    for section, line in changes.items():
        text = project.read_text()
        header = f"[{section}]\n"
        project.write_text(text.replace(header, f"{header}{line}\n") if header in text else f"{text}\n{header}{line}\n")
    before = sorted(project.parent.rglob("*"))
    code, out, err = said(*command)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert sorted(project.parent.rglob("*")) == before


def test_tune_refuses_data_that_makes_all_figures_wrong_as_run_does(project, said):
    rows = [{**json.loads(line), "expected": "password"} for line in (project.parent / "queries.jsonl").read_text().splitlines()]
    (project.parent / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in (["run", project], ["tune", project, "--output", project.parent / "tuned"]):
        code, _, err = said(*command)
        assert code == 2
        assert "all 20 queries have the same answer" in err
    assert not (project.parent / "tuned").exists()
    assert not (project.parent / "runs").exists()


def test_relabel_makes_no_folder_with_the_name_of_a_file(project, tmp_path, said):
    csv = tmp_path / "suspects.csv"
    csv.write_text("query_id,query,expected,suggested,kind,confidence,decision\n")
    code, _, err = said("relabel", project, csv, "--output", tmp_path / "fixed.jsonl")
    assert (code, err) == (2, f"embedfit: --output {tmp_path / 'fixed.jsonl'}: expected a folder; fix: such as fixed\n")
    assert not (tmp_path / "fixed.jsonl").exists()
    (tmp_path / "file").write_text("")
    assert "expected a folder, and it is a file" in said("relabel", project, csv, "--output", tmp_path / "file")[2]
    (tmp_path / "v1.2").mkdir()
    assert said("relabel", project, csv, "--output", tmp_path / "v1.2")[0] == 0


def test_a_missing_package_is_met_before_the_data_is_read(project, said, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    gone = {"peft", "ray", "tensorboard", "chromadb", "openai", "opentelemetry"}

    def find(name, *rest):
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", find)
    monkeypatch.setattr("embedfit.pipeline.parts.load", lambda *_, **__: pytest.fail("read"))
    monkeypatch.setattr("embedfit.pipeline.experiment.load", lambda *_, **__: pytest.fail("read"))
    text = project.read_text()
    cases = [
        (["run"], '[tune]\nmethod = "lora"', "peft is not installed; fix: pip install 'embedfit[lora]'"),
        (["curve"], '[tune]\nmethod = "lora"', "embedfit[lora]"),
        (["tune", "--output", "x"], '[tune]\nmethod = "lora"', "embedfit[lora]"),
        (["ladder", "--rung", "base", "--rung", "lora"], "", "embedfit[lora]"),
        (["run", "--engine", "ray"], "", "embedfit[ray]"),
        (["evaluate", "--engine", "ray"], "", "embedfit[ray]"),
        (["ladder"], '[track]\nreport_to = ["tensorboard"]', "embedfit[tensorboard]"),
        (["index"], "", "embedfit[chroma]"),
        (["search", "x"], "", "embedfit[chroma]"),
        (["evaluate", "--store"], "", "embedfit[chroma]"),
        (["evaluate", "--model", "openai:text-embedding-3-small"], "", "embedfit[openai]"),
    ]
    monkeypatch.chdir(project.parent)
    for command, section, message in cases:
        name = section.partition("\n")[0]
        project.write_text(text.replace(f"{name}\n", f"{section}\n", 1) if name and f"{name}\n" in text else f"{text}\n{section}\n")
        code, _, err = said(*command)
        assert (code, message in err) == (2, True), (command, err)
    project.write_text(text)
    monkeypatch.setenv("LANGWATCH_API_KEY", "sk-test")
    assert "embedfit[langwatch]" in said("run")[2]


@pytest.mark.parametrize("name", ["publish", "track"])
def test_a_misspelt_run_folder_is_met_with_the_one_beside_it(tmp_path, said, name):
    (tmp_path / "run-0a1b2c3d4e").mkdir()
    command = {"publish": ["publish", tmp_path / "run-0a1b2c3d5e", "./x"], "track": ["track", "resend", tmp_path / "run-0a1b2c3d5e"]}[name]
    code, _, err = said(*command)
    assert code == 2
    assert "did you mean 'run-0a1b2c3d4e'?" in err


@pytest.mark.slow
def test_tune_trains_as_run_does_on_further_data_and_without_leaks(project, said, tmp_path):
    leaky(project)
    rows = [{"query": f"a further question {number}", "expected": f"label {number % 3}"} for number in range(30)]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mix = '\n[[mix.data]]\nqueries = "more.jsonl"\n'
    text = project.read_text().replace("folds = 0", 'leaks = "drop"')
    found = {}
    for name, more in (("alone", ""), ("mixed", mix)):
        project.write_text(text + more)
        code, out, err = said("tune", project, "--output", tmp_path / name, "--json")
        assert code == 0, err
        found[name] = json.loads(out)
        seen = json.loads((tmp_path / name / "tuning.json").read_text())["seen"]
        assert len(seen) == 16 + (30 if more else 0)  # of 17 for training, without the one that the test part says too
    assert found["mixed"]["tokens"] > found["alone"]["tokens"]
