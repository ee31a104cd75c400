"""How long a person waits before anything happens.

Each command runs in a fresh process, alternating with its peer, and the best of several runs counts: on a shared
machine the best is what the command costs, and the rest is neighbours.

- ``embedfit --help`` beside ``python -c "import typer"`` (goal: within 3 times)
- ``import embedfit`` beside a bare ``python -c pass``
- a Hub name with no network (goal: under 2 s)

    python benchmarks/startup.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
HUB = "from embedfit.cli.app import main; main(['demo', '--model', 'BAAI/bge-base-en-v1.5'])"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import embedfit": ["-c", "import embedfit"],
    "import typer": ["-c", "import typer"],
    "embedfit --help": ["-m", "embedfit", "--help"],
    "a Hub name without a network": ["-c", HUB],
}


def main() -> None:
    """Measure, print a table, and write results/startup.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    # A host that is reserved for never existing, and no models from earlier.
    environment = {**os.environ, "HF_ENDPOINT": "https://hub.invalid", "HF_HOME": "/nonexistent"}
    best = dict.fromkeys(COMMANDS, float("inf"))
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], env=environment, capture_output=True)
            best[name] = min(best[name], time.perf_counter() - start)
    ratio = best["embedfit --help"] / best["import typer"]
    for name, seconds in best.items():
        print(f"{name:30} {seconds * 1000:7.0f} ms")
    print(f"embedfit --help takes {ratio:.2f} times as long as importing typer")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "startup.json").write_text(json.dumps({"best_seconds": best, "help_over_typer": ratio, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
