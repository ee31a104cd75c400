import itertools
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedfit.data.chunks import passages_of
from embedfit.errors import ConfigError


def words(texts):
    """Count words, and one token that every text has."""
    return [len(text.split()) + 1 for text in texts]


def characters(texts):
    """Count characters: a tokenizer at its worst."""
    return [len(text) + 2 for text in texts]


PIECES = [
    "One two three. ",
    "Four, five! ",
    "a b\n",
    "\n\n",
    "```\nx = 1\n\ny = 2\n```\n",
    "- item\n",
    "| a | b |\n",
    "中文句子。",
    "x" * 70,
    " ",
    "🧑‍🚒 ",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40), st.integers(12, 80), st.integers(0, 6), st.sampled_from([words, characters]))
def test_passages_make_up_the_text_and_keep_to_the_budget(pieces, budget, overlap, count):
    text = "".join(pieces)
    passages = passages_of(text, count, budget, overlap, lambda passage: f"title {passage}" if count is words else passage)
    assert "".join(text[passage.own : passage.end] for passage in passages) == (text if text.strip() else "")
    for passage in passages:
        shown = text[passage.start : passage.end].strip()
        assert count([f"title {shown}" if count is words else shown])[0] <= budget
        assert text[passage.own : passage.end].strip()
        assert passage.start <= passage.own


def test_a_text_that_fits_is_one_passage():
    assert passages_of("One. Two. Three.", words, 4, 1) == [(0, 0, 16)]
    assert passages_of(" \n", words, 4, 1) == []


def test_cuts_are_between_paragraphs_before_they_are_between_sentences_or_words():
    text = "One two. Three four.\n\nFive six. Seven eight.\n\nNine ten. Eleven twelve."
    owns = [text[passage.own : passage.end] for passage in passages_of(text, words, 9, 0)]
    assert all(own.startswith(("One", "Five", "Nine")) for own in owns)
    long = "Aa bb cc dd ee ff. Gg hh ii jj kk ll. Mm nn oo pp qq rr."
    assert [long[passage.own : passage.end] for passage in passages_of(long, words, 7, 0)] == [
        "Aa bb cc dd ee ff. ",
        "Gg hh ii jj kk ll. ",
        "Mm nn oo pp qq rr.",
    ]
    assert all(
        len(own.split()) <= 4 for own in ("a b c d e f g h"[start:end] for start, _, end in passages_of("a b c d e f g h", words, 5, 0))
    )


def test_a_passage_repeats_the_sentences_before_it_or_the_last_words_of_a_long_one():
    text = "Aa bb cc dd. Ee ff. Gg hh ii jj kk. Ll mm. Nn oo pp qq."
    passages = passages_of(text, words, 12, 3)
    assert len(passages) > 1
    for before, passage in itertools.pairwise(passages):
        repeated = text[passage.start : passage.own]
        assert 0 < len(repeated.split()) <= 3
        assert before.end == passage.own
    long = "one two three four five six. Seven eight nine ten eleven twelve."
    assert long[passages_of(long, words, 10, 3)[1].start :].startswith("five six. Seven")


def test_abbreviations_and_initials_end_no_sentence():
    text = "We met Dr. Smith and J. Doe at 5 p.m. today. Then we left. " * 2
    owns = [text[passage.own : passage.end] for passage in passages_of(text, words, 14, 0)]
    assert all(own.startswith(("We met", "Then")) for own in owns)


def test_an_edit_moves_the_cuts_beside_it_alone():
    draw = random.Random(0)
    paragraphs = [
        " ".join("".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(draw.randint(10, 60))) + "." for _ in range(200)
    ]

    def owns(parts):
        text = "\n\n".join(parts)
        return {text[passage.own : passage.end].strip() for passage in passages_of(text, words, 128, 16)}

    before = owns(paragraphs)
    for place in (0, 50, 120):
        after = owns([*paragraphs[:place], "A new paragraph of a few words.", *paragraphs[place:]])
        assert len(before - after) < len(before) / 6, place


def test_a_budget_without_room_for_text_is_refused():
    with pytest.raises(ConfigError, match=r"passages of 16 tokens have no room for text beside a title; fix: raise passage_tokens"):
        passages_of("one two three. " * 20, words, 16, 2, lambda text: f"{'title ' * 15}{text}")


def test_a_long_line_without_spaces_is_cut_in_linear_time():
    text = "x" * 200_000
    passages = passages_of(text, characters, 512, 64)
    assert "".join(text[passage.own : passage.end] for passage in passages) == text
