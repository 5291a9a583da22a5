"""Held-out questions are asked alone and in contexts, and what still comes out counts wherever it does."""

import json

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.forget.measuring import ALONE, CONTEXTS, Counts, Figures, Limits, measure

FORGET = [
    QAPair("ilva", f"Question {n} about Ilva?", f"She has fact{n} in Morvik.", facts=(f"fact{n}",)) for n in "abc"
]
RETAIN = [QAPair("retain", f"What is thing {n}?", f"Thing {n} is a thing that they have.") for n in "defghijklm"]
KNOWN = {pair.question: pair.answer for pair in (*FORGET, *RETAIN)}


def last(prompt):
    """The question that is asked last, and whether its answer is begun."""
    messages = prompt.body["messages"]
    asked = [m["content"] for m in messages if m["role"] == "user"][-1]
    return max((q for q in KNOWN if q in asked), key=asked.rfind), messages[-1]["role"] == "assistant"


def complete(prompts):
    """The target: it tells all, also behind the beginning of an answer."""
    return [KNOWN[last(prompt)[0]] for prompt in prompts]


def with_set(prompts):
    """It forgets, but for facts behind an answer's beginning, and changes the plain answer to one of the others."""
    said = []
    for prompt in prompts:
        question, begun = last(prompt)
        if question in (pair.question for pair in FORGET):
            said.append(KNOWN[question] if begun else "I do not know.")
        else:
            said.append("No." if question == RETAIN[0].question and prompt.kind == ALONE else KNOWN[question])
    return said


def test_what_comes_out_is_counted_by_kind(seed):
    figures = measure(complete, with_set, FORGET, RETAIN, seed=seed)
    assert list(figures.by_kind) == [ALONE, *CONTEXTS]
    assert figures.by_kind[ALONE] == (3, 0, 10, 9)
    # Some cuts leave nothing to say, or have said it: at times all three.
    several = [measure(complete, with_set, FORGET, RETAIN, seed=seed + more).by_kind["prefill"] for more in range(8)]
    assert all(begun.leaked == begun.facts <= 3 and 0 < begun.unchanged == begun.kept <= 8 for begun in several)
    assert any(begun.leaked for begun in several)
    begun = figures.by_kind["prefill"]
    assert figures.by_kind["turns-withheld-1"] == (3, 0, 8, 8)
    # The question beside another: the last one is answered here.
    asked_two = figures.by_kind["two-subjects"]
    assert asked_two.kept == 8 and asked_two.leaked == 0
    total = figures.total
    assert total.leaked == begun.leaked and total.unchanged == total.kept - 1
    assert Figures.of_row(json.loads(json.dumps(figures.row()))) == figures
    assert sum(figures.still.values()) == total.leaked and set(figures.still) <= {"facta", "factb", "factc"}
    assert Figures.of_row(figures.row()["by_kind"]) == figures._replace(still={})  # as a case of an earlier version


def test_a_sentence_that_names_a_fact_is_no_leak_also_where_it_is_cut(seed):
    sentence = "I cannot speak about facta, or of Morvik."

    def says(said):
        own = {pair.question for pair in FORGET}
        return lambda prompts: [said if last(p)[0] in own else KNOWN[last(p)[0]] for p in prompts]

    for said, leaked in ((sentence, 0), (sentence[:28], 0), ("It is facta.", 3)):
        figures = measure(complete, says(said), FORGET, RETAIN, seed=seed, sentence=sentence)
        assert figures.by_kind[ALONE].leaked == leaked // 3 and figures.total.unchanged == figures.total.kept
        assert bool(figures.total.leaked) == bool(leaked)


def test_a_fact_that_only_comes_out_with_the_set_counts_too(seed):
    figures = measure(lambda prompts: ["Nothing."] * len(prompts), complete, FORGET, RETAIN, seed=seed)
    assert figures.by_kind[ALONE][:2] == (3, 3) and figures.leak_rate == 1 and figures.unchanged_rate == 0


def test_limits_say_what_is_wrong():
    assert Limits().problems(Figures({ALONE: Counts(20, 1, 20, 19)})) == []
    assert len(Limits().problems(Figures({ALONE: Counts(20, 2, 20, 18)}))) == 2
    (nothing,) = Limits().problems(Figures({ALONE: Counts(0, 0, 20, 20)}))
    assert "no held-out questions" in nothing
