"""Which store a configuration names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from embedfit.config import StoreConfig
from embedfit.errors import ConfigError
from embedfit.hosts import header_value
from embedfit.secrets import from_environment
from embedfit.store.base import Store, is_url


@contextlib.contextmanager
def open_store(config: StoreConfig) -> Iterator[Store]:
    """Open the store that a configuration names; nothing is made or connected to before it is needed.

    Raises:
        ConfigError: An environment variable that it names is not set, or the location is not of the store's kind.
        EmbedfitError: The store's package is not installed.
    """
    location = from_environment(config.location, "store.location").strip()
    if not location.isprintable():
        raise ConfigError("store.location holds a line break or another control character; it is not shown; fix: set it anew")
    key = header_value(from_environment(config.api_key, "store.api_key"), "the variable of store.api_key") if config.api_key else None
    if key and (config.kind == "pgvector" or not is_url(location)):
        fix = "the connection string holds the password" if config.kind == "pgvector" else "leave it out, or give a server's URL"
        raise ConfigError(f"store.api_key is for a server of Chroma or Qdrant, and store.location is none; fix: {fix}")
    store: Store
    if config.kind == "chroma":
        from embedfit.store.chroma import ChromaStore

        store = ChromaStore(location, config.index, key)
    elif config.kind == "pgvector":
        from embedfit.store.pgvector import PgvectorStore

        store = PgvectorStore(location, config.index)
    else:
        from embedfit.store.qdrant import QdrantStore

        store = QdrantStore(location, config.index, key)
    with contextlib.closing(store):
        yield store
