"""How long the search for near duplicates takes, from 1,000 to 100,000 texts, short and long.

    python benchmarks/duplicates.py

Kinds of texts: questions of 5 to 15 words, one form ("please book a table ...") with other names, records of 8 fields,
articles of 150 to 250 words as frequent as in a language (Zipf), the same with one page in common, and long texts of
common words alone. In every kind, one text in a hundred is a near copy of another, and all of those must be found.
Each size is a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embedfit.data.duplicates import near_duplicates

RESULTS = Path(__file__).parent / "results"
_VOCABULARY = 50_000
_COPIES = 100
"""One text in so many is a near copy."""


def _zipf(rng: random.Random, size: int) -> list[str]:
    numbers = np.random.default_rng(rng.randrange(2**32)).zipf(1.2, size) % _VOCABULARY
    return [f"w{number}" for number in numbers.tolist()]


def question(rng: random.Random) -> list[str]:
    """Return the words of a question."""
    return _zipf(rng, rng.randint(5, 15))


def form(rng: random.Random) -> list[str]:
    """Return the words of a text of one form, with three names in it."""
    first, second, third = (f"name{rng.randrange(5000)}" for _ in range(3))
    return f"please book a table for 4 people at {first} in {second} at seven in the evening for {third}".split()


def record(rng: random.Random) -> list[str]:
    """Return the words of a record, most of whose values are common."""
    return " ".join(f"\nfield{field}: v{rng.randrange(30)} u{rng.randrange(300)}" for field in range(8)).split(" ")


def article(rng: random.Random) -> list[str]:
    """Return the words of an article."""
    return _zipf(rng, rng.randint(150, 250))


_PAGE = _zipf(random.Random(1), 100)


def paged(rng: random.Random) -> list[str]:
    """Return the words of an article that ends as all others do."""
    return [*article(rng), *_PAGE]


def long(rng: random.Random) -> list[str]:
    """Return 2,000 words, of a thousand common ones."""
    return [f"w{rng.randrange(1000)}" for _ in range(2000)]


KINDS: dict[str, tuple[Callable[[random.Random], list[str]], tuple[int, ...]]] = {
    "questions": (question, (1_000, 10_000, 100_000)),
    "one form": (form, (1_000, 10_000)),
    "records": (record, (1_000, 10_000, 100_000)),
    "articles": (article, (1_000, 10_000, 100_000)),
    "articles with a page in common": (paged, (1_000, 10_000)),
    "2,000 common words": (long, (1_000, 10_000)),
}


def measure(kind: str, count: int) -> dict[str, object]:
    """Search so many texts of a kind, and return what it took."""
    rng = random.Random(0)
    texts = [KINDS[kind][0](rng) for _ in range(count)]
    planted = rng.sample(range(count), 2 * (count // _COPIES))
    for source, target in zip(planted[::2], planted[1::2], strict=True):
        # Questions may be too short for another word: those get another order.
        copy = list(texts[source])
        if len(copy) >= 12 and kind != "records":
            copy[rng.randrange(len(copy))] = "another"
        else:
            copy = [*copy[1:], copy[0]] if kind != "records" else [*copy, "\n"]
        texts[target] = copy
    said = [" ".join(text) for text in texts]
    started = time.process_time()
    found = near_duplicates(said)
    seconds = time.process_time() - started
    chain = {place: number for number, places in enumerate(found.chains) for place in places}
    missed = sum(
        chain[source] != chain[target] for source, target in zip(planted[::2], planted[1::2], strict=True) if len(texts[source]) > 3
    )
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    words = sum(map(len, texts)) // count
    return {
        "texts": kind, "count": count, "words each": words, "processor seconds": round(seconds, 2), "peak MB": megabytes,
        "near pairs": len(found.near), "planted": count // _COPIES, "missed": missed,
    }  # fmt: skip


def main() -> None:
    """Measure every kind and size, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=100_000, help="no more texts than these")
    most = parser.parse_args().most
    rows = []
    for kind, (_, counts) in KINDS.items():
        for count in counts:
            if count <= most:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    rows.append(pool.apply(measure, (kind, count)))
                print(json.dumps(rows[-1]), flush=True)
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    lines += [
        "| " + " | ".join(f"{row[name]:,}" if isinstance(row[name], (int, float)) else str(row[name]) for name in columns) + " |"
        for row in rows
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "duplicates.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (RESULTS / "duplicates.json").write_text(json.dumps({"processors": os.cpu_count(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
