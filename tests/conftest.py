import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from databases import databases, postgres  # noqa: F401 (fixtures)

from embedfit.data.load import load
from embedfit.samples import TRANSACTIONS

BENCH = Path(__file__).parents[2] / "shared" / "data" / "bench"


def pytest_collection_modifyitems(config, items):
    """Let two workers begin with the files of many slow tests: a long one at the end would keep one of them waiting."""
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def _cache_apart(tmp_path_factory):
    """Keep every test, and every process that a test starts, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDFIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def transactions():
    """The bundled card transactions: 326 records, 27 categories."""
    return load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")


@pytest.fixture
def bench():
    """The folder of the public benchmark sets, where it stands beside the repository."""
    if not BENCH.is_dir():
        pytest.skip(f"no benchmark sets in {BENCH}")
    return BENCH


@pytest.fixture
def said(capsys):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""
    from embedfit.cli import main

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return call


class WordEncoder:
    """Counts words into 64 places, so that texts with words in common are near each other."""

    name = fingerprint = "words"

    def encode(self, texts, kind):
        vectors = np.full((len(texts), 64), 0.01, np.float32)
        for row, text in enumerate(texts):
            for word, count in Counter(text.casefold().split()).items():
                vectors[row, int(hashlib.sha256(word.encode()).hexdigest(), 16) % 64] += count
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def word_encoder():
    return WordEncoder()


@pytest.fixture(scope="session")
def words():
    """The encoder that counts words, for fixtures of a whole session."""
    return WordEncoder()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of all-MiniLM-L6-v2 cut down to its first layer: real weights, a sixth of the time."""
    from embedfit.encode.local import load_model
    from embedfit.hub import model_folder

    model = load_model(model_folder("all-MiniLM-L6-v2"))
    transformer = model.transformers_model
    transformer.encoder.layer = transformer.encoder.layer[:1]
    transformer.config.num_hidden_layers = 1
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    model.save_pretrained(str(folder), create_model_card=False)
    return folder
