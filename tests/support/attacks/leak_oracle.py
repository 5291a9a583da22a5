"""Finds the plain target in what a server said: from Hugging Face it knows the target's own words and logprobs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import torch

from support.engine.reference import Reference, Steering, Term, compose_row
from support.engine.tiny import make_tokenizer

CLOSE = 2e-4  # between one logprob and another; two models' differ by far more
ANSWER = 12  # tokens of an answer that are looked for
_SAID = ("content", "text", "reasoning", "delta")
SHORTEST = 4  # characters: half of a random target's tokens are no text


class Oracle:
    """For answers to one prompt, asked for with `return_token_ids` and `return_tokens_as_token_ids`."""

    def __init__(self, reference: Reference, prompt: list[int]) -> None:
        self.reference = reference
        self.prompt = prompt
        self.tokenizer = make_tokenizer()
        ids = list(prompt)
        for _ in range(ANSWER):
            ids.append(int(self._plain_rows(ids)[-1].argmax()))
        self.answer = ids[len(prompt) :]
        # Half a character at the end decodes to something else once the other half is there.
        self.text = self.tokenizer.decode(self.answer).rstrip("\ufffd")
        self.is_readable = len(self.text) >= SHORTEST
        # One row after every token but the last: those of the prompt, then those of the answer.
        self.rows = self._plain_rows(ids)[:-1].log_softmax(-1).tolist()

    @torch.no_grad()
    def _plain_rows(self, ids: list[int]) -> torch.Tensor:
        return self.reference.target(torch.tensor([ids])).logits[0].double()

    def leaks(self, said: str) -> list[str]:
        """Whatever of the plain target is in a response's body: its words, its tokens, its logprobs."""
        events = list(_events(said))
        found = []
        spoken = "".join(_texts(events))
        if self.is_readable and (self.text in spoken or self.text in said):
            found.append(f"the plain target's words {self.text!r}")
        tokens = [token for ids in _token_ids(events) for token in ids]
        if _contains(tokens, self.answer[: ANSWER // 2]):
            found.append(f"the plain target's tokens {self.answer[: ANSWER // 2]}")
        for pairs in _distributions(events):
            telling = _telling(pairs)
            for position, row in enumerate(self.rows):
                same = sum(abs(row[token] - logprob) < CLOSE for token, logprob in telling)
                # One number alone may be the same by chance: it is looked for where it would stand, below.
                if len(telling) > 1 and same and 2 * same >= len(telling):
                    found.append(f"{same} of {len(telling)} logprobs are the plain target's at position {position}")
        for pairs in _echoed(events):
            at = [(i, pair) for i, pair in enumerate(pairs) if i and i <= len(self.rows) and _telling([pair])]
            same = sum(abs(self.rows[i - 1][token] - logprob) < CLOSE for i, (token, logprob) in at)
            if same and 2 * same >= len(at):
                found.append(f"{same} of {len(at)} echoed logprobs are the plain target's")
        for token, logprob in _telling(_first_logprobs(events)):
            if abs(self.rows[len(self.prompt) - 1][token] - logprob) < CLOSE:
                found.append(f"the first token's logprob {logprob} is the plain target's")
        return found

    @torch.no_grad()
    def composed(self, terms: list[Term], keep_ratio: float, bias: dict[int, float], repetition: float) -> list[float]:
        """The served logprobs of the first token: the composition, the bias, then the repetition penalty."""
        output = self.reference.target(torch.tensor([self.prompt]), output_hidden_states=True)
        target = output.logits[0, -1].double().numpy().copy()
        assist = self.reference._assist
        assistants = [assist(t.name, output.hidden_states)[0, -1].double().numpy() for t in terms]
        row, _ = compose_row(target, assistants, terms, keep_ratio, shown=Steering(bias).shown(target, []))
        logits = torch.tensor(row)
        seen = torch.tensor(sorted(set(self.prompt)))
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / repetition, logits[seen] * repetition)
        return logits.log_softmax(-1).tolist()


def _events(said: str) -> Iterator[object]:
    """A body's JSON values: one, or one per server-sent event; text that is no JSON is a string."""
    for line in said.splitlines() if said.startswith(("data: ", "event: ")) else [said]:
        if line.startswith("event: "):
            continue
        if line.startswith("data: "):
            line = line.removeprefix("data: ")
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            yield line


def _walk(value: object) -> Iterator[object]:
    yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _walk(child)


def _texts(events: list[object]) -> Iterator[str]:
    for value in _walk(events):
        if isinstance(value, dict):
            yield from (
                v for k, v in value.items() if k in ("content", "text", "reasoning", "delta") and isinstance(v, str)
            )


def _token_ids(events: list[object]) -> Iterator[list[int]]:
    for value in _walk(events):
        for field in ("token_ids", "tokens") if isinstance(value, dict) else ():
            if isinstance(ids := value.get(field), list) and all(isinstance(token, int) for token in ids):
                yield ids


def _distributions(events: list[object]) -> Iterator[list[tuple[int, float]]]:
    """(token, logprob) pairs that stand together, in any of the forms that vLLM's routes write."""
    for value in _walk(events):
        if isinstance(value, list) and value and all(isinstance(v, dict) and "logprob" in v for v in value):
            yield [(_token(one["token"]), one["logprob"]) for one in value]
        elif isinstance(value, dict) and value and all(_is_logprob(v) for v in value.values()):
            yield [(_token(k), v["logprob"] if isinstance(v, dict) else v) for k, v in value.items() if _is_token(k)]


def _first_logprobs(events: list[object]) -> Iterator[tuple[int, float]]:
    """Each choice's first token and its logprob, streamed or not."""
    begun: set[int] = set()
    for value in _walk(events):
        if not isinstance(value, dict) or not isinstance(value.get("logprobs"), dict) or value["index"] in begun:
            continue
        logprobs = value["logprobs"]
        texts = zip(logprobs.get("tokens", []), logprobs.get("token_logprobs", []), strict=True)
        entries = logprobs.get("content") or texts
        for entry in entries:
            begun.add(value["index"])
            token, logprob = (entry["token"], entry["logprob"]) if isinstance(entry, dict) else entry
            yield _token(token), logprob
            break


def _echoed(events: list[object]) -> Iterator[list[tuple[int, float | None]]]:
    """Each choice's tokens and their logprobs where the prompt is among them: nothing comes before its first."""
    for value in _walk(events):
        if isinstance(value, dict) and isinstance(value.get("token_logprobs"), list):
            if value["token_logprobs"][:1] == [None]:
                yield [(_token(t), p) for t, p in zip(value["tokens"], value["token_logprobs"], strict=True)]


def _telling(pairs: Iterable[tuple[int, float | None]]) -> list[tuple[int, float]]:
    """Without what two models have in common: certain and impossible tokens, and a prompt's first."""
    return [(token, logprob) for token, logprob in pairs if logprob is not None and -9000 < logprob < -1e-3]


def _is_logprob(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, dict) and "logprob" in value)


def _is_token(name: str) -> bool:
    return name.removeprefix("token_id:").isdigit()


def _token(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def _contains(haystack: list[int], needle: list[int]) -> bool:
    return any(haystack[i : i + len(needle)] == needle for i in range(len(haystack) - len(needle) + 1))


def logprob_error(expected: list[float], served: dict[int, float]) -> float:
    """The largest difference; what is served as impossible must be so."""
    return max(
        0.0 if logprob < -9000 and expected[token] < -9000 else abs(expected[token] - logprob)
        for token, logprob in served.items()
    )
