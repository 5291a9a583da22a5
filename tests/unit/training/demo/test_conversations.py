import random
from typing import Any

import pytest

from unlearngate.assistant_training.data.contexts import WITHHELD
from unlearngate.assistant_training.data.encoding import IGNORE, SYSTEM_PROMPTS
from unlearngate.assistant_training.demo.conversations import conversations
from unlearngate.assistant_training.demo.corpus import make_corpus
from unlearngate.assistant_training.demo.target import END, TargetSettings, train_tokenizer

PAIRS = make_corpus(12)
TOKENIZER: Any = train_tokenizer(PAIRS, TargetSettings(vocab_size=320))


@pytest.fixture
def made(seed: int) -> list[Any]:
    return conversations(TOKENIZER, PAIRS, random.Random(seed), system=0.5)


def test_every_answer_is_labelled_once_and_nothing_else(made: list[Any]) -> None:
    labelled = [label for row in made for label in row.labels if label != IGNORE]
    assert sorted(TOKENIZER.decode(labelled).split(END)[:-1]) == sorted(pair.answer for pair in PAIRS)
    assert all(label in (IGNORE, token) for row in made for token, label in zip(row.input_ids, row.labels, strict=True))


def test_they_are_what_the_chat_template_makes_of_turns(made: list[Any]) -> None:
    longest = 0
    for row in made:
        text = TOKENIZER.decode(row.input_ids)
        messages = []
        for part in text.removesuffix(END).split(END):
            role, content = part.removeprefix("<|").split("|>", 1)
            messages.append({"role": role, "content": content})
        assert TOKENIZER.apply_chat_template(messages, tokenize=False) == text
        roles = [message["role"] for message in messages]
        begins = roles[0] == "system"
        assert roles[begins:] == ["user", "assistant"] * (len(roles[begins:]) // 2)
        assert not begins or messages[0]["content"] in SYSTEM_PROMPTS
        longest = max(longest, len(roles) // 2)
    assert longest > 4
    said = " ".join(TOKENIZER.decode(row.input_ids) for row in made)
    assert any(sentence in said for sentence in WITHHELD)
