"""From picks to a new version: compared with what is live, switched, taken back, gone on with after a kill."""

import json
import shutil
import threading
from dataclasses import asdict
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest
from loop_data import expenses, pick, settings_file, until
from serve_data import serving

from embedfit.errors import DataError, StorageError
from embedfit.pipeline.learned import scores_with
from embedfit.pipeline.result import data_of, read_result
from embedfit.serve.feedback import Feedback
from embedfit.serve.live import LiveFolder, load
from embedfit.serve.places import read_picks
from embedfit.serve.refreshing import refresh, roll_back
from embedfit.serve.searching import Served


def test_a_better_version_goes_live_after_a_comparison_on_held_out_queries_and_todays(world):
    config, live, first, second = world
    assert (first.outcome, second.outcome) == ("first", "switched")
    assert live.read().previous == f"../{first.live.rpartition('/')[2]}"
    assert load(live.path).fingerprint == live.read().fingerprint == Served.load(second.live).fingerprint
    assert load(live.path).name == "loop-live"
    assert second.comparison["queries"] == 48 + 40
    assert second.comparison["verdict"] == "better"
    assert "Today's queries alone:" in second.reason
    rows = [json.loads(line) for line in (live.path / "refreshes.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in rows[:2]] == ["first", "switched"]
    assert not (live.path / "picks.jsonl").exists()
    again = refresh(config, live)
    assert (again.outcome, again.live) == ("unchanged", second.live)


def test_the_newest_picks_are_held_out_and_reported_apart(world):
    config, live, first, second = world
    result, plain = read_result(second.run), read_result(first.run)
    assert result.comparison.base.query_ids == plain.comparison.base.query_ids  # the same queries are held out
    assert result.manifest["feedback"] == {
        "picks": 160,
        "today": 40,
        "left_out": {"of an unknown document": 0, "labelled already": 0, "repeated": 0, "in conflict": 0},
    }
    newest = sorted(read_picks([str(live.path)], config), key=lambda pick: pick.time)[160:]
    assert set(result.today.base.query_ids) == {f"feedback/{pick.id}" for pick in newest}
    known = set(result.searcher.parts.examples.query_ids)
    assert len(known) == 48 + 160
    assert not known & set(result.today.base.query_ids)
    assert f"Today's traffic, the newest picks: {result.today.sentence}" in result.advice
    report = result.report.read_text()
    assert "160 picks to train on, 40 newest held out" in report
    assert "Today&#39;s traffic, the newest picks" in report
    # The feedback may change; the run keeps its data, and can be read again and published.
    assert data_of(result).digest() == result.manifest["data"]["digest"]
    frame = pd.read_parquet(result.folder / "today.parquet")
    assert [result.today.tuned.ranks.tolist(), len(frame)] == [frame.tuned_rank.tolist(), 40]


def test_the_live_version_is_compared_with_what_it_has_learned_since_its_run(world):
    _, _, first, second = world
    live = read_result(first.run)
    alone = scores_with(live, {}, None)
    for metric, values in live.comparison.tuned.select(alone.query_ids).values.items():
        np.testing.assert_array_equal(alone.values[metric], values)
    # The same queries, with picks as further examples: better than its run, and worse than the new one.
    with_picks = second.comparison["differences"]
    assert next(row["base"] for row in with_picks if row["metric"] == "mrr@10") > alone.mean("mrr@10")


def test_a_version_that_was_taken_back_stays_away_until_there_are_other_labels(world, said):
    config, live, first, second = world
    pointer = (live.path / "live.json").read_bytes()
    try:
        back = roll_back(live)
        assert (back.outcome, back.live) == ("rolled back", first.live)
        kept = refresh(config, live)
        assert (kept.outcome, kept.run, kept.live) == ("kept", second.run, first.live)
        assert "It was taken back." in kept.reason
        with pytest.raises(DataError, match="has no previous version"):
            roll_back(live)
    finally:
        (live.path / "live.json").write_bytes(pointer)


def test_a_version_that_is_not_better_stays_away_and_the_command_says_so(world, tmp_path, said):
    config, _, first, second = world
    folder = LiveFolder(tmp_path / "live")
    folder.switch(second.live)
    Feedback(tmp_path / "none.db").close()
    code, out, _ = said("refresh", settings_file(config, tmp_path), "--live", folder.path, "--feedback", tmp_path / "none.db", "--json")
    kept = json.loads(out)
    assert (code, kept["outcome"], kept["run"], kept["live"]) == (1, "kept", first.run, second.live)
    assert kept["reason"].startswith("Worse: MRR@10 fell from")
    assert folder.read().run.endswith(second.live.rpartition("/")[2])
    code, _, err = said("refresh", settings_file(config, tmp_path), "--live", folder.path, "--rollback", "--feedback", "x")
    assert (code, err) == (2, "embedfit: --rollback trains nothing, and so has no use for --feedback; fix: give one of them\n")


def test_rolling_back_where_nothing_is_live_makes_no_folder(tmp_path):
    with pytest.raises(DataError, match="has no previous version"):
        roll_back(LiveFolder(tmp_path / "live"))
    assert not (tmp_path / "live").exists()


def test_after_a_kill_the_next_refresh_goes_on_with_the_same_picks(world, tmp_path, said):
    config, live, first, second = world
    folder = LiveFolder(tmp_path / "live")
    folder.switch(first.live)
    picks = read_picks([str(live.path)], config)
    (folder.path / "picks.jsonl").write_text("".join(json.dumps(asdict(pick)) + "\n" for pick in picks))  # left by one that was killed
    pick(folder, [("a taxi that came later", "Travel")])
    code, out, _ = said("refresh", settings_file(config, tmp_path), "--live", folder.path)
    assert code == 0
    assert out.startswith(f"Live now: {second.live.rpartition('/')[2]}. Better: MRR@10 rose from")
    assert not (folder.path / "picks.jsonl").exists()
    assert said("refresh", settings_file(config, tmp_path), "--live", folder.path, "--rollback")[1].startswith("Live again: ")


def test_queries_unlike_those_of_the_training_are_drift_and_those_of_the_same_kind_are_not(world, tmp_path, said):
    _, live, _, second = world
    summary = json.loads(said("feedback", live.path, "--json")[1])
    [likeness] = [one for one in summary["drift"] if one["name"] == "like a training query"]
    assert not likeness["shown"]
    other = LiveFolder(tmp_path / "live")
    other.switch(second.live)
    pick(other, [(f"zorbing voucher number {number} for the summer party of the staff", "Travel") for number in range(30)])
    pick(other, expenses(30, 1))  # what it was trained on says nothing
    code, out, _ = said("feedback", other.path)
    assert code == 0
    assert "Drift is shown: 'like a training query' was 0.9" in out
    [likeness] = [one for one in json.loads(said("feedback", other.path, "--json")[1])["drift"] if one["name"] == "like a training query"]
    assert likeness["counts"] == [48, 30]


def test_a_server_switches_under_load_with_no_failed_and_no_mixed_answer(world, tmp_path):
    _, _, first, second = world
    folder = LiveFolder(tmp_path / "live")
    folder.switch(first.live)
    queries = [text for text, _ in expenses(6, 2)]
    expected = {}
    for run in (first.live, second.live):
        served = Served.load(run)
        hits = served.searcher.search_many(queries, 4)
        expected |= {(served.fingerprint, query): {hit.id: hit.score for hit in own} for query, own in zip(queries, hits, strict=True)}
    answers, stop = [], threading.Event()

    def ask(client, number):
        while not stop.is_set():
            several = client.post("/search", json={"queries": queries[number:], "k": 4})
            answers.append((number, several.status_code, several.json().get("answers")))

    with serving(load(folder.path), tmp_path, served=str(folder.path)) as client:
        askers = [threading.Thread(target=ask, args=(client, number)) for number in range(3)]
        for asker in askers:
            asker.start()
        try:
            for run in (second.live, first.live, second.live):
                live = folder.switch(run)
                until(lambda live=live: client.get("/info").json()["fingerprint"] == live.fingerprint)
            (tmp_path / "damaged" / "searcher").mkdir(parents=True)
            shutil.copy(Path(second.live) / "searcher" / "searcher.json", tmp_path / "damaged" / "searcher")
            with pytest.raises(DataError, match="is missing or damaged"):
                folder.switch(tmp_path / "damaged")
            damaged = {**json.loads((folder.path / "live.json").read_text()), "run": "../damaged", "fingerprint": "damaged"}
            (folder.path / "live.json").write_text(json.dumps(damaged))  # the server says so, and stays where it is
            seen = len(answers)
            until(lambda: len(answers) > seen + 10)
        finally:
            stop.set()
            for asker in askers:
                asker.join()
    for number, status, several in answers:
        assert status == 200
        assert len({answer["model"] for answer in several}) == 1
        for query, answer in zip(queries[number:], several, strict=True):
            assert {hit["id"]: hit["score"] for hit in answer["hits"]} == pytest.approx(expected[answer["model"], query], abs=1e-3)
    models = [several[0]["model"] for _, _, several in answers]
    assert set(models) == {model for model, _ in expected}
    assert models[-1] == Served.load(second.live).fingerprint


def test_two_refreshes_are_kept_apart_and_a_run_directory_is_no_live_folder(world, tmp_path):
    config, live, _, second = world
    with (
        filelock.FileLock(live.path / ".lock"),
        pytest.raises(StorageError, match="another refresh is running; fix: wait for it"),
    ):
        refresh(config, live)
    with pytest.raises(StorageError, match="is a run directory; expected a folder that 'refresh' keeps"):
        refresh(config, LiveFolder(second.run))
    with pytest.raises(DataError, match="has no searcher"):
        LiveFolder(tmp_path / "live").switch(tmp_path)
