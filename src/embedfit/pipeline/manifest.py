"""What every run directory says of its data, settings and trainings in manifest.json."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit.config import placed_in
from embedfit.encode.local import local_of
from embedfit.encode.remote import RemoteEncoder
from embedfit.pipeline.job import Job
from embedfit.pipeline.parts import read

if TYPE_CHECKING:
    from embedfit.tune.result import Tuned


def manifest_of(job: Job, folder: Path, tuned: Sequence[Tuned], seconds: float) -> dict[str, Any]:
    """Return the configuration, identities, sizes and times of a run.

    Args:
        job: Data and settings.
        folder: Run directory. Data in memory is written into it.
        tuned: Trainings behind the figures; the last produced the model to use.
        seconds: Duration of the measurements and trainings.
    """
    data = job.kept_data(folder)
    dataset = job.dataset if data is job.config.data else read(data)
    placed = placed_in(job.config.model_copy(update={"data": data}), Path.cwd())  # readers may have another working directory
    return {
        "embedfit": version("embedfit"),
        "config": placed.model_dump(),
        "data": {"digest": dataset.digest(), "queries": len(dataset.judged), "documents": len(dataset.corpus)},
        "base": {"name": placed.model.name if local_of(job.base) else job.base.name, "fingerprint": job.base.fingerprint},
        "split": [
            {part: len(getattr(split, part)) for part in ("train", "dev", "test")} | {"seen": sum(job.seen[id] for id in split.test)}
            for split in job.splits
        ],
        "tuning": [
            {name: getattr(training, name) for name in ("epoch", "tokens", "seconds", "candidates", "frozen")} for training in tuned
        ],
        "seconds": round(seconds, 3),
        "findings": [vars(finding) for finding in job.findings],
        "bought": vars(job.base.spent) if isinstance(job.base, RemoteEncoder) else None,
        **({"feedback": job.picked.to_dict()} if job.picked else {}),
    }
