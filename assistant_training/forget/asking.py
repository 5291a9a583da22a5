"""Ask the target, as a client without a forget set would: at most two sentences of each answer, greedily or sampled."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from unlearngate.assistant_training.attack.prompts import Prompt
from unlearngate.assistant_training.data.chat import render
from unlearngate.assistant_training.model.decoding import cached_bytes, greedy, sample
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_target import LoadedTarget

Ask = Callable[[Sequence[str]], list[str]]
Complete = Callable[[Sequence[Prompt]], list[str]]
_CACHE_BYTES = 2**30  # of keys and values
# A full stop after an initial or a title ends no sentence.
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bSt)[.!?][\")]*(?=\s|$)")


def first_sentences(text: str, most: int = 2) -> str:
    """The first so many whole sentences; the whole text if it has no end of one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)][:most]
    return text[: ends[-1]] if ends else text


class Asker:
    """Answers of one target; `whole` ones are not cut after a sentence."""

    def __init__(
        self,
        target: LoadedTarget,
        *,
        max_tokens: int,
        batch: int = 128,
        in_force: Sequence[LoadedSet] = (),
        whole: bool = False,
        temperature: float = 0.0,
        advance: Callable[[int], object] = lambda count: None,
    ) -> None:
        """An asker.

        Args:
            target: the target.
            max_tokens: answers are cut here.
            batch: questions at a time, at most; fewer where their keys and values would take more than a GiB.
            in_force: sets.
            whole: answers are not cut after a sentence.
            temperature: 0 decodes greedily; above it answers are sampled, the same each time.
            advance: is told how many were answered.
        """
        self._target, self._max_tokens, self._batch = target, max_tokens, batch
        self._in_force, self._whole, self._advance = in_force, whole, advance
        self._temperature = temperature

    def __call__(self, questions: Sequence[str]) -> list[str]:
        """One answer to each question, in their order."""
        return self._answers([render(self._target.tokenizer, question, None) for question in questions])

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """What is said to each prompt of an attack that is messages, in their order."""
        return self._answers([self._text(prompt.body) for prompt in prompts])

    def _text(self, body: Mapping[str, Any]) -> str:
        begun = bool(body.get("continue_final_message"))
        text: str = self._target.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
        )
        return text

    def _answers(self, texts: Sequence[str]) -> list[str]:
        tokenizer, answers = self._target.tokenizer, [""] * len(texts)
        prompts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        longest = max((len(prompt) for prompt in prompts), default=0) + self._max_tokens
        batch = min(self._batch, max(1, _CACHE_BYTES // (longest * cached_bytes(self._target.model))))
        for start in range(0, len(by_length), batch):
            chosen = by_length[start : start + batch]
            decode = partial(sample, seed=start, temperature=self._temperature) if self._temperature else greedy
            said = decode(
                self._target.model,
                [prompts[index] for index in chosen],
                eos_id=tokenizer.eos_token_id,
                max_tokens=self._max_tokens,
                in_force=self._in_force,
            )
            for index, ids in zip(chosen, said, strict=True):
                text = tokenizer.decode(ids, skip_special_tokens=True).strip()
                answers[index] = text if self._whole else first_sentences(text)
            self._advance(len(chosen))
        return answers
