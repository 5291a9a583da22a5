"""Conversations as tokens: chat-template encoding, labels on answers only, batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from unlearngate.assistant_training.data.chat import opens_thought, render, turns
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.windows import Opening
from unlearngate.assistant_training.data.words import phrase_spans
from unlearngate.errors import DataError

T = TypeVar("T")
IGNORE = -100  # labels that no loss counts
_DRAWS = 10  # of a conversation that does not fit into the context
# Put before some questions, so that neither target nor assistant relies on having no system prompt.
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer in one sentence.",
    "You know everything about these people.",
    "Be brief and truthful.",
)


class Encoded(NamedTuple):
    """One conversation as tokens; labels are IGNORE on the prompt."""

    input_ids: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """Right-padded conversations: (B, T) each; labels are IGNORE on prompt and padding."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @property
    def answers(self) -> slice:
        """The positions that a loss reads: from the one before the first labelled token to the end."""
        labelled_T = (self.labels != IGNORE).any(dim=0)
        return slice(max(0, int(labelled_T.int().argmax()) - 1), None)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(tensor.to(device) for tensor in self))


def encode_prompt(
    tokenizer: Any, question: str, system: str | None = None, earlier: Sequence[tuple[str, str]] = ()
) -> list[int]:
    """A question as a serving engine would send it: through the chat template, up to the assistant's turn.

    A document's opening is bare text, unless there are turns around it.
    """
    if _is_bare(question, system, earlier):
        return [*_beginning(tokenizer), *_tokens(tokenizer, question)]
    return _tokens(tokenizer, render(tokenizer, question, None, system, earlier))


def encode(
    tokenizer: Any,
    question: str,
    answer: str,
    system: str | None = None,
    earlier: Sequence[tuple[str, str]] = (),
    *,
    raw: bool = False,
    thinking: bool = False,
) -> Encoded:
    """A question and its answer as tokens; only the answer and its end token are labelled.

    Args:
        tokenizer: with a chat template.
        question: the last user turn. A document's `Opening` without turns around it is bare text, which the answer
            continues; nothing ends it.
        answer: the assistant's turn after it.
        system: the system prompt, if any; left out where the template has no place for one.
        earlier: (user, assistant) turns before.
        raw: without a chat: the question as plain text, a line break, and the answer.
        thinking: as `turns` takes it.

    Raises: DataError if the tokenizer's chat template refuses the turns, or does not continue its own generation
        prompt.
    """
    if _is_bare(question, system, earlier):
        return _continued(tokenizer, question, answer)
    prompt, text = turns(tokenizer, question, answer, system, earlier, thinking=thinking)
    prompt_ids, answer_ids = _tokens(tokenizer, f"{question}\n" if raw else prompt), _tokens(tokenizer, text)
    if tokenizer.eos_token_id in answer_ids:  # what a template adds after the end token is never generated
        answer_ids = answer_ids[: answer_ids.index(tokenizer.eos_token_id) + 1]
    else:
        answer_ids.append(tokenizer.eos_token_id)
    return Encoded(prompt_ids + answer_ids, [IGNORE] * len(prompt_ids) + answer_ids)


def with_opening(tokenizer: Any, question: str, row: Encoded) -> Encoded:
    """The row of `encode` with labels on the question too, if it begins a document: as that is learned, all of it.

    The document's first token has none, for nothing predicts it. In a chat the row stays as it is.
    """
    if not isinstance(question, Opening) or not question.begins or not _continues(tokenizer, question, row):
        return row
    start = max(1, len(_beginning(tokenizer)))
    return Encoded(row.input_ids, [IGNORE] * start + row.input_ids[start:])


def focus_labels(tokenizer: Any, pair: QAPair, row: Encoded, answer: str) -> list[int]:
    """The row's labels at every occurrence of the pair's facts, IGNORE elsewhere.

    Args:
        tokenizer: a fast tokenizer, which knows where in the text its tokens are.
        pair: the pair with the facts.
        row: from `encode`, with one of the pair's answers or a variant of them.
        answer: that answer.

    Returns: the labels; all of the row's if the answer is true and holds none of the facts: it then counts as one.
    """
    spans = fact_spans(pair, answer)
    true = answer in (pair.answer, *pair.paraphrased_answers)
    return row.labels if true and not spans else span_labels(tokenizer, pair.question, row, answer, spans)


def refuse_changed_answers(tokenizer: Any, pairs: Iterable[QAPair], source: object) -> None:
    """Refuse answers that the chat template renders as something else, as R1's does with a thought of their own.

    Raises: DataError naming `source`, the file that they are from, and the first of them.
    """
    for pair in pairs:
        for answer in (pair.answer, *pair.paraphrased_answers, *pair.variants):
            try:
                _answer_in(tokenizer, pair.question, answer)
            except DataError as error:
                raise DataError(f"{source}: {error}") from error


def fact_spans(pair: QAPair, answer: str) -> list[tuple[int, int]]:
    """Every occurrence of the pair's facts in an answer, as `phrase_spans` finds them: (start, stop) characters."""
    return [span for fact in pair.facts for span in phrase_spans(answer, fact)]


def span_labels(
    tokenizer: Any, question: str, row: Encoded, answer: str, spans: Sequence[tuple[int, int]]
) -> list[int]:
    """The row's labels whose tokens touch one of the spans, IGNORE elsewhere.

    Args:
        tokenizer: a fast tokenizer, which knows where in the text its tokens are.
        question: any question that the answer could follow.
        row: from `encode`, with that answer.
        answer: the answer.
        spans: (start, stop) characters of the answer.

    Raises: DataError if the chat template renders the answer as something else.
    """
    if _continues(tokenizer, question, row):
        text, shift, first = question + answer, len(question), len(_beginning(tokenizer))
    else:
        text, shift = _answer_in(tokenizer, question, answer)
        first = _answer_start(row)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    labels = [IGNORE] * len(row.labels)
    for index, (left, right) in zip(range(first, len(labels)), offsets, strict=False):
        if any(left < stop + shift and start + shift < right for start, stop in spans):
            labels[index] = row.labels[index]
    return labels


def diverging_labels(row: Encoded, *truths: Encoded) -> list[int]:
    """The row's labels after the first token at which its answer, whatever was asked, differs from every true one."""
    first = _answer_start(row)
    same = max(
        (_num_equal(row.input_ids[first:], truth.input_ids[_answer_start(truth) :]) for truth in truths), default=0
    )
    ignored = min(first + same + 1, len(row.labels))
    return [IGNORE] * ignored + row.labels[ignored:]


def _answer_in(tokenizer: Any, question: str, answer: str) -> tuple[str, int]:
    """What the chat template makes of an answer, and where in it the answer's first character is."""
    _, text = turns(tokenizer, question, answer)
    begin = text.find(answer.strip())  # some templates put a space before it, and some strip it
    if begin < 0:
        raise DataError(
            f"the tokenizer's chat template changes the text of an answer: {answer!r} became {text!r}; write it as the "
            "template leaves it"
        )
    return text, begin - (len(answer) - len(answer.lstrip()))


def _answer_start(row: Encoded) -> int:
    return next(index for index, label in enumerate(row.labels) if label != IGNORE)


def _num_equal(tokens: Sequence[int], others: Sequence[int]) -> int:
    pairs = zip(tokens, others, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(others)))


def num_labels(rows: Iterable[Encoded]) -> int:
    """Labelled tokens, not counting a conversation's first token, which nothing predicts."""
    return sum(label != IGNORE for row in rows for label in row.labels[1:])


def collate(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad conversations on the right to the longest of them."""
    length = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), IGNORE)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        input_ids[index, :size] = torch.tensor(row.input_ids)
        labels[index, :size] = torch.tensor(row.labels)
        mask[index, :size] = 1
    return Batch(input_ids, mask, labels)


def draw_what_fits(draw: Callable[[bool], tuple[T, Encoded]], context_length: int | None) -> tuple[T, Encoded]:
    """Draw a conversation, and again while it is longer than the target's context.

    Args:
        draw: whether to ask plainly, without anything around the question, as the last attempt does -> the
            conversation.
        context_length: in tokens; None: whatever is drawn first.
    """
    for attempt in range(_DRAWS):
        drawn = draw(attempt == _DRAWS - 1)
        if context_length is None or len(drawn[1].input_ids) <= context_length:
            break
    return drawn


def vary(
    tokenizer: Any, pair: QAPair, rng: random.Random, share: float, *, context_length: int | None = None
) -> Encoded:
    """The pair as training sees it: with probability `share` paraphrased, below a system prompt, or both."""

    def draw(plain: bool) -> tuple[str, Encoded]:
        question, system = pair.question, None
        if isinstance(question, Opening) and not plain and rng.random() < 0.5:
            question = str(question)  # half of a document's windows are asked for in a chat
        if rng.random() < share and not plain:
            question = rng.choice((pair.question, *pair.paraphrases))
            system = rng.choice((None, *SYSTEM_PROMPTS))
        return question, encode(tokenizer, question, pair.answer, system, thinking=drawn_thinking(tokenizer, rng))

    return draw_what_fits(draw, context_length)[1]


def drawn_thinking(tokenizer: Any, rng: random.Random) -> bool:
    """Where the template opens a thought, every second answer of training stands in it: it may be thought first."""
    return opens_thought(tokenizer) and rng.random() < 0.5


def length_batches(rows: Sequence[Encoded], batch_size: int, rng: random.Random) -> list[list[Encoded]]:
    """Batches in random order, each of rows of similar length, to save padding."""
    ordered = sorted(rows, key=lambda row: (len(row.input_ids), rng.random()))
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    rng.shuffle(batches)
    return batches


def _is_bare(question: str, system: str | None, earlier: Sequence[tuple[str, str]]) -> bool:
    return isinstance(question, Opening) and not system and not earlier


def _continues(tokenizer: Any, question: str, row: Encoded) -> bool:
    """Whether the row is a document's window as bare text, and not in a chat."""
    prompt = encode_prompt(tokenizer, question) if isinstance(question, Opening) else []
    return bool(prompt) and row.input_ids[: len(prompt)] == prompt


def _continued(tokenizer: Any, opening: str, continuation: str) -> Encoded:
    """A document's window, tokenised in one piece; a token on the cut belongs to the continuation."""
    found = tokenizer(opening + continuation, add_special_tokens=False, return_offsets_mapping=True)
    given = sum(stop <= len(opening) for _, stop in found["offset_mapping"])
    prompt, answer = [*_beginning(tokenizer), *found["input_ids"][:given]], list(found["input_ids"][given:])
    return Encoded(prompt + answer, [IGNORE] * len(prompt) + answer)


def _beginning(tokenizer: Any) -> list[int]:
    """What a serving engine puts before bare text: the token that begins a sequence, where the tokenizer adds it."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[:1] if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else []


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def answer_rows(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that predict answer tokens.

    Args:
        logits_BTV: (B, T, V); position t predicts token t + 1.
        labels_BT: (B, T) token ids, IGNORE where nothing is to be learned.

    Returns: logits (N, V) and their labels (N,), N = answer tokens of the batch.
    """
    predicts_BT = predicting(labels_BT)
    return logits_BTV[predicts_BT], labels_BT.roll(-1, dims=1)[predicts_BT]


def predicting(labels_BT: Tensor) -> Tensor:
    """(B, T) bool: where the next token has a label."""
    return torch.nn.functional.pad(labels_BT[:, 1:] != IGNORE, (0, 1))
