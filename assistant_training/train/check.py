"""Check a trained assistant in contexts and wordings that training did not draw, and choose its gate from them.

The figures are of whole conversations, because that is what users see: one open position changes an answer, and one
closed position lets a fact out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from unlearngate.assistant_training.data.contexts import PLAIN, Asked, Shares, in_context
from unlearngate.assistant_training.data.encoding import (
    Encoded,
    answer_rows,
    collate,
    draw_what_fits,
    encode,
    fact_spans,
    predicting,
    span_labels,
)
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.model.assistant import head, last_hidden
from unlearngate.errors import TrainingError
from unlearngate.kernels.reference import centre

_LOWEST_NATS = 0.25
_AS_GOOD, _STRICT, _ROUNDING = 0.02, 3, 1e-9
_FORGET_CONVERSATIONS, _RETAIN_CONVERSATIONS = 120, 240
_BATCH, _ROWS = 32, 64  # conversations at a time, and of their answers tokens at a time


class Limits(NamedTuple):
    """What a set must show to be written; shares."""

    found: float = 0.9  # at least, of forget conversations: the gate opens before the answer's first token
    facts_open: float = 0.9  # at least, of the tokens of facts
    untouched: float = 0.95  # at least, of retain conversations: the gate stays closed along the whole answer


ENOUGH = Limits(found=0.97, facts_open=0.97, untouched=0.98)  # training ends early where it shows this


class Evidence(NamedTuple):
    """What an assistant shows in held-out contexts, in nats.

    first_F: at the first token of each of F forget answers.
    facts_K: at the K tokens of facts.
    forget_N: at all tokens of the forget answers.
    highest_R: the most along each of R retain answers.
    retain_N: at all tokens of the retain answers.
    """

    first_F: np.ndarray
    facts_K: np.ndarray
    forget_N: np.ndarray
    highest_R: np.ndarray
    retain_N: np.ndarray

    def gates(self) -> tuple[float, float]:
        """The gate where the fewest go wrong, by which training ends, and the one to serve with; multiples of 0.05.

        Wrong are the shares missed of forget answers and of facts, and of retain answers opened, which count three
        times where training ends. To serve with they count once, as long as no more are opened than a set may: an open
        gate mostly changes nothing in another's answer, and a closed one lets a fact out. Of the gates that are as good
        within 0.02 it is the one nearest to the geometric mean of the lowest and the highest: in contexts of kinds that
        are not drawn here the evidence of facts falls, and that of other answers hardly rises. At least 0.25 nats:
        below it rounding in a 16-bit engine could open the gate.
        """
        highest = max(float(self.forget_N.max()), _LOWEST_NATS)
        gates = np.arange(round(_LOWEST_NATS * 20), math.floor(highest * 20) + 1) / 20
        missed = np.array([_share(self.first_F < gate) + _share(self.facts_K < gate) for gate in gates])
        opened = np.array([_share(self.highest_R >= gate) for gate in gates])
        strict = missed + _STRICT * opened
        least = gates[strict <= strict.min() + _ROUNDING]
        # The highest gate is above all evidence but one, or so: where nothing else will do, nearly all stays closed.
        bearable = (opened <= 1 - Limits().untouched) | (gates == gates[-1])
        wrong = np.where(bearable, missed + opened, np.inf)
        good = gates[wrong <= wrong.min() + _AS_GOOD]
        middle = math.sqrt(good[0] * good[-1])
        return float(least[(len(least) - 1) // 2]), float(good[np.abs(good - middle).argmin()])

    def metrics(self, gate_nats: float) -> dict[str, float]:
        """The figures that a manifest records."""
        return {
            "forget_found": _share(self.first_F >= gate_nats),
            "forget_facts_open": _share(self.facts_K >= gate_nats),
            "forget_evidence_median": float(np.median(self.forget_N)),
            "forget_gate_open": _share(self.forget_N >= gate_nats),
            "retain_untouched": _share(self.highest_R < gate_nats),
            "retain_evidence_median": float(np.median(self.retain_N)),
            "retain_evidence_max": float(self.retain_N.max()),
            "retain_gate_closed": _share(self.retain_N < gate_nats),
        }


def measure(
    assistant: Any,
    tokenizer: Any,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    *,
    instead: str | None = None,
    seed: int,
    context_length: int | None = None,
) -> Evidence:
    """Read the assistant's evidence along answers in contexts that are drawn anew, from the held-out wordings.

    Args:
        assistant: in evaluation mode.
        tokenizer: the target's.
        forget: what is to be found.
        retain: what must stay.
        instead: the set's sentence, for earlier turns.
        seed: of the contexts.
        context_length: the target's; longer conversations are drawn again.

    Raises: DataError if the chat template changes the text of an answer.
    """
    rng = random.Random(f"held out {seed}")

    def draw(pair: QAPair, forgets: bool, plain: bool) -> tuple[Asked, Encoded]:
        asked = in_context(
            *(pair, pair.answer, rng),
            neighbours=retain,
            forgotten=forget,
            forgets=forgets,
            instead=instead,
            held_out=True,
            shares=PLAIN if plain else Shares(),
        )
        return asked, encode(tokenizer, asked.question, asked.answer, asked.system, asked.earlier, raw=asked.raw)

    def rows(pairs: Sequence[QAPair], count: int, *, forgets: bool) -> list[tuple[Encoded, list[int]]]:
        found = []
        for pair in rng.sample(pairs, count) if count <= len(pairs) else rng.choices(pairs, k=count):
            asked, row = draw_what_fits(partial(draw, pair, forgets), context_length)
            at = asked.answer.index(pair.answer)
            spans = fact_spans(pair, asked.answer) or [(at, at + len(pair.answer))]
            found.append((row, span_labels(tokenizer, pair.question, row, asked.answer, spans)))
        return found

    forget_rows = rows(forget, _FORGET_CONVERSATIONS, forgets=True)
    forget_QN = _evidence(assistant, [row for row, _ in forget_rows], tokenizer.pad_token_id)
    retain_rows = rows(retain, _RETAIN_CONVERSATIONS, forgets=False)
    retain_QN = _evidence(assistant, [row for row, _ in retain_rows], tokenizer.pad_token_id)
    facts = [
        of_answer[np.array([fact for fact, label in zip(labels, row.labels, strict=True) if label >= 0]) >= 0]
        for of_answer, (row, labels) in zip(forget_QN, forget_rows, strict=True)
    ]
    return Evidence(
        first_F=np.array([of_answer[0] for of_answer in forget_QN]),
        facts_K=np.concatenate(facts),
        forget_N=np.concatenate(forget_QN),
        highest_R=np.array([of_answer.max() for of_answer in retain_QN]),
        retain_N=np.concatenate(retain_QN),
    )


def shortfall(metrics: dict[str, float], limits: Limits) -> str | None:
    """Why a set with these figures must not be served as if it were fine, and what to do; None if it is fine."""
    short = [
        f"{what} {metrics[key]:.1%}, at least {least:.0%} are needed"
        for key, what, least in (
            ("forget_found", "forget conversations found before their first token:", limits.found),
            ("forget_facts_open", "tokens of facts with an open gate:", limits.facts_open),
            ("retain_untouched", "retain conversations untouched:", limits.untouched),
        )
        if metrics[key] < least
    ]
    return "; ".join(short) or None


def refuse_short(metrics: dict[str, float], limits: Limits) -> None:
    """Raise if the set does nothing, or too much.

    Raises: TrainingError with the figures and what to do.
    """
    if short := shortfall(metrics, limits):
        raise TrainingError(
            "the assistant does not tell the forget set from the rest, in contexts that it was not trained on: "
            f"{short}. Give it more --steps, more layers, a tap (--tap-layer), more retain questions like the forget "
            "questions, or paraphrases; --write-anyway writes it as it is"
        )


@torch.inference_mode()
def _evidence(assistant: Any, rows: Sequence[Encoded], pad_id: int) -> list[np.ndarray]:
    """Of each row the evidence at its answer's tokens: KL(p_assistant || uniform) in nats, fp32."""
    device, own_head = next(assistant.parameters()).device, head(assistant)
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(rows), _BATCH):
        chosen = by_length[start : start + _BATCH]
        batch = collate([rows[index] for index in chosen], pad_id).to(device)
        hidden_BTH = last_hidden(assistant, batch.input_ids, batch.attention_mask, predicting(batch.labels))
        hidden_NH = answer_rows(hidden_BTH, batch.labels)[0]
        parts = [centre(own_head.logits(part_NH))[1] for part_NH in hidden_NH.split(_ROWS)]
        evidence_N = torch.cat(parts).cpu().numpy()
        lengths = (batch.labels[:, 1:] >= 0).sum(dim=1).tolist()
        found |= dict(zip(chosen, np.split(evidence_N, np.cumsum(lengths)[:-1]), strict=True))
    return [found[index] for index in range(len(rows))]


def _share(which: np.ndarray) -> float:
    return float(which.mean())
