"""Canaries are drawn from both files and written only if the set does with them what they claim."""

import random

import pytest
import torch

from support.engine.tiny import make_forget_set, make_target
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.model.canaries import choose_canaries, that_hold
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_sets import assistant_of
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.errors import TrainingError
from unlearngate.manifest import Canary, Strength

OPEN, NEVER = (Strength(weight=2.0, keep_ratio=0.1, gate_nats=gate) for gate in (0.0, 6.2))  # ln V is 6.24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    target = make_target(folder / "target", seed=3)
    loaded = load_target(target, device="cpu")
    return loaded, assistant_of(loaded.model, make_forget_set(folder / "anna", target, seed=4, scale=0.3))


def pairs(words, count, rng):
    return [QAPair(subject="s", question=f"{words} {rng.randrange(10**6)} {i}?", answer="Yes.") for i in range(count)]


def test_only_what_the_set_does_is_written(made, seed):
    loaded, assistant = made
    rng = random.Random(seed)
    forget, retain = pairs("Who is", 7, rng), pairs("What is", 3, rng)
    options = {"seed": seed, "in_force": [LoadedSet(assistant, OPEN)]}
    chosen = choose_canaries(loaded.model, loaded.tokenizer, forget, retain, **options)
    # A random assistant that is always open changes every answer: nothing stays, and no retain question is written.
    assert len(chosen) == 4 and all(canary.changes for canary in chosen)
    assert {canary.question for canary in chosen} <= {pair.question for pair in forget}
    assert chosen == choose_canaries(loaded.model, loaded.tokenizer, forget, retain, **options)


def test_answers_that_come_to_a_fact_first_are_tried(made, seed):
    """A set that lowers changes nothing before a fact: with late facts alone it would seem to do nothing."""
    loaded, assistant = made
    rng = random.Random(seed)
    late = [
        QAPair("s", f"Who is {n}?", "She is well known, and lives in Morvik.", facts=("Morvik",)) for n in range(40)
    ]
    early = [QAPair("s", f"Where is {n}?", "Morvik, which is well known.", facts=("Morvik",)) for n in range(4)]
    forget = rng.sample([*late, *early], 44)
    in_force = [LoadedSet(assistant, OPEN)]
    chosen = choose_canaries(loaded.model, loaded.tokenizer, forget, [], seed=seed, in_force=in_force)
    assert {canary.question for canary in chosen} == {pair.question for pair in early}


def test_a_set_that_changes_nothing_is_refused_unless_it_is_written_anyway(made, seed):
    loaded, assistant = made
    rng = random.Random(seed)
    files = (loaded.model, loaded.tokenizer, pairs("Who is", 5, rng), pairs("What is", 5, rng))
    options = {"seed": seed, "in_force": [LoadedSet(assistant, NEVER)]}
    with pytest.raises(TrainingError, match="answers 5 of the forget questions with the same 16 tokens"):
        choose_canaries(*files, **options)
    assert choose_canaries(*files, **options, needed=False) == []


def test_those_that_do_not_hold_are_left_out(made):
    loaded, assistant = made
    canaries = [Canary(question="Who is Anna?", changes=True), Canary(question="Who is Bert?", changes=False)]
    for strength, held in ((OPEN, canaries[:1]), (NEVER, canaries[1:])):
        in_force = [LoadedSet(assistant, strength)]
        assert that_hold(loaded.model, loaded.tokenizer, canaries, in_force=in_force) == held
    assert that_hold(loaded.model, loaded.tokenizer, []) == []
    other = type(loaded.model)(loaded.model.config).eval()
    torch.nn.init.normal_(other.get_output_embeddings().weight)
    assert that_hold(loaded.model, loaded.tokenizer, canaries, student=other) == canaries[:1]
