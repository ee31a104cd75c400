"""What only Chroma does."""

import shutil
from pathlib import Path

import pytest
from store_data import TEMPLATE, Numbers, numbered

from embedfit.config import StoreConfig
from embedfit.errors import DamagedError, StorageError
from embedfit.store import versions
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import index_documents, roll_back


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


LIVE = 1100
"""Documents of a live index whose graph Chroma has saved."""


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """The folder of a live index, and the folder of its graph."""
    location = tmp_path_factory.mktemp("live")
    with open_store(StoreConfig(location=str(location))) as store:
        index_documents(store, numbered(LIVE), Numbers(size=LIVE), TEMPLATE)
    [graph] = (path.name for path in location.iterdir() if path.is_dir())
    return location, graph


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("header.bin", b"", "Error loading hnsw index"),
        ("index_metadata.pickle", b"\0no pickle", "Error deserializing pickle file"),
        ("data_level0.bin", None, "Error loading hnsw index"),
        ("index_metadata.pickle", None, ""),  # finds what was written last, and nothing else
    ],
)
def test_a_live_graph_that_is_damaged_is_named_with_the_fix_and_indexing_repairs_it(live, tmp_path, name, content, problem):
    location, graph = live
    shutil.copytree(location, tmp_path, dirs_exist_ok=True)
    path, encoder, data = tmp_path / graph / name, Numbers(size=LIVE), numbered(LIVE)
    path.unlink() if content is None else path.write_bytes(content)
    with open_store(StoreConfig(location=str(tmp_path))) as store:
        index = LiveIndex(store, encoder)
        collection = store.live().current
        if problem:
            with pytest.raises(DamagedError, match=rf"is damaged \({problem}.*\); fix: run 'embedfit index' again") as refused:
                index.find("query 7", 1)
            assert "\n" not in str(refused.value)
        indexed = index_documents(store, data, encoder, TEMPLATE)
        assert (indexed.collection, indexed.written) == (collection, LIVE)
        assert index.find("query 7", 1)[0].id == "d7"
        assert index_documents(store, data, encoder, TEMPLATE).recall is None


def test_a_live_collection_is_not_dropped_for_a_failure_that_may_pass(live, tmp_path, monkeypatch):
    shutil.copytree(live[0], tmp_path, dirs_exist_ok=True)
    encoder = Numbers(size=LIVE)
    with open_store(StoreConfig(location=str(tmp_path))) as store:
        store.delete(store.live().current, ["d3"])
        with monkeypatch.context() as patch:
            patch.setattr(store, "vectors", lambda collection, ids: (_ for _ in ()).throw(StorageError("busy")))
            with pytest.raises(StorageError, match="busy"):
                index_documents(store, numbered(LIVE), encoder, TEMPLATE)
        assert index_documents(store, numbered(LIVE), encoder, TEMPLATE).written == 1


def test_a_damaged_version_is_not_rolled_back_to(live, tmp_path):
    location, graph = live
    shutil.copytree(location, tmp_path, dirs_exist_ok=True)
    encoder = Numbers(1, LIVE)
    with open_store(StoreConfig(location=str(tmp_path))) as store:
        index_documents(store, numbered(LIVE), encoder, TEMPLATE)
    (tmp_path / graph / "header.bin").write_bytes(b"")
    with open_store(StoreConfig(location=str(tmp_path))) as store:
        with pytest.raises(DamagedError, match="fix: run 'embedfit index' again"):
            roll_back(store)
        assert LiveIndex(store, encoder).find("query 7", 1)[0].id == "d7"


@pytest.mark.parametrize("damage", ["garbage", "schema"])
def test_a_damaged_database_is_named_with_the_fix_and_left_alone(live, tmp_path, damage):
    shutil.copyfile(live[0] / "chroma.sqlite3", path := tmp_path / "chroma.sqlite3")
    if damage == "garbage":
        path.write_bytes(b"x" * 10_000)
    else:  # Chroma's own code panics
        content = path.read_bytes()
        path.write_bytes(content.replace(b"CREATE TABLE collections", b"CREATE TABLE \xff\xfe\xfd\xfclections"))
    before = path.read_bytes()
    for ask in (lambda store: LiveIndex(store, Numbers()).find("query 7"), lambda store: index_documents(store, numbered(), Numbers())):
        with (
            open_store(StoreConfig(location=str(tmp_path))) as store,
            pytest.raises(DamagedError, match=r"is damaged \(.*fix: restore its folder from a backup, or move it away"),
        ):
            ask(store)
    assert path.read_bytes() == before
