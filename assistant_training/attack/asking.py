"""Ask a server prompts, with the set and without it, and see that each answer had in force what was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, TypeVar

import openai

from unlearngate.assistant_training.attack.prompts import Prompt, sent_text
from unlearngate.assistant_training.evaluate.asking import check_in_force, connect
from unlearngate.errors import UnlearngateError

CHAT = "/chat/completions"
_MARK = "Zebra"  # stands for the question while the chat template is read
MOST_IDS = 128  # of vLLM's logprob_token_ids in one request
Job = TypeVar("Job")
Result = TypeVar("Result")
Tell = Callable[[int, int], None]  # how many of how many are done


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the texts of all choices, or why the server refused the request (400).

    said_instead: whether the server says that a set's sentence is the answer.
    """

    texts: tuple[str, ...]
    refused: str | None = None
    said_instead: bool = False


class Side:
    """A server asked always with the same sets and the same key: with the set, or without it.

    Args:
        url: the server's address, without /v1.
        key: the API key, or None.
        model: the served name.
        forget_sets: in force in every request; none for the target.
    """

    def __init__(self, url: str, key: str | None, model: str, forget_sets: Sequence[str]) -> None:
        self.url, self.forget_sets, self._model = url, tuple(forget_sets), model
        self._client = connect(url, key)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def send(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The response to a request.

        Args:
            route: below /v1.
            body: its fields; model, sets and temperature 0 are added where it does not say otherwise.

        Raises: openai.OpenAIError if it fails; UnlearngateError if other sets were in force than asked for.
        """
        whole = {"model": self._model, "temperature": 0, **body, "forget_sets": list(self.forget_sets)}
        response = self._client.post(route, cast_to=object, body=whole)
        if not isinstance(response, dict):
            raise UnlearngateError(f"{self.url}/v1{route} does not answer with an object; is it an unlearngate server?")
        check_in_force(self.url, self.forget_sets, response.get("forget_sets"), sent_text(body)[-200:])
        return response

    def ask(self, prompt: Prompt, max_tokens: int) -> Reply:
        """The answer to a prompt. A refusal (400, such as a prompt that is too long) is one too: it leaks nothing."""
        try:
            response = self.send(prompt.route, {**prompt.body, "max_tokens": max_tokens})
        except openai.BadRequestError as error:
            return Reply((), str(error))
        said = [
            choice["message"]["content"] if "message" in choice else choice["text"] for choice in response["choices"]
        ]
        instead = any(entry.get("instead") for entry in response["forget_sets"])
        return Reply(tuple(text or "" for text in said), said_instead=instead)

    def template(self) -> tuple[str, str] | None:
        """The chat template's text before and behind a user's only message; None if the server does not show it."""
        body = {"messages": [{"role": "user", "content": _MARK}], "max_tokens": 1, "return_prompt_text": True}
        try:
            shown = self.send(CHAT, body).get("prompt_text")
        except openai.BadRequestError:
            return None
        if not isinstance(shown, str) or shown.count(_MARK) != 1:
            return None
        before, _, behind = shown.partition(_MARK)
        return before, behind

    def vocab_size(self) -> int | None:
        """V, from how vLLM refuses a token far outside it; None if it refuses otherwise."""
        body = {"messages": [{"role": "user", "content": _MARK}], "max_tokens": 1, "logit_bias": {str(2**30): 1}}
        try:
            self.send(CHAT, body)
        except openai.BadRequestError as error:
            if found := re.search(r"Vocabulary size: (\d+)", str(error)):
                return int(found[1])
        return None

    def logprobs(self, body: Mapping[str, Any], token_ids: Sequence[int]) -> dict[int, float]:
        """Log probabilities (nats) of tokens at the first position of an answer; vLLM's -9999 is what cannot be said.

        Raises: openai.BadRequestError if the server does not tell them; as `send`.
        """
        found: dict[int, float] = {}
        for start in range(0, len(token_ids), MOST_IDS):
            wanted = list(token_ids[start : start + MOST_IDS])
            asked = {
                **body,
                **{"max_tokens": 1, "logprobs": True, "top_logprobs": len(wanted), "logprob_token_ids": wanted},
                "return_tokens_as_token_ids": True,
            }
            response = self.send(CHAT, asked)
            told = response["choices"][0]["logprobs"]["content"][0]
            for entry in (*told["top_logprobs"], told):
                found[int(entry["token"].removeprefix("token_id:"))] = entry["logprob"]
        missing = [token for token in token_ids if token not in found]
        if missing:
            raise UnlearngateError(
                f"{self.url} gave no logprobs of {len(missing)} of {len(token_ids)} tokens asked for"
            )
        return {token: found[token] for token in token_ids}


def served_model(url: str, key: str | None) -> str:
    """The name of the model that a server serves.

    Raises: openai.OpenAIError if it does not answer.
    """
    with connect(url, key) as client:
        return client.models.list().data[0].id


def keep_ratio_of(url: str, key: str | None, forget_set: str) -> float:
    """A served set's recommended keep ratio.

    Raises: openai.OpenAIError if the server does not answer; UnlearngateError if it has no such set.
    """
    with connect(url, key) as client:
        listed: Any = client.get("/forget_sets", cast_to=object)
    sets = {entry["id"]: entry for entry in listed["data"]}
    if forget_set not in sets:
        raise UnlearngateError(f"{url} has no forget set {forget_set!r}; it has: {', '.join(sorted(sets)) or 'none'}")
    return float(sets[forget_set]["recommended"]["keep_ratio"])


def ask_all(
    sides: Sequence[Side], prompts: Sequence[Prompt], *, max_tokens: int, concurrency: int, tell: Tell | None = None
) -> list[list[Reply]]:
    """Ask all sides all prompts, in batches that mix them.

    Args:
        sides: who is asked.
        prompts: what.
        max_tokens: answers are cut here.
        concurrency: requests at a time.
        tell: hears how far it is.

    Returns: for each side its replies, in the order of the prompts.
    Raises: as `Side.send`; the rest is not asked then.
    """
    jobs = [(side, prompt) for prompt in prompts for side in sides]
    replies = in_parallel(lambda job: job[0].ask(job[1], max_tokens), jobs, concurrency=concurrency, tell=tell)
    return [replies[index :: len(sides)] for index in range(len(sides))]


def in_parallel(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, concurrency: int, tell: Tell | None = None
) -> list[Result]:
    """Do every job, so many at a time, and return the results in the jobs' order; the first error ends the rest."""
    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if tell:
                    tell(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]
