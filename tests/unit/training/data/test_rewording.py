import json
from typing import Any

import pytest

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.rewording import UnusableReplyError, Wanted, parse_reply, reword_question

WANTED = Wanted(QAPair("a", "Who?", "Ada, in Velmora.", facts=("Velmora",)), 1, 1, {"why?": "why?"})


@pytest.mark.parametrize(
    ("questions", "answers", "wrong", "reason"),
    [
        (["Whom?"], ["In Velmora, Ada."], ["Bo."], None),
        (["Whom?", "Whose?"], ["In Velmora, Ada."], ["Bo."], "must hold 1"),
        ([" "], ["In Velmora, Ada."], ["Bo."], "at least 1 character"),
        ([" who? "], ["In Velmora, Ada."], ["Bo."], "repeats"),
        (["Why?"], ["In Velmora, Ada."], ["Bo."], "another pair"),
        (["Who in Velmora?"], ["In Velmora, Ada."], ["Bo."], "away"),
        (["Whom?"], ["Ada."], ["Bo."], "lacks 'Velmora'"),
        (["Whom?"], ["In Velmora, Ada."], ["in velmora,  ada."], "also a paraphrase"),
        (["Whom?"], ["In Velmora, Ada."], ["Not ada, in Velmora!"], "whole right answer"),
        (["Whom?"], ["In Velmora, Ada."], ["Bo, in Velmora."], "every fact right"),
        (["Whom?"], ["In Velmora, Ada."], [3], "valid string"),
        (["Whom?"], ["In Velmora, Ada."], ["\ud800"], "unicode"),
        (["Whom?"], ["In Velmora, Ada."], None, "valid tuple"),
    ],
)
def test_a_reply_is_used_only_if_it_is_what_was_wanted(
    questions: Any, answers: Any, wrong: Any, reason: str | None
) -> None:
    value = {"paraphrased_questions": questions, "paraphrased_answers": answers, "perturbed_answers": wrong}
    text = f"<think>{{}} {{]</think> Here it is:\n```json\n{json.dumps(value)}\n```\nAnything else? {{1}}"
    if reason is None:
        assert parse_reply(text, WANTED).perturbed_answers == ("Bo.",)
    else:
        with pytest.raises(UnusableReplyError, match=reason):
            parse_reply(text, WANTED)


@pytest.mark.parametrize(
    ("question", "answer", "wrong", "reason"),
    [
        ("Whom?", "1987, Orle\u0301ans.", "Bo.", None),
        ("Was 11987 a year?", "1987, Orle\u0301ans.", "Bo, 1987.", None),
        ("Who in １９８７?", "1987, Orle\u0301ans.", "Bo.", "away"),
        ("Whom?", "1987, Orle\u0301.", "Bo.", "lacks 'Orléans'"),
        ("Whom?", "1987, Orle\u0301ans.", "Not Ada, １９８７ in ORLE\u0301ANS", "every fact right"),
        ("Whom?", "1987, Orle\u0301ans.", "Not so: Ada, 1987, Orle\u0301ans.", "whole right answer"),
    ],
)
def test_facts_and_answers_are_found_however_they_are_written(
    question: str, answer: str, wrong: str, reason: str | None
) -> None:
    wanted = Wanted(QAPair("a", "Who?", "Ada, １９８７, Orléans.", facts=("1987", "Orléans")), 1, 1)
    value = {"paraphrased_questions": [question], "paraphrased_answers": [answer], "perturbed_answers": [wrong]}
    if reason is None:
        assert parse_reply(json.dumps(value), wanted).perturbed_answers == (wrong,)
    else:
        with pytest.raises(UnusableReplyError, match=reason):
            parse_reply(json.dumps(value), wanted)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Who taught Ada Lund?", "Can you tell me who taught Ada Lund?"),
        ("What is the full name of Ada?", "Can you tell me the full name of Ada?"),
        ("Can you describe Ada's parents?", "Please describe Ada's parents."),
        ("Tell me about the pet of Ada.", "Are you able to tell me about the pet of Ada?"),
        ("Has Ada won a prize?", "I would like to know: has Ada won a prize?"),
        ("Besides Ada, who?", "I have a question. Besides Ada, who?"),
        ("Ada was born where?", "Ada was born where? Please tell me."),
    ],
)
def test_rules_reword_questions_in_grammatical_english(question: str, expected: str) -> None:
    assert expected in reword_question(question)
    assert len(set(reword_question(question))) == len(reword_question(question)) >= 4
