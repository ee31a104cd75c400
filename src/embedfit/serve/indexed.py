"""The live index of a vector store behind a server: searches, picks and switches happen in the store."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from embedfit.config import Config, read_config
from embedfit.encode.encoder import Encoder
from embedfit.errors import ConfigError
from embedfit.searcher.searcher import Query, Searcher, SearchHit
from embedfit.serve.feedback import key_of
from embedfit.serve.searching import FEEDBACK, Wanted, folded, titles_with
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.version import SearcherVersion

_SOURCE = "feedback"


class ServedIndex:
    """One version of the live index of a store, as a server needs it. Documents and examples stay in the store.

    Args:
        index: Live index, which was filled from the searcher of a run.
        name: Name of the model for clients.

    Raises:
        ConfigError: The index has documents alone.
        StorageError: There is no live version.
        ModelError: Its model or searcher is gone, or is another one.
    """

    def __init__(self, index: LiveIndex, name: str) -> None:
        version = index.version()
        if not isinstance(version, SearcherVersion):
            raise ConfigError(f"{index.where} was made of a model alone; fix: 'embedfit index --model RUN', the searcher of a run")
        self.index, self.version, self.name = index, version, name
        self.fingerprint = version.collection
        self.documents: Mapping[str, None] = dict.fromkeys(version.ids)
        examples, ids = version.parts.examples, version.parts.corpus.ids
        self._own = {(key_of(examples.texts[member]), ids[owner]) for member, owner in zip(examples.members, examples.owners, strict=True)}
        self._searcher = Searcher(version.parts)
        self._titles: list[tuple[str, str, str]] = []
        self._lock = threading.Lock()  # a connection is for one thread at a time

    @property
    def encoder(self) -> Encoder:
        """Encoder of queries and documents."""
        return self.version.encoder

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a record; none if queries are texts."""
        template = self.version.parts.query_template
        return template.fields if template else ()

    @property
    def threshold(self) -> float | None:
        """Probability from which an answer needs no person; None if there is none."""
        threshold = self.version.parts.threshold
        return threshold.value if threshold else None

    def text_of(self, query: Query, where: str) -> str:
        """Return the text of a query, under the query template if it is a record.

        Raises:
            DataError: The record has none of the fields, or the queries are no records.
        """
        return query if isinstance(query, str) else self._searcher.text_of(query, where)

    def answer(self, asked: Sequence[Wanted]) -> list[Sequence[SearchHit]]:
        """Return the hits of each search, best first."""
        with self._lock:
            return [self.version.find(wanted.text, wanted.k, wanted.filters) for wanted in asked]

    @property
    def texts(self) -> Mapping[str, str]:
        """Document id -> text under the template."""
        corpus = self.version.parts.corpus
        return dict(zip(corpus.ids, corpus.texts, strict=True))

    def find_titles(self, words: str, most: int = 50) -> list[tuple[str, str]]:
        """Return (id, text) of the documents whose id or text has all words, those that begin with them first."""
        self._titles = self._titles or folded(self.texts)
        return titles_with(self._titles, words, most)

    def learn(self, changes: Sequence[tuple[str, str, str | None]]) -> None:
        """Write examples into the index, and take back those that are none any more. They count from the next search on, everywhere.

        Several processes may learn the same; what stands in the index already is not written again.

        Args:
            changes: (key, text, document id) for an example, or (key, "", None) for one that was taken back; the last one of a key counts.
        """
        latest = {FEEDBACK + key: (text, document) for key, text, document in changes}
        with self._lock:
            there = {change.key: change for change in self.index.taught() if change.what == "example" and not change.gone}
            for key, (text, document) in latest.items():
                known = there.get(key)
                if known is not None and (known.text, known.document) != (text, document):
                    self.index.remove(key)
                    known = None
                if known is None and document is not None and document in self.documents and (key_of(text), document) not in self._own:
                    self.index.add(text, document, key=key, source=_SOURCE)


class IndexSource:
    """The live index that a configuration names, followed by a server.

    Args:
        path: Path of embedfit.toml.
    """

    def __init__(self, path: str | Path) -> None:
        self.config: Config = read_config(path)
        self._stack = ExitStack()
        self._store = self._stack.enter_context(open_store(self.config.store))

    def token(self) -> str:
        """Return what changes when another version goes live."""
        return self._store.live().current

    def load(self) -> ServedIndex:
        """Return the version that is live.

        Raises:
            EmbedfitError: There is none, or it cannot be opened.
        """
        store = self._stack.enter_context(open_store(self.config.store))  # a connection of its own
        return ServedIndex(LiveIndex(store), self.config.name)
