"""What `embedfit check` costs on files of short queries: processor seconds, seconds for each further query, and peak memory.

    python benchmarks/check.py                          # 10,000, 100,000 and 1,000,000 queries

Each size is a process of its own. The queries are 4 to 9 words out of 20,000 made-up ones, so that hardly any says what another says;
the labels are 200 names. The model is all-MiniLM-L6-v2. Results go to benchmarks/results/check.json.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "check.json"
PROGRAM = """
import json, resource, sys, time
from embedfit.config import make_config
from embedfit.pipeline.checking import check

checked = check(make_config({"data": {"queries": sys.argv[1]}, "model": {"name": "all-MiniLM-L6-v2"}}))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "queries": len(checked.dataset.judged),
    "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
    "peak_mib": used.ru_maxrss // 1024,
    "torch": "torch" in sys.modules,
}))
"""


def write_queries(path, count):
    """Write labelled queries of made-up words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(3, 9))) for _ in range(20_000)]
    with path.open("w") as file:
        for number in range(count):
            text = " ".join(draw.choices(words, k=draw.randint(4, 9)))
            file.write(json.dumps({"query": text, "expected": f"label {number % 200}"}) + "\n")


def main():
    """Measure each size, print it, and write results/check.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in parser.parse_args().sizes:
            path = Path(folder) / "queries.jsonl"
            write_queries(path, count)
            done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], check=True, capture_output=True, text=True)
            rows.append({**json.loads(done.stdout), "file_mib": path.stat().st_size // 2**20})
            print(rows[-1], flush=True)
    RESULT.write_text(json.dumps({"machine": platform.processor() or platform.machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
