"""Opens the store that a configuration names."""

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
    """Open the store that a configuration names. Folders and connections are created on first use.

    Raises:
        ConfigError: An environment variable is not set, or the location or key does not suit the kind of store.
        EmbedfitError: The store's package is not installed.
    """
    location = from_environment(config.location, "store.location").strip()
    if not location.isprintable():
        raise ConfigError("store.location contains a line break or another control character; it is not shown; fix: set it again")
    key = header_value(from_environment(config.api_key, "store.api_key"), "the variable of store.api_key") if config.api_key else None
    if key and (config.kind == "pgvector" or not is_url(location)):
        fix = "put the password into the connection string" if config.kind == "pgvector" else "remove it, or set a server's URL"
        raise ConfigError(f"store.api_key is for a server of Chroma or Qdrant, which store.location is not; fix: {fix}")
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
