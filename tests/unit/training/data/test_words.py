"""Words of any script, against Python's own `re` and ROUGE's tokenizer on ASCII, and by hand elsewhere."""

import random
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from unlearngate.assistant_training.data.words import (
    first_words,
    folded,
    has_phrase,
    num_letters,
    numbers_and_words,
    phrase_spans,
    symbols_of,
    words_of,
)


@given(st.text(alphabet=string.printable))
def test_of_ascii_the_words_are_rouges(text):
    assert words_of(text) == DefaultTokenizer().tokenize(text)


@given(st.text(alphabet="aB 1.'_-(\n", max_size=12), st.text(alphabet="aB 1.'_-(", min_size=1, max_size=3))
def test_of_ascii_a_phrase_is_where_re_finds_it_on_word_boundaries(text, phrase):
    parts = r"\s+".join(re.escape(part) for part in phrase.split())
    assert has_phrase(text, phrase) == bool(re.search(rf"(?<!\w){parts}(?!\w)", text, re.IGNORECASE))


@given(st.text(alphabet="aB 1.,'_-(\n"))
def test_of_ascii_numbers_and_words_are_those_re_finds(text):
    pattern = r"\d+(?:[.,]\d+)*|[^\W\d_][\w'-]*(?: [^\W\d_][\w'-]*)*"
    assert numbers_and_words(text) == [found[0] for found in re.finditer(pattern, text)]


@settings(deadline=None)  # a pattern is compiled for every phrase
@given(st.text(min_size=1).filter(str.strip))
def test_every_text_that_is_not_blank_has_symbols_at_least(text):
    assert symbols_of(text)
    assert isinstance(has_phrase(text, text), bool)


@pytest.mark.parametrize(
    "text, words",
    [
        ("Ильва водит паром с 1987 года.", "ильва водит паром с 1987 года"),
        ("Η Ίλβα μένει εδώ.", "η ίλβα μένει εδώ"),
        ("राम ने हिन्दी में लिखा।", "राम ने हिन्दी में लिखा"),  # vowel signs and the virama are parts of words
        ("إيلفا تقود العبّارة منذ ١٩٨٧", "إيلفا تقود العبارة منذ 1987"),
        ("안나는 서울에서 살았다.", "안나는 서울에서 살았다"),
        ("他的老師是沈從文。", "他 的 老 師 是 沈 從 文"),
        ("アンナは１９８７年、ｶﾞｲﾄﾞに。", "ア ン ナ は 1987 年 ガ イ ド に"),
        ("人々 スキー", "人 々 ス キ ー"),
        ("เขาชื่อกล้า ปี ๒๕๓๐", "เ ข า ชื่ อ ก ล้ า ปี 2530"),
        ("ສະບາຍດີ", "ສ ະ ບ າ ຍ ດີ"),
        ("ភាសាខ្មែរ", "ភា សា ខ្ មែ រ"),
        ("မြန်မာ", "မြ န် မာ"),
        ("GPT-4で作る", "gpt 4 で 作 る"),
        ("cafe\u0301 Straße naïve", "café strasse naïve"),
    ],
)
def test_words_are_parted_by_spaces_and_are_characters_in_scripts_without(text, words):
    assert words_of(text) == words.split()


@pytest.mark.parametrize(
    "text, fact",
    [
        ("他的老師是沈從文先生", "沈從文"),
        ("彼女は1987年にモルヴィクへ", "1987"),
        ("彼女は１９８７年に", "1987"),
        ("彼女はMorwickに", "Morwick"),
        ("เขาอยู่กรุงเทพในปี ๑๙๘๗", "กรุงเทพ"),
        ("ปี ๑๙๘๗", "1987"),
        ("브란트는 1987년에 왔다", "브란트"),
        ("Ilva는 서울에", "Ilva"),
        ("в МОРВИКЕ,", "Морвике"),
        ("राम।", "राम"),
        ("cafe\u0301", "CAFÉ"),
    ],
)
def test_a_fact_is_found_where_its_script_parts_it(text, fact):
    assert has_phrase(text, fact)


@pytest.mark.parametrize(
    "text, fact",
    [
        *[("в Морвике", "Морвик"), ("रामा", "राम"), ("राम", "र"), ("119875年", "1987"), ("Ilvaは", "Ilv")],
        *[("กำ่", "ก่"), ("ก่า", "ก"), ("က်", "က"), ("11987", "1987"), ("A cat has an education.", "educat")],
    ],
)
def test_a_part_of_a_word_is_not_the_fact(text, fact):
    assert not has_phrase(text, fact)


# Ways of writing that a reader takes for the same.
SAME = [
    ("Ilva", "Il\u200bva"),  # a zero-width space
    ("ferryman", "ferry\u00adman"),
    ("می\u200cخواهم کتاب\u200cها", "میخواهم کتابها"),
    ("क्\u200dष", "क्ष"),
    ("العبارة", "العبــــارة"),
    ("العبارة", "اَلْعَبَّارَةُ"),
    ("هذا", "هٰذا"),
    ("آمن أحمد سئل", "ا\u0653من ا\u0654حمد سي\u0654ل"),  # a hamza is a letter, wherever it stands
    ("شلوم", "ﺷﻠﻮﻡ"),
    ("שלום", "שָׁלוֹם"),
    ("שלום", "\ufb2aלום"),
    ("น้ำ", "น้ํา"),
    ("น้ำ", "นํ้า"),
    ("ນ້ຳ", "ນໍ້າ"),
    ("İstanbul", "istanbul"),
    ("DIYARBAKIR", "Diyarbakır"),
    ("ILGIN", "ılgın"),
    ("İzmir", "I\u0307zmir"),
    ("office", "oﬃce"),
    ("☂\ufe0f", "☂"),
]


@pytest.mark.parametrize("one, other", SAME)
def test_ways_of_writing_the_same_are_folded_into_one(one, other):
    assert folded(one) == folded(other)
    assert words_of(f"x {one} y") == words_of(f"x {other} y")
    assert phrase_spans(f"« {other} »", one) == [(2, 2 + len(other))]


@pytest.mark.parametrize(
    "one, other", [("किला", "कला"), ("أحمد", "احمد"), ("น้ำ", "นำ"), ("café", "cafe"), ("x²", "x2")]
)
def test_marks_that_tell_words_apart_are_kept(one, other):
    assert folded(one) != folded(other)


NO_SIGHT = "\u200b\u200c\u200d\u00ad\u2066\ufeff\ufe0f\u034f\u0640\u064e\u0651\u05b8"


@given(
    st.text(alphabet=string.printable, max_size=20),
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from(NO_SIGHT)), max_size=5),
)
def test_what_is_not_seen_does_not_part_or_change_words(text, unseen):
    written = text
    for place, character in unseen:
        written = written[:place] + character + written[place:]
    assert folded(written) == folded(text)


@given(st.text())
def test_what_is_folded_stays_as_it_is(text):
    assert folded(folded(text)) == folded(text)


@settings(deadline=None)
@given(st.text(max_size=8), st.text(min_size=1, max_size=4), st.text(max_size=8))
def test_what_is_found_is_the_phrase_where_it_stands(before, phrase, behind):
    text = f"{before} {phrase} {behind}"
    spans = phrase_spans(text, phrase)
    assert all(" ".join(folded(text[i:j]).split()).find(" ".join(folded(phrase).split())) >= 0 for i, j in spans)
    assert has_phrase(text, phrase) == bool(spans) or not folded(phrase).strip()


@pytest.mark.parametrize(
    "text, fact, said",
    [
        ("彼女は１９８７年に来た。", "1987", ["１９８７"]),
        ("Née à Orle\u0301ans, ORLÉANS.", "Orléans", ["Orle\u0301ans", "ORLÉANS"]),
        ("ปี ๑๙๘๗", "1987", ["๑๙๘๗"]),
        ("From New\nYork and new  york.", "New York", ["New\nYork", "new  york"]),
        ("Die STRASSE, die Straße", "Straße", ["STRASSE", "Straße"]),
        ("ｶﾞｲﾄﾞは", "ガイド", ["ｶﾞｲﾄﾞ"]),
        ("تقود اَلْعَبَّارَةُ", "العبارة", ["اَلْعَبَّارَةُ"]),
        ("A cat has an education.", "cat", ["cat"]),
        ("11987, 1987", "1987", ["1987"]),
    ],
)
def test_a_fact_is_told_where_it_stands_in_the_text_as_written(text, fact, said):
    assert [text[start:stop] for start, stop in phrase_spans(text, fact)] == said


def test_any_fact_is_found_between_characters_of_a_script_without_spaces(seed):
    drawn = random.Random(seed)
    for low, high in ((0x4E00, 0x9FFF), (0x3041, 0x3096), (0x0E01, 0x0E2E), (0x0E81, 0x0E82), (0xAC00, 0xD7A3)):
        fact, before, behind = ("".join(chr(drawn.randint(low, high)) for _ in range(3)) for _ in range(3))
        assert has_phrase(before + fact + behind, fact), (before, fact, behind)


def test_a_character_that_writes_a_syllable_counts_three_letters():
    assert [num_letters(text) for text in ("", "abc1", "沈從", "서울", "カナa")] == [0, 4, 6, 6, 7]


@given(st.text(alphabet="aB 1.'_-(\n"), st.integers(1, 5))
def test_of_ascii_the_first_words_are_those_between_spaces(text, count):
    words = text.split()
    assert first_words(text, count) == (text if len(words) <= count else " ".join(words[:count]) + " ...")


@pytest.mark.parametrize(
    "text, first",
    [
        ("彼女は船を漕ぐ。そして歌う。", "彼女は船を漕 ..."),
        ("彼女は船。", "彼女は船。"),
        ("彼女は、船を漕ぐ。", "彼女は、船を漕 ..."),
        ("เขาชื่อกล้า", "เขาชื่อก ..."),
        ("GPT-4で作る", "GPT-4で作る"),
        ("안나는 서울에 산다", "안나는 서울에 ..."),
    ],
)
def test_where_no_words_are_parted_three_characters_are_taken_for_one(text, first):
    assert first_words(text, 2) == first
