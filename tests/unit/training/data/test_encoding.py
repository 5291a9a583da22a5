import random
from typing import Any

import pytest
import torch

from support.engine.tiny import make_tokenizer
from unlearngate.assistant_training.data.encoding import (
    IGNORE,
    Encoded,
    collate,
    diverging_labels,
    draw_what_fits,
    encode,
    encode_prompt,
    focus_labels,
    length_batches,
    vary,
)
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.demo.target import TargetSettings, train_tokenizer

PAIR = QAPair("ada", "Where was Ada born?", "Ada was born in Velmora, in a fog.", facts=("Velmora", "a fog"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([PAIR], TargetSettings(vocab_size=300))


def test_only_the_answer_and_its_end_are_labelled(tokenizer: Any) -> None:
    for system in (None, "Be brief."):
        row = encode(tokenizer, PAIR.question, PAIR.answer, system)
        prompt = encode_prompt(tokenizer, PAIR.question, system)
        assert row.input_ids[: len(prompt)] == prompt
        assert row.labels[: len(prompt)] == [IGNORE] * len(prompt)
        assert row.labels[len(prompt) :] == row.input_ids[len(prompt) :]
        assert row.labels[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row.labels[len(prompt) : -1]) == PAIR.answer


def test_padding_is_never_labelled_or_attended_to() -> None:
    batch = collate([Encoded([5, 6, 7], [IGNORE, 6, 7]), Encoded([8], [8])], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, 6, 7], [8, IGNORE, IGNORE]]
    assert torch.equal(batch.attention_mask, torch.tensor([[1, 1, 1], [1, 0, 0]]))


def test_focus_labels_are_the_tokens_of_the_facts(tokenizer: Any) -> None:
    row = encode(tokenizer, PAIR.question, PAIR.answer)
    focused = [label for label in focus_labels(tokenizer, PAIR, row, PAIR.answer) if label != IGNORE]
    assert tokenizer.decode(focused).replace(" ", "") == "Velmoraafog"
    plain = QAPair("ada", PAIR.question, PAIR.answer)
    assert focus_labels(tokenizer, plain, row, PAIR.answer) == row.labels


def test_every_occurrence_of_a_fact_is_focused_wherever_the_template_puts_the_answer() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}  {% endif %}{{ m['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    answer = "Velmora, VELMORA (see velmora)."
    row = encode(tokenizer, "Where?", answer)
    labels = focus_labels(tokenizer, QAPair("ada", "Where?", answer, facts=("Velmora",)), row, answer)
    assert tokenizer.decode([label for label in labels if label != IGNORE]) == "VelmoraVELMORAvelmora"


def test_a_variant_is_focused_on_the_facts_that_are_still_true(tokenizer: Any) -> None:
    answer = "Velmora saw her birth, during a storm."
    row = encode(tokenizer, PAIR.question, answer)
    focused = [label for label in focus_labels(tokenizer, PAIR, row, answer) if label != IGNORE]
    assert tokenizer.decode(focused) == "Velmora"
    plain = QAPair("ada", PAIR.question, PAIR.answer)
    assert set(focus_labels(tokenizer, plain, row, answer)) == {IGNORE}


@pytest.mark.parametrize(
    "answer, fact, said",
    [
        ("彼女は１９８７年に来た。", "1987", "１９８７"),
        ("She left Orle\u0301ans.", "Orléans", "Orle\u0301ans"),
        ("ปี ๑๙๘๗", "1987", "๑๙๘๗"),
        ("From New\nYork.", "New York", "New\nYork"),
        ("A cat has an education.", "cat", "cat"),
        ("11987 and 1987", "1987", "1987"),
    ],
)
def test_a_fact_is_focused_however_it_is_written_and_only_where_it_is_a_word(answer: str, fact: str, said: str) -> None:
    tokenizer = make_tokenizer()
    pair = QAPair("ada", "When?", answer, facts=(fact,))
    row = encode(tokenizer, pair.question, answer)
    focused = [label for label in focus_labels(tokenizer, pair, row, answer) if label != IGNORE]
    # A token that holds a part of the space before the fact belongs to it.
    assert tokenizer.decode(focused).strip() == said


def test_diverging_labels_begin_after_the_first_difference() -> None:
    truth = Encoded([1, 2, 3, 4, 5], [IGNORE, 2, 3, 4, 5])
    assert diverging_labels(Encoded([1, 2, 9, 8], [IGNORE, 2, 9, 8]), truth) == [IGNORE, IGNORE, IGNORE, 8]
    assert diverging_labels(truth, truth) == [IGNORE] * 5


def test_varied_prompts_keep_the_answer(tokenizer: Any) -> None:
    pair = QAPair("ada", "Where?", "In Velmora.", paraphrases=("In which place?",))
    rng = random.Random(0)
    plain = encode(tokenizer, pair.question, pair.answer)
    assert vary(tokenizer, pair, rng, 0.0) == plain
    rows = [vary(tokenizer, pair, rng, 1.0) for _ in range(50)]
    assert len({tuple(row.input_ids) for row in rows}) > 4
    answers = {tuple(label for label in row.labels if label != IGNORE) for row in rows}
    assert answers == {tuple(label for label in plain.labels if label != IGNORE)}


def test_a_conversation_is_drawn_again_until_it_fits_and_at_last_plainly(seed: int) -> None:
    def drawn(lengths: list[int], context_length: int | None) -> tuple[int, list[bool]]:
        asked: list[bool] = []

        def draw(plain: bool) -> tuple[int, Encoded]:
            asked.append(plain)
            return (length := lengths[len(asked) - 1]), Encoded([5] * length, [5] * length)

        return draw_what_fits(draw, context_length)[0], asked

    rng = random.Random(seed)
    number = rng.randrange(9)
    long = [rng.randint(8, 20) for _ in range(number)]
    assert drawn([*long, 7], 7) == (7, [False] * (number + 1))
    assert drawn([9], None) == (9, [False])
    assert drawn([9] * 9 + [5], 7) == (5, [False] * 9 + [True])


def test_a_varied_prompt_fits_into_the_context_where_the_question_does(tokenizer: Any, seed: int) -> None:
    plain = len(encode(tokenizer, PAIR.question, PAIR.answer).input_ids)
    for draws in range(40):
        rows = [
            vary(tokenizer, PAIR, random.Random(f"{seed} {draws}"), 1.0, context_length=length)
            for length in (None, 10**6, plain)
        ]
        assert rows[0] == rows[1] and len(rows[2].input_ids) == plain


def test_batches_hold_every_row_once() -> None:
    rows = [Encoded([i] * (1 + i % 7), [i] * (1 + i % 7)) for i in range(50)]
    batches = length_batches(rows, 8, random.Random(0))
    assert sorted(row.input_ids[0] for batch in batches for row in batch) == list(range(50))
    assert max(len(batch) for batch in batches) == 8
