"""A folder as a data set: queries, documents and judgements apart (BEIR, MTEB, MS MARCO), or tables by part."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from embedfit.data.apart import contents_apart, queries_of
from embedfit.data.columns import PART_OF_WORD, Columns, part_name
from embedfit.data.documents import documents_of
from embedfit.data.formats.hub import saved_rows
from embedfit.data.formats.opening import READERS, open_rows, suffix_of, with_last_error
from embedfit.data.formats.source import Options, Rows
from embedfit.data.judgements import has_judgement_columns, judgements_of, stem_of
from embedfit.data.texts import Contents
from embedfit.errors import DataError

_SECTIONS = {
    "corpus": ("corpus", "collection", "documents"),
    "queries": ("queries", "topics"),
    "qrels": ("qrels", "default", "data", "relevance", "relevant_docs", "judgements", "judgments"),
}
"""Section -> names of its file or folder. The first is BEIR's."""
_EXPECTED = "a BEIR folder: corpus.jsonl, queries.jsonl, qrels/*.tsv"
_MORE_QRELS = (".qrels", ".qrel", ".trec")


def stands_apart(folder: Path) -> bool:
    """Return whether a folder holds queries, documents and judgements apart, rather than labelled rows."""
    names = {stem_of(path) for path in folder.iterdir() if not path.name.startswith(".")}
    if _languages(names):
        return True
    return (
        sum(any(name == own or name.startswith(f"{own}.") for own in _SECTIONS[section][:2] for name in names) for section in _SECTIONS) > 1
    )


def _languages(names: Iterable[str]) -> list[str]:
    """Return the languages of a data set that has a corpus, queries and judgements for each, such as ``de-corpus``."""
    names = set(names)
    found = [name.removesuffix("-corpus") for name in sorted(names) if name.endswith("-corpus")]
    return [language for language in found if {f"{language}-queries", f"{language}-qrels"} <= names]


def documents_beside(folder: Path) -> Path | None:
    """Return the file of documents in a folder of labelled queries, as `write_jsonl` writes one; None if there is none."""
    tables = _tables(folder)
    files = [path for path in tables if stem_of(path) in ("documents", "corpus", "collection")]
    return files[0] if len(files) == 1 and len(tables) > 1 else None


def holds_tables(folder: Path) -> bool:
    """Return whether a folder holds a data set, and not documents to read: tables, and no text but a README."""
    names = {path.name for path in folder.iterdir()}
    texts = [
        name for name in names if Path(name).suffix.lower() in (".md", ".html", ".htm", ".pdf", ".rst") and stem_of(Path(name)) != "readme"
    ]
    tables = [path for path in _tables(folder) if suffix_of(path) != ".txt"]
    return stands_apart(folder) or not names.isdisjoint(("dataset_dict.json", "state.json")) or bool(tables and not texts)


def contents_of_folder(folder: Path, options: Options, columns: Columns, errors: list[DataError]) -> Contents:
    """Return the contents of a folder that holds queries, documents and judgements apart.

    Args:
        folder: BEIR's layout; a clone of a Hub data set with configurations ``corpus``, ``queries`` and ``qrels`` (or ``default``), as
            MTEB has them; or MS MARCO's ``collection.tsv``, ``queries.*.tsv`` and ``qrels.*.tsv``. Each may be any table.
        options: What the user says about files.
        columns: Names of the columns.
        errors: List that receives the errors of bad rows.

    Raises:
        DataError: The corpus, the queries or the judgements are missing.
    """
    configurations = _configurations(folder)
    languages = _languages([*configurations, *(stem_of(path) for path in folder.iterdir())])
    if len(languages) > 1:
        fix = "give a folder of one: its corpus, queries and qrels"
        raise DataError(str(folder), f"holds {len(languages)} data sets ({', '.join(languages)})", expected="one", fix=fix)
    prefix = f"{languages[0]}-" if languages else ""
    configurations = {name.removeprefix(prefix): files for name, files in configurations.items()}
    found = {section: _section(folder, section, configurations, prefix) for section in _SECTIONS}
    for section, paths in found.items():
        if not paths and not (folder / f"{prefix}{section}").is_dir():
            name = section if section == "qrels" else f"{section}.jsonl"
            raise DataError(str(folder), f"has no {name}", expected=_EXPECTED)
    corpus = documents_of(_one_table(found["corpus"], options), errors, columns)
    queries = queries_of(_one_table(found["queries"], options), errors, columns)
    judgements = ((name, judgements_of(path, queries, options)) for name, path in found["qrels"])
    return contents_apart(queries, corpus, judgements, str(folder), errors, queries_in=found["queries"][0][1].name)


def _section(folder: Path, section: str, configurations: Mapping[str, list[tuple[str, Path]]], prefix: str) -> list[tuple[str, Path]]:
    """Return (name of the part, file) for each file of a section. All names begin with the prefix."""
    for own in _SECTIONS[section]:
        name = f"{prefix}{own}"
        inside = folder / name
        if own in configurations:
            return configurations[own]
        if inside.is_dir():
            return [(path.stem if section == "qrels" else "", path) for path in _tables(inside, qrels=section == "qrels")]
        files = [
            path for path in _tables(folder, qrels=section == "qrels") if stem_of(path) == name or stem_of(path).startswith(f"{name}.")
        ]
        if files:
            return [(stem_of(path).partition(".")[2] or stem_of(path), path) for path in files]
    others = _tables(folder) if section == "qrels" else []
    return [(path.stem, path) for path in others if part_name(path.stem) and has_judgement_columns(_columns(path))]


def _columns(path: Path) -> tuple[str, ...]:
    """Return the columns of a table, or the keys of its first row."""
    table = open_rows(path, Options(lines=20))
    return table.columns or tuple(next((row for _, row in table.rows if not isinstance(row, DataError)), {}))


def _tables(folder: Path, *, qrels: bool = False) -> list[Path]:
    """Return the tables in a folder, by name."""
    suffixes = {*READERS, *(_MORE_QRELS if qrels else ())}
    return sorted(path for path in folder.iterdir() if path.is_file() and suffix_of(path) in suffixes and not path.name.startswith("."))


def _one_table(files: Iterable[tuple[str, Path]], options: Options) -> Rows:
    tables = [open_rows(path, options) for _, path in files]
    if len(tables) == 1:
        return tables[0]
    columns = tuple(dict.fromkeys(name for table in tables for name in table.columns))
    return Rows(tables[0].source, tables[0].format, itertools.chain.from_iterable(table.rows for table in tables), columns)


def _configurations(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Return {configuration: (split, file) for each of its files} as the README of a Hub data set lists them."""
    import yaml

    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    _, _, head = readme.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        listed = yaml.safe_load(head.partition("\n---")[0]).get("configs") or []
        found: dict[str, list[tuple[str, Path]]] = {}
        for configuration in listed:
            files = configuration.get("data_files") or []
            files = [{"split": "train", "path": files}] if isinstance(files, str) else files
            for entry in files:
                patterns = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
                paths = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
                found.setdefault(str(configuration["config_name"]), []).extend((str(entry["split"]), path) for path in paths)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, NotImplementedError):
        return {}
    return found


def rows_of_folder(folder: Path, options: Options) -> Rows:
    """Return the labelled rows of a folder: what `save_to_disk` wrote, or tables, of which the names may say the part.

    Raises:
        DataError: There is no table in the folder.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path for path in folder.iterdir() if (path / "state.json").is_file())
        return _joined(folder, [(part_name(path.name), saved_rows(path)) for path in splits])
    if (folder / "state.json").is_file():
        return saved_rows(folder)
    beside = documents_beside(folder)
    files = [path for path in _tables(folder) if path != beside] or [
        path for inside in sorted(folder.iterdir()) if inside.is_dir() for path in _tables(inside)
    ]
    files = [path for path in files if path.name not in ("dataset_infos.json", "dataset_info.json") and path.stem.lower() != "readme"]
    if any(suffix_of(path) != ".txt" for path in files):  # else a note beside the tables would be one
        files = [path for path in files if suffix_of(path) != ".txt"]
    if not files:
        raise DataError(str(folder), "holds no table", expected=f"{_EXPECTED}; or files such as train.jsonl, test.parquet")
    parts = [part_name(path.stem) or PART_OF_WORD.get(path.parent.name.casefold() if path.parent != folder else "", "") for path in files]
    if len(files) > 1 and not any(parts) and len({suffix_of(path) for path in files}) > 1:
        names = ", ".join(path.name for path in files[:5])
        raise DataError(str(folder), f"holds tables of several formats ({names})", expected=_EXPECTED, fix="name one of the files")
    return _joined(folder, [(part, open_rows(path, options)) for part, path in zip(parts, files, strict=True)])


def _joined(folder: Path, tables: list[tuple[str, Rows]]) -> Rows:
    """Return the rows of several tables. A row without a part gets that of its table."""

    def rows() -> Iterator[tuple[str, Any]]:
        for part, table in tables:
            for where, row in with_last_error(table.rows):
                yield where, row if isinstance(row, DataError) or not part or "part" in row else {**row, "part": part}

    if not tables:
        raise DataError(str(folder), "holds no split", expected="a data set that save_to_disk wrote")
    columns = tuple(dict.fromkeys(name for _, table in tables for name in table.columns))
    return Rows(str(folder), f"folder of {tables[0][1].format}", rows(), (*columns, "part") if columns else ())
