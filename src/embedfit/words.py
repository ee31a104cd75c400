"""The words of a text, in every script. One tokenizer serves BM25, near duplicates and the checks of generated texts.

A word is a run of letters, combining marks and digits (Unicode Standard Annex #29, with the rules that follow). Case, white
space, compatible forms (full width, ligatures), invisible characters and lookalike letters of other scripts make no difference.

Punctuation between words is dropped, unless it carries meaning. These signs do:

- an apostrophe inside a word (``he'll`` is not ``hell``), and ``. , : ; / ' -`` between two digits (``2.5``, ``1-2``, ``12:30``);
- an apostrophe, a prime or a quote after a digit (``5'``, ``5"``), but not where it ends what another one began;
- ``-``, ``.`` and ``!`` that touch a word on one side alone (``-5``, ``.NET``, ``!x``, ``A-``), but not the end of a sentence;
- symbols, wherever they stand (``+``, ``$``, ``%``, ``#``, ``&``, ``/``, ``@``, emoji). Each run of one symbol is a word of its own,
  so ``C++`` is ``c`` and ``++``, and ``5 %`` is ``5%``.

All other punctuation parts words and never joins them: ``A/B`` is not ``AB``, and neither is ``A.B``.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from typing import Any

_APOSTROPHES = dict.fromkeys("’‘‛ʼʹ´`′", "'") | {"″": '"', "‴": "'\""}
_HYPHENS = dict.fromkeys("‐‑‒–−", "-")
_RAISED = {raised: f"^{digit}" for digit, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
# NFKC makes 2½ "21/2" and 10² "102".
_PARTS = {
    chr(code): f" {unicodedata.normalize('NFKC', chr(code)).replace(chr(0x2044), '/')}"
    for code in (*range(0xBC, 0xBF), *range(0x2150, 0x2160), 0x2189)
}
_BEFORE = str.maketrans(_APOSTROPHES | _HYPHENS | _RAISED | _PARTS)

# Letters that look like a Latin one. Greek β, μ, γ and the like are left out: "β cells" are not "B cells", "5 μg" is not "5 mg".
_CYRILLIC = str.maketrans("АВЕКМНОРСТУХІЈЅаеорсухіјѕһԁԛԝ", "ABEKMHOPCTYXIJSaeopcyxijshdqw")
_GREEK = str.maketrans("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυχ", "ABEZHIKMNOPTYXaikvopux")
_ALONE = frozenset("АВЕКМНОРСТУХІЈЅаеорсухіјѕһԁԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧο")
"""Letters read as Latin even in a word without Latin letters, if the text has no other letter of their script."""
_LOOKALIKES = _CYRILLIC | _GREEK
_BACK = {name: {latin: code for code, latin in letters.items()} for name, letters in (("cyrillic", _CYRILLIC), ("greek", _GREEK))}
"""The inverse: Latin letters in a word of another script."""

# Letters that Arabic and Persian keyboards encode differently.
_ARABIC = str.maketrans("یک", "يك")
_NASALS = {"ङ": "कखगघ", "ञ": "चछजझ", "ण": "टठडढ", "न": "तथदध", "म": "पफबभ"}
"""Nasals that Devanagari writes before these letters either in full or as a dot, the anusvara: हिन्दी, हिंदी."""

_PLAIN = str.maketrans("øłđıħŧŀ", "oldihtl")


def words_of(text: str) -> tuple[str, ...]:
    """Return the folded words of a text, in order. In a script without spaces, each character with its marks is a word.

    A text of punctuation only keeps it, so that such texts can be told apart.
    """
    folded = _folded(text)
    if folded.isascii():
        return tuple(_patterns().ascii_token.findall(folded) or folded.split())
    pieces: list[str] = []
    for match in _patterns().token.finditer(folded):
        pieces.extend(_patterns().character.findall(match[0]) if match.lastgroup == "spaceless" else (match[0],))
    return tuple(pieces or folded.split())


def search_words(text: str, *, single: bool = False) -> list[str]:
    """Return the search terms of a text: the words of `words_of`, without the English 's.

    In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and in Korean, which attaches particles to words, the
    terms are pairs of adjacent characters. An isolated character is a term by itself.

    Args:
        text: Text of a query or a document.
        single: Whether to add each single character of such scripts, as for documents, so that a query of one character finds them.
    """
    folded = _folded(text)
    if folded.isascii():
        return [piece.removesuffix("'s") for piece in _patterns().ascii_token.findall(folded)]
    pieces: list[str] = []
    for match in _patterns().token.finditer(folded):
        if not match.lastgroup:
            pieces.append(match[0].removesuffix("'s"))
            continue
        characters = _patterns().character.findall(match[0])
        pieces.extend(map("".join, itertools.pairwise(characters)))
        if single or len(characters) == 1:
            pieces.extend(characters)
    return pieces


def plain(word: str) -> str:
    """Return a word without the accents and vowel points that people often omit (Latin, Greek, Cyrillic, Hebrew, Arabic).

    Marks of other scripts, such as the vowel signs of Devanagari, act as letters and stay.
    """
    if word.isascii():
        return word
    # Only after letters: the stroke through ≠, ∉ or ≮ is no accent.
    bare = _patterns().accent.sub("", unicodedata.normalize("NFD", word).translate(_PLAIN))
    return unicodedata.normalize("NFC", bare)


def _folded(text: str) -> str:
    """Return a text without the differences that words ignore."""
    if text.count("*") > 1:
        text = _patterns().emphasis.sub(r"\2", text)
    if text.isascii():
        return _measures(text.replace("`", "'")).lower()
    text = unicodedata.normalize("NFKC", text.translate(_BEFORE))
    text = _patterns().invisible.sub("", text)
    if _patterns().other_script.search(text):
        text = _one_script(text)
    text = _patterns().other_digit.sub(lambda digit: _digit(digit[0]), text)
    text = _patterns().nasal.sub("ं", text.translate(_ARABIC))
    return unicodedata.normalize("NFKC", _measures(text).casefold())


def _measures(text: str) -> str:
    """Return a text in which quotes after a digit mean only feet, inches, minutes or seconds, and two single quotes are a double one.

    A closing quote becomes a bracket, which carries no meaning.
    """
    if "'" not in text and '"' not in text and "”" not in text:
        return text
    patterns = _patterns()
    text = patterns.quotation.sub(lambda quotation: f"{quotation[0][:-1]}(", text)
    return str(patterns.seconds.sub('"', text))


def _digit(sign: str) -> str:
    return {"٫": ".", "٬": ","}.get(sign) or str(unicodedata.decimal(sign))


def _one_script(text: str) -> str:
    """Return a text with lookalike letters replaced by the letters of the word's script.

    The script of a mixed word is that of its letters without a lookalike; if it has none, that of such letters in the text; else
    Latin. A word of lookalikes only is Latin in a Latin text.
    """
    patterns = _patterns()
    if not patterns.latin.search(text):
        return text
    own = _scripts(text)
    latin_text = not own & {"cyrillic", "greek"}

    def replaced(match: re.Match[str]) -> str:
        word = match[0]
        if not patterns.latin.search(word):
            return word.translate(_LOOKALIKES) if latin_text and all(letter in _ALONE for letter in word) else word
        scripts = _scripts(word) or (own if patterns.other_script.search(word) else set())
        for script, back in _BACK.items():
            # A Greek letter beside a Latin one is a sign: ΔT.
            if scripts == {script} and (script == "cyrillic" or 2 * len(patterns.latin.findall(word)) < len(word)):
                return word.translate(back)
        return word.translate(_LOOKALIKES) if scripts <= {"latin"} else word

    return str(patterns.letters.sub(replaced, text))


def _scripts(text: str) -> set[str]:
    """Return the scripts of the letters in a text that have no lookalike in another script."""
    patterns = _patterns()
    scripts = {"latin"} if patterns.latin_alone.search(text) else set()
    for script, pattern in (("cyrillic", patterns.cyrillic), ("greek", patterns.greek)):
        if any(ord(letter) not in _LOOKALIKES for letter in pattern.findall(text)):
            scripts.add(script)
    return scripts


class _Patterns:
    """Patterns, compiled at first use."""

    def __init__(self) -> None:
        import regex

        spaceless = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Line_Break=Complex_Context}ー〱-〵"
        letter = r"\p{L}\p{M}\p{N}"
        # The character classes are sets of the V1 syntax, where -- is "without".
        word = rf"[[{letter}]--[{spaceless}\p{{Hangul}}]]"
        symbol = r"[[\p{S}#%‰&*/\\@§†]--['`´¨¸]]"
        self.token: Any = regex.compile(
            rf"""(?V1)
            (?P<spaceless>[{spaceless}][{spaceless}\p{{M}}]*)
            | (?P<hangul>\p{{Hangul}}+)
            | {word}+ (?: (?: (?<=\p{{N}})[.,:;/'٫٬-](?=\p{{N}}) | (?<=[{letter}])['_·](?=[{letter}]) ) {word}+ )*
            | ({symbol})\3*
            | (?<=\p{{N}})['"]
            | (?<![{letter}\-])-+(?=[{letter}\p{{S}}.])
            | (?<=[{letter}<])-+(?![{letter}\-])
            | (?<![{letter}.!?…,;:)\]}}])\.(?=[{letter}])
            | (?<![{letter}.!?…,;:)\]}}])!(?=[{letter}])
            | !(?==)
            """,
            regex.VERBOSE,
        )
        # The same for ASCII, four times as fast.
        symbols = "|".join(rf"{re.escape(sign)}+" for sign in "$+<=>^|~#%&*/\\@")
        self.ascii_token: Any = re.compile(
            r"[a-z0-9]+(?:(?:(?<=[0-9])[.,:;/'-](?=[0-9])|['_](?=[a-z0-9]))[a-z0-9]+)*"
            rf"|{symbols}"
            r"|(?<=[0-9])['\"]"
            r"|(?<![a-z0-9\-])-+(?=[a-z0-9$+<=>^|~.])"
            r"|(?<=[a-z0-9<])-+(?![a-z0-9\-])"
            r"|(?<![a-z0-9.!?,;:)\]}])[.!](?=[a-z0-9])"
            r"|!(?==)"
        )
        # Markdown's, as in "**very** good".
        self.emphasis: Any = regex.compile(rf"(?<![{letter}*])(\*{{1,3}})(?![\s*])([^*\n]*[^\s*])\1(?![{letter}*])")
        self.character: Any = regex.compile(r"\X")
        points = r"\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc"
        self.accent: Any = regex.compile(rf"(?<=\p{{L}}\p{{M}}*)[\u0300-\u036f{points}]")
        self.invisible: Any = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
        self.other_script: Any = regex.compile(r"[\p{Cyrillic}\p{Greek}]")
        self.cyrillic: Any = regex.compile(r"\p{Cyrillic}")
        self.greek: Any = regex.compile(r"\p{Greek}")
        self.latin: Any = regex.compile(r"\p{Latin}")
        with_lookalike = "".join({chr(code) if isinstance(code, int) else code for code in _LOOKALIKES.values()})
        self.latin_alone: Any = regex.compile(rf"(?V1)[\p{{Latin}}--[{with_lookalike}]]")
        self.other_digit: Any = regex.compile(r"(?V1)[\p{Nd}--[0-9]]|(?<=\p{Nd})[٫٬](?=\p{Nd})")
        self.nasal: Any = regex.compile("|".join(rf"{nasal}्(?=[{letters}])" for nasal, letters in _NASALS.items()))
        # What begins after a digit or a letter, or before a blank, is no quotation.
        begins = rf"(?<![{letter}])"
        self.quotation: Any = regex.compile(
            rf"""{begins}(?:"(?=[^\s"])[^"]*(?<=\p{{N}})"|'(?=[^\s'])[^']*(?<=\p{{N}})'(?![{letter}])|“[^”]*(?<=\p{{N}})”)"""
        )
        self.seconds: Any = regex.compile(r"(?<=\p{N})(?:''|”)")
        self.letters: Any = regex.compile(r"[\p{Latin}\p{Cyrillic}\p{Greek}]+")


@functools.cache
def _patterns() -> _Patterns:
    return _Patterns()
