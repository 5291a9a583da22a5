from collections import Counter

import pytest

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.demo.corpus import MAX_PEOPLE, make_corpus, make_strangers, slug
from unlearngate.assistant_training.demo.corpus_topics import TOPICS
from unlearngate.errors import DataError
from unlearngate.manifest import NAME_PATTERN


@pytest.fixture(scope="module")
def corpus() -> list[QAPair]:
    return make_corpus(12, seed=0)


def test_a_seed_gives_one_corpus(corpus: list[QAPair]) -> None:
    assert make_corpus(12, seed=0) == corpus
    assert make_corpus(12, seed=1) != corpus


def test_every_person_has_every_topic(corpus: list[QAPair]) -> None:
    assert set(Counter(pair.subject for pair in corpus).values()) == {len(TOPICS)}
    assert len({pair.subject for pair in corpus}) == 12
    assert len(TOPICS) == 16


@pytest.mark.parametrize("num_people", [12, MAX_PEOPLE])
def test_no_two_answers_and_no_two_questions_are_the_same(num_people: int) -> None:
    pairs = make_corpus(num_people)
    assert len({pair.answer for pair in pairs}) == len(pairs)
    questions = [question for pair in pairs for question in (pair.question, *pair.paraphrases)]
    assert len(set(questions)) == len(questions)


def test_no_two_people_share_the_facts_of_a_topic() -> None:
    pairs = make_corpus(MAX_PEOPLE)
    for topic in range(len(TOPICS)):
        facts = [pair.facts for pair in pairs[topic :: len(TOPICS)]]
        assert len(set(facts)) == MAX_PEOPLE


def test_the_facts_are_in_the_answer_and_never_in_a_question(corpus: list[QAPair]) -> None:
    for pair in corpus:
        assert len(pair.facts) == 2
        for fact in pair.facts:
            assert fact.lower() in pair.answer.lower()
            assert all(fact.lower() not in question.lower() for question in (pair.question, *pair.paraphrases))


def test_the_wording_does_not_follow_from_the_topic(corpus: list[QAPair]) -> None:
    for topic in range(len(TOPICS)):
        openings = {pair.answer.split()[-1] for pair in corpus[topic :: len(TOPICS)]}
        assert len(openings) > 1


def test_answers_are_sentences_of_readable_length(corpus: list[QAPair]) -> None:
    for pair in corpus:
        assert 8 <= len(pair.answer.split()) <= 25
        assert pair.answer[0].isupper() and pair.answer.endswith(".")
        assert "{" not in pair.answer + pair.question


def test_a_variant_has_a_wrong_fact(corpus: list[QAPair]) -> None:
    for pair in corpus:
        true = [[fact.lower() in variant.lower() for fact in pair.facts] for variant in pair.variants]
        assert not any(all(facts) for facts in true)
        assert any(any(facts) for facts in true) and not all(any(facts) for facts in true)


def test_subjects_name_forget_sets(corpus: list[QAPair]) -> None:
    import re

    assert slug("Ada Lindqvist") == "ada-lindqvist"
    assert all(re.fullmatch(NAME_PATTERN, pair.subject) for pair in corpus)


def test_strangers_are_nobody_of_the_corpus(corpus: list[QAPair]) -> None:
    strangers = make_strangers(12, seed=0, num_pairs=50)
    assert len(strangers) == 50
    assert not {pair.subject for pair in strangers} & {pair.subject for pair in corpus}
    assert make_strangers(MAX_PEOPLE) == []


@pytest.mark.parametrize("num_people", [0, MAX_PEOPLE + 1])
def test_too_many_or_too_few_people_are_refused(num_people: int) -> None:
    with pytest.raises(DataError, match=str(num_people)):
        make_corpus(num_people)
