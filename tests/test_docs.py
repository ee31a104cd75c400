"""The documentation does what it says."""

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from loopback import running_services
from openai_server import Server
from small_start import write_start

import embedfit
from embedfit.config import Config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PROGRAMS = sorted((DOCS / "programs").glob("*.py"))
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))


def python_of(page):
    """Return the Python blocks of a page as one program."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


@pytest.fixture(scope="module")
def services():
    """An LLM, OpenAI's embeddings and the Hub, on loopback."""
    with Server() as llm, running_services() as services, pytest.MonkeyPatch.context() as patch:
        for name, value in services.environment.items():
            if not name.startswith("LANGWATCH"):
                patch.setenv(name, value)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # HF_HUB_DISABLE_XET is read once
        yield {"embeddings": services.environment["OPENAI_BASE_URL"], "llm": llm.url}


@pytest.fixture(scope="module")
def prepared(tiny_model, tmp_path_factory):
    """The folder in which programs and tutorials run: the files of ``embedfit init``, a finished run of them, and its index."""
    folder = tmp_path_factory.mktemp("programs")
    write_start(folder)
    toml = (folder / "embedfit.toml").read_text().replace("all-MiniLM-L6-v2", str(tiny_model))
    (folder / "embedfit.toml").write_text(toml.replace("# epochs = 4", "epochs = 1").replace("# folds = 5", "folds = 2"))
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    pd.DataFrame({"text": [row["query"] for row in rows], "label": [row["expected"] for row in rows]}).to_csv(folder / "tickets.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = embedfit.read_config("embedfit.toml")
        result = embedfit.run(config)
        shutil.move(result.folder, folder / "runs" / "support-1a2b3c4d5e")
        data = embedfit.load(config.data.queries, config.data.documents)
        with embedfit.open_store(config.store) as store:
            tuned = embedfit.LocalEncoder(folder / "runs" / "support-1a2b3c4d5e" / "model")
            embedfit.index_documents(store, data, tuned, config.data.document_template)
    return folder


@pytest.fixture
def ran(prepared, services, tiny_model, monkeypatch, tmp_path, capsys):
    """Run code of the docs where everything is prepared, with a small model and few folds, and return what it printed."""
    matplotlib.use("agg")
    monkeypatch.chdir(prepared)

    def call(code, name):
        monkeypatch.setenv("OPENAI_BASE_URL", services["llm" if "run_generate" in code else "embeddings"])
        program = tmp_path / f"{name}.py"
        quick = 'model="all-MiniLM-L6-v2", split={"folds": 2}, tune={"epochs": 1}'
        code = code.replace('model="all-MiniLM-L6-v2"', quick).replace("lines=True)", "lines=True).head(60)")
        program.write_text(code.replace("all-MiniLM-L6-v2", str(tiny_model)))
        capsys.readouterr()
        runpy.run_path(str(program), run_name="__main__")
        return capsys.readouterr().out

    return call


SHOWN = {
    "compare_two_rankings": r"on 3 queries",
    "evaluate_two_encoders": r"on 20 queries",
    "fine_tune": r"report\.html",
    "generate": r"12 of 12 queries",
    "labels_from_a_dataframe": r"20 queries",
    "ladder_in_memory": r"Recommended: ",
    "load_a_result": r"on 20 held-out queries[\s\S]*\(1, 384\)",
    "publish": r"Fetched again: ",
    "retrieve_one_text": r"(?m)^[\d.]+ \w+ .+\n[\d.]+ \w+ .+\n[\d.]+ \w+ .+$",
    "search_an_index": r"(?m)^[\d.]+ \w+ .+\n[\d.]+ \w+ .+\n[\d.]+ \w+ .+$",
    "labels": r"report\.html[\s\S]*Recommended: ",
    "passages": r"200 of 200 queries[\s\S]*on 80 held-out queries[\s\S]*(?m:^[\d.]+ \w+/\d+\.md:\w{6} .+\n){3}",
    "search": r"Live: documents_\w+, 4 documents[\s\S]*\n(\w+)\n(\w+)\n[\s\S]*Fetched again: ",
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_the_programs_run(program, ran):
    code = program.read_text()
    assert len(code.splitlines()) <= 10
    assert re.search(SHOWN[program.stem], ran(code, program.stem))


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_the_tutorials_run(page, ran):
    assert re.search(SHOWN[page.stem], ran(python_of(page), page.stem))


def test_every_program_stands_in_a_page():
    pages = "\n".join(page.read_text() for page in PAGES)
    assert len(PROGRAMS) == 10
    for program in PROGRAMS:
        assert re.search(rf"(?m)^ *--8<--\n *programs/{program.name}\n *--8<--$", pages), program.name  # one line would be read as Python


@pytest.mark.slow
def test_the_python_snippet_of_the_readme_runs(ran):
    code = python_of(ROOT / "README.md")
    assert len(code.strip().splitlines()) <= 6
    assert "report.html" in ran(code, "README")


@pytest.mark.slow
def test_the_steps_in_python_run(tmp_path, tiny_model, monkeypatch, capsys):
    [snippet] = [block for block in re.findall(r"```python\n(.*?)```", (DOCS / "start.md").read_text(), re.DOTALL) if "tune_model" in block]
    assert len(snippet.strip().splitlines()) <= 15
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "steps.py"
    program.write_text(snippet.replace("all-MiniLM-L6-v2", str(tiny_model)))  # the first layer is enough to see that the steps work
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out.startswith("Better: MRR@10 rose from")
    assert (tmp_path / "recall.png").exists()
    assert (tmp_path / "tuned" / "model" / "modules.json").exists()


@pytest.mark.slow
def test_the_shell_commands_of_the_readme_run(tmp_path, tiny_model, said, monkeypatch):
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [
        line.removeprefix("$ ").partition(" #")[0].strip() for block in blocks for line in block.splitlines() if line.startswith("$ ")
    ]
    ours = [command for command in commands if command.startswith("embedfit ")]
    assert len(ours) >= 4
    for command in ours:
        monkeypatch.chdir(tmp_path if (tmp_path / "my-search").exists() is False or "my-search" in command else tmp_path / "my-search")
        command = command.replace("'{category}'", "'{text}'").replace("'{category}: {sample_transactions}'", "'{id}: {text}'")
        code, _, err = said(*shlex.split(command)[1:])
        assert code == 0, f"{command}: {err}"
        for settings in tmp_path.rglob("embedfit.toml"):  # the first layer is enough to see that the commands work
            settings.write_text(settings.read_text().replace('"all-MiniLM-L6-v2"', json.dumps(str(tiny_model))))


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_sites_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    for page in DOCS.rglob("*.md"):
        assert f" {page.relative_to(DOCS)}\n" in navigation, page


def test_the_reference_the_command_line_and_the_tree_are_those_of_the_code():
    written = runpy.run_path(str(DOCS / "reference.py"))["written"]()
    for path, text in written.items():
        assert path.read_text() == text, f"{path.name} is out of date; fix: python docs/reference.py"
    assert {path.name for path in (DOCS / "api").iterdir()} == {path.name for path in written if path.parent.name == "api"}


def test_every_public_name_stands_in_the_reference():
    directives = re.findall(r"^::: embedfit\.(\w+)$", "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md")), re.MULTILINE)
    assert sorted(directives) == sorted(embedfit.__all__)


def test_the_trees_files_are_all_in_the_guide():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    for path in sorted((ROOT / "src" / "embedfit").rglob("*.py")):
        if not path.name.startswith("__"):
            assert path.name in guide, path.name


def test_examples_import_nothing_from_the_tests():
    for path in (ROOT / "examples").glob("*.*"):
        assert "tests" not in re.findall(r"\w+", re.sub(r'"""[\s\S]*?"""', "", path.read_text())), path.name


def test_every_setting_stands_in_the_page_on_settings():
    page = (DOCS / "config.md").read_text()

    def rows(section):
        for name, field in section.model_fields.items():
            if not hasattr(field.annotation, "model_fields"):
                shown = "\u2013" if field.default in (None, ()) or field.default_factory else f"`{json.dumps(field.default, default=str)}`"
                default = "required" if field.is_required() else shown
                yield f"| `{name}` | {default} | {field.description} |"

    for row in rows(Config):
        assert row in page
    for name, field in Config.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            section = page.partition(f"## [{name}]\n")[2].partition("\n## [")[0]
            assert field.annotation.__doc__.strip() in section, name
            for row in rows(field.annotation):
                assert row in section, name
