"""A folder of Markdown, HTML, text and PDF files as documents: every file cut into passages, with ids that outlast edits elsewhere."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedfit import console, progress
from embedfit.data.chunks import Counter, Passage, passages_of
from embedfit.data.formats.encodings import read_lines
from embedfit.data.markup import Markup, Section, read_html, read_markdown, read_pdf, read_text
from embedfit.data.texts import Contents, Document
from embedfit.errors import ConfigError, DataError
from embedfit.template import DOCUMENT_TEMPLATE, Template

_READERS: dict[str, Callable[[str], Markup]] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".mdx": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".txt": read_text,
    ".text": read_text,
    ".rst": read_text,
}
SUFFIXES = (*_READERS, ".pdf")
"""Endings of the files that are read."""
_LARGEST = 100 * 2**20
"""Size in bytes above which a file is refused: it would be read whole."""
_JOIN = " > "
_LEAST = 16
"""Tokens that a title may always take, and characters of one that is too long."""
_SHOWN = 3


def about_tokens(texts: Sequence[str]) -> list[int]:
    """Return an estimate of the number of tokens of each text that is rarely too small: a token for three bytes."""
    return [len(text.encode("utf-8", "surrogatepass")) // 3 + 2 for text in texts]


@dataclass(frozen=True)
class Cutting:
    """How files are cut into passages.

    Attributes:
        count: Function that counts the tokens of texts as the model reads them.
        tokens: Maximum number of tokens of a passage, with its title.
        overlap: Maximum number of tokens that a passage repeats of the one before. By default an eighth of ``tokens``.
        template: Template of a document's text.
        encoding: Encoding of text files that are not UTF-8; empty for none.

    Raises:
        ConfigError: The overlap is more than half of a passage.
    """

    count: Counter = about_tokens
    tokens: int = 256
    overlap: int | None = None
    template: str = DOCUMENT_TEMPLATE
    encoding: str = ""

    def __post_init__(self) -> None:
        """Refuse an overlap that leaves too little room."""
        if self.repeated > self.tokens // 2:
            raise ConfigError(f"passage_overlap is {self.overlap}; expected at most half of passage_tokens, which is {self.tokens}")

    @property
    def repeated(self) -> int:
        """Maximum number of tokens that a passage repeats."""
        return self.tokens // 8 if self.overlap is None else self.overlap


@dataclass
class Folder:
    """Documents of a folder.

    Attributes:
        documents: Passages by id.
        names: Path of a file, or of a file and a section in it -> ids of its passages.
    """

    documents: dict[str, Document] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, Document]:
        """What a label may name: passages, and the names of files and sections, which stand for all of their passages."""
        return {**{name: Document(name, name) for name in self.names}, **self.documents}

    def resolved(self, contents: Contents, source: str) -> Contents:
        """Return contents whose judgements of files and sections are judgements of passages. A judged passage keeps its own grade."""
        judged = 0
        qrels = {}
        for query, grades in contents.qrels.items():
            named = {id: grade for id, grade in grades.items() if id not in self.documents}
            judged += len(named)
            # The grade of a section goes before that of its file.
            spread = {id: named[name] for name in sorted(named, key=len) for id in self.names.get(name, (name,))}
            qrels[query] = {**spread, **{id: grade for id, grade in grades.items() if id in self.documents}}
        if judged:
            console.note(f"{source}: labels that name a file or a section, and stand for all of its passages: {judged:,}")
        # Rows of some tools bring passages along that are in none of the files.
        added = {id: document for id, document in contents.corpus.items() if id not in self.documents and id not in self.names}
        return contents._replace(corpus={**self.documents, **added}, qrels=qrels)


def read_folder(folder: str | Path, cutting: Cutting, errors: list[DataError]) -> Folder:
    """Read a folder of documents.

    Links and hidden files are left out, and so are files of other types. A note counts them.

    Args:
        folder: Folder; all of its subfolders are read too.
        cutting: How files are cut into passages.
        errors: List that receives an error for each file that cannot be read.

    Raises:
        DataError: There is no text in the folder.
        EmbedfitError: There are PDF files, and pypdf is not installed.
    """
    folder = Path(folder)
    left_out: Tally[str] = Tally()
    files = sorted(_files(folder, left_out, errors))
    read = Folder()
    count = 0
    silent: list[str] = []
    with progress.bar(f"reading {folder.name or folder}", len(files)) as advance:
        for name, path in files:
            try:
                if name in read.names:
                    raise DataError(str(path), "has the name of another file, written with other characters", fix="rename one")
                markup = _read(path, cutting.encoding)
                _add(read, name, markup, cutting)
                count += bool(markup.sections)
                silent += [] if markup.sections else [name]
            except OSError as error:
                errors.append(DataError(str(path), f"cannot be read: {error.strerror or error}"))
            except DataError as error:
                errors.append(error)
            advance(1)
    _note(folder, cutting, count, len(read.documents), silent, left_out)
    if not read.documents and not errors:
        raise DataError(str(folder), "has no documents", expected=f"files that end in {', '.join(SUFFIXES)}")
    return read


def _files(folder: Path, left_out: Tally[str], errors: list[DataError]) -> Iterator[tuple[str, Path]]:
    """Yield (path within the folder, path) for the files to read, and count the others."""
    folders = [folder]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError as error:
            errors.append(DataError(str(error.filename), f"cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            path = Path(entry.path)
            suffix = path.suffix.lower()
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif entry.is_symlink():
                left_out["links"] += 1
            elif entry.is_dir():
                folders.append(path)
            elif not entry.is_file() or suffix not in SUFFIXES:
                left_out[suffix or "without an ending"] += 1
            else:
                name = unicodedata.normalize("NFC", path.relative_to(folder).as_posix())
                if name.isprintable():
                    yield name, path
                else:
                    errors.append(DataError(repr(entry.path), "has a name with characters that are not text", fix="rename it"))


def _note(folder: Path, cutting: Cutting, files: int, passages: int, silent: list[str], left_out: Tally[str]) -> None:
    """Say what was read, and what was not."""
    if passages:
        console.note(f"{folder}: {files:,} files are read as {passages:,} passages of at most {cutting.tokens:,} tokens")
    parts = [f"{count:,} {kind}" for kind, count in left_out.most_common()]
    if silent:
        more = ", ..." if len(silent) > _SHOWN else ""
        parts.append(f"{len(silent):,} without text ({', '.join(silent[:_SHOWN])}{more})")
    if parts:
        console.note(f"{folder}: files that are not read: {', '.join(parts)}")


def _read(path: Path, encoding: str) -> Markup:
    """Return the sections of a file.

    Raises:
        DataError: The file is too large, is not text in a known encoding, or is a PDF that cannot be read.
    """
    size = path.stat().st_size
    if size > _LARGEST:
        raise DataError(str(path), f"has {size / 2**20:,.0f} MiB", expected=f"at most {_LARGEST / 2**20:.0f}", fix="divide it, or move it")
    raw = path.read_bytes()
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        return read_pdf(raw, str(path)) if raw.strip() else Markup("", [])
    text = _decoded(raw, path, encoding).replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise DataError(str(path), "has zero bytes", expected="text")
    return _READERS[suffix](text)


_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([\w-]{1,40})""", re.IGNORECASE)


def _decoded(raw: bytes, path: Path, encoding: str) -> str:
    """Return the text of a file: in UTF-8, in the encoding of its byte order mark, or for HTML in the one that it names."""
    try:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            return raw.decode("utf-16")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    named = _CHARSET.search(raw[:4096]) if path.suffix.lower() not in (".txt", ".text", ".rst", ".md") else None
    try:
        if named:
            # Browsers read Latin-1 as Windows' superset of it.
            name = named[1].decode().lower()
            return raw.decode("cp1252" if name in ("iso-8859-1", "latin1", "us-ascii") else name)
    except (UnicodeDecodeError, LookupError):
        pass
    return "".join(line for _, line in read_lines(path, encoding))  # or raises, with the place and the fix


def _add(read: Folder, name: str, markup: Markup, cutting: Cutting) -> None:
    """Add the passages of a file."""
    title = markup.title or Path(name).stem.replace("_", " ").replace("-", " ")
    read.names[name] = []
    for section in markup.sections:
        key = "/".join(_slug(heading) for heading in section.headings)
        within = f"{name}#{key}" if key else name
        heading, rest = _fitted((title, *section.headings), cutting)
        metadata = {"path": name, **({"heading": _JOIN.join(section.headings)} if section.headings else {})}
        rendered = _renderer({**metadata, "id": within, "title": heading}, cutting)
        whole = f"{rest}\n\n{section.text}" if rest else section.text
        for passage in passages_of(whole, cutting.count, cutting.tokens, cutting.repeated, rendered):
            own = " ".join(whole[passage.own : passage.end].split())
            id = _unused(f"{within}:{hashlib.sha256(own.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}", read)
            text = whole[passage.start : passage.end].strip()
            read.documents[id] = Document(id, text, heading, {**metadata, **_page(section, passage)})
            for place in _above(name, section):
                read.names.setdefault(place, []).append(id)


def _above(name: str, section: Section) -> Iterator[str]:
    """Yield the names that stand for a section: its file, and the sections that it is part of."""
    yield name
    slugs = [_slug(heading) for heading in section.headings]
    for depth in range(1, len(slugs) + 1):
        yield f"{name}#{'/'.join(slugs[:depth])}"


def _slug(heading: str) -> str:
    """Return a heading in the form of an address: small letters and digits, with hyphens between words."""
    return re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", heading).casefold()).strip("-") or "section"


def _unused(id: str, read: Folder) -> str:
    number = 1
    candidate = id
    while candidate in read.documents or candidate in read.names:
        number += 1
        candidate = f"{id}-{number}"
    return candidate


def _page(section: Section, passage: Passage) -> dict[str, Any]:
    return {"page": bisect_right(section.pages, passage.own)} if section.pages else {}


def _renderer(fields: dict[str, Any], cutting: Cutting) -> Callable[[str], str]:
    template = Template(cutting.template)
    return lambda text: template.render({**fields, "text": text})


def _fitted(parts: Sequence[str], cutting: Cutting) -> tuple[str, str]:
    """Return the title of a passage, and a heading that is too long for it and belongs to the text.

    Args:
        parts: Title of the file, and the headings.
        cutting: The title takes at most a third of a passage.
    """
    for chosen in (parts, (parts[0], parts[-1]), parts[-1:]):
        title = _JOIN.join(dict.fromkeys(chosen))
        if cutting.count([title])[0] <= max(_LEAST, cutting.tokens // 3):
            return title, ""
    return parts[-1][:_LEAST], parts[-1]
