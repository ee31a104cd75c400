import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forks import Forks

from embedfit.cli.app import main
from embedfit.config import Config, make_config
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.write import write_beir
from embedfit.encode.local import LocalEncoder
from embedfit.encode.named import encoder_of
from embedfit.errors import ConfigError, DataError, StorageError
from embedfit.evaluation.score import score_run
from embedfit.pipeline import deploying, experiment, job, measuring, needs, parts, publishing, training
from embedfit.pipeline.job import Job
from embedfit.pipeline.notes import notes_on
from embedfit.pipeline.result import read_result
from embedfit.retrieve.engine import LocalEngine
from embedfit.samples import TRANSACTIONS
from embedfit.studies.forgetting import general_set

# A part of the transactions and a one-layer model: the whole way in seconds.


@pytest.fixture(scope="module")
def settings(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = (TRANSACTIONS / "transactions.jsonl").read_text().splitlines()[:120]
    (folder / "some.jsonl").write_text("\n".join(rows) + "\n")
    return {
        "output": str(folder / "runs"),
        "data": {"queries": str(folder / "some.jsonl"), "documents": str(TRANSACTIONS / "categories.json"), "record": "transaction"},
        "model": {"name": str(tiny_model)},
        "split": {"folds": 0},
        "tune": {"epochs": 2},
    }


@pytest.fixture(scope="module")
def result(settings):
    return experiment.run(make_config(settings))


def test_a_run_directory_holds_all_that_was_promised(result):
    names = {path.name for path in result.folder.iterdir()}
    assert names >= {"manifest.json", "comparison.json", "queries.parquet", "recall.png", "report.html", "model", "tuned.json"}
    assert "checkpoints" not in names
    said = json.loads((result.folder / "comparison.json").read_text())
    assert said["queries"] == 24
    assert {row["metric"] for row in said["differences"]} >= {"recall@1", "recall@3", "recall@5", "recall@10", "mrr@10", "ndcg@10"}
    assert (result.folder / "recall.png").read_bytes().startswith(b"\x89PNG")


def test_base_and_tuned_are_compared_on_the_same_test_queries(result):
    frame = pd.read_parquet(result.folder / "queries.parquet")
    assert len(frame) == 24
    assert result.comparison.base.query_ids == result.comparison.tuned.query_ids == tuple(frame.query_id)
    for side, scores in (("base", result.comparison.base), ("tuned", result.comparison.tuned)):
        hits = [expected[0] == found[0] for expected, found in zip(frame.expected, frame[f"{side}_found"], strict=True)]
        assert scores.mean("recall@1") == pytest.approx(np.mean(hits))
        assert (frame[f"{side}_rank"] == 1).tolist() == hits
    assert [other.name for other in result.others] == ["BM25", "untuned searcher", "tuned alone"]


def test_what_is_measured_is_what_the_saved_model_gives(result, settings):
    config = make_config(settings)
    dataset = parts.read(config.data)
    test = dataset.select(result.comparison.tuned.query_ids)
    again = measuring.measure(LocalEncoder(result.model), test, ks=config.evaluate.k)
    for name, values in again.values.items():
        np.testing.assert_array_equal(values, result.alone.tuned.values[name])


def test_what_is_measured_is_what_the_saved_searcher_gives(result, settings):
    config = make_config(settings)
    dataset = parts.read(config.data)
    test = dataset.select(result.comparison.tuned.query_ids)
    run, chances = result.searcher.rank_with_chances(test, 100)
    again = score_run(run, test.qrels, ks=config.evaluate.k)
    for name, values in again.values.items():
        np.testing.assert_array_equal(values, result.comparison.tuned.values[name])
    frame = pd.read_parquet(result.folder / "queries.parquet").set_index("query_id")
    np.testing.assert_allclose(chances, frame.loc[list(run.query_ids), "probability"], atol=1e-3)
    hits = result.searcher.search(test.query_texts()[0], k=3)
    assert [hit.id for hit in hits] == run.documents_at(0, 3)
    known = {reason.text for hit in hits for reason in hit.because if reason.kind == "example"}
    assert known.isdisjoint(test.query_texts())  # no held-out query is an example


def test_with_documents_alone_the_searcher_is_the_tuned_model(settings, result, tmp_path):
    alone = experiment.run(make_config({**settings, "output": str(tmp_path), "searcher": {"views": ["documents"]}}))
    assert [other.name for other in alone.others] == ["BM25"]
    np.testing.assert_array_equal(alone.comparison.tuned.values["mrr@10"], alone.alone.tuned.values["mrr@10"])
    np.testing.assert_array_equal(alone.comparison.tuned.values["mrr@10"], result.alone.tuned.values["mrr@10"])
    assert set(alone.searcher.parts.views.views) == {"documents"}


def test_near_duplicates_are_counted_as_one_group(word_encoder):
    texts = ["red shoes", "Red shoes!", "red  SHOES", "blue hat", "green scarf"]
    queries = {str(number): Query(str(number), text, {"shop": number // 2}) for number, text in enumerate(texts)}
    data = Dataset(queries, {"a": Document("a", "red shoes"), "b": Document("b", "hat")}, {id: {"a": 1} for id in queries})
    groups = measuring.measure(word_encoder, data, ks=[1]).groups
    assert len(set(groups[:3])) == 1
    assert len(set(groups)) == 3
    assert len(set(measuring.measure(word_encoder, data, ks=[1], group_by="shop").groups)) == 2


def test_a_run_keeps_the_groups_of_its_queries(result):
    frame = pd.read_parquet(result.folder / "queries.parquet")
    assert json.loads((result.folder / "comparison.json").read_text())["groups"] == frame["group"].nunique()
    assert result.comparison.base.groups.tolist() == frame["group"].tolist()


def test_a_second_identical_run_does_nothing(result, settings, monkeypatch):
    monkeypatch.setattr("embedfit.encode.local.ModelEncoder.encode", lambda *_: pytest.fail("encoded"))
    monkeypatch.setattr("embedfit.tune.full._train", lambda *_: pytest.fail("trained"))
    again = experiment.run(make_config(settings))
    assert again.reused
    assert again.folder == result.folder
    assert again.comparison.to_dict() == result.comparison.to_dict()
    assert [other.mean("recall@1") for other in again.others] == [other.mean("recall@1") for other in result.others]


def test_a_second_identical_run_loads_no_torch(result, settings, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    code = (
        "import json, sys, embedfit\n"
        f"assert embedfit.run(embedfit.make_config(json.load(open({str(tmp_path / 'config.json')!r})))).reused\n"
        "assert not {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "change", [{"tune": {"epochs": 3}}, {"split": {"seed": 1}}, {"data": {"document_template": "{category}: {sample_transactions}"}}]
)
def test_another_setting_is_another_run_directory(result, settings, change):
    config = make_config({**settings, **{key: {**settings.get(key, {}), **value} for key, value in change.items()}})
    assert Job.of(config).folder("", "general", "searcher", more=[general_set().digest()]) != result.folder


def test_another_seed_of_the_same_settings_is_measured_anew(result, settings):
    again = experiment.run(make_config({**settings, "split": {"folds": 0, "seed": 3}, "general": {"measure": "off"}}))
    assert again.folder != result.folder
    assert (result.manifest["forgetting"]["points"][-1]["weight"], again.manifest["forgetting"]) == (1, None)
    assert "Forgetting" not in again.report.read_text()
    assert set(again.comparison.base.query_ids) != set(result.comparison.base.query_ids)


@pytest.mark.slow
def test_folds_hold_out_every_query_once_and_the_last_model_learns_from_all(settings):
    result = experiment.run(make_config({**settings, "split": {"folds": 3}, "tune": {"epochs": 1}}))
    dataset = parts.read(make_config(settings).data)
    assert sorted(result.comparison.tuned.query_ids) == sorted(dataset.judged)
    assert [part["test"] for part in result.manifest["split"]] == [40, 40, 40]
    assert len(result.manifest["tuning"]) == 4
    assert (result.model / "model.safetensors").exists()
    assert "Every query is scored by a model that never saw it" in result.report.read_text()


@pytest.mark.slow
def test_killed_anywhere_the_same_run_ends_with_the_same_figures(result, settings, tmp_path):
    config = {**settings, "output": str(tmp_path / "runs")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = str(tmp_path / "config.json")
    often = "from embedfit.tune import trainer; trainer._SAVE_SECONDS, trainer._SAVE_SHARE = 0.0, 1e9"  # a checkpoint after each step
    imports = "import json, sys, embedfit, embedfit.pipeline.experiment, matplotlib.pyplot, sentence_transformers"
    work = "embedfit.run(embedfit.make_config(json.load(open(sys.argv[1]))))"
    with Forks(f"{imports}; {often}", work, EMBEDFIT_CACHE=str(tmp_path / "cache"), MPLBACKEND="agg") as forks:
        for signs in ("../cache/*.sqlite", "*/checkpoints/checkpoint-*/trainer_state.json", "*/tuned.json"):
            process = forks.start(path)
            deadline = time.monotonic() + 300
            while not list((tmp_path / "runs").glob(signs)):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.001)
            process.kill()
            assert not list((tmp_path / "runs").glob("*/manifest.json"))
        assert forks.start(path).wait() == 0
    [folder] = (tmp_path / "runs").glob("*/")
    again = read_result(folder)
    assert again.comparison.to_dict() == result.comparison.to_dict()


def test_two_at_once_in_one_run_directory_are_kept_apart(settings, tmp_path):
    import filelock

    config = make_config({**settings, "output": str(tmp_path)})
    folder = Job.of(config).folder("", "general", "searcher", more=[general_set().digest()])
    folder.mkdir()
    with filelock.FileLock(folder / ".lock"), pytest.raises(StorageError, match="another embedfit process is using it"):
        experiment.run(config)


def test_data_with_one_label_is_refused_before_anything_is_encoded(settings, tmp_path):
    (tmp_path / "one.csv").write_text("query,expected\nred,colour\ngreen,colour\nblue,colour\n")
    with pytest.raises(DataError, match="same answer: nothing can be learned or measured"):
        experiment.run(make_config({**settings, "data": {"queries": str(tmp_path / "one.csv")}}))


def test_the_grid_gives_one_tidy_row_for_each_model_template_metric_and_k(transactions, tiny_model):
    templates = ["{category}", "{category}: {sample_transactions}"]
    frame = measuring.evaluate(transactions, [LocalEncoder(tiny_model)], templates=templates, ks=(1, 3))
    assert list(frame.columns) == [
        *("model", "document", "retrieval", "reranker", "metric", "k", "value", "difference", "low", "high", "seconds"),
    ]
    assert len(frame) == 1 * 2 * 6 * 2
    assert set(frame.document) == set(templates)
    assert frame.value.between(0, 1).all()
    first, second = frame[:12], frame[12:].reset_index(drop=True)
    assert first[["difference", "low", "high"]].isna().all(axis=None)
    np.testing.assert_allclose(second.difference, second.value - first.value)
    assert ((second.low <= second.difference) & (second.difference <= second.high)).all()


def test_richer_documents_move_recall_of_the_bundled_model(transactions):
    frame = measuring.evaluate(
        transactions, [LocalEncoder("all-MiniLM-L6-v2")], templates=["{category}", "{category}: {sample_transactions}"], ks=(1, 3, 5)
    )
    recall = frame[frame.metric == "recall"].pivot(index="document", columns="k", values="value")
    np.testing.assert_allclose(recall.loc["{category}"], [0.227, 0.515, 0.644], atol=0.01)
    np.testing.assert_allclose(recall.loc["{category}: {sample_transactions}"], [0.393, 0.613, 0.693], atol=0.01)


def test_an_unfinished_run_directory_is_not_read(tmp_path):
    with pytest.raises(DataError, match="not a finished run directory"):
        read_result(tmp_path)


def test_settings_that_would_be_ignored_are_refused(tmp_path):
    (tmp_path / "beir").mkdir()
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / "beir" / name).touch()
    with pytest.raises(ConfigError, match=r"query_template needs data\.record"):
        parts.read(make_config({"data": {"queries": "a.csv", "query_template": "{a}"}}).data)
    with pytest.raises(ConfigError, match="has its own documents"):
        parts.read(make_config({"data": {"queries": str(tmp_path / "beir"), "documents": "d.jsonl"}}).data)


def test_a_models_folder_is_relative_to_the_file_like_all_paths(tmp_path):
    (tmp_path / "mine").mkdir()
    config = make_config({"data": {"queries": "a.csv"}, "model": {"name": "mine"}}, folder=tmp_path)
    assert config.model.name == str(tmp_path / "mine")


@pytest.fixture
def planted(settings, tmp_path):
    """Rows with official parts; 10 test rows are copied into train with other case and spaces, and 5 with one word changed."""
    rows = [json.loads(line) for line in Path(settings["data"]["queries"]).read_text().splitlines()]
    for number, row in enumerate(rows):
        row["part"] = "test" if number % 4 == 0 else "train"
    test = [row for row in rows if row["part"] == "test"]
    copies = [{**row, "merchant_name": f"  {row['merchant_name'].upper()} ", "part": "train"} for row in test[:10]]
    one_word = [row for row in test[10:] if " " not in row["department"]]
    paraphrases = [{**row, "department": "Expeditions", "part": "train"} for row in one_word[:5]]
    path = tmp_path / "planted.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*rows, *copies, *paraphrases]))
    return {**settings, "output": str(tmp_path / "runs"), "data": {**settings["data"], "queries": str(path)}}


def test_a_planted_leak_fails_the_run_with_every_pair_listed(planted, capsys):
    with pytest.raises(DataError, match=r"15 held-out queries repeat queries used for training.*--allow-leaks continues"):
        experiment.run(make_config(planted))
    listed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("test query")]
    assert len(listed) == 15
    assert sum("nearly what train query" in line for line in listed) == 5


@pytest.mark.slow
def test_leaks_that_are_allowed_stand_in_red_and_those_that_are_dropped_are_not_trained_on(planted):
    allowed = experiment.run(make_config({**planted, "split": {"leaks": "allow"}}))
    page = allowed.report.read_text()
    assert "15 held-out queries repeat training queries, and leaks were allowed" in page
    assert sum(finding.kind == "leak" for finding in allowed.findings) == 15
    folder = experiment.ladder(make_config({**planted, "split": {"leaks": "allow"}, "ladder": {"rungs": ["bm25", "base"]}})).folder
    assert '<p class="alert">15 held-out queries repeat' in (folder / "report.html").read_text()
    dropped = experiment.run(make_config({**planted, "split": {"leaks": "drop"}}))
    assert dropped.manifest["split"][0]["train"] == allowed.manifest["split"][0]["train"] - 15
    assert "repeat training queries" not in dropped.report.read_text()


@pytest.mark.slow
def test_seeds_are_trained_apart_and_their_spread_is_told(settings, tmp_path):
    result = experiment.run(make_config({**settings, "output": str(tmp_path), "evaluate": {"seeds": 2}, "tune": {"epochs": 1}}))
    assert result.comparison.seeds.count == 2
    first, second = result.comparison.seeds.means["mrr@10"]
    assert first != second
    assert result.comparison["mrr@10"].tuned == pytest.approx((first + second) / 2)
    assert (result.folder / "seeds" / "1" / "model").is_dir()
    assert "standard deviation over seeds" in result.report.read_text()
    again = experiment.run(make_config({**settings, "output": str(tmp_path), "evaluate": {"seeds": 2}, "tune": {"epochs": 1}}))
    assert again.reused
    assert again.comparison.to_dict() == result.comparison.to_dict()


@pytest.mark.slow
def test_keeping_all_of_the_general_score_merges_with_the_base(settings, tmp_path):
    strong = {"epochs": 3, "learning_rate": 2e-3}  # enough to forget
    result = experiment.run(make_config({**settings, "output": str(tmp_path), "tune": strong, "general": {"keep": 0.98}}))
    said = result.manifest["forgetting"]
    assert said["points"][-1]["kept"] < 0.98
    assert 0 <= said["weight"] < 1
    assert result.model == result.folder / "kept" / "model"
    dataset = parts.read(make_config(settings).data)
    measured = measuring.measure(LocalEncoder(result.model), dataset.select(result.comparison.tuned.query_ids))
    assert measured.mean("mrr@10") == pytest.approx(result.alone.tuned.mean("mrr@10"), abs=0.02)
    general = general_set()
    kept, base = (measuring.measure(LocalEncoder(one), general).mean("mrr@10") for one in (result.model, settings["model"]["name"]))
    assert kept >= 0.98 * base - 0.005


@pytest.mark.slow
def test_an_adapter_and_lora_leave_models_like_any_other(settings, tmp_path):
    result = experiment.run(make_config({**settings, "output": str(tmp_path), "tune": {"method": "adapter"}}))
    assert (result.model / "modules.json").exists()
    assert result.comparison.tuned.mean("mrr@10") > result.comparison.base.mean("mrr@10")
    lora = experiment.run(make_config({**settings, "output": str(tmp_path), "tune": {"method": "lora", "epochs": 1}}))
    assert "base model and LoRA" in [form["name"] for form in lora.manifest["forms"]]
    assert (lora.folder / "lora" / "adapter_model.safetensors").exists()
    with pytest.raises(ConfigError, match=r"general\.keep merges weights"):
        experiment.run(make_config({**settings, "output": str(tmp_path), "tune": {"method": "adapter"}, "general": {"keep": 0.9}}))


@pytest.mark.slow
def test_a_curve_and_a_ladder_leave_a_report_and_go_on_where_they_were(settings, tmp_path, monkeypatch):
    config = make_config(
        {**settings, "output": str(tmp_path), "tune": {"method": "adapter"}, "ladder": {"rungs": ["bm25", "base", "adapter"]}}
    )
    curve = experiment.curve(config, 3)
    folder = curve.folder
    assert [point.pairs for point in curve.points] == [0, 24, 48, 96]
    assert {path.name for path in folder.iterdir()} >= {"curve.json", "curve.png", "report.html"}
    ladder = experiment.ladder(config)
    folder = ladder.folder
    assert [rung.key for rung in ladder.rungs] == ["bm25", "base", "adapter"]
    assert {path.name for path in folder.iterdir()} >= {"ladder.json", "ladder.png", "report.html"}
    monkeypatch.setattr("embedfit.tune.adapter.query_adapter", lambda *_: pytest.fail("fitted"))
    assert experiment.ladder(config).to_dict()["rungs"][2]["mrr@10"] == ladder["adapter"].scores.mean("mrr@10")
    assert experiment.curve(config, 3).to_dict() == curve.to_dict()


def test_few_queries_without_a_test_part_are_held_out_by_folds(settings):
    config = make_config({**settings, "split": {}})
    data = parts.read(config.data)
    splits = parts.splits_of(config, data)
    assert len(splits) == 5
    assert sorted(id for split in splits for id in split.test) == sorted(data.judged)
    official = Dataset(data.queries, data.corpus, data.qrels, {"test": data.judged[:20]})
    assert [len(split.test) for split in parts.splits_of(config, official)] == [20]


def test_a_further_data_set_is_trained_on_and_not_measured(settings, result, tmp_path):
    (tmp_path / "more.jsonl").write_text(
        "".join(f'{{"query": "a further question {i}", "expected": "label {i % 3}"}}\n' for i in range(40))
    )
    mix = {"data": [{"queries": str(tmp_path / "more.jsonl")}], "temperature": 2}
    every_text = {**settings.get("tune", {}), "min_gradient": 0}
    mixed = experiment.run(make_config({**settings, "mix": mix, "tune": every_text}))
    assert mixed.folder != result.folder
    assert mixed.comparison.base.query_ids == result.comparison.base.query_ids
    assert mixed.comparison.base.mean("mrr@10") == result.comparison.base.mean("mrr@10")
    assert mixed.manifest["tuning"][0]["tokens"] > result.manifest["tuning"][0]["tokens"]


def test_a_further_data_set_must_not_say_what_a_held_out_query_says(settings, result, tmp_path):
    config = make_config(settings)
    dataset = parts.read(config.data)
    text = dataset.queries[result.comparison.base.query_ids[0]].text
    (tmp_path / "more.jsonl").write_text(
        "".join(json.dumps({"query": query, "expected": label}) + "\n" for query, label in ((text.upper(), "a"), ("another", "b")))
    )
    mix = {"data": [{"queries": str(tmp_path / "more.jsonl")}]}
    with pytest.raises(DataError, match=r"more\.jsonl: 1 held-out queries repeat its queries"):
        experiment.run(make_config({**settings, "mix": mix}))
    said = make_config({**settings, "mix": mix}).mix.data[0]
    test = dataset.select(result.comparison.base.query_ids)
    for policy, queries, leaks in (("drop", ["another"], 0), ("allow", [text.upper(), "another"], 1)):
        config = make_config({**settings, "split": {"folds": 0, "leaks": policy}})
        kept, found = parts.without_held_out(config, said, parts.read(said), test)
        assert (kept.query_texts(), len(found)) == (queries, leaks)


@pytest.mark.slow
def test_under_torchrun_a_run_ends_with_one_report(settings, tiny_model, tmp_path):
    config = tmp_path / "embedfit.toml"
    data = settings["data"]
    config.write_text(
        f"""[data]
queries = {json.dumps(data["queries"])}
documents = {json.dumps(data["documents"])}
record = "transaction"
[model]
name = {json.dumps(str(tiny_model))}
[split]
folds = 2
[tune]
epochs = 1
"""
    )
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "embedfit", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def together(*arguments):
        return subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, env=environment, timeout=300)

    first = together("run", str(config), "--json")
    assert first.returncode == 0, first.stderr
    said = json.loads(first.stdout)  # one process prints
    [folder] = (tmp_path / "runs").glob("run-*")
    assert (folder / "report.html").exists()
    assert json.loads((folder / "manifest.json").read_text())["model"] == "model"
    assert said
    refused = together("check", str(config))
    assert "'check' runs in one process" in refused.stderr


@pytest.fixture(scope="module")
def passages(tmp_path_factory):
    """The files of 30 passages: a question on each of them, and a second one on every other."""
    folder = tmp_path_factory.mktemp("passages")
    documents = list(general_set().corpus.values())[:30]
    rows = [(f"What is said of {' '.join(document.text.split()[:6])}?", document.id) for document in documents]
    rows += [(f"Where is it told that {' '.join(document.text.split()[-7:])}", document.id) for document in documents[::2]]
    (folder / "queries.jsonl").write_text("".join(json.dumps({"query": query, "expected": id}) + "\n" for query, id in rows))
    (folder / "documents.jsonl").write_text("".join(json.dumps({"id": one.id, "text": one.text}) + "\n" for one in documents))
    return folder


@pytest.fixture(scope="module")
def passages_run(passages, tiny_model):
    return experiment.run(
        make_config(
            {
                "output": str(passages / "runs"),
                "data": {"queries": str(passages / "queries.jsonl"), "documents": str(passages / "documents.jsonl")},
                "model": {"name": str(tiny_model)},
                "split": {"folds": 2},
                "tune": {"epochs": 1},
                "general": {"queries": str(passages / "queries.jsonl"), "documents": str(passages / "documents.jsonl")},  # it is small
            }
        )
    )


def test_a_run_divides_its_queries_into_seen_and_new_answers_by_each_folds_own_training(passages_run):
    config = Config.model_validate(passages_run.manifest["config"])
    data = parts.read(config.data)
    expected = {}
    for split in parts.splits_of(config, data):
        trained = {document for id in (*split.train, *split.dev) for document in data.relevant(id)}
        expected |= {id: bool(trained & data.relevant(id).keys()) for id in split.test}
    counts = [sum(expected[id] for id in split.test) for split in parts.splits_of(config, data)]
    assert 0 < sum(counts) < 45
    frame = pd.read_parquet(passages_run.folder / "queries.parquet")
    assert dict(zip(frame.query_id, frame.seen, strict=True)) == expected
    assert [part["seen"] for part in passages_run.manifest["split"]] == counts
    comparison = passages_run.comparison
    assert [(stratum.seen, stratum.queries) for stratum in comparison.strata] == [(True, sum(counts)), (False, 45 - sum(counts))]
    for stratum in comparison.strata:
        rows = frame[frame.seen == stratum.seen]
        assert stratum["mrr@10"].base == pytest.approx(rows["base_mrr@10"].mean())
        assert stratum["mrr@10"].tuned == pytest.approx(rows["tuned_mrr@10"].mean())
        assert stratum.sentence("mrr@10") in json.loads((passages_run.folder / "comparison.json").read_text())["sentence"]
    again = read_result(passages_run.folder)
    assert again.comparison.strata == comparison.strata
    assert again.comparison.to_dict() == comparison.to_dict()
    assert "New answers (" in passages_run.report.read_text()


def test_labels_have_no_new_answers_so_nothing_is_added(result):
    assert set(result.comparison.seen) == {True}
    assert result.comparison.strata == ()
    assert "new answer" not in result.comparison.sentence.casefold()


def test_the_card_of_a_run_has_both_strata(passages_run, tmp_path):
    [publication] = publishing.prepare_publications(passages_run.folder, str(tmp_path / "card"))
    text = publication.files["README.md"].decode()
    assert passages_run.alone.sentence in text
    for stratum in passages_run.alone.strata:
        row = stratum["ndcg@10"]
        assert f"| ndcg@10, {stratum.label} | {row.base:.3f} | {row.tuned:.3f} | {row.difference:+.3f} |" in text
    said = json.loads(publication.files["embedfit.json"])["comparison"]["strata"]
    assert [row["queries"] for row in said] == [stratum.queries for stratum in passages_run.alone.strata]


def test_answers_of_a_further_data_set_count_as_seen(passages, tiny_model, tmp_path):
    documents = [json.loads(line) for line in (passages / "documents.jsonl").read_text().splitlines()]
    (tmp_path / "more.jsonl").write_text(json.dumps({"query": "a further question", "expected": "x"}) + "\n")
    (tmp_path / "texts.jsonl").write_text(json.dumps({"id": "x", "text": documents[1]["text"].upper()}) + "\n")
    said = {
        "data": {"queries": str(passages / "queries.jsonl"), "documents": str(passages / "documents.jsonl")},
        "model": {"name": str(tiny_model)},
    }
    more = {"data": [{"queries": str(tmp_path / "more.jsonl"), "documents": str(tmp_path / "texts.jsonl")}]}
    alone, mixed = (Job.of(make_config({**said, "mix": mix})).seen for mix in ({}, more))
    [changed] = [id for id in alone if alone[id] != mixed[id]]
    assert (alone[changed], mixed[changed]) == (False, True)
    assert set(parts.read(make_config(said).data).relevant(changed)) == {documents[1]["id"]}


def test_compare_tells_the_strata_of_a_model_whose_folder_says_what_it_was_trained_on(passages, passages_run, tiny_model):
    data = parts.read(Config.model_validate(passages_run.manifest["config"]).data)
    fold = LocalEncoder(passages_run.folder / "folds" / "0" / "model")
    first, second = parts.splits_of(Config.model_validate(passages_run.manifest["config"]), data)
    assert measuring.answers_seen_in_training([LocalEncoder(tiny_model)], data, "{title} {text}") is None
    seen = measuring.answers_seen_in_training([LocalEncoder(tiny_model), fold], data.select(first.test), "{title} {text}")
    expected = dict(zip(passages_run.comparison.base.query_ids, passages_run.comparison.seen, strict=True))
    assert seen == tuple(expected[id] for id in first.test)
    assert set(measuring.answers_seen_in_training([fold], data.select(second.test), "{title} {text}")) == {True}


def test_split_by_documents_goes_the_whole_way_and_the_report_says_what_it_means(passages, tiny_model):
    said = {
        "data": {"queries": str(passages / "queries.jsonl"), "documents": str(passages / "documents.jsonl")},
        "model": {"name": str(tiny_model)},
        "split": {"by": "documents", "folds": 0, "test": 0.3, "dev": 0.2},
    }
    job = Job.of(make_config(said))
    [split] = job.splits
    asked = [{document for id in part for document in job.dataset.relevant(id)} for part in (split.train, split.dev, split.test)]
    assert all(asked)
    assert sum(map(len, asked)) == len(set.union(*asked)) == 30
    assert set(job.seen.values()) == {False}
    note = f"{len(asked[2])} of the 30 documents that are asked for were held out, with all of their queries: "
    assert any(line.startswith(note) for line in notes_on(job))
    folds = Job.of(make_config({**said, "split": {"by": "documents", "folds": 3}}))
    assert set(folds.seen.values()) == {False}
    assert any("of the 30 documents that are asked for were held out in each fold" in line for line in notes_on(folds))
    assert job.folder("") != Job.of(make_config({**said, "split": {**said["split"], "by": "queries"}})).folder("")


def test_split_by_documents_of_official_parts_says_how_many_were_left_out(tiny_model, tmp_path):
    ids = "abcd"
    rows = [("q0", "one", "a"), ("q1", "two", "b"), ("q2", "three", "c"), ("q3", "four", "a"), ("q4", "five", "d")]
    data = Dataset(
        {id: Query(id, text) for id, text, _ in rows},
        {id: Document(id, f"passage {id}") for id in ids},
        {id: {answer: 1} for id, _, answer in rows},
    )
    write_beir(replace(data, parts={"train": ("q0", "q1", "q2"), "test": ("q3", "q4")}), tmp_path / "beir")
    job = Job.of(
        make_config({"data": {"queries": str(tmp_path / "beir")}, "model": {"name": str(tiny_model)}, "split": {"by": "documents"}})
    )
    assert (set(job.splits[0].train), job.splits[0].test) == ({"q1", "q2"}, ("q3", "q4"))
    assert any(
        line.endswith("Queries left out of training, because they share an answer with a held-out one or leak: 1.")
        for line in notes_on(job)
    )


def test_split_by_documents_a_further_data_set_loses_what_has_a_held_out_answer(passages, tiny_model, tmp_path):
    config = make_config({"data": {"queries": str(passages / "queries.jsonl"), "documents": str(passages / "documents.jsonl")}})
    data = parts.read(config.data)
    test = data.select(data.judged[:1])
    text, unasked = (data.corpus[next(iter(data.relevant(id)))].text for id in data.judged[:2])
    (tmp_path / "more.jsonl").write_text(
        "".join(json.dumps({"query": query, "expected": id}) + "\n" for query, id in (("a question", "x"), ("another one", "y")))
    )
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"id": id, "text": said}) + "\n" for id, said in (("x", text.upper()), ("y", unasked)))
    )
    mix = {"data": [{"queries": str(tmp_path / "more.jsonl"), "documents": str(tmp_path / "texts.jsonl")}]}
    for by, kept in (("queries", ["a question", "another one"]), ("documents", ["another one"])):
        config = make_config({"data": {"queries": "unused"}, "mix": mix, "split": {"by": by}})
        other = parts.read(config.mix.data[0])
        assert parts.without_held_out(config, config.mix.data[0], other, test)[0].query_texts() == kept


def test_compare_on_the_command_line_says_both_strata(passages, passages_run, tiny_model, capsys, monkeypatch):
    monkeypatch.setattr("embedfit.console.quiet", False)  # as it is to be afterwards
    path = passages / "embedfit.toml"
    path.write_text('[data]\nqueries = "queries.jsonl"\ndocuments = "documents.jsonl"\n[general]\n')
    fold = passages_run.folder / "folds" / "0"
    with pytest.raises(SystemExit):
        main(["--quiet", "compare", str(path), str(tiny_model), str(fold / "model"), "--part", "all", "--json"])
    said = json.loads(capsys.readouterr().out)
    data = parts.read(Config.model_validate(passages_run.manifest["config"]).data)
    trained = parts.splits_of(Config.model_validate(passages_run.manifest["config"]), data)[0].train
    answers = {document for id in trained for document in data.relevant(id)}
    new = sum(answers.isdisjoint(data.relevant(id)) for id in data.judged)
    assert 0 < new < 45
    assert [(row["answers"], row["queries"]) for row in said["strata"]] == [("seen", 45 - new), ("new", new)]
    assert f"New answers ({new} queries): " in said["sentence"]


def test_an_answer_of_a_dev_query_was_seen_since_it_chose_the_epoch(passages, tiny_model):
    said = {
        "data": {"queries": str(passages / "queries.jsonl"), "documents": str(passages / "documents.jsonl")},
        "model": {"name": str(tiny_model)},
    }
    by_dev_alone = 0
    for seed in range(5):
        job = Job.of(make_config({**said, "split": {"folds": 0, "dev": 0.4, "seed": seed}}))
        [split] = job.splits
        train, dev = ({document for id in part for document in job.dataset.relevant(id)} for part in (split.train, split.dev))
        for id in split.test:
            right = job.dataset.relevant(id).keys()
            assert job.seen[id] == bool(right & (train | dev))
            by_dev_alone += bool(right & dev and not right & train)
    assert by_dev_alone > 0


def test_a_share_for_the_test_part_makes_one_split_of_few_queries(settings):
    config = make_config({**settings, "split": {"test": 0.3}})
    data = parts.read(config.data)
    [split] = parts.splits_of(config, data)
    assert len(split.test) == 36  # 0.3 of 120
    assert len(split.train) == 84
    default, said = (make_config({**settings, "split": split}) for split in ({}, {"test": 0.2}))
    assert default.model_dump() == said.model_dump()  # and yet they are two experiments
    assert Job.of(default).folder("") != Job.of(said).folder("")


def test_a_share_for_a_part_that_the_data_comes_with_is_refused(settings):
    data = parts.read(make_config(settings).data)
    official = Dataset(data.queries, data.corpus, data.qrels, {"test": data.judged[:20], "dev": data.judged[20:30]})
    for part, count in (("test", 20), ("dev", 10)):
        config = make_config({**settings, "split": {part: 0.3}})
        with pytest.raises(ConfigError, match=rf"split\.{part} is 0\.3, and the data comes with a {part} part of {count} queries"):
            parts.splits_of(config, official)
    [split] = parts.splits_of(make_config({**settings, "split": {"dev": 0}}), official)
    assert (len(split.test), len(split.dev)) == (20, 0)


def test_further_data_trains_the_rungs_that_are_trained_and_no_other(settings, tmp_path):
    texts = [query.text for query in parts.read(make_config(settings).data).queries.values()]
    rows = [{"query": f"{text} again, in another shop", "expected": f"label {number % 3}"} for number, text in enumerate(texts)]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {**settings, "output": str(tmp_path), "ladder": {"rungs": ["base", "nearest", "adapter"]}}
    mix = {"data": [{"queries": str(tmp_path / "more.jsonl")}]}
    alone = experiment.ladder(make_config(said))
    mixed = experiment.ladder(make_config({**said, "split": {"folds": 0, "leaks": "allow"}, "mix": mix}))
    folder = mixed.folder
    for key in ("base", "nearest"):
        np.testing.assert_array_equal(mixed[key].scores.values["mrr@10"], alone[key].scores.values["mrr@10"])
    assert (mixed["adapter"].scores.ranks != alone["adapter"].scores.ranks).any()
    assert "The further data of [mix] trains the query adapter" in (folder / "report.html").read_text()


@pytest.mark.parametrize("command", ["index", "compare", "curve", "ladder", "tune"])
def test_every_command_that_encodes_does_it_on_the_engine(settings, tmp_path, monkeypatch, command):
    asked = []

    class Elsewhere(LocalEngine):
        def encoder(self, encoder):
            asked.append(encoder.name)
            return encoder

    monkeypatch.setattr("embedfit.pipeline.job.RayEngine", Elsewhere)
    said = {**settings, "output": str(tmp_path), "engine": "ray", "tune": {"method": "adapter"}, "store": {"location": str(tmp_path)}}
    config = make_config({**said, "ladder": {"rungs": ["base", "adapter"]}})
    if command == "compare":
        data = parts.read(config.data)
        measuring.measure(encoder_of(config.model), data, engine=job.engine_of(config.engine))
    else:
        work = {"index": deploying.index, "curve": lambda it: experiment.curve(it, 2), "ladder": experiment.ladder}
        work.get(command, lambda it: training.run_tune(it, tmp_path / "tuned"))(config)
    assert settings["model"]["name"] in asked


def test_what_a_method_has_no_use_for_is_said_or_refused(settings, capsys):
    base = encoder_of(make_config(settings).model)
    for tune, line in (
        ({"method": "adapter", "epochs": 3}, "an adapter is fitted without tune.epochs"),
        ({"method": "full", "lora_rank": 3}, "tune.lora_rank is not used: tune.method is 'full'"),
    ):
        needs.check_method(base, make_config({**settings, "tune": tune}).tune)
        assert capsys.readouterr().err == f"{line}\n"
    with pytest.raises(ConfigError, match=r"track\.report_to follows the training of weights"):
        needs.check_method(base, make_config({**settings, "tune": {"method": "adapter"}}).tune, ["wandb"])


def test_another_model_keeps_the_pooling_that_its_folder_says(settings, tiny_model, tmp_path):
    import shutil

    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    (plain / "modules.json").unlink()
    shutil.rmtree(plain / "1_Pooling")
    config = make_config({**settings, "model": {"name": str(plain), "pooling": "cls", "price": 1.0}}).model
    assert encoder_of(config).pooling == "cls"
    assert encoder_of(config, str(tiny_model)).pooling is None
    shutil.copytree(plain, tmp_path / "other")
    assert encoder_of(config, str(tmp_path / "other")).pooling == "cls"
    with pytest.raises(ConfigError, match=r"model\.pooling is for models that run here"):
        encoder_of(config, "openai:text-embedding-3-small")
