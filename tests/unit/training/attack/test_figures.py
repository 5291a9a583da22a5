"""Figures against counts by hand, and Wilson's interval against its equation."""

import math
import random

import pytest

from unlearngate.assistant_training.attack.asking import Reply
from unlearngate.assistant_training.attack.figures import (
    Share,
    chosen_option,
    guess_figures,
    leaked,
    leaks_of,
    right_unchanged,
    unchanged,
)
from unlearngate.assistant_training.attack.oracles import Guesses
from unlearngate.assistant_training.attack.prompts import Prompt
from unlearngate.assistant_training.data.pairs import QAPair

PAIR = QAPair("x", "Who taught X?", "Sister Pell did in 1942", facts=("Sister Pell", "1942"))


def prompt(facts=PAIR.facts, reading="words", options=(), pair=PAIR):
    return Prompt("k", "forget", pair, "/chat/completions", {"messages": []}, facts, reading, options)


@pytest.mark.parametrize(
    "right, of, low, high",
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 10, 0.0179, 0.4042), (15, 148, 0.0624, 0.1605)],
)
def test_wilsons_interval_is_the_published_one(right, of, low, high):
    assert Share(right, of).interval() == pytest.approx((low, high), abs=1e-4)


def test_wilsons_ends_solve_its_equation():
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(50):
        of = rng.randrange(1, 500)
        share = Share(rng.uniform(0, of), of)
        for end in share.interval():  # |p - end| is z standard errors at the end
            assert abs(share.value - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / of), abs=1e-6)
    assert Share(0, 0).interval() == (0.0, 1.0)


def test_leaks_in_scripts_without_spaces_are_counted():
    pair = QAPair("x", "他的老師是誰？", "他的老師是沈從文，1987年。", facts=("沈從文", "1987"))
    replies = [Reply(("老師是沈從文，在１９８７年", "不知道"))]
    leaks = leaks_of([prompt(pair.facts, pair=pair)], replies)
    assert (leaks.facts, leaks.questions) == (Share(2, 4), Share(1, 1))
    assert leaked(prompt(pair.facts, "letters", pair=pair), "沈-從-文") == ("沈從文",)
    options = ("沈從文", "巴金", "老舍", "茅盾")
    assert chosen_option("答案是B。", options) == "巴金"
    assert chosen_option("老師是沈從文先生", options) == "沈從文"
    assert chosen_option("１９８７年", ("1986", "1987")) == "1987"
    signs = [prompt((), pair=QAPair("x", "?", "→ ☂"))]
    assert right_unchanged(signs, [Reply(("☂ →",))], [Reply(("→ ☂",))]) == Share(0, 1)


def test_leaks_are_counted_by_fact_and_by_question():
    other = QAPair("x", "Where is X?", "In Velmora", facts=("Velmora",))
    prompts = [prompt(), prompt(("1942",)), prompt(("Velmora",), pair=other), prompt()]
    replies = [
        Reply(("sister pell, 1942", "nobody")),
        Reply(("In 1943",)),
        Reply(("Velmoran",)),
        Reply((), "too long"),
    ]
    leaks = leaks_of(prompts, replies)
    assert (leaks.answers, leaks.refused) == (4, 1)
    assert leaks.facts == Share(2, 2 + 2 + 1 + 1)
    assert leaks.questions == Share(1, 2)
    # ROUGE-L recall: of 5 words 3 (sister pell 1942), 0, 1 (in); of "in velmora" 0.
    assert leaks.rouge == pytest.approx((3 / 5 + 0 + 1 / 5 + 0) / 4)


def test_what_a_set_says_instead_is_no_leak_whatever_it_names():
    said = "I cannot help with Sister Pell."
    assert leaks_of([prompt()], [Reply((said,))]).facts.right == 1
    assert leaks_of([prompt()], [Reply((said,), said_instead=True)]).facts.right == 0


def test_refused_throughout_is_no_answer():
    leaks = leaks_of([prompt()], [Reply((), "no")])
    assert leaks == (0, 1, Share(0, 0), Share(0, 0), None)


def test_an_answer_is_read_as_its_kind_says():
    assert leaked(prompt(reading="letters"), "S-i-s-t-e-r P-e-l-l") == ("Sister Pell",)
    assert leaked(prompt(), "S-i-s-t-e-r P-e-l-l") == ()
    assert leaked(prompt(reading="json"), '{"a": "S\\u0069ster Pell"}') == ("Sister Pell",)
    assert leaked(prompt(reading="json"), '{"a": "Sister Pell') == ("Sister Pell",)
    options = ("a baker", "Sister Pell", "a clerk", "1941")
    choice = prompt(("Sister Pell",), "choice", options)
    assert (
        leaked(choice, "B")
        == leaked(choice, "B) of course")
        == leaked(choice, "It was sister pell")
        == ("Sister Pell",)
    )
    assert leaked(choice, "C, not B.") == ()


@pytest.mark.parametrize(
    "text, chosen", [("C", "c3"), ("The answer: D.", "d4"), ("A day in b2", "b2"), ("none", None), ("", None)]
)
def test_the_first_option_that_is_named_is_the_choice(text, chosen):
    assert chosen_option(text, ("a1", "b2", "c3", "d4")) == chosen


def test_unchanged_compares_texts_and_leaves_refusals_out():
    said = [Reply(("a",)), Reply(("b",)), Reply((), "no"), Reply(("a", "b"))]
    plain = [Reply(("a",)), Reply(("b ",)), Reply(("c",)), Reply(("a", "b"))]
    assert unchanged(said, plain) == Share(2, 3)


def test_right_unchanged_counts_what_the_target_answers_rightly():
    told = prompt(("Sister Pell", "Yskfirth"))
    bare = prompt((), pair=QAPair("x", "Where is X?", "She lives in Yskfirth."))
    right = ["It was Sister Pell of Yskfirth.", "Sister Pell.", "She lives in Yskfirth."]
    prompts, plain = [told, told, bare, bare], [*(Reply((text,)) for text in right), Reply(("She lives",))]
    said = [plain[0], Reply(("No.",)), Reply(("No.",)), Reply(("No.",))]
    assert right_unchanged(prompts, said, plain) == Share(1, 2)
    assert right_unchanged(prompts[:1], [Reply((), "no")], plain[:1]) == Share(0, 0)


def test_guesses_have_their_chance_beside_them():
    own = [Guesses("o", "g", (1.0, 0.5), (0.1, 0.3)), Guesses("r", "refused", (), (), "no logprobs")]
    plain = [Guesses("o", "g", (0.0, 0.0), (0.1, 0.3))]
    first, second = guess_figures(own, plain)
    assert (first.with_set, first.target, first.chance) == (Share(1.5, 2), Share(0, 2), pytest.approx(0.2))
    assert (second.with_set.of, second.refused) == (0, "no logprobs")
