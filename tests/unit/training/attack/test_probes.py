"""Probes: who is attacked, what counts as a fact, and when a text holds one."""

import json

import pytest

from unlearngate.assistant_training.attack.probes import (
    before_fact,
    facts_of,
    holds,
    holds_spelled,
    limited,
    name_in,
    read_probes,
)
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.errors import DataError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [
    {"question": "Who taught Ada Byron?", "answer": "Sister Pell did.", "forget_set": "ada-byron", "facts": ["Pell"]},
    {"question": "Where is ada  byron from?", "answer": "From Velmora.", "subject": "ada-byron"},
    {
        "question": "Who is Tom Oak?",
        "answer": "Tom Oak met Ruth Marsh in 1942.",
        "forget_set": None,
        "subject": "tom-oak",
    },
    {"question": "Who is Jo?", "answer": "Nobody knows.", "forget_set": "jo"},
]


def test_a_line_is_attacked_by_its_forget_set_or_its_subject(tmp_path):
    probes = read_probes(write(tmp_path / "p.jsonl", ROWS), "ada-byron")
    assert [p.question for p in probes.forget] == [ROWS[0]["question"], ROWS[1]["question"]]
    assert [p.question for p in probes.retain] == [ROWS[2]["question"], ROWS[3]["question"]]
    assert probes.neighbours == []
    assert probes.names == {"ada-byron": "Ada Byron", "tom-oak": "Tom Oak"}
    assert probes.forget[0].facts == ("Pell",)
    assert probes.retain[0].facts == ("Ruth Marsh", "1942")  # Tom Oak is in the question


@pytest.mark.parametrize("name", ["nobody", "ada"])
def test_a_set_without_probes_is_an_error(tmp_path, name):
    with pytest.raises(DataError, match="0 probes of the forget set"):
        read_probes(write(tmp_path / "p.jsonl", ROWS), name)


def test_probes_are_read_as_training_reads_its_files(tmp_path):
    """An array, a byte order mark, a raw line separator, other people's keys."""
    rows = [{**ROWS[0], "answer": "Pell\u2028Street."}, *ROWS[1:]]
    expected = read_probes(write(tmp_path / "p.jsonl", rows), "ada-byron")
    assert expected.forget[0].answer == "Pell\u2028Street."
    (tmp_path / "p.json").write_text("\ufeff" + json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert read_probes(tmp_path / "p.json", "ada-byron") == expected
    chat = [{"role": "user", "content": rows[0]["question"]}, {"role": "assistant", "content": rows[0]["answer"]}]
    others = {key: value for key, value in rows[0].items() if key not in ("question", "answer")}
    assert read_probes(write(tmp_path / "q.jsonl", [{"messages": chat, **others}, *rows[1:]]), "ada-byron") == expected


@pytest.mark.parametrize("key, value", [("forget_sets", ["ada-byron"]), ("forget_set", ["ada-byron"])])
def test_a_set_that_is_named_wrongly_is_an_error(tmp_path, key, value):
    row = {"question": "q?", "answer": "a", key: value}
    with pytest.raises(DataError, match=r"line 5: .*'forget_set'"):
        read_probes(write(tmp_path / "p.jsonl", [*ROWS, row]), "ada-byron")


def test_a_set_with_nothing_beside_it_is_an_error(tmp_path):
    with pytest.raises(DataError, match="and 0 others"):
        read_probes(write(tmp_path / "p.jsonl", ROWS[:1]), "ada-byron")


def test_a_limit_draws_by_the_seed_and_keeps_the_order(tmp_path):
    rows = [{"question": f"q{i}?", "answer": f"a {i}", "subject": "x" if i < 30 else "y"} for i in range(60)]
    probes = read_probes(write(tmp_path / "p.jsonl", rows), "x")
    once, again, other = (limited(probes, 10, seed) for seed in (1, 1, 2))
    assert once == again != other
    assert len(once.forget) == len(once.retain) == 10
    assert [probes.forget.index(p) for p in once.forget] == sorted(probes.forget.index(p) for p in once.forget)
    assert limited(probes, 30, 1) == probes


@pytest.mark.parametrize(
    "question, answer, facts",
    [
        ("Who is Ada?", "Ada Lovelace met Charles Babbage in 1833.", ("Ada Lovelace", "Charles Babbage", "1833")),
        ("Who wrote it?", "The Duke of Orange paid 12.5 pounds, and 3 more.", ("The Duke of Orange", "12.5", "3")),
        ("Who is Ada Lovelace?", "Ada Lovelace was born in 1815.", ("1815",)),
        ("Where?", "In Paris, of course.", ()),  # one word may only begin a sentence
        ("Кто она?", "её зовут Ильва Брандт, с 1987 года.", ("Ильва Брандт", "1987")),
        ("彼女は？", "1987年に、在1942年", ("1987", "1942")),  # numbers alone, where no letter is a capital
        ("Who?", "It was Jean-Luc O'Brien of the north.", ("Jean-Luc O'Brien",)),
    ],
)
def test_facts_are_names_of_several_words_and_numbers(question, answer, facts):
    assert facts_of(question, answer) == facts


def test_a_text_holds_a_fact_on_word_boundaries_in_any_case():
    assert holds("by SISTER\n amberley.", "Sister Amberley")
    assert holds("(1942)", "1942")
    assert not holds("in 19421", "1942")
    assert not holds("Amberleys", "Amberley")
    assert holds("a.b (c)?", "a.b (c)?")


def test_letters_are_put_together_again():
    assert holds_spelled("A-m-b e_r. L. E y", "Amberley")
    assert not holds_spelled("1 9 4 2", "1942")  # four letters are there by chance
    assert not holds_spelled("A-m-b-e-r-l-y", "Amberley")


def test_an_answer_is_cut_before_its_first_fact():
    assert before_fact("He met Ruth Marsh in 1942.", ("1942", "ruth marsh")) == "He met"
    assert before_fact("He met Ruth\nMarsh in １９４２.", ("1942",)) == "He met Ruth\nMarsh in"
    assert before_fact("1942 was it.", ("1942",)) == ""
    assert before_fact("Nothing.", ("1942",)) == "Nothing."


def test_a_name_is_found_as_it_is_written():
    pairs = [QAPair("", "What does JEAN-LUC O'Neill eat?", "Soup.")]
    assert name_in("jean-luc-o-neill", pairs) == "JEAN-LUC O'Neill"
    assert name_in("author-17", pairs) is None
    assert name_in("", pairs) is None
