"""Ask a running server many questions at once, each with its forget sets, and check which were in force."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TextIO

from openai import OpenAI
from openai.types import Completion, CompletionChoice
from openai.types.chat import ChatCompletion
from rich.progress import Progress

from unlearngate.assistant_training.data.windows import Opening
from unlearngate.errors import UnlearngateError

_RETRIES = 5  # a server whose combinations of sets are all in use answers 503 for a moment


class Asked(NamedTuple):
    """One request: a question, or a document's opening as bare text; the sets by name, greedy at temperature 0."""

    question: str
    forget_sets: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0


class Answer(NamedTuple):
    """What a server said, and what it says was in force: `forget_sets` of its response."""

    token_ids: tuple[int, ...]
    text: str
    in_force: list[dict[str, Any]]


def ask_all(
    url: str,
    model: str,
    asked: Sequence[Asked],
    *,
    max_tokens: int,
    concurrency: int = 32,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    kept: TextIO | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """Ask everything, in batches that mix all sets.

    Args:
        url: the server's address, without /v1.
        model: the served name.
        asked: the requests, in any order.
        max_tokens: answers are cut here.
        concurrency: requests at a time.
        chat_template_kwargs: switches of the served chat template, sent with every request; None sends none.
        kept: gets every answer as a JSON line as soon as it is there, so that none is lost if a later request fails.
        progress: shows how far it is.

    Returns: the answers, in the order of `asked`.
    Raises: openai.OpenAIError if a request fails; UnlearngateError if an answer was given with other sets in
        force than asked for: it says nothing about those.
    """
    switches = {"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}
    turn = threading.Lock()
    bar = progress.add_task("asking the server", total=len(asked)) if progress else None
    with connect(url) as client, ThreadPoolExecutor(concurrency) as pool:

        def ask(job: Asked) -> Answer:
            extra = {"forget_sets": list(job.forget_sets), "return_token_ids": True}
            decoding: dict[str, Any] = {"temperature": job.temperature, "seed": job.seed, "max_tokens": max_tokens}
            response: ChatCompletion | Completion
            if isinstance(job.question, Opening):
                response = client.completions.create(model=model, prompt=job.question, extra_body=extra, **decoding)
            else:
                messages: Any = [{"role": "user", "content": job.question}]
                response = client.chat.completions.create(
                    model=model, messages=messages, extra_body={**extra, **switches}, **decoding
                )
            if progress and bar is not None:
                progress.advance(bar)
            answer = _checked(url, job, response)
            if kept:
                line = json.dumps({**job._asdict(), "text": answer.text, "token_ids": answer.token_ids})
                with turn:
                    kept.write(line + "\n")
            return answer

        futures = [pool.submit(ask, job) for job in asked]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def connect(url: str, key: str | None = None) -> OpenAI:
    """A client of a server, with an API key if it wants one, that tries again while the server is busy."""
    return OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=key or "none", max_retries=_RETRIES)


def check_in_force(url: str, asked: Sequence[str], reported: object, question: str) -> list[dict[str, Any]]:
    """`forget_sets` of a response, if they are those that were asked for.

    Raises: UnlearngateError if there is no such field, or it names other sets.
    """
    if not isinstance(reported, list):
        raise UnlearngateError(f"{url} does not say which forget sets were in force; is it an unlearngate server?")
    names = [entry["name"] for entry in reported]
    if sorted(names) != sorted(asked):
        raise UnlearngateError(
            f"{url} was asked with {list(asked)} and answered with {names} in force: {question!r}; nothing was counted"
        )
    return reported


def _checked(url: str, job: Asked, response: ChatCompletion | Completion) -> Answer:
    reported = check_in_force(url, job.forget_sets, (response.model_extra or {}).get("forget_sets"), job.question)
    choice = response.choices[0]
    token_ids = (choice.model_extra or {}).get("token_ids")
    if token_ids is None:
        raise UnlearngateError(f"{url} returns no token ids, so unchanged answers cannot be told; serve with vLLM 0.32")
    text = choice.text if isinstance(choice, CompletionChoice) else choice.message.content
    return Answer(tuple(token_ids), text or "", reported)
