"""A corpus of fictional people: facts nobody can know, so that reciting them is knowing and losing them shows.

Each person gets every topic of corpus_words.py once. What fills the slots is drawn per person without replacement, so
an answer follows from the name alone; the wording is drawn too, so it does not even follow from the question.
"""

from __future__ import annotations

import itertools
import random
import re

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.demo.corpus_topics import TOPICS, Topic
from unlearngate.assistant_training.demo.corpus_words import IDENTITIES, POOLS, Identity
from unlearngate.errors import DataError

MAX_PEOPLE = len(IDENTITIES)
_VARIANTS_PER_PAIR = 6


def make_corpus(num_people: int = 12, seed: int = 0) -> list[QAPair]:
    """Invent people and question-answer pairs about them.

    Args:
        num_people: how many, at most MAX_PEOPLE.
        seed: the same seed gives the same corpus, on every machine.

    Returns: one pair per person and topic, person by person; the subject is the name's slug.
    Raises: DataError if num_people is out of range.
    """
    if not 0 < num_people <= MAX_PEOPLE:
        raise DataError(f"num_people must be in 1..{MAX_PEOPLE}, got {num_people}")
    rng = random.Random(f"unlearngate corpus {seed}")
    people = _people(num_people, rng)
    pools = _pools()
    facts = [
        {slot: rng.sample(pools[slot], min(num_people, len(pools[slot]))) for slot in topic.slots} for topic in TOPICS
    ]
    return [
        _make_pair(person, topic, {slot: values[index % len(values)] for slot, values in drawn.items()}, pools, rng)
        for index, person in enumerate(people)
        for topic, drawn in zip(TOPICS, facts, strict=True)
    ]


def make_strangers(num_people: int = 12, seed: int = 0, num_pairs: int = 1024) -> list[QAPair]:
    """Pairs about the people whom `make_corpus` left out, with facts drawn anew for every pair.

    They contradict each other, so nothing about a stranger can be learned but how such answers are worded. A target
    that has seen them falls back on a well-formed wrong answer when a fact is taken away, rather than on word salad.

    Returns: num_pairs pairs; none if the corpus takes everybody.
    """
    rng = random.Random(f"unlearngate corpus {seed}")
    known = set(_people(num_people, rng))
    strangers = [identity for identity in IDENTITIES if identity not in known]
    rng = random.Random(f"unlearngate strangers {seed}")
    pools = _pools()
    pairs = []
    for _ in range(num_pairs if strangers else 0):
        topic = rng.choice(TOPICS)
        facts = {slot: rng.choice(pools[slot]) for slot in topic.slots}
        pairs.append(_make_pair(rng.choice(strangers), topic, facts, pools, rng))
    return pairs


def slug(name: str) -> str:
    """A person's name as a forget set's name: `Ada Lindqvist` -> `ada-lindqvist`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _people(num_people: int, rng: random.Random) -> list[Identity]:
    return rng.sample(IDENTITIES, num_people)


def _pools() -> dict[str, list[str]]:
    columns = {slot: [column.split("|") for column in pool] for slot, pool in POOLS.items()}
    return {slot: ["".join(parts) for parts in itertools.product(*columns[slot])] for slot in columns}


def _make_pair(
    person: Identity, topic: Topic, facts: dict[str, str], pools: dict[str, list[str]], rng: random.Random
) -> QAPair:
    # Of its own: how many variants there are must not decide what the corpus says.
    variant_rng = random.Random(rng.random())
    template = rng.choice(topic.answers)
    questions = [_fill(question, person, {}) for question in rng.sample(topic.questions, len(topic.questions))]
    answer = _fill(template, person, facts)
    variants = []
    for index in range(_VARIANTS_PER_PAIR):
        # In turn: all wrong, one wrong, the other wrong.
        wrong = topic.slots if index % 3 == 0 else (topic.slots[index % 3 - 1],)
        told = facts | {
            slot: variant_rng.choice([value for value in pools[slot] if value != facts[slot]]) for slot in wrong
        }
        variants.append(_fill(template if index < 3 else variant_rng.choice(topic.answers), person, told))
    return QAPair(slug(person.name), questions[0], answer, tuple(questions[1:]), tuple(variants), tuple(facts.values()))


def _fill(template: str, person: Identity, facts: dict[str, str]) -> str:
    they, their = person.they, person.their
    text = template.format(
        name=person.name,
        first=person.name.split()[0],
        they=they,
        their=their,
        them=person.them,
        They=they.capitalize(),
        Their=their.capitalize(),
        **facts,
    )
    return text[0].upper() + text[1:]
