"""Long texts as passages: cut along paragraphs and sentences, within a budget of tokens, each with the end of the one before.

A cut depends on the text around it alone: among the cuts that leave a passage between half full and full, the best is one between
paragraphs, and among equals the one whose text has the smallest checksum. So an edit moves the cuts beside it, and passages further on
stay as they were. Passages that were filled one after another would all move.
"""

from __future__ import annotations

import itertools
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import regex

from embedfit.errors import ConfigError

Counter: TypeAlias = Callable[[Sequence[str]], Sequence[int]]
"""Texts -> number of tokens of each, with the tokens that the model adds to every text."""


class Passage(NamedTuple):
    """Positions of a passage in its text.

    Attributes:
        start: First character, with what is repeated of the passage before.
        own: First character that no earlier passage has.
        end: Position after the last character.
    """

    start: int
    own: int
    end: int


class _Unit(NamedTuple):
    start: int
    end: int
    tokens: int
    level: int  # of the cut before it: 0 between paragraphs, 1 between sentences, and so on


def passages_of(text: str, count: Counter, budget: int, overlap: int, within: Callable[[str], str] = str) -> list[Passage]:
    """Return the passages of a text.

    Args:
        text: Text to cut.
        count: Function that counts tokens.
        budget: Maximum number of tokens of a passage.
        overlap: Number of tokens at most that a passage repeats of the one before.
        within: Function from a passage, without outer white space, to the text that the model reads, with a title for example.

    Returns:
        The passages in order. Their own parts make up the text.

    Raises:
        ConfigError: The budget is too small for what is put around a passage.
    """
    if not text.strip():
        return []
    empty, whole = count([within(""), within(text.strip())])
    if whole <= budget:
        return [Passage(0, 0, len(text))]
    alone = count([""])[0]
    room = budget - empty - overlap
    while room > 0:
        units = _units(text, lambda texts: [tokens - alone for tokens in count(texts)], room)
        passages = _packed(text, units, room, overlap)
        # Tokens of parts need not add up to those of the whole.
        excess = max(count([within(text[passage.start : passage.end].strip()) for passage in passages])) - budget
        if excess <= 0:
            return passages
        room -= excess
    raise ConfigError(f"passages of {budget} tokens have no room for text beside a title; fix: raise passage_tokens in [data]")


def _units(text: str, count: Counter, room: int) -> list[_Unit]:
    """Return the smallest parts of a text that are cut no further: paragraphs, or sentences of long ones, or parts of long sentences."""
    units = [_Unit(0, len(text), len(text), 0)]
    most, fine = room // 4, max(1, room // 8)
    finer: tuple[tuple[Callable[[str, int, int], Iterator[int]], int], ...] = (
        (_paragraph_ends, 0),
        (_sentence_ends, most),
        (lambda text, start, end: _ends(_runs(rf"(?:\S+\s*){{1,{fine}}}"), text, start, end), room),
        (lambda text, start, end: _ends(_runs(rf"\X{{1,{fine}}}"), text, start, end), room),
        (lambda text, start, end: iter(range(start + 1, end + 1)), room),
    )
    for level, (ends, largest) in enumerate(finer):
        parts: list[_Unit] = []
        for unit in units:
            if unit.tokens <= largest:
                parts.append(unit)
                continue
            edges = [unit.start, *(end for end in ends(text, unit.start, unit.end) if end < unit.end), unit.end]
            levels = itertools.chain([unit.level], itertools.repeat(level))
            parts += [_Unit(start, end, -1, rank) for (start, end), rank in zip(itertools.pairwise(edges), levels, strict=False)]
        new = [unit for unit in parts if unit.tokens < 0]
        counted = iter(count([text[unit.start : unit.end] for unit in new]) if new else ())
        units = [unit._replace(tokens=max(0, next(counted))) if unit.tokens < 0 else unit for unit in parts]
    return units


def _packed(text: str, units: Sequence[_Unit], room: int, overlap: int) -> list[Passage]:
    """Return passages of adjacent units, each with at most so many tokens of its own."""
    total = [0, *itertools.accumulate(unit.tokens for unit in units)]
    firsts = [0]
    while total[-1] - total[firsts[-1]] > room:
        first = firsts[-1]
        full = max(first + 1, bisect_right(total, total[first] + room) - 1)
        half = max(first + 1, bisect_right(total, total[first] + room // 2))
        half = min(half, full)
        full = max(half, min(full, bisect_right(total, total[-1] - room // 4) - 1))  # a last passage of a few words says little
        firsts.append(min(range(half, full + 1), key=lambda place: _cut_rank(text, units[place - 1], units[place])))
    passages: list[Passage] = []
    for first, last in itertools.pairwise([*firsts, len(units)]):
        own, end = units[first].start, units[last - 1].end
        if text[own:end].strip():
            passages.append(Passage(_repeated_from(text, units, first, overlap), own, end))
        elif passages:  # white space alone
            passages[-1] = passages[-1]._replace(end=end)
    return [passages[0]._replace(start=0, own=0), *passages[1:]]


def _cut_rank(text: str, before: _Unit, after: _Unit) -> tuple[int, int]:
    return after.level, zlib.crc32(text[before.start : before.end].strip().encode("utf-8", "surrogatepass"))


def _repeated_from(text: str, units: Sequence[_Unit], first: int, overlap: int) -> int:
    """Return where a passage starts that repeats the end of the one before: whole units, or the last words of a long one."""
    start, left = units[first].start, overlap
    place = first
    while place and units[place - 1].tokens <= left:
        place -= 1
        start, left = units[place].start, left - units[place].tokens
    if place == first and first and overlap:
        before = units[first - 1]
        characters = (before.end - before.start) * overlap // max(1, before.tokens)
        word = regex.search(r"(?<=\s)\S", text, pos=before.end - characters, endpos=before.end)
        start = word.start() if word else start
    return start


def _ends(pattern: regex.Pattern[str], text: str, start: int, end: int) -> Iterator[int]:
    return (match.end() for match in pattern.finditer(text, start, end))


def _runs(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern)


_FENCE = regex.compile(r" {0,3}(`{3,}(?=[^`\n]*$)|~{3,})", regex.MULTILINE)


def _paragraph_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Yield where paragraphs end, after their blank lines. A fenced block of code is one paragraph."""
    fence, position, blank = "", start, False
    for line in regex.finditer(r"[^\n]*\n?", text, pos=start, endpos=end):
        if not line[0]:
            continue
        position = line.start()
        if not fence and not line[0].strip():
            blank = True
            continue
        if blank:
            yield position
            blank = False
        mark = _FENCE.match(line[0])
        if fence:
            fence = "" if mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not line[0].strip(" `~\n\r") else fence
        elif mark:
            fence = mark[1]


_SENTENCE = regex.compile(
    r"""(?:(?<!\b(?:\p{L}|Dr|Mr|Mrs|Ms|Prof|St|No|Nr|Fig|vs|cf|ca))\.|[!?…])+["'”’»)\]]*\s+(?=["'“‘«(\[]*[\p{Lu}\p{Lt}\p{Lo}\p{N}])"""
    r"""|[。！？｡]+["'”’」』）]*\s*|[؟।॥]+\s+|\n(?=\s*(?:[-*+•|>]|\d+[.)])\s)"""
)
_LINE = regex.compile(r"\n")


def _sentence_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Yield where sentences end, or items of lists, rows of tables and lines of code."""
    is_code = bool(_FENCE.match(text, start, end))
    return _ends(_LINE if is_code else _SENTENCE, text, start, end)
