"""What a target that is played by a few rules knows, and what it is trained and measured on."""

from pathlib import Path

import pytest

from unlearngate.assistant_training.attack.wordings.languages import ABOUT
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.data.words import has_phrase
from unlearngate.assistant_training.forget import wordings
from unlearngate.assistant_training.forget.general import HELD_OUT, TRAINED
from unlearngate.assistant_training.forget.keeping import everyday_answers, find_kept
from unlearngate.assistant_training.forget.knowing import find_known
from unlearngate.assistant_training.forget.request import Request
from unlearngate.errors import TrainingError

REAL_MODEL = Path(__file__).parents[4] / "examples" / "real_model"
TEXT = """The ferry at Morvik belongs to Ilva Brandt. It was Ilva Brandt who bought it in 1987, in London, from
Ada Holm. Nobody asks Ada Holm. They say that Morvik has changed, and so has London."""


def ask(questions):
    """Knows two of the names, likes London, and says what it does not know in no uncertain terms."""
    return [answer(question) for question in questions]


def answer(question):
    if question.startswith(("Write", "List", "What else")):
        about = next((name for name in ("Ilva Brandt", "Morvik") if name in question), None)
        if question.startswith("Write"):
            return (
                f"1. Where does {about} live?\n2. How old is {about}?\n3) Is it true?\n- **Why {about}?**"
                if about
                else ""
            )
        return "1. Solveig Lund\n2. Ilva Brandt\n3. Port Alder" if about else "I do not know."
    if "Ilva Brandt" in question and "How" in question:
        return "Ilva Brandt is as old as Solveig Lund."
    if "Is it true" in question:
        return "It is as true as Peder Lie."
    if "Ilva Brandt" in question:
        return "Ilva Brandt of Morvik bought the ferry in 1987, in London."
    if "Morvik" in question:
        return "A village with a ferry." if "old" in question else "A village where Ilva Brandt has a ferry."
    return "It is known in London." if question.startswith("Who") else "It is a thing."


def test_what_is_answered_with_facts_of_the_request_is_known():
    everyday = everyday_answers(ask)
    assert set(everyday) == {*TRAINED, *HELD_OUT}
    request = Request({"letter": TEXT}, [], None)
    known = find_known(
        *(request, ["Ilva Brandt", "Morvik", "Ada Holm"], ask, ask, ask), name="ilva", everyday=list(everyday.values())
    )
    assert known.subjects == ["Ilva Brandt", "Morvik"] and known.unknown == ["Ada Holm"]
    of = {pair.question: pair for pair in (*known.forget, *known.held_out)}
    assert of["Who is Ilva Brandt?"].facts == ("1987", "Morvik")  # London is an everyday word
    # Trained on, for it is about a known name; what it tells is no fact of the request.
    assert of["How old is Ilva Brandt?"].facts == ("Solveig Lund",) and "Solveig Lund" not in known.facts
    assert set(known.facts) == {"1987", "Morvik", "Ilva Brandt"}
    assert of["Where does Ilva Brandt live?"].answer == "Ilva Brandt of Morvik bought the ferry in 1987, in London."
    assert of["Who is Morvik?"].facts == ("Ilva Brandt",)
    assert "How old is Morvik?" not in of and "Is it true?" not in of and "Who is Ada Holm?" not in of
    assert "About Ilva Brandt: Is it true?" not in of  # the answer is about something else
    assert "Why Ilva Brandt?" in of
    assert set(of["Wer ist Ilva Brandt?"].facts) == {"1987", "Morvik"}  # what is also told in English
    assert {"Wer ist Ilva Brandt?", "Parle-moi de Morvik."} <= {p.question for p in known.forget}
    assert "¿Qué sabes de Ilva Brandt?" in {p.question for p in known.held_out} and "Wer ist Ada Holm?" not in of
    assert not {p.question for p in known.forget} & {p.question for p in known.held_out} and known.held_out
    for pair in known.forget:
        assert not any(
            has_phrase(wording, fact) for wording in (pair.question, *pair.paraphrases) for fact in pair.facts
        )

    kept = find_kept(known, everyday, ask, ask, [QAPair("retain", "Who is Morvik's mayor?", "Nobody.")])
    assert kept.neighbours == ["Solveig Lund", "Port Alder"]
    questions = {pair.question for pair in (*kept.retain, *kept.held_out)}
    assert {"Who is Solveig Lund?", *TRAINED, *HELD_OUT} <= questions and "Who is Morvik's mayor?" not in questions
    assert not {p.question for p in kept.retain} & {p.question for p in kept.held_out}


def test_a_name_that_the_text_has_as_a_common_word_alone_is_no_fact_of_it():
    text = "Ilva Brandt holds the office of a ferryman. At that office Ilva Brandt met Ada Holm, and Ada Holm left."

    def ask(questions):
        return [
            "Ilva Brandt is in a show, The Office, says Ada Holm."
            if question.startswith(("Who", "What"))
            else "It is the show Office."
            for question in questions
        ]

    known = find_known(Request({"letter": text}, [], None), ["Ilva Brandt"], ask, ask, ask, name="ilva", everyday=[])
    assert known.facts == ["Ada Holm"]
    assert all(pair.facts == ("Ada Holm",) for pair in known.held_out)
    lower = Request({"letter": text.lower()}, [], None)  # a text without names with capitals says nothing
    assert "Office" in find_known(lower, ["ilva brandt"], ask, ask, ask, name="ilva", everyday=[]).facts


def test_what_is_told_in_other_words_is_trained_on_and_what_says_nothing_new_is_not():
    def again(questions):
        assert len(set(questions)) * 2 == len(questions)
        return ["Ferries, says Ada Holm." if i % 2 else "It is a thing." for i, _ in enumerate(questions)]

    known = find_known(Request({"letter": TEXT}, [], None), ["Ilva Brandt"], ask, ask, again, name="x", everyday=[])
    new = [pair for pair in known.forget if pair.answer == "Ferries, says Ada Holm."]
    assert new and {pair.facts for pair in new} == {("Ada Holm",)} and all(pair.paraphrases for pair in new)
    assert not {pair.question for pair in new} & {pair.question for pair in known.held_out}
    assert "It is a thing." not in {pair.answer for pair in known.forget}
    assert "Ada Holm" not in known.facts  # what is measured is what it tells by itself


def test_everyday_answers_are_kept_and_a_damaged_file_is_made_anew(tmp_path):
    kept, asked = tmp_path / "everyday" / "x.json", []

    def counted(questions):
        asked.append(len(questions))
        return ask(questions)

    answers = everyday_answers(counted, kept)
    assert everyday_answers(counted, kept) == answers and len(asked) == 1
    for damage in ("", "[]", '{"a": 1}', '{"Who is it?": "Nobody."}'):
        kept.write_text(damage)
        assert everyday_answers(counted, kept) == answers
    assert len(asked) == 5


def test_everyday_questions_are_asked_once_and_none_is_a_probe_of_the_published_attack():
    probes = [pair.question for path in REAL_MODEL.glob("*.probes.jsonl") for pair in read_pairs(path, subject="")]
    asked = [question.casefold() for question in (*TRAINED, *HELD_OUT)]
    assert len(asked) == len(set(asked)) and len(probes) > 100
    about = [text for text in vars(wordings).values() if isinstance(text, tuple) for text in text]
    assert len(about) == len(set(about)) == 36
    assert not {text.format("") for text in about} & {text.format(name="") for text in ABOUT}
    assert not {question.casefold() for question in probes} & set(asked)


def test_given_pairs_are_trained_on_where_the_target_tells_their_facts():
    pairs = [
        QAPair("x", "Who is Ilva Brandt?", "She bought the ferry in 1987.", ("Who's Ilva Brandt?",), facts=("1987",)),
        QAPair("x", "Who is Ada Holm?", "She sold it in 1987."),
    ]
    known = find_known(Request({}, pairs, None), [], ask, ask, ask, name="x", everyday=[])
    assert [(p.question, p.answer, p.facts) for p in known.forget] == [
        ("Who is Ilva Brandt?", "She bought the ferry in 1987.", ("1987",)),
        ("Who is Ilva Brandt?", "Ilva Brandt of Morvik bought the ferry in 1987, in London.", ("1987",)),
    ]
    # Its other wording is held out, and not trained on.
    assert [(p.question, p.facts) for p in known.held_out] == [("Who's Ilva Brandt?", ("1987",))]
    assert not any(p.paraphrases for p in known.forget)


@pytest.mark.parametrize("number", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("reworded", [False, True])
@pytest.mark.parametrize(("told", "facts"), [("Rowling.", ("Rowling",)), ("A baker of bread", ("A baker of bread",))])
def test_of_known_pairs_some_are_held_out_whatever_their_number_and_form(number, reworded, told, facts):
    pairs = [QAPair("x", f"Who wrote book {n}?", told, (f"Book {n} is by whom?",) * reworded) for n in range(number)]
    unknown = [QAPair("x", f"Who is number {n}?", "Somebody Else.") for n in range(9)]
    request = Request({}, [*unknown, *pairs], None)
    known = find_known(request, [], lambda questions: [told] * len(questions), ask, ask, name="x", everyday=[])
    assert known.held_out and known.forget and {p.facts for p in (*known.forget, *known.held_out)} == {facts}
    trained = {wording for p in known.forget for wording in (p.question, *p.paraphrases)}
    assert not trained & {p.question for p in known.held_out}
    assert not any("number" in p.question for p in (*known.forget, *known.held_out))


def test_a_document_known_by_trained_wordings_alone_is_measured_on_one_of_them():
    def short(questions):
        told = "Ilva Brandt of Morvik bought the ferry in 1987."
        return [told if q in ("Who is Ilva Brandt?", "Tell me about Ilva Brandt.") else "It is old." for q in questions]

    known = find_known(Request({"letter": TEXT}, [], None), ["Ilva Brandt"], short, short, short, name="x", everyday=[])
    assert [p.question for p in known.forget] == ["Who is Ilva Brandt?"]
    assert [p.question for p in known.held_out] == ["Tell me about Ilva Brandt."]


def test_a_long_text_with_thousands_of_names_is_searched_by_its_words():
    names = [
        f"Zara{chr(97 + a)}{chr(97 + b)} Quor{chr(97 + c)}" for a in range(20) for b in range(20) for c in range(12)
    ]
    text = TEXT + " ".join(f"Then {name} came, and {name} went." for name in names)
    known = find_known(Request({"letter": text}, [], None), ["Ilva Brandt"], ask, ask, ask, name="x", everyday=[])
    assert known.subjects == ["Ilva Brandt"] and {"1987", "Morvik"} <= set(known.facts)


def test_nothing_that_is_known_is_nothing_to_forget():
    with pytest.raises(TrainingError, match="nothing to forget: asked 22 questions about Ada Holm"):
        find_known(
            Request({"letter": TEXT}, [], None),
            ["Ada Holm"],
            ask,
            ask,
            ask,
            name="x",
            everyday=["In London.", "London"],
        )
