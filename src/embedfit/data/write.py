"""Data sets written as BEIR folders and JSONL files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedfit.data.dataset import Dataset
from embedfit.data.texts import Row
from embedfit.errors import DataError, StorageError, shown
from embedfit.files import json_bytes
from embedfit.files import writing as writing


def write_beir(dataset: Dataset, folder: str | Path) -> Path:
    """Write corpus.jsonl, queries.jsonl and qrels/<part>.tsv (``qrels/all.tsv`` if there are no parts).

    Raises:
        DataError: An id holds a tab or the end of a line, which a qrels file cannot.
        StorageError: The folder cannot be written, or holds judgements of another data set.
    """
    folder = Path(folder)
    for id in (*dataset.queries, *dataset.corpus):
        if any(sign in id for sign in "\t\r\n"):
            raise DataError(f"id {shown(id)}", "holds a tab or the end of a line", fix="use write_jsonl, or another id")
    in_parts = {id for ids in dataset.parts.values() for id in ids}
    rest = tuple(id for id in dataset.qrels if id not in in_parts)
    parts = {**dataset.parts, **({"rest" if dataset.parts else "all": rest} if rest else {})}
    for path in sorted((folder / "qrels").glob("*.[tT][sS][vV]")):
        if path.stem not in parts:
            raise StorageError(f"{path}: would be read as a part of this data set; fix: give another folder, or move it away")
    with writing(folder / "corpus.jsonl") as file:
        for document in dataset.corpus.values():
            file.write(json_bytes(_beir_row(document.id, document.text, document.metadata, title=document.title)) + b"\n")
    with writing(folder / "queries.jsonl") as file:
        for query in dataset.queries.values():
            file.write(json_bytes(_beir_row(query.id, query.text, query.metadata)) + b"\n")
    for part, ids in parts.items():
        with writing(folder / "qrels" / f"{part}.tsv") as file:
            file.write(b"query-id\tcorpus-id\tscore\n")
            for id in ids:
                file.writelines(f"{id}\t{document}\t{grade}\n".encode() for document, grade in dataset.qrels.get(id, {}).items())
    return folder


def write_jsonl(dataset: Dataset, folder: str | Path) -> Path:
    """Write queries.jsonl (id, query, expected, part, metadata) and documents.jsonl.

    ``load(folder / "queries.jsonl", folder / "documents.jsonl")`` reads them back.

    Raises:
        StorageError: The folder cannot be written.
    """
    folder = Path(folder)
    part_of = {id: part for part, ids in dataset.parts.items() for id in ids}
    with writing(folder / "documents.jsonl") as file:
        for document in dataset.corpus.values():
            row: Row = {"id": document.id, "text": document.text}
            if document.title:
                row["title"] = document.title
            file.write(json_bytes({**row, "metadata": dict(document.metadata)}) + b"\n")
    with writing(folder / "queries.jsonl") as file:
        for query in dataset.queries.values():
            # An empty list says that no document is right, an empty object that nobody judged.
            row = {"id": query.id, "query": query.text, "expected": dataset.qrels.get(query.id, {}) or []}
            if query.id not in dataset.qrels:
                row["expected"] = {}
            if query.id in part_of:
                row["part"] = part_of[query.id]
            file.write(json_bytes({**row, "metadata": dict(query.metadata)}) + b"\n")
    return folder


def _beir_row(id: str, text: str, metadata: Mapping[str, Any], *, title: str = "") -> Row:
    row: Row = {"_id": id, "text": text}
    if title:
        row["title"] = title
    if metadata:
        row["metadata"] = dict(metadata)
    return row
