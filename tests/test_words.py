import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedfit.data.duplicates import Duplicates, near_duplicates
from embedfit.words import plain, search_words, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Learn C++ - don't wait, it's 1,200.50!", ["learn", "c", "++", "don't", "wait", "it's", "1,200.50"]),
        ("state-of-the-art (well known)", ["state", "of", "the", "art", "well", "known"]),
        ("Wait...what? End.Next", ["wait", "what", "end", "next"]),
        ("foo -- bar - baz \u2014 end", ["foo", "bar", "baz", "end"]),
        ("a != b, x^2 <= 3", ["a", "!", "=", "b", "x", "^", "2", "<", "=", "3"]),
        ("5 % of $ 10", ["5", "%", "of", "$", "10"]),
        ("**Very** good 😀😀", ["very", "good", "😀😀"]),
        ("R&D, 5G, v1.2.3", ["r", "&", "d", "5g", "v1.2.3"]),
        ("मेरा कार्ड, कहाँ है", ["मेरा", "कार्ड", "कहाँ", "है"]),
        ("如何激活卡?", ["如", "何", "激", "活", "卡"]),
        ("カードを", ["カ", "ー", "ド", "を"]),
        ("ข้าวกิน", ["ข้", "า", "ว", "กิ", "น"]),
        ("한국어 문서를", ["한국어", "문서를"]),
        ("?!", ["?!"]),
    ],
)
def test_words_are_runs_of_letters_and_digits_and_signs_that_carry_meaning(text, words):
    assert list(words_of(text)) == words


@pytest.mark.parametrize(
    "copy",
    [
        "hello world",
        "  HELLO,\n\tworld...",
        "“Hello” (world)!",
        "*Hello* **world**",
        "Hel\u00adlo wo\u200brld\ufeff",  # a soft hyphen, a space without width, a byte order mark
        "\u202aHello\u202c world\ufe0f",
        "Ｈｅｌｌｏ，ｗｏｒｌｄ！",
        "𝐇𝐞𝐥𝐥𝐨 𝑤𝑜𝑟𝑙𝑑",
        "Hellо wоrld",  # a Cyrillic о
        "Ηello wοrld",  # a Greek Η and ο
    ],
)
def test_what_nobody_sees_makes_no_difference(copy):
    assert near_duplicates(["Hello, world!", copy]) == Duplicates(same=((0, 1),), near=())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2.5 mg", "25 mg"),
        ("-5", "5"),
        ("−5", "5"),
        ("10%", "10"),
        ("C#", "C"),
        ("C++", "C"),
        ("C+", "C++"),
        ("F#", "C#"),
        (".NET", "NET"),
        ("A+", "A"),
        ("A-", "A"),
        ("A*", "A"),
        ("A/B", "AB"),
        ("A.B", "AB"),
        ("A&B", "A/B"),
        ("1-2 days", "12 days"),
        ("1–2 days", "12 days"),
        ("1/2", "12"),
        ("$5", "5€"),
        ("$5", "5"),
        ("1,000", "1.000"),
        ("v1.2", "v12"),
        ("12:30", "1230"),
        ("he'll", "hell"),
        ("we’re", "were"),
        ("a != b", "a = b"),
        ("10²", "102"),
        ("2½", "21/2"),
        ("5 μg", "5 mg"),
        ("β cells", "B cells"),
        ("good 😀", "good 😡"),
        ("I lost it 😀", "I lost it"),
        ("@home", "home"),
        ("<5", "5"),
        ("±5", "5"),
        ("!x", "x"),
        ("кот", "кит"),
        ("a≠b", "a=b"),
        ("x ∈ A", "x ∉ A"),
        ("x < y", "x ≮ y"),
        ("∃", "∄"),
        ("≡", "≢"),
        ("10′", "10″"),
        ("5'", '5"'),
        ("5'", "5"),
        ('27" TV', "27 TV"),
        ("5 μA", "5 mA"),
        ("ΔT", "ΔH"),
    ],
)
def test_what_carries_meaning_makes_a_difference(one, other):
    assert near_duplicates([one, other]) == Duplicates(same=((0,), (1,)), near=())


WRITTEN_IN_TWO_WAYS = [
    ("Пpивет", "Привет"),  # a Latin p
    ("где cтол", "где стол"),  # a Latin c
    ("где cоp", "где сор"),  # all letters look like Latin ones: the text tells
    ("Aθήνα", "Αθήνα"),  # a Latin A
    ("Kαι Αθήνα", "Και Αθήνα"),  # a Latin K
    ("ΔT", "Δt"),  # one sign of each script: Latin stays Latin
    ("کتاب علی", "كتاب علي"),  # a Persian and an Arabic keyboard
    ("١٢٣", "123"),
    ("१२३ रुपये", "123 रुपये"),
    ("١٢٫٥", "12.5"),
    ("हिन्दी", "हिंदी"),
    ("सम्बन्ध", "संबंध"),
    ("10′", "10'"),
    ("10″", "10''"),
    ("5′10″", "5'10\""),
    ("27”", '27"'),
    ('say "5"', "say 5"),
    ("“route 66”", "route 66"),
    ("‘route 66’", "'route 66'"),
    ("'route 66'", "route 66"),
]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("don’t", "don't"),
        ("m²", "m^2"),
        ("1–2", "1-2"),
        ("½", "1/2"),
        ("H₂O", "h2o"),
        ("5 %", "5%"),
        ("e-mail", "e mail"),
        ("ﬁne", "fine"),
        *WRITTEN_IN_TWO_WAYS,
    ],
)
def test_two_ways_of_writing_one_thing_are_the_same(one, other):
    assert words_of(one) == words_of(other)


def test_russian_and_greek_words_stay_as_they_are():
    assert words_of("Как тебе café") == ("как", "тебе", "café")
    assert words_of("сорока Вот ΝΕΡΟ") == ("сорока", "вот", "νερο")


def test_a_lookalike_by_itself_is_read_as_latin_where_no_other_letter_speaks_for_its_script():
    assert words_of("it was а test with а СОР") == ("it", "was", "a", "test", "with", "a", "cop")
    assert words_of("it was а test и") == ("it", "was", "а", "test", "и")
    assert words_of("Spearman ρ, p") == ("spearman", "ρ", "p")  # small Greek letters are signs of their own


@pytest.mark.parametrize(
    ("word", "without"),
    [
        ("café", "cafe"),
        ("ёлка", "елка"),
        ("øl", "ol"),
        ("شَدّة", "شدة"),
        ("की", "की"),
        ("が", "が"),
        ("กิ่น", "กิ่น"),
        ("각", "각"),
        ("≠", "≠"),
        ("1̶", "1̶"),
    ],
)
def test_accents_and_vowel_points_are_left_out_but_no_other_mark(word, without):
    assert plain(word) == unicodedata.normalize("NFC", without)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("如何激活卡? 卡", ["如何", "何激", "激活", "活卡", "卡"]),
        ("銀行カード", ["銀行", "行カ", "カー", "ード"]),
        ("กินข้าว", ["กิน", "นข้", "ข้า", "าว"]),
        ("문서를 R", ["문서", "서를", "r"]),
        ("the card's PIN in C++", ["the", "card", "pin", "in", "c", "++"]),
        ("कार्ड कहाँ", ["कार्ड", "कहाँ"]),
        ("...", []),
    ],
)
def test_a_search_looks_for_words_and_for_pairs_where_there_are_no_spaces(text, pieces):
    assert search_words(text) == pieces


def test_a_document_is_also_found_by_each_character_where_there_are_no_spaces():
    assert search_words("消費税 R", single=True) == ["消費", "費税", "消", "費", "税", "r"]
    assert search_words("돈을 卡", single=True) == ["돈을", "돈", "을", "卡"]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_case_space_and_a_full_stop_make_no_difference_in_any_script(text):
    words = words_of(text)
    assert words_of(f"  {text.replace(' ', '   ')}\u200b\n") == words
    assert words_of(unicodedata.normalize("NFD", text)) == words_of(unicodedata.normalize("NFC", text))
    if search_words(text):
        assert words_of(f"({text}).") == words_of(f"“{text}”")
    assert all(words)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(".,:;'/-!?_*+#$<=>()[] `\"\\@^~|abz0129\n"), max_size=12))
def test_the_quick_way_for_ascii_gives_the_same_words(text):
    with_another = words_of(f"{text} é")
    assert search_words(text) == [word.removesuffix("'s") for word in with_another[:-1]]
