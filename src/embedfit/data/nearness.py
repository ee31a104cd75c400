"""What makes two texts near copies: the number of words that may differ, other orders, accents and typos."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rapidfuzz.distance import OSA, Levenshtein

from embedfit.words import plain, words_of

_WORDS_PER_EDIT = 12
"""Words of a text for each word that may differ. docs/decisions.md has the figures."""
REORDERED = 4
"""Minimum number of words of a text whose words may be reordered."""
_LETTERS, OTHER_WORDS = 5, 2
"""Minimum number of letters of a word with a typo, and of other words in the text. "card" and "care" are different words, and so are
"store" and "stove"."""
_FIELDS = 3
"""Minimum number of lines (or parts between bars or semicolons) that start with a name and a colon, in a record."""
_FIELD_NAME = re.compile(r"(?:^|[\n|;])[ \t]*((?:[^\s:|;]+[ \t]+){0,3}[^\s:|;]+)[ \t]*:(?=\s|$)")


@dataclass(frozen=True)
class Text:
    """A text in the form that is compared.

    Attributes:
        words: Words without accents.
        edits: Number of words that may differ.
    """

    words: tuple[str, ...]
    edits: int

    @classmethod
    def of(cls, text: str) -> Text:
        """Return a text in this form."""
        words = words_of(text)
        return cls(tuple(map(plain, words)), edits_of(text, len(words)))

    def twins(self) -> Iterator[tuple[int, str]]:
        """Yield (hash, word) keys that texts share if they differ only in accents, in order or by a typo.

        The hash is that of all words, with an empty word; or of all words but one, with that word.
        """
        yield hash(self.words if len(self.words) < REORDERED else tuple(sorted(self.words))), ""
        if not self.edits and len(self.words) > OTHER_WORDS:  # if a word may differ, a letter may too
            for place, word in enumerate(self.words):
                if may_slip(word):
                    yield hash((place, *self.words[:place], *self.words[place + 1 :])), word


def edits_of(text: str, words: int) -> int:
    """Return the number of words that may differ in a text of so many words. The field names of a record do not count."""
    names = _FIELD_NAME.findall(text) if text.count(":") >= _FIELDS else []
    return (words - (sum(len(words_of(name)) for name in names) if len(names) >= _FIELDS else 0)) // _WORDS_PER_EDIT


def near(left: Text, right: Text) -> bool:
    """Return whether two texts are copies or near copies."""
    first, second = left.words, right.words
    if first == second:
        return True
    edits = min(left.edits, right.edits)
    if edits and Levenshtein.distance(first, second, score_cutoff=edits) <= edits:
        return True
    if len(first) != len(second):
        return False
    if len(first) >= REORDERED and sorted(first) == sorted(second):
        return True
    if left.edits or right.edits or len(first) <= OTHER_WORDS:
        return False
    differing = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
    return len(differing) == 1 and _slipped(*differing[0])


def may_slip(word: str) -> bool:
    """Return whether a word is long enough for a typo, or would be with one letter more."""
    return len(word) >= _LETTERS - 1 and word.isalpha()


def _slipped(left: str, right: str) -> bool:
    """Return whether two words differ by one typo."""
    longer = max(len(left), len(right))
    return longer >= _LETTERS and may_slip(left) and may_slip(right) and OSA.distance(left, right, score_cutoff=1) <= 1


def without_a_letter(word: str) -> set[str]:
    """Return a word, and the word without each of its letters. The sets of two words that differ by a typo overlap."""
    return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}
