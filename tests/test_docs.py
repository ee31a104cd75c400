"""The documentation does what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from embedfit.config import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
def test_the_python_snippet_of_the_readme_runs(tmp_path):
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(snippet.strip().splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Better: MRR@10 rose from")
    assert (tmp_path / "recall.png").exists()
    assert (tmp_path / "tuned" / "model" / "modules.json").exists()


@pytest.mark.slow
def test_the_shell_commands_of_the_readme_run(tmp_path):
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [
        line.removeprefix("$ ").partition(" #")[0].strip() for block in blocks for line in block.splitlines() if line.startswith("$ ")
    ]
    ours = [command for command in commands if command.startswith("embedfit ")]
    assert len(ours) >= 4
    for command in ours:
        folder = tmp_path if (tmp_path / "my-search").exists() is False or "my-search" in command else tmp_path / "my-search"
        command = command.replace("'{category}'", "'{title}'").replace("'{category}: {sample_transactions}'", "'{title}. {text}'")
        done = subprocess.run(f"{sys.executable} -m {command}", shell=True, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_trees_files_are_all_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "src" / "embedfit").rglob("*.py")):
        if not path.name.startswith("__") and path.name not in ("errors.py", "console.py"):
            assert path.name in readme, path.name


def test_every_setting_stands_in_the_page_on_settings():
    page = (ROOT / "docs" / "config.md").read_text()

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
