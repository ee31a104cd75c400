"""A published model against the measured one, and data that changed since the run."""

import json

import pandas as pd
import pytest

from embedfit.data.dataset import Dataset, Query
from embedfit.data.load import load
from embedfit.encode.local import LocalEncoder
from embedfit.errors import DataError, EmbedfitError, ModelError
from embedfit.evaluation.score import score_run
from embedfit.pipeline import publishing
from embedfit.publish.parity import check_parity
from embedfit.retrieve.retrievers import DenseRetriever


def rotate_labels(run):
    """Give every query another label, and add some rows."""
    path = run.parents[1] / "queries.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    labels = [row["expected"] for row in rows]
    rows = [{**row, "expected": label} for row, label in zip(rows, labels[5:] + labels[:5], strict=True)]
    rows += [{"query": f"new and secret {number}", "expected": labels[0]} for number in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_data_that_changed_since_the_run_is_not_published_and_lends_the_card_no_counts(copied, said, tmp_path):
    rotate_labels(copied)
    for option in (["--dataset", tmp_path / "data"], ["--include-examples"]):
        code, out, err = said("publish", copied, tmp_path / "model", *option, "--yes")
        assert (code, out) == (2, "")
        assert "queries.jsonl: has changed since the run" in err
        assert "expected 20 labelled queries and 4 documents as they were" in err
    assert not (tmp_path / "model").exists()
    code, out, _ = said("publish", copied, tmp_path / "model", "--yes")
    assert code == 0
    assert "the vectors of 4 texts are the same" in out
    assert "mrr@10" not in out
    card = (tmp_path / "model" / "README.md").read_text()
    assert "20 labelled queries, 4 documents" in card
    assert "new and secret" not in card


@pytest.mark.parametrize("change", ["documents", "label", "metadata", "order"])
def test_any_change_of_the_data_counts(copied, change):
    path = copied.parents[1] / ("documents.jsonl" if change == "documents" else "queries.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if change == "order":
        rows = rows[::-1]
    else:
        rows[0] |= {"documents": {"text": "something else"}, "label": {"expected": "export"}, "metadata": {"customer": 7}}[change]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="has changed since the run"):
        publishing.prepare_publications(copied, "./x", examples=True)


def test_a_run_of_before_digests_publishes_its_model_alone(copied, said, tmp_path):
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["data"], manifest["identity"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = said("publish", copied, tmp_path / "model", "--include-examples", "--yes")
    assert code == 2
    assert "was made before runs kept a digest of their data; fix: run again" in err
    code, out, _ = said("publish", copied, tmp_path / "model", "--yes")
    assert code == 0
    assert "the vectors of 4 texts are the same" in out
    assert "labelled queries, " not in (tmp_path / "model" / "README.md").read_text()


def test_a_run_is_published_from_any_folder(finished, project, tmp_path, monkeypatch, said):
    assert finished.manifest["config"]["data"]["queries"] == str(project / "queries.jsonl")
    monkeypatch.chdir(tmp_path)
    code, out, _ = said("publish", finished.folder, "./m", "--dataset", "./d", "--yes")
    assert code == 0
    assert "the vectors of 8 texts are the same" in out
    assert "base_model" not in (tmp_path / "m" / "README.md").read_text()  # models/tiny is a folder, not a name on the Hub
    assert "models/tiny" not in (tmp_path / "m" / "README.md").read_text() + (tmp_path / "m" / "embedfit.json").read_text()


def test_another_model_than_was_measured_is_not_published(copied, said, tmp_path):
    path = copied / "model" / "1_Pooling" / "config.json"
    path.write_text(path.read_text().replace("mean", "max"))
    code, _, err = said("publish", copied, tmp_path / "model", "--yes")
    assert code == 2
    assert "is not the model that was measured: a file in it has changed" in err
    assert not (tmp_path / "model").exists()


def test_the_scores_of_the_fetched_model_are_held_against_those_that_the_run_kept(copied, said, tmp_path):
    kept = pd.read_parquet(copied / "queries.parquet")
    code, out, _ = said("publish", copied, tmp_path / "same", "--yes")
    assert code == 0
    assert f"and so is mrr@10 ({kept['alone_mrr@10'].mean():.3f})" in out
    kept["alone_mrr@10"] = (kept["alone_mrr@10"] + 0.5) % 1  # off by a half, which is more than few queries are allowed
    kept.to_parquet(copied / "queries.parquet", index=False)
    code, out, err = said("publish", copied, tmp_path / "other", "--yes")
    assert (code, out) == (2, "")
    assert "is not the one that was measured: lowest cosine 1.0000" in err


def test_vectors_alone_are_enough_to_tell_another_model(finished, tiny_model):
    # No labels and no documents: only the cosine can tell.
    queries = Dataset({"a": Query("a", "where is my receipt")}, {}, {})
    with pytest.raises(ModelError, match=r"lowest cosine 0\.[0-9]+, mrr@10 differs by 0\.0000"):
        check_parity(LocalEncoder(finished.model), LocalEncoder(tiny_model, query_prompt="other: "), queries, "{text}", "mrr@10")


@pytest.mark.parametrize(("differs", "refused"), [(0.04, False), (0.06, True), (-0.06, True)])
def test_scores_alone_are_enough_to_tell_another_model(finished, project, differs, refused):
    # The very same vectors: only the scores that the run kept can tell. In fp32, 20 queries may be off by 1 / 20 on average.
    dataset = load(project / "queries.jsonl", project / "documents.jsonl")
    model = LocalEncoder(finished.model, precision="fp32")
    run = DenseRetriever(model, "{text}").search(dataset, 4)
    values = score_run(run, dataset.qrels, ks=(10,)).values["mrr@10"]
    # Half of the queries better and half of them worse: the mean hides it.
    scores = {id: value + differs * (-1) ** row for row, (id, value) in enumerate(zip(run.query_ids, values, strict=True))}
    if refused:
        with pytest.raises(ModelError, match=r"lowest cosine (1|0\.9999)"):
            check_parity(model, model, dataset, "{text}", "mrr@10", scores)
    else:
        assert check_parity(model, model, dataset, "{text}", "mrr@10", scores).fetched == pytest.approx(values.mean())


def test_parity_of_another_model_is_refused(finished, tiny_model, project):
    dataset = load(project / "queries.jsonl", project / "documents.jsonl")
    measured = LocalEncoder(finished.model)
    found = check_parity(measured, LocalEncoder(finished.model), dataset, "{text}", "mrr@10")
    assert found.measured == found.fetched
    assert found.cosine == pytest.approx(1, abs=1e-5)
    with pytest.raises(ModelError, match="is not the one that was measured"):
        check_parity(measured, LocalEncoder(tiny_model, query_prompt="other: "), dataset, "{text}", "mrr@10")


def test_where_the_data_is_gone_vectors_alone_are_compared(finished, said, tmp_path, project):
    (project / "queries.jsonl").rename(project / "moved.jsonl")
    try:
        code, out, _ = said("publish", finished.folder, tmp_path / "support", "--yes")
        assert code == 0
        assert "the vectors of 4 texts are the same" in out
        assert "the labelled data of the run was not available for scoring" in out
        with pytest.raises(EmbedfitError, match=r"queries\.jsonl"):
            publishing.prepare_publications(finished.folder, str(tmp_path / "x"), examples=True)
    finally:
        (project / "moved.jsonl").rename(project / "queries.jsonl")
