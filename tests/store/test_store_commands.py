"""Stores on the command line."""

import json

import pytest
from small_start import write_start


@pytest.fixture
def project(tmp_path, tiny_model, said):
    """A folder as 'embedfit init' makes it; returns it, and the function that runs commands in it."""
    write_start(tmp_path)
    path = tmp_path / "embedfit.toml"
    path.write_text(path.read_text().replace("all-MiniLM-L6-v2", str(tiny_model)))
    return path, said


def test_index_search_rollback_and_evaluate_on_the_command_line(project, monkeypatch):
    path, said = project
    monkeypatch.chdir(path.parent)
    assert said("search", "x")[::2] == (2, "embedfit: Chroma, store: there is no index 'documents'; fix: run 'embedfit index'\n")
    code, out, _ = said("index")
    assert (code, out[:16]) == (0, "Live: documents_")
    assert "4 documents (4 written now); recall@10 against exact search 1.0000 on 20 queries." in out
    code, out, _ = said("search", "download all data", "--k", "2", "--json")
    hits = json.loads(out)
    assert len(hits) == 2
    assert hits[0].keys() == {"id", "score", "text", "metadata"}
    code, out, _ = said("search", "download all data", path, "--filter", "title=Reset a password")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "password" in out
    assert "title=Reset a password" in out
    assert said("index", "--rollback")[::2] == (2, "embedfit: Chroma, store: the index 'documents' has no version to go back to\n")
    code, out, _ = said("evaluate", path, "--store")
    assert "in Chroma, store: 1.0000 of what exact search has in the first 10" in out.replace(str(path.parent) + "/", "")
    before = json.loads(said("index", "--json")[1])
    path.write_text(path.read_text().replace("{title}. {text}", "{text}"))
    after = json.loads(said("index", "--json")[1])
    assert after["previous"] == before["collection"] != after["collection"]
    assert said("index", "--rollback")[1].startswith("Live again: 4 documents by ")
    assert json.loads(said("index", "--json")[1])["written"] == 0


@pytest.mark.parametrize("given", ["colour", "=red"])
def test_a_filter_without_key_or_value_is_refused(project, given):
    path, said = project
    code, _, err = said("search", "x", path, "--filter", given)
    assert (code, err) == (2, f"embedfit: --filter {given!r}; expected KEY=VALUE\n")
    assert said("search", "x", path, "--filter", "a=1", "--filter", "a=2")[2].startswith("embedfit: --filter names a key twice")
