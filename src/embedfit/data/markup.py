"""The sections of a file, under their headings: Markdown, HTML, plain text and PDF."""

from __future__ import annotations

import io
import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedfit.errors import DataError, require

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

LONGEST_HEADING = 150
"""Maximum length of a heading or title in characters. A longer one is text."""


@dataclass(frozen=True)
class Section:
    """A part of a file.

    Attributes:
        headings: Headings above it, from the outermost to its own.
        text: Its text, without the headings.
        pages: For a PDF, the position in the text where each page starts.
    """

    headings: tuple[str, ...]
    text: str
    pages: tuple[int, ...] = ()


@dataclass(frozen=True)
class Markup:
    """A file that was read.

    Attributes:
        title: Its own title; an empty string if it has none.
        sections: Its sections with text, in order.
    """

    title: str
    sections: list[Section]


def read_markdown(text: str) -> Markup:
    """Return the sections of a Markdown text. Its title is that of its front matter, or its first heading of level 1."""
    front = re.match(r"---[ \t]*\n(.*?\n)??(?:---|\.\.\.)[ \t]*(?:\n|\Z)", text, re.DOTALL)
    title = ""
    if front:
        named = re.search(r"^title[ \t]*:[ \t]*(\S.*)$", front[1] or "", re.MULTILINE)
        title = _one_line(named[1]).strip("'\"") if named else ""
        text = text[front.end() :]
    return _titled(title, _markdown_lines(text))


def read_text(text: str) -> Markup:
    """Return a plain text as one section."""
    return _titled("", [(0, text)])


_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_BREAK = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_CONTAINER = re.compile(r" {0,3}(?:[-*+](?:\s|$)|\d{1,9}[.)](?:\s|$)|>|<)")


def _markdown_lines(text: str) -> list[tuple[int, str]]:
    """Return (level, heading) and (0, line) for the lines of a Markdown text."""
    lines: list[tuple[int, str]] = []
    fence, in_comment = "", False
    paragraph: int | None = 0  # number of its lines so far; None within a list, a quote or HTML
    for line in text.split("\n"):
        mark, atx, setext = _FENCE.match(line), _ATX.match(line), _SETEXT.match(line)
        level = 0
        if fence:
            closes = mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not line.strip(" \t`~")
            fence, paragraph = "" if closes else fence, 0
        elif in_comment or re.match(r" {0,3}<!--", line):
            in_comment, paragraph = "-->" not in line, 0
        elif mark:
            fence, paragraph = mark[1], 0
        elif atx:
            level, line, paragraph = len(atx[1]), atx[2] or "", 0
        elif setext and paragraph:
            level, line = 1 if setext[1][0] == "=" else 2, " ".join(before.strip() for _, before in lines[-paragraph:])
            del lines[-paragraph:]
            paragraph = 0
        elif not line.strip() or _BREAK.match(line):
            paragraph = 0
        elif _CONTAINER.match(line):
            paragraph = None
        elif paragraph or (paragraph == 0 and not line.startswith(("    ", "\t"))):  # else it is code, or goes on with a list
            paragraph += 1
        lines.append((level, line))
    return lines


def _plain(heading: str) -> str:
    """Return a heading without the marks of Markdown."""
    heading = re.sub(r"\s*\{[#.:][^{}]*\}\s*$", "", heading)
    heading = re.sub(r"!?\[([^\[\]]*)\]\([^()]*\)", r"\1", heading)
    heading = re.sub(r"(?<!\w)(\*{1,3}|_{1,3}|`+)(?=\S)(.+?)(?<=\S)\1(?!\w)", r"\2", heading)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", heading)


def _titled(title: str, lines: list[tuple[int, str]]) -> Markup:
    """Return the sections of lines, each (level, heading) or (0, text)."""
    sections: list[Section] = []
    above: dict[int, str] = {}
    text: list[str] = []

    def close(level: int) -> None:
        """End a section before a heading of some level. A heading with nothing below it is a section that says its name."""
        inner = max(above, default=0)
        whole = "\n".join(text).strip("\n") or (above[inner] if level <= inner and tuple(above.values()) not in seen else "")
        if whole.strip():
            sections.append(Section(tuple(above.values()), whole))
            seen.update(itertools.accumulate(((name,) for name in above.values()), initial=()))
        text.clear()

    seen: set[tuple[str, ...]] = {()}
    for level, line in lines:
        heading = _one_line(_plain(line)) if level else ""
        if not level or len(heading) > LONGEST_HEADING:
            text.append(line)
            continue
        close(level)
        above = {outer: name for outer, name in above.items() if outer < level}
        if heading:
            above[level] = heading
    close(0)
    first = next((heading for level, line in lines if level == 1 and (heading := _one_line(_plain(line)))), "")
    if 0 < len(first) <= LONGEST_HEADING and title in ("", first):
        title = first
        sections = [Section(part.headings[1:], part.text) if part.headings[:1] == (first,) else part for part in sections]
    return Markup(title[:LONGEST_HEADING], sections)


def _one_line(text: str) -> str:
    return " ".join(text.split())


_LEFT_OUT = {"script", "style", "noscript", "template", "svg", "nav", "footer", "head", "iframe", "object", "select", "button", "-comment"}
_BLOCKS = re.compile(
    r"address|article|aside|blockquote|body|caption|d[dlt]|details|dialog|div|fieldset|fig(caption|ure)|form|header|hr|html|legend|li|main|"
    r"menu|[ou]l|p|section|summary|table|t(body|d|foot|h|head|r)"
)


def read_html(text: str) -> Markup:
    """Return the sections of an HTML page: of its ``<main>`` if it has one, without navigation, footers and scripts."""
    from selectolax.lexbor import LexborHTMLParser

    page = LexborHTMLParser(text)
    named = page.css_first("title")
    root = page.css_first("main") or page.css_first("[role=main]") or page.body or page.root
    lines: list[tuple[int, str]] = []
    if root is not None:
        for level, block in _html_blocks(root):
            lines += [(level, block)] if level else [(0, block), (0, "")]
    read = _titled("", lines)
    return Markup(read.title or (_one_line(named.text())[:LONGEST_HEADING] if named else ""), read.sections)


def _html_blocks(root: LexborNode) -> Iterator[tuple[int, str]]:
    """Yield (level, heading) and (0, text of a block) for an element. The stack is explicit, as pages may be nested very deep."""
    inline: list[str] = []

    def flush(level: int = 0) -> Iterator[tuple[int, str]]:
        text = "".join(inline)
        text = "\n".join(filter(None, (" ".join(line.split()) for line in text.split("\0"))))
        inline.clear()
        if text:
            yield level, text

    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, closes = stack.pop()
        tag = node.tag or ""
        heading = int(tag[1]) if len(tag) == 2 and tag[0] == "h" and tag[1] in "123456" else 0
        if closes:
            if tag in ("td", "th"):
                inline.append(" | ")
            elif heading or _BLOCKS.fullmatch(tag):
                yield from flush(heading)
            continue
        if tag == "-text":
            inline.append(node.text_content or "")
        elif tag == "br":
            inline.append("\0")
        elif tag == "pre":
            yield from flush()
            code = node.text(deep=True).strip("\n")
            if code.strip():
                yield 0, code
        elif tag not in _LEFT_OUT and "hidden" not in node.attributes:
            if (heading or _BLOCKS.fullmatch(tag)) and tag not in ("td", "th"):
                yield from flush()
                inline.extend(["- "] if tag == "li" else [])
            stack.append((node, True))
            children = list(node.iter(include_text=True))
            stack.extend((child, False) for child in reversed(children))


def read_pdf(raw: bytes, where: str) -> Markup:
    """Return the text of a PDF as one section. Scanned pages have none.

    Raises:
        DataError: The file is not a PDF, is damaged, or needs a password.
        EmbedfitError: pypdf is not installed.
    """
    pypdf = require("pypdf", extra="pdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError(where, "needs a password", fix="save a copy without one")
        title = (reader.metadata.title if reader.metadata else None) or ""
        pages = [(page.extract_text() or "").strip("\n") for page in reader.pages]
    except DataError:
        raise
    except Exception as error:  # pypdf raises whatever a damaged file leads to
        raise DataError(where, f"is a PDF that cannot be read ({_one_line(str(error)) or type(error).__name__})") from None
    pages = [f"{page}\n\n" for page in pages]
    starts = tuple(itertools.accumulate((len(page) for page in pages[:-1]), initial=0))
    text = "".join(pages).rstrip("\n")
    return Markup(_one_line(str(title))[:LONGEST_HEADING], [Section((), text, starts)] if text.strip() else [])
