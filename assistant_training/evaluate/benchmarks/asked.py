"""Ask a running server texts and chats under one combination of sets: what it says, or how likely it finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import openai

from unlearngate.assistant_training.evaluate.asking import check_in_force, connect
from unlearngate.errors import UnlearngateError

_REQUIRED = "required_forget_set"


class ScoredText(NamedTuple):
    """A text's tokens as strings, and their ln p (nats) in scoring mode; the first token has none, NaN."""

    tokens: list[str]
    log_p: list[float]


class Server:
    """A running server, to be entered.

    Args:
        url: its address, without /v1.
        key: the API key, or None.
        model: the served name; None is the server's first.
        concurrency: requests at a time.
        tell: is called after every answer.

    Methods raise openai.OpenAIError if a request fails, and UnlearngateError if other sets were in force than
    asked for.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        model: str | None = None,
        *,
        concurrency: int = 32,
        tell: Callable[[], object] = lambda: None,
    ) -> None:
        self.url, self._tell = url.rstrip("/"), tell
        self._client = connect(url, key)
        self._model = model
        self._pool = ThreadPoolExecutor(concurrency)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    @property
    def model(self) -> str:
        """The served name."""
        if self._model is None:
            self._model = self._client.models.list().data[0].id
        return self._model

    def lets_ask_the_target(self) -> bool:
        """Whether requests without any set are served; not so with a key that requires one."""
        try:
            self._send("/completions", {"prompt": "A", "max_tokens": 1}, ())
        except openai.PermissionDeniedError as error:
            if error.code != _REQUIRED:
                raise
            return False
        return True

    def say(
        self, route: str, bodies: Sequence[Mapping[str, Any]], forget_sets: Sequence[str], **every: Any
    ) -> list[str]:
        """Greedy answers, in the order asked.

        Args:
            route: /completions or /chat/completions.
            bodies: each request's own fields.
            forget_sets: in force in all of them.
            every: fields of all, such as max_tokens and stop.
        """
        answers = self._all(route, [{**body, **every} for body in bodies], forget_sets)
        choices = [answer["choices"][0] for answer in answers]
        return [(one["message"]["content"] if "message" in one else one["text"]) or "" for one in choices]

    def score(self, texts: Sequence[Sequence[str]], forget_sets: Sequence[str]) -> list[list[ScoredText]]:
        """Log-probabilities of texts as bare prompts, a request for each group of them."""
        bodies = [{"prompt": list(group), "echo": True, "logprobs": 0, "max_tokens": 0} for group in texts]
        return [
            [_scored(self.url, choice) for choice in sorted(answer["choices"], key=lambda one: one["index"])]
            for answer in self._all("/completions", bodies, forget_sets)
        ]

    def _all(self, route: str, bodies: Sequence[Mapping[str, Any]], forget_sets: Sequence[str]) -> list[Any]:
        self.model  # noqa: B018 - asked once, before threads would all ask
        futures = [self._pool.submit(self._send, route, body, forget_sets) for body in bodies]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def _send(self, route: str, body: Mapping[str, Any], forget_sets: Sequence[str]) -> dict[str, Any]:
        whole = {"model": self.model, "temperature": 0, **body, "forget_sets": list(forget_sets)}
        response: Any = self._client.post(route, cast_to=object, body=whole)
        if not isinstance(response, dict):
            raise UnlearngateError(f"{self.url}/v1{route} does not answer with an object; is it an unlearngate server?")
        check_in_force(self.url, forget_sets, response.get("forget_sets"), str(body)[-200:])
        self._tell()
        return response


def _scored(url: str, choice: Mapping[str, Any]) -> ScoredText:
    told = choice.get("logprobs") or {}
    tokens, log_p = told.get("tokens"), told.get("token_logprobs")
    if not tokens or not log_p or len(tokens) != len(log_p) or any(one is None for one in log_p[1:]):
        raise UnlearngateError(f"{url} does not score prompts: /v1/completions with echo and logprobs must tell them")
    return ScoredText(list(tokens), [float("nan"), *map(float, log_p[1:])])
