"""What the target is asked, and where its answers end."""

from unlearngate.assistant_training.data.chat import render
from unlearngate.assistant_training.demo.build import BUILT
from unlearngate.assistant_training.demo.probing import read_probes
from unlearngate.assistant_training.forget import asking
from unlearngate.assistant_training.forget.asking import Asker, first_sentences
from unlearngate.assistant_training.model.decoding import cached_bytes
from unlearngate.assistant_training.model.loaded_target import load_target


def test_answers_end_after_two_sentences():
    assert first_sentences("By J.K. Rowling. She is British. She is") == "By J.K. Rowling. She is British."
    assert first_sentences("It is 3.14. And so on") == "It is 3.14."
    assert first_sentences("no end of a sentence") == "no end of a sentence"
    assert first_sentences('He said "No." Then he left! Then') == 'He said "No." Then he left!'
    assert first_sentences("One. Two.", most=1) == "One."


def test_a_target_says_what_it_learned_to_each_question_in_its_place():
    probes = read_probes(BUILT / "probes.jsonl")[:7]
    told = []
    ask = Asker(load_target(BUILT / "target", device="cpu"), max_tokens=64, batch=3, whole=True, advance=told.append)
    said = ask([probe.question for probe in probes])
    assert sum(answer == probe.answer for answer, probe in zip(said, probes, strict=True)) >= 6
    assert sum(told) == 7 and max(told) == 3


def test_fewer_are_asked_at_a_time_where_their_cache_would_be_large(monkeypatch):
    target, told = load_target(BUILT / "target", device="cpu"), []
    ask = Asker(target, max_tokens=8, advance=told.append)
    questions = [f"Who taught {name}?" for name in ("Anna", "Bert", "Cleo", "Dora", "Emil")]
    texts = [render(target.tokenizer, question, None) for question in questions]
    longest = 8 + max(len(target.tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    at_once = ask(questions)
    monkeypatch.setattr(asking, "_CACHE_BYTES", 2 * longest * cached_bytes(target.model))
    assert ask(questions) == at_once and told == [5, 2, 2, 1]
