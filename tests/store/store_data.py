"""What the tests of stores share: numbered documents, an encoder that knows their neighbours, and a stamp."""

import numpy as np

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.store.base import Stamp

KINDS = ("chroma", "chroma server", "pgvector", "qdrant")
TEMPLATE = "{title} {text}"


class Numbers:
    """Encodes 'doc 7' and 'query 7' as nearly the same direction; another seed is another model.

    Texts differ in twelve ways, whatever the dimension: no graph finds its way through vectors that are noise and no more.
    """

    def __init__(self, seed=0, size=400, dimension=16):
        self.name = self.fingerprint = f"numbers-{seed}-{size}-{dimension}"
        random = np.random.default_rng(seed)
        ways = random.normal(size=(12, dimension)).astype(np.float32)
        self.table = random.normal(size=(size, 12)).astype(np.float32) @ ways
        self.noise = random.normal(size=(size, 12)).astype(np.float32) @ ways * 0.1
        self.asked = []

    def encode(self, texts, kind):
        self.asked += texts
        rows = [int(text.split()[-1]) % len(self.table) for text in texts]
        vectors = self.table[rows] + (self.noise[rows] if kind == "query" else 0)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def numbered(n=60, queries=20, **metadata):
    """A data set of numbered documents, where query i is for document i."""
    corpus = {f"d{i}": Document(f"d{i}", str(i), "doc", {"parity": "odd" if i % 2 else "even", "number": i, **metadata}) for i in range(n)}
    asked = {f"q{i}": Query(f"q{i}", f"query {i}") for i in range(queries)}
    return Dataset(asked, corpus, {f"q{i}": {f"d{i}": 1} for i in range(queries)})


STAMP = Stamp("words", "f" * 64, 4, "query: ", "", TEMPLATE, 3, "0" * 64)
A, B = "documents_" + "a" * 12, "documents_" + "b" * 12
METADATA = {
    "title": "T\u00e9a \U0001f375",
    "year": 2020,
    "text_year": "2020",
    "price": 2.5,
    "sold": True,
    "tags": ["red", "blue"],
    "counts": [1, 2],
    "nested": {"a": [1, {"b": None}]},
    "mixed": [1, "a"],
    "empty": [],
    "nothing": None,
    "big": 2**70,
    "quote ' \" {x} %s": "; DROP TABLE",
    "": "no key",
}


def named(store, collection):
    """Return a collection's name under this store's own index."""
    return collection.replace("documents", store.index)


SECRET = "s3cr3t-w0rd"
