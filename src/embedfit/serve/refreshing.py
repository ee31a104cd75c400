"""From what people picked to a new version that is live, if it is better beyond chance."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from embedfit import console
from embedfit.config import Config
from embedfit.data.dataset import Query, unchecked
from embedfit.data.texts import Contents
from embedfit.errors import DataError, EmbedfitError, ModelError
from embedfit.files import json_bytes, locked, writing
from embedfit.pipeline.choosing import job_with_choice
from embedfit.pipeline.experiment import run
from embedfit.pipeline.picked import PREFIX, Pick
from embedfit.pipeline.rematch import Rematch, rematch
from embedfit.pipeline.result import Result, held_out_of, read_result
from embedfit.serve.live import LiveFolder, check_live
from embedfit.serve.places import ALL, read_picks
from embedfit.serve.searching import Served
from embedfit.store.open import open_store
from embedfit.store.versions import index_searcher

Outcome: TypeAlias = Literal["first", "switched", "kept", "unchanged", "rolled back"]
_SNAPSHOT, _LOG, _LOCK = "picks.jsonl", "refreshes.jsonl", ".lock"


@dataclass(frozen=True)
class Refreshed:
    """The result of a refresh.

    Attributes:
        outcome: ``first`` version, ``switched``, ``kept`` what was live, ``unchanged`` labels, or ``rolled back``.
        live: Run directory that is live now.
        run: Run directory of the new version; that of the live one if there is no new version.
        reason: Why, in words.
        comparison: The live version and the new one, as JSON values; None without a comparison.
    """

    outcome: Outcome
    live: str
    run: str
    reason: str
    comparison: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The result, as text."""
        words = {
            "first": "Live, as the first version",
            "switched": "Live now",
            "kept": "Not switched",
            "unchanged": "Nothing new",
            "rolled back": "Live again",
        }
        return f"{words[self.outcome]}: {Path(self.run if self.outcome == 'kept' else self.live).name}. {self.reason}"


def refresh(config: Config, live: LiveFolder, places: Sequence[str] = (), *, index: bool = False) -> Refreshed:
    """Train on the picks, and switch to the new version if it is better than what is live.

    After a kill, the next call goes on where this one stopped, with the same picks.

    Args:
        config: Settings of the runs.
        live: Folder that names what is live.
        places: Where the picks are, as for `read_picks`; by default in the live folder and in all runs of the configuration.
        index: Whether the vector store of the configuration is filled, checked and switched too, before the folder is.

    Raises:
        EmbedfitError: Another refresh is running, or the new version cannot be trained, or does not answer as it was measured.
    """
    check_live(live.path)
    with locked(live.path / _LOCK, f"{live.path}: another refresh is running; fix: wait for it"):
        snapshot = live.path / _SNAPSHOT
        try:
            picks = _picks(snapshot, config, places)
            refreshed = _refreshed(config, live, picks, index)
        except EmbedfitError:
            snapshot.unlink(missing_ok=True)  # a mistake that these picks cause must not last
            raise
        _log(live, refreshed)
        snapshot.unlink(missing_ok=True)
    return refreshed


def roll_back(live: LiveFolder, config: Config | None = None) -> Refreshed:
    """Make the previous version live again.

    Args:
        live: Folder that names what is live.
        config: Settings of the vector store that goes back too; None for the folder alone.

    Raises:
        EmbedfitError: There is none, or a refresh is running.
    """
    if live.read() is None:
        live.roll_back()  # raises, before a lock makes the folder
    with locked(live.path / _LOCK, f"{live.path}: a refresh is running; fix: wait for it"):
        before = live.read()
        if config is not None and before is not None and before.previous:
            _index(config, live.run_of(before.previous))
        now = live.roll_back()
        assert before is not None
        path = str(live.run_of(now.run))
        reason = f"{Path(before.run).name} was taken back, and goes live again only if 'refresh' trains another model."
        refreshed = Refreshed("rolled back", path, path, reason)
        _log(live, refreshed)
    return refreshed


def _refreshed(config: Config, folder: LiveFolder, picks: Sequence[Pick], index: bool) -> Refreshed:
    before = folder.read()
    result = run(config, picks=picks or None)
    name = str(result.folder)
    if before is None:
        if result.verdict == "worse":
            raise DataError(name, f"is worse than the model that it started from: {result.comparison.sentence}", fix="do not serve it")
        _go_live(config, folder, result, index)
        return Refreshed("first", name, name, result.comparison.sentence)
    running = folder.run_of(before.run)
    if result.folder.resolve() == running.resolve():
        return Refreshed("unchanged", str(running), str(running), "There are no labels that it was not trained on.")
    if result.folder.resolve() in {folder.run_of(run).resolve() for run in before.taken_back}:
        return Refreshed("kept", str(running), name, "It was taken back. New labels make another version.")
    outcome = _compared(config, picks, running, result)
    if not outcome.won:
        return Refreshed("kept", str(running), name, outcome.sentence, outcome.comparison.to_dict())
    _go_live(config, folder, result, index)
    return Refreshed("switched", name, name, outcome.sentence, outcome.comparison.to_dict())


def _go_live(config: Config, folder: LiveFolder, result: Result, index: bool) -> None:
    """Check a version, fill the store with it if wanted, and switch to it. A kill in between leaves it to the next refresh."""
    _check(result)
    if index:
        _index(config, result.folder)
    folder.switch(result.folder)


def _index(config: Config, run: Path) -> None:
    """Fill the store with the searcher of a run, check it, and make it live there. What stands there already is not written again."""
    queries = held_out_of(read_result(run), config.evaluate.metric)[0]
    with open_store(config.store) as store:
        console.note(index_searcher(store, run, queries, min_recall=config.store.min_recall).sentence)


def _compared(config: Config, picks: Sequence[Pick], running: Path, result: Result) -> Rematch:
    """Return the comparison of the live version, with the picks that it has learned, and the new one."""
    job = job_with_choice(config, picks=picks or None)
    served = Served.load(running)
    if job.picked:
        # What is held out, and its copies, must not be among its examples. With folds, it is asked today's queries alone.
        learned = [id for id in job.splits[0].train if id.startswith(PREFIX)] if len(job.splits) == 1 else job.picked.ids
        data = job.picked.dataset
        served.learn([(id, data.queries[id].text, next(iter(data.relevant(id)))) for id in learned])
    return rematch(job, read_result(running), served.searcher, result)


def _check(result: Result) -> None:
    """Check that the searcher on the disk answers as it was measured.

    Raises:
        ModelError: It does not.
        EmbedfitError: It cannot be loaded.
    """
    import pandas as pd

    searcher = Served.load(result.folder).searcher
    names = ["today"] if result.today else []
    if len(result.manifest["split"]) == 1:  # with folds, other models were measured on the held-out queries
        names.append("queries")
    for name in names:
        frame = pd.read_parquet(result.folder / f"{name}.parquet")
        queries = {id: Query(id, text) for id, text in zip(frame.query_id, frame["query"], strict=True)}
        grades = {id: dict.fromkeys(expected, 1) for id, expected in zip(frame.query_id, frame.expected, strict=True)}
        ranked = searcher.rank(unchecked(Contents(queries, dict(searcher.parts.documents), grades)), 100)
        other = sum(ranked.documents_at(row, len(found)) != list(found) for row, found in enumerate(frame.tuned_found))
        if other > max(1, _OTHERWISE * len(frame)):
            raise ModelError(f"{result.folder}: answers otherwise than it was measured; fix: remove it, and refresh again")


_OTHERWISE = 0.02
"""Share of the answers that may differ from those that were measured. Rounding may exchange two documents of nearly the same score."""


def _picks(snapshot: Path, config: Config, places: Sequence[str]) -> list[Pick]:
    """Return the picks of a refresh that was killed; else those of now, which are kept for the case that this one is killed."""
    with suppress(FileNotFoundError, ValueError, TypeError):
        return [Pick(**json.loads(line)) for line in snapshot.read_text(encoding="utf-8").splitlines()]
    picks = read_picks(places or [ALL], config, missing=not places)
    with writing(snapshot) as file:
        file.writelines(json_bytes(asdict(pick)) + b"\n" for pick in picks)
    return picks


def _log(live: LiveFolder, refreshed: Refreshed) -> None:
    row = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **refreshed.to_dict()}
    with (live.path / _LOG).open("ab") as file:
        file.write(json_bytes(row) + b"\n")
    console.note(f"Noted in {live.path / _LOG}")
