"""What only Chroma does."""

import shutil
from pathlib import Path

import pytest
from store_data import TEMPLATE, Numbers, numbered

from embedfit.config import StoreConfig
from embedfit.errors import StorageError
from embedfit.store import versions
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import index_documents


def test_chromas_folders_of_dropped_collections_are_removed_even_after_a_kill_and_no_others(config_of, monkeypatch):
    config = config_of("chroma")
    folder = Path(config.location)
    others = folder / "0b0e1f3c-6d3f-4c54-9b57-3a2f1c0d9e8f"
    others.mkdir(parents=True)

    def graphs():
        return {path.name for path in folder.iterdir() if path.is_dir()} - {others.name}

    for seed in range(4):
        with open_store(config) as store:
            index_documents(store, numbered(), Numbers(seed), TEMPLATE)
        assert len(graphs()) == min(seed + 1, 2)
    with open_store(config) as store:
        monkeypatch.setattr(type(store), "_remove_dropped", lambda self: None)  # killed before it came to that
        index_documents(store, numbered(), Numbers(4), TEMPLATE)
        assert len(graphs()) == 3
        (folder / "mine").mkdir()
        begun = store._folders(store._collection(store.live().current).id)  # noted by a process that was killed before it dropped
        with (folder / ".embedfit.dropped").open("a") as file:
            file.write("\n".join(["mine", "../mine", "..", *begun, ""]))
        monkeypatch.undo()
        index_documents(store, numbered(), Numbers(4), TEMPLATE)
    assert len(graphs()) == 3
    assert "mine" in graphs()
    with open_store(config) as store:
        assert set(store._folders()) >= graphs() - {"mine"}
        assert LiveIndex(store, Numbers(4)).find("query 7", 1)[0].id == "d7"
    assert others.is_dir()
    assert not (folder / ".embedfit.dropped").exists()


def test_another_collection_of_the_name_in_chroma_is_not_taken_for_ours(config_of):
    with open_store(config_of("chroma")) as store:
        store._client.create_collection("documents", metadata={"mine": "yes"}, embedding_function=None)
        with pytest.raises(StorageError, match=r"is not embedfit's; fix: choose another store\.index"):
            store.live()


COUNT, BEGUN, OLD = 2500, 2300, 1100
"""Documents; those written before the kill; and those of the graph that Chroma had saved before. It saves one every 1,000 writes."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a version that is not complete, the folder of its graph, and one of the graph's older files."""
    location, old = tmp_path_factory.mktemp("begun"), tmp_path_factory.mktemp("old")

    class Stopped(BaseException):
        pass

    with open_store(StoreConfig(location=str(location))) as store, pytest.MonkeyPatch.context() as patch:

        def add(collection, entries, vectors):
            written(collection, entries[:OLD], vectors[:OLD])
            [graph] = (path for path in location.iterdir() if path.is_dir())
            shutil.copytree(graph, old, dirs_exist_ok=True)
            written(collection, entries[OLD:BEGUN], vectors[OLD:BEGUN])
            raise Stopped

        written = store.add
        patch.setattr(store, "add", add)
        with pytest.raises(Stopped):
            index_documents(store, numbered(COUNT), Numbers(size=COUNT), TEMPLATE)
    [graph] = (path.name for path in location.iterdir() if path.is_dir())
    return location, graph, old


# A kill leaves files of two saves side by side, or one that is cut off. Chroma then refuses to read, or to write, or finds too little.
@pytest.mark.parametrize(
    ("stale", "cut"),
    [
        (["header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle"], []),
        (["length.bin", "link_lists.bin", "index_metadata.pickle"], []),
        (["header.bin"], []),
        ([], ["data_level0.bin"]),
        ([], ["index_metadata.pickle"]),
    ],
)
def test_a_graph_that_a_kill_left_damaged_is_written_again(begun, tmp_path, stale, cut):
    location, graph, old = begun
    shutil.copytree(location, tmp_path, dirs_exist_ok=True)
    for name in stale:
        shutil.copyfile(old / name, tmp_path / graph / name)
    for name in cut:
        path = tmp_path / graph / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    encoder = Numbers(size=COUNT)
    with open_store(StoreConfig(location=str(tmp_path))) as store:
        indexed = index_documents(store, numbered(COUNT), encoder, TEMPLATE)
        assert (indexed.documents, indexed.written) == (COUNT, COUNT)
        assert indexed.recall > 0.99
        assert LiveIndex(store, encoder).find(f"query {BEGUN - 1}", 1)[0].id == f"d{BEGUN - 1}"


def test_a_graph_that_finds_too_little_is_written_again_once(begun, tmp_path, monkeypatch):
    location, _, _ = begun
    shutil.copytree(location, tmp_path, dirs_exist_ok=True)
    recalls = [0.5, 0.9]
    monkeypatch.setattr(versions, "overlap", lambda run, exact, k: recalls.pop(0))
    with open_store(StoreConfig(location=str(tmp_path))) as store:
        indexed = index_documents(store, numbered(COUNT), Numbers(size=COUNT), TEMPLATE, min_recall=0.9)
    assert (indexed.written, indexed.recall) == (COUNT, 0.9)


def test_a_live_graph_that_cannot_be_read_is_left_alone(config_of):
    config, data = config_of("chroma"), numbered(COUNT)
    with open_store(config) as store:
        live = index_documents(store, data, Numbers(size=COUNT), TEMPLATE).collection
    [graph] = (path for path in Path(config.location).iterdir() if path.is_dir())
    (graph / "header.bin").write_bytes(b"")
    for _ in range(2):
        with open_store(config) as store, pytest.raises(StorageError, match="hnsw"):
            index_documents(store, data, Numbers(size=COUNT), TEMPLATE)
    assert live in store.collections()
