import ast
import subprocess
import sys
from pathlib import Path

import architecture
import pytest
from architecture import JOINERS, STAGES, arrows, circles, imported, wing

import embedfit

ROOT = Path(embedfit.__file__).parent
MODULES = architecture.files(ROOT)
ARROWS = arrows(ROOT)
GROUND = [name for name in MODULES if wing(name) in ("", "samples") and name not in ("embedfit", "embedfit.__main__")]
HEAVY = {"torch", "transformers", "sentence_transformers", "datasets", "pandas", "matplotlib", "bm25s", "pyarrow", "huggingface_hub"}


def at_top(name):
    """Return the first parts of what a module imports when it is loaded."""
    return {full.split(".")[0] for full in imported(MODULES[name], functions=False)}


@pytest.mark.parametrize("name", MODULES)
def test_a_stage_imports_only_the_ground_and_the_stages_before_it(name):
    if wing(name) in JOINERS or name in ("embedfit", "embedfit.__main__"):
        return
    before = STAGES[: STAGES.index(wing(name)) + 1] if wing(name) in STAGES else ()
    assert {wing(other) for other in ARROWS[name]} <= {"", "samples", *before}


def test_a_joiner_imports_no_joiner_after_it():
    for name in MODULES:
        if wing(name) in JOINERS:
            assert {wing(other) for other in ARROWS[name]} & set(JOINERS) <= set(JOINERS[: JOINERS.index(wing(name)) + 1])


def test_no_files_import_each_other_in_a_circle():
    assert circles(ARROWS) == []


def test_a_circle_is_found_also_through_functions_and_a_package(tmp_path):
    (tmp_path / "house" / "wing").mkdir(parents=True)
    for path, text in {
        "__init__.py": "",
        "a.py": "from house.wing.b import x",
        "wing/__init__.py": "",
        "wing/b.py": "def f():\n    from house import c",
        "c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.a",
        "d.py": "from house import c",
    }.items():
        (tmp_path / "house" / path).write_text(text)
    assert circles(arrows(tmp_path / "house")) == [["house.a", "house.c", "house.wing.b"]]


def test_errors_and_console_stand_on_nothing_and_the_ground_on_no_model():
    assert ARROWS["embedfit.errors"] == ARROWS["embedfit.console"] == set()
    for name in ("embedfit.errors", "embedfit.console", "embedfit.hub", "embedfit.files", "embedfit.metrics", "embedfit.template"):
        assert at_top(name) <= {"embedfit", "filelock", "platformdirs", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name) in ("evaluation", "report")])
def test_evaluation_and_report_touch_no_disk_network_or_model(name):
    refused = {"os", "pathlib", "shutil", "tempfile", "sqlite3", "socket", "subprocess", "urllib", "requests"}
    refused |= {"httpx", "huggingface_hub", "datasets", "torch", "transformers", "sentence_transformers"}
    assert not {full.split(".")[0] for full in imported(MODULES[name])} & refused
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.Call)}
    assert not {
        call for call in calls if call == "open" or call.endswith((".open", ".write_text", ".write_bytes", ".to_parquet", ".to_csv"))
    }


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name) in ("", "samples", "data", "cli")])
def test_what_must_start_at_once_imports_nothing_heavy_when_loaded(name):
    assert not at_top(name) & HEAVY


@pytest.mark.parametrize("module", ["embedfit", "embedfit.cli"])
def test_importing_it_loads_nothing_heavy(module):
    heavy = [*HEAVY, "numpy", "pydantic"]
    code = f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_data_stages_load_no_torch():
    modules = "embedfit.data.load, embedfit.data.split, embedfit.evaluation.score, embedfit.report.pages"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_public_name_can_be_got_and_is_listed():
    assert len(set(embedfit.__all__)) == len(embedfit.__all__)
    for name in embedfit.__all__:
        assert getattr(embedfit, name) is not None
        assert name in dir(embedfit)
    with pytest.raises(AttributeError, match="has no attribute 'gone'"):
        embedfit.gone  # noqa: B018


LONG_FILES = 450
LONG_FUNCTIONS = 60
REASON = "# long:"
"""Begins a comment that says why a file, or a function, is longer than that."""


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_too_long_to_be_seen_at_once_without_a_reason(name):
    text = MODULES[name].read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= LONG_FILES or any(line.startswith(REASON) for line in lines), f"{name}: {len(lines)} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            docstring = node.body[0] if ast.get_docstring(node) else None
            length -= docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            reasoned = any(REASON in line for line in lines[node.lineno - 1 : node.end_lineno])
            assert length <= LONG_FUNCTIONS or reasoned, f"{name}.{node.name}: {length} lines without its docstring"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_module_class_and_function_says_what_it_is(name):
    def visit(node, name):
        assert ast.get_docstring(node) or not node.body, f"{name} has no docstring"
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef)) and not child.name.startswith("_"):
                visit(child, f"{name}.{child.name}")

    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # what stands in a function is its own affair
        if isinstance(node, ast.FunctionDef):
            node.body = [child for child in node.body if not isinstance(child, (ast.FunctionDef, ast.ClassDef))]
    visit(tree, name)


def test_tests_stand_in_the_wings_that_they_test():
    folder = Path(__file__).parent
    wings = {wing(name) for name in MODULES} - {"", "samples"}
    for stage in wings:
        assert list((folder / stage).glob("test_*.py")), stage
    assert {path.parent.name for path in folder.rglob("test_*.py")} <= {folder.name, *wings}
