"""Two oracles: what a client with a bias and logprobs can read of the target's next token while a set is in force.

Both stand where an answer's first fact begins: the question, and the true answer up to there. The truth is the token
that the target says next. Each guesser names one token, or shares its guess between tokens that look the same; its
figure is how often the guess is right, with the chance of one that knows nothing beside it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from unlearngate.assistant_training.attack.asking import CHAT, MOST_IDS, Side, Tell, in_parallel
from unlearngate.assistant_training.attack.probes import before_fact
from unlearngate.assistant_training.attack.prompts import begun_request, similar
from unlearngate.assistant_training.data.pairs import QAPair

ORACLES = ("oracle-bias", "oracle-tail")
_CUT = -1000.0  # nats: what has less was cut by a keep rule
_CANDIDATES = 15
_MOST_REQUESTS = 1500  # of an oracle and a side: a large vocabulary is read at fewer positions
_Shares = dict[str, tuple[float, float]]  # guesser -> the share of its guess that is right, and chance


@dataclass(frozen=True, slots=True)
class Position:
    """Where a fact begins.

    Attributes:
        pair: the probe.
        body: the chat fields that lead there.
        truth: the id of the target's next token.
    """

    pair: QAPair
    body: dict[str, Any]
    truth: int


@dataclass(frozen=True, slots=True)
class Guesses:
    """One guesser at every position.

    Attributes:
        oracle: one of ORACLES.
        guesser: what it guesses.
        shares: per position the share of the guess that was right, in [0, 1].
        chances: per position that of a guess among the same tokens which knows nothing.
        refused: why the server did not answer the oracle; None if it did.
    """

    oracle: str
    guesser: str
    shares: tuple[float, ...]
    chances: tuple[float, ...]
    refused: str | None = None


def find_positions(
    target: Side, pairs: Sequence[QAPair], *, concurrency: int, tell: Tell | None = None
) -> list[Position]:
    """Where the pairs' first facts begin, if the plain target goes on with the fact there.

    Args:
        target: the server without the set.
        pairs: probes with facts; those whose fact the target does not say are left out.
        concurrency: requests at a time.
        tell: hears how far it is.
    """

    def find(pair: QAPair) -> Position | None:
        begun = before_fact(pair.answer, pair.facts)
        rest = pair.answer[len(begun) :].lstrip()
        if not rest:
            return None
        body = begun_request(pair, begun)
        response = target.send(CHAT, {**body, "max_tokens": 4, "return_token_ids": True})
        (choice,) = response["choices"]
        said = (choice["message"]["content"] or "").lstrip()
        if not said or not rest.casefold().startswith(said.casefold()):
            return None
        return Position(pair, body, choice["token_ids"][0])

    found = in_parallel(find, pairs, concurrency=concurrency, tell=tell)
    return [position for position in found if position]


def alike(pair: QAPair, retain: Sequence[QAPair], seed: int) -> list[QAPair]:
    """The retain probes with facts whose questions are most like a probe's; their facts could stand in its answer."""
    others = [other for other in retain if other.facts]
    return similar(pair, others, random.Random(f"{seed} {pair.question}"))[:_CANDIDATES]


def bias_oracle(
    side: Side,
    positions: Sequence[Position],
    *,
    vocab_size: int,
    keep_ratio: float,
    seed: int,
    concurrency: int,
    tell: Tell | None = None,
) -> list[Guesses]:
    """Fill the k best places but one with tokens at +100, and guess the best token that is not one of them.

    Where a keep rule ranks the target's logits after the bias, with k = floor(keep_ratio V), the only other token that
    it keeps is the target's first choice, whatever the set subtracts.

    Args:
        side: the server with the set, or without it.
        positions: where.
        vocab_size: V.
        keep_ratio: the set's.
        seed: of the tokens that are raised; they never are the truth, which a client would find in a second try.
        concurrency: requests at a time.
        tell: hears how far it is.
    """
    raised_number = max(0, int(keep_ratio * vocab_size) - 1)

    def guess(position: Position) -> _Shares:
        rng = random.Random(f"{seed} {position.pair.question}")
        others = [token for token in range(vocab_size) if token != position.truth]
        raised = set(rng.sample(others, min(raised_number, len(others))))
        body = {**position.body, "logit_bias": {str(token): 100 for token in sorted(raised)}}
        rest = [token for token in range(vocab_size) if token not in raised]
        told = side.logprobs(body if raised else position.body, rest)
        return {"best behind the raised": _best(told, position.truth)}

    return _all_guesses("oracle-bias", positions[: _affordable(vocab_size)], guess, concurrency, tell)


def tail_oracle(
    side: Side,
    positions: Sequence[Position],
    retain: Sequence[QAPair],
    others: Sequence[Position],
    *,
    vocab_size: int,
    seed: int,
    concurrency: int,
    tell: Tell | None = None,
) -> list[Guesses]:
    """Read the logprobs, and guess the most and the least likely token, of all and of the other people's facts.

    Args:
        side: the server with the set, or without it.
        positions: where.
        retain: the retain probes.
        others: positions of those that are `alike`: their truths are the candidates beside the truth.
        vocab_size: V.
        seed: of ties between candidates.
        concurrency: requests at a time.
        tell: hears how far it is.
    """
    truths = {position.pair.question: position.truth for position in others}

    def guess(position: Position) -> _Shares:
        near = [truths[p.question] for p in alike(position.pair, retain, seed) if p.question in truths]
        candidates = [token for token in dict.fromkeys(near) if token != position.truth]
        told = side.logprobs(position.body, range(vocab_size))
        kept = {token: value for token, value in told.items() if value > _CUT}
        few = {token: told[token] for token in (*candidates, position.truth)}
        few_kept = {token: value for token, value in few.items() if value > _CUT} or few
        return {
            "least likely token that is kept": _worst(kept, position.truth),
            "most likely of facts": _best(few, position.truth),
            "least likely of facts": _worst(few, position.truth),
            "least likely of facts that are kept": _worst(few_kept, position.truth),
        }

    return _all_guesses("oracle-tail", positions[: _affordable(vocab_size)], guess, concurrency, tell)


def _best(told: Mapping[int, float], truth: int) -> tuple[float, float]:
    """The share of a guess at the most likely token that is the truth, and the share of a guess at any."""
    tied = [token for token, value in told.items() if value == max(told.values())]
    return (1 / len(tied) if truth in tied else 0.0), 1 / len(told)


def _worst(told: Mapping[int, float], truth: int) -> tuple[float, float]:
    return _best({token: -value for token, value in told.items()}, truth)


def _affordable(vocab_size: int) -> int:
    """Positions at which the whole vocabulary can be read."""
    return max(1, _MOST_REQUESTS * MOST_IDS // vocab_size)


def _all_guesses(
    oracle: str,
    positions: Sequence[Position],
    guess: Callable[[Position], _Shares],
    concurrency: int,
    tell: Tell | None,
) -> list[Guesses]:
    try:
        found = in_parallel(guess, positions, concurrency=concurrency, tell=tell)
    except openai.BadRequestError as error:
        return [Guesses(oracle, "refused", (), (), str(error))]
    guessers = found[0] if found else {}
    return [
        Guesses(oracle, name, tuple(one[name][0] for one in found), tuple(one[name][1] for one in found))
        for name in guessers
    ]
