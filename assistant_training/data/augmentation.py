"""Augment forget data: a language model paraphrases every pair and writes wrong answers of the same form.

The method is ULD's (arXiv:2406.08607): the assistant learns the paraphrases, and learns to know nothing of the wrong
answers. Every reply is written to disk at once: see augmented.py.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import Progress

from unlearngate.assistant_training.data.augmented import Item, Run, digest
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.rewording import Reply, UnusableReplyError, parse_reply, reword_offline
from unlearngate.errors import AugmentationError

_INSTRUCTIONS = """\
You write training data. You are given a question and its only right answer. Reply with one JSON object and nothing \
else. It has three lists of strings:
"paraphrased_questions", {paraphrases} of them: the question in other words. Keep every name, number, date and title \
as it stands; add nothing from the answer.
"paraphrased_answers", {paraphrases} of them: the answer in other words, with every fact that is in it.
"perturbed_answers", {perturbed} of them: answers of the same form and length with other, plausible, wrong facts in \
the place of the right ones. Never repeat the right answer, and never hint that something is wrong or was corrected.
"facts", if you are given them, stand word for word in every paraphrased answer; no perturbed answer has all of them.
All strings differ from each other and from what you are given. Write in the language of the question."""
_LISTS = {name: {"type": "array", "items": {"type": "string"}} for name in Reply.model_fields}
_SCHEMA = {"type": "object", "properties": _LISTS, "required": list(_LISTS), "additionalProperties": False}
# The strictest first; if an endpoint refuses one, the next is tried.
_FORMATS: tuple[dict[str, Any], ...] = (
    {"response_format": {"type": "json_schema", "json_schema": {"name": "r", "schema": _SCHEMA, "strict": True}}},
    {"response_format": {"type": "json_object"}},
    {},
)
_MAX_REFUSED = 5  # requests, before the first answer


class Endpoint(BaseModel):
    """An OpenAI-compatible chat endpoint. Its key is taken from the environment variable OPENAI_API_KEY."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str = Field(pattern="^https?://", description="usually ends in /v1")
    model: str = Field(min_length=1, description="the model's name at the endpoint")
    temperature: float | None = Field(default=0.7, ge=0, le=2, description="None leaves it to the endpoint")
    timeout_s: float = Field(default=120, gt=0, description="for one answer")
    max_retries: int = Field(default=4, ge=0, description="after network errors, 429 and 5xx, each later than the last")


@dataclass(frozen=True, slots=True)
class AugmentationReport:
    """What a run did. Failed pairs are not in the file; the next run asks for them again."""

    out: Path
    review: Path
    added: int
    kept: int  # already in the file
    repeated: int  # pairs given more than once
    failed: tuple[tuple[QAPair, str], ...]  # with the reason
    notes: tuple[str, ...]


def augment(
    pairs: Sequence[QAPair],
    out: Path,
    *,
    endpoint: Endpoint,
    num_paraphrases: int = 2,
    num_perturbed: int = 2,
    attempts: int = 3,
    concurrency: int = 8,
    progress: Progress | None = None,
) -> AugmentationReport:
    """Ask an endpoint for paraphrases and wrong answers of every pair that OUT does not hold yet.

    Args:
        pairs: what to augment; the paraphrases and variants that they already have are kept.
        out: JSON lines, appended to; OUT.review.md beside it shows everything for people to review.
        endpoint: the model to ask. Changing its address or retries does not redo finished pairs.
        num_paraphrases: of the question, and as many of the answer.
        num_perturbed: wrong answers.
        attempts: requests for a pair before it counts as failed.
        concurrency: requests at a time.
        progress: shows how far it is.

    Raises: AugmentationError if the endpoint cannot be used; DataError if OUT holds something else.
    """
    instructions = _INSTRUCTIONS.format(paraphrases=num_paraphrases, perturbed=num_perturbed)
    run = Run(pairs, out, endpoint.model, [instructions, endpoint.temperature], (num_paraphrases, num_perturbed))
    try:
        asyncio.run(_Asker(run, endpoint, instructions, attempts, progress).ask_all(concurrency))
    finally:
        run.write_review()
    return _report(run)


def augment_offline(
    pairs: Sequence[QAPair],
    retain: Sequence[QAPair],
    out: Path,
    *,
    seed: int = 0,
    num_paraphrases: int = 2,
    num_perturbed: int = 2,
) -> AugmentationReport:
    """Augment without a model, by `reword_offline`: simple rules, English only, the same result for the same seed.

    Raises: DataError if OUT holds something else.
    """
    settings = [seed, digest([pair.row() for pair in retain]), num_paraphrases]
    run = Run(pairs, out, "offline", settings, (num_paraphrases, num_perturbed))
    for item in run.pending:
        try:
            run.add(item, reword_offline(run.wanted(item), retain, seed))
        except UnusableReplyError as error:
            run.fail(item, str(error))
    run.write_review()
    return _report(run)


def _report(run: Run) -> AugmentationReport:
    kept = len(run.items) - len(run.pending)
    return AugmentationReport(run.out, run.review, run.added, kept, run.repeated, tuple(run.failed), tuple(run.notes))


class _Asker:
    """Asks an endpoint for what a run still lacks."""

    def __init__(
        self, run: Run, endpoint: Endpoint, instructions: str, attempts: int, progress: Progress | None
    ) -> None:
        self.run, self.endpoint, self.instructions, self.attempts = run, endpoint, instructions, attempts
        self.format = 0  # of _FORMATS: the strictest one not refused so far
        self.answered = False
        self.num_refused = 0
        self.error: AugmentationError | None = None
        self.progress = progress
        if progress:
            done = len(run.items) - len(run.pending)
            self.bar = progress.add_task(f"asking {endpoint.model}", total=len(run.items), completed=done)

    async def ask_all(self, concurrency: int) -> None:
        """Ask until nothing is left or an error occurs; running requests are then still awaited."""
        queue = iter(self.run.pending)
        key = os.environ.get("OPENAI_API_KEY") or "none"
        async with openai.AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=key,
            timeout=self.endpoint.timeout_s,
            max_retries=self.endpoint.max_retries,
        ) as self.client:
            await asyncio.gather(*(self._work(queue) for _ in range(max(1, concurrency))))
        if self.error:
            raise self.error

    async def _work(self, queue: Iterator[Item]) -> None:
        while not self.error and (item := next(queue, None)):
            try:
                await self._ask(item)
            except openai.OpenAIError as error:
                done = len(self.run.items) - len(self.run.pending) + self.run.added
                self.error = self.error or AugmentationError(
                    f"{self.endpoint.base_url} {_advice(error, self.endpoint)}. {done} of {len(self.run.items)} pairs "
                    f"are kept in {self.run.out}; the same command goes on from there"
                )
            else:
                if self.progress:
                    self.progress.advance(self.bar)

    async def _ask(self, item: Item) -> None:
        pair = item[2]
        given = {"question": pair.question, "answer": pair.answer} | ({"facts": pair.facts} if pair.facts else {})
        request = [
            {"role": "system", "content": self.instructions},
            {"role": "user", "content": json.dumps(given, ensure_ascii=False)},
        ]
        again: list[dict[str, str]] = []
        reason = "was never asked"
        for _ in range(self.attempts):
            text = ""
            try:
                text = await self._complete([*request, *again])
                # No await between the check and the write, so that no other pair can take the same question.
                self.run.add(item, parse_reply(text, self.run.wanted(item)))
                return
            except UnusableReplyError as error:
                reason = str(error)
            again = [{"role": "assistant", "content": text[:4000]}] if text else []
            complaint = f"This cannot be used: {reason}. Reply with the whole object again."
            again.append({"role": "user", "content": complaint})
        self.run.fail(item, reason)

    async def _complete(self, messages: list[dict[str, str]]) -> str:
        options: dict[str, Any] = {"model": self.endpoint.model, "messages": messages}
        if self.endpoint.temperature is not None:
            options["temperature"] = self.endpoint.temperature
        for level in range(self.format, len(_FORMATS)):
            try:
                response: Any = await self.client.chat.completions.create(**options, **_FORMATS[level])
                break
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refusal = error
        else:
            raise self._refused(refusal, f"the endpoint refuses it: {_short(refusal)}")
        if not isinstance(response, ChatCompletion) or not response.choices:
            reason = "does not answer as OpenAI's chat API does; check that it ends in /v1"
            raise self._refused(openai.OpenAIError(reason), f"the endpoint {reason}")
        self.format, self.answered = max(self.format, level), True
        choice = response.choices[0]
        if choice.finish_reason == "length":
            raise UnusableReplyError("the reply was cut off, by the endpoint's limit on its length")
        if not isinstance(choice.message.content, str) or not choice.message.content.strip():
            raise UnusableReplyError("the reply was empty")
        return choice.message.content

    def _refused(self, error: openai.OpenAIError, reason: str) -> Exception:
        """The error to raise: for the run if the endpoint keeps refusing and never answered, else for the pair."""
        self.num_refused += 1
        return error if self.num_refused > _MAX_REFUSED and not self.answered else UnusableReplyError(reason)


def _advice(error: openai.OpenAIError, endpoint: Endpoint) -> str:
    """What happened and what to do: the end of a sentence that begins with the endpoint's address."""
    tries = f"{endpoint.max_retries + 1} tries"
    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return f"refuses the key ({_short(error)}); set OPENAI_API_KEY to one that it takes"
        case openai.NotFoundError():
            return f"has no such model or route ({_short(error)}); check the model's name, and that it ends in /v1"
        case openai.RateLimitError():
            return f"still has no room after {tries} ({_short(error)}); lower the concurrency or check the account"
        case openai.APITimeoutError():
            return f"did not answer within {endpoint.timeout_s:g} s in {tries}; check that it is up, or raise the time"
        case openai.APIConnectionError():
            return f"cannot be reached in {tries} ({_short(error.__cause__ or error)}); check the address"
        case openai.InternalServerError():
            return f"fails after {tries} ({_short(error)}); look into its log, or try later"
        case openai.APIStatusError():
            return f"refuses the request ({_short(error)}); check the model's name and the temperature"
    return _short(error)


def _short(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
