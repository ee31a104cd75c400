"""What only Chroma does."""

from pathlib import Path

import pytest
from store_data import TEMPLATE, Numbers, numbered

from embedfit.errors import StorageError
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
