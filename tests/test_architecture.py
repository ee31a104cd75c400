import ast
import subprocess
import sys
from pathlib import Path

import pytest

import embedfit

ROOT = Path(embedfit.__file__).parent
FOUNDATIONS = ("errors", "words", "console", "files", "locks", "ranks", "config", "records", "hub", "samples")
STAGES = (
    "data",
    "duplicates",
    "check",
    "split",
    "ledger",
    "endpoint",
    "plan",
    "generate",
    "tokens",
    "encode",
    "remote",
    "retrieve",
    "rerank",
    "engine",
    "score",
    "mix",
    "tune",
    "compare",
    "general",
    "parity",
    "curve",
    "ladder",
    "suspects",
    "report",
    "store",
    "publish",
    "track",
)
JOINERS = ("pipeline", "cli", "serve")
FILES = sorted(ROOT.rglob("*.py"))


def room(path):
    """Return the first part of a module's name: ``tune`` for embedfit/tune/full.py."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path, *, module_level=False):
    """Return the full names that a file imports, but for those under ``if TYPE_CHECKING``."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if module_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def rooms_imported(path):
    """Return the rooms of the package that a file imports anywhere, even inside a function."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("embedfit.")} - {room(path)}


def of(*rooms):
    """Return a parameter for each file of some rooms."""
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in FILES if room(path) in rooms]


@pytest.mark.parametrize("path", of(*STAGES))
def test_a_stage_imports_only_foundations_and_what_stands_before_it(path):
    before = STAGES[: STAGES.index(room(path))]
    assert rooms_imported(path) <= {*FOUNDATIONS, *before}


@pytest.mark.parametrize("path", of(*(set(map(room, FILES)) - {*JOINERS, "__init__", "__main__"})))
def test_only_joiners_import_joiners(path):
    assert not rooms_imported(path) & set(JOINERS)


def test_errors_and_console_stand_on_nothing_and_the_other_foundations_on_no_model():
    for name in ("errors", "console", "hub"):
        assert {imported.split(".")[0] for imported in imports(ROOT / f"{name}.py", module_level=True)} <= {
            "embedfit",
            *sys.stdlib_module_names,
        }
    assert rooms_imported(ROOT / "errors.py") == rooms_imported(ROOT / "console.py") == set()
    assert rooms_imported(ROOT / "records.py") == rooms_imported(ROOT / "hub.py") == {"errors"}
    assert rooms_imported(ROOT / "config.py") <= {"errors", "data", "score"}  # for their constants


@pytest.mark.parametrize("name", ["score", "compare", "report"])
def test_score_compare_and_report_touch_no_disk_network_or_model(name):
    refused = {"os", "pathlib", "shutil", "tempfile", "sqlite3", "socket", "subprocess", "urllib", "requests"}
    refused |= {"httpx", "huggingface_hub", "datasets", "torch", "transformers", "sentence_transformers"}
    path = ROOT / f"{name}.py"
    assert not {imported.split(".")[0] for imported in imports(path)} & refused
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert not {
        call for call in calls if call == "open" or call.endswith((".open", ".write_text", ".write_bytes", ".to_parquet", ".to_csv"))
    }


@pytest.mark.parametrize("path", of(*FOUNDATIONS, *STAGES[:3], "split", "cli", "__init__"))
def test_what_must_start_at_once_imports_nothing_heavy_when_loaded(path):
    heavy = {"torch", "transformers", "sentence_transformers", "datasets", "pandas", "matplotlib", "bm25s", "pyarrow", "huggingface_hub"}
    assert not {imported.split(".")[0] for imported in imports(path, module_level=True)} & heavy


@pytest.mark.parametrize("module", ["embedfit", "embedfit.cli"])
def test_importing_it_loads_nothing_heavy(module):
    heavy = ["torch", "numpy", "pandas", "pydantic", "transformers", "sentence_transformers", "datasets", "pyarrow", "matplotlib"]
    code = f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_the_data_stages_load_no_torch():
    code = "import sys, embedfit.data, embedfit.split, embedfit.score, embedfit.report; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_public_name_can_be_got_and_is_listed():
    assert len(set(embedfit.__all__)) == len(embedfit.__all__)
    for name in embedfit.__all__:
        assert getattr(embedfit, name) is not None
        assert name in dir(embedfit)
    with pytest.raises(AttributeError, match="has no attribute 'gone'"):
        embedfit.gone  # noqa: B018


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in FILES])
def test_every_public_module_class_and_function_says_what_it_is(path):
    def visit(node, name):
        assert ast.get_docstring(node) or not node.body, f"{name} has no docstring"
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef)) and not child.name.startswith("_"):
                visit(child, f"{name}.{child.name}")

    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # what stands in a function is its own affair
        if isinstance(node, ast.FunctionDef):
            node.body = [child for child in node.body if not isinstance(child, (ast.FunctionDef, ast.ClassDef))]
    visit(tree, str(path.relative_to(ROOT)))


def test_every_stage_has_tests_of_its_name():
    names = {path.name for path in Path(__file__).parent.iterdir()}
    assert {f"test_{stage}.py" for stage in STAGES} <= names
