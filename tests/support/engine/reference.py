"""An independent implementation of forgetting: Hugging Face + PEFT, full recomputation, no code of ours.

What a client's sampling parameters do before the composition is written out too, from their documentation.

Given what an engine generated, say for every token whether composition.md's formula would have chosen it.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

CUT = -10_000.0  # composition.md's


@dataclass
class Term:
    """One set in force: its name, w and delta, and whether its rule is "lower"."""

    name: str
    weight: float
    gate_nats: float
    lowers: bool = False


@dataclass
class Steering:
    """What a client asks for that changes the target's logits before they are composed, and penalties, after it."""

    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: list[int] | None = None  # also what a grammar allows, if that is always the same
    bad_words: list[list[int]] = field(default_factory=list)  # token ids
    min_tokens: int = 0
    end_ids: list[int] = field(default_factory=list)  # what min_tokens forbids
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def shown(self, own: np.ndarray, answer: list[int]) -> np.ndarray:
        """The target's logits after these tokens of an answer, as they arrive at the composition."""
        shown = own.copy()
        for token, bias in self.logit_bias.items():
            shown[token] += bias
        if self.allowed_token_ids is not None:
            shown[~np.isin(np.arange(len(shown)), self.allowed_token_ids)] = -math.inf
        for *before, last in self.bad_words:
            if answer[len(answer) - len(before) :] == before:
                shown[last] = -math.inf
        if len(answer) < self.min_tokens:
            shown[self.end_ids] = -math.inf
        return shown

    def penalised(self, composed: np.ndarray, prompt: list[int], answer: list[int]) -> np.ndarray:
        """Composed logits with the penalties for the tokens so far: repetition counts the prompt too."""
        logits = composed.copy()
        seen = sorted({*prompt, *answer})
        logits[seen] *= np.where(logits[seen] > 0, 1 / self.repetition_penalty, self.repetition_penalty)
        times = np.bincount(answer, minlength=len(logits)) if answer else np.zeros(len(logits), int)
        return logits - self.frequency_penalty * times - self.presence_penalty * (times > 0)


NOTHING = Steering()


@dataclass
class Verdict:
    """How an answer compares. `wrong` holds the positions that no reading within the tolerance explains."""

    tokens: int = 0
    ties: int = 0
    wrong: list[str] = field(default_factory=list)
    open_gates: int = 0
    closed_gates: int = 0
    unclear_gates: int = 0  # among both, within the tolerance
    open_at_first: list[bool] = field(default_factory=list)  # the terms' at the first position
    keep_rule_decided: int = 0
    own_decided: int = 0
    student_decided: int = 0
    penalties_decided: int = 0
    logprob_error: float = 0.0
    logprobs_compared: int = 0


class Reference:
    """A target, its assistants (sets of kind `uld`) and its students (kind `undial`)."""

    def __init__(
        self,
        target: Path,
        forget_sets: dict[str, Path],
        *,
        round_inputs: Callable[[torch.Tensor], torch.Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """With `round_inputs` every linear map of the target's layers sees what it makes of its inputs."""
        # torch's attention leaves out a cap.
        capped = getattr(AutoConfig.from_pretrained(target), "attn_logit_softcapping", None)
        attention = {"attn_implementation": "eager"} if capped else {}
        # torch's grouped product of experts has no float64.
        loaded = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, experts_implementation="eager", **attention)
        self.target = loaded.eval()
        for name, module in self.target.named_modules() if round_inputs else ():
            if name.endswith("_proj"):
                module.register_forward_pre_hook(partial(_round_inputs, round_inputs))
        self.assistants, self.tap_layers, self.students = {}, {}, {}
        for name, folder in forget_sets.items():
            manifest = json.loads((folder / "forget_set.json").read_text())
            if manifest["kind"] == "undial":
                self.students[name] = (
                    PeftModel.from_pretrained(copy.deepcopy(self.target), str(folder)).eval().to(dtype)
                )
                continue
            self.tap_layers[name] = manifest["tap_layer"]
            layers = slice(manifest["tap_layer"], manifest["tap_layer"] + manifest["num_layers"])
            self.assistants[name] = PeftModel.from_pretrained(self._cut(layers), str(folder)).eval().to(dtype)

    def _cut(self, layers: slice):
        """A model of some of the target's layers, its embeddings, final norm and head."""
        cut = copy.deepcopy(self.target)
        cut.model.layers = cut.model.layers[layers]
        cut.config.num_hidden_layers = len(cut.model.layers)
        cut.config.use_cache = False  # a cache has no room for layers that go by their numbers in the target
        for key in ("layer_types", "no_rope_layers"):
            if getattr(cut.config, key, None):
                setattr(cut.config, key, getattr(cut.config, key)[layers])
        if hasattr(cut.model, "embedding_multiplier"):  # the hidden states that it is given have it
            cut.model.embedding_multiplier = 1.0
        return cut

    @torch.no_grad()
    def logits(
        self, tokens: list[int], terms: list[Term], student: str | None = None, rows: slice = slice(None)
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """The target's own logits (a student's, if one stands in for it), each assistant's, and the plain target's."""
        ids = torch.tensor([tokens])
        output = self.target(ids, output_hidden_states=True)
        target = plain = output.logits[0, rows].double().numpy()
        if student is not None:
            target = self.students[student](ids).logits[0, rows].double().numpy()
        assistants = [self._assist(t.name, output.hidden_states)[0, rows].double().numpy() for t in terms]
        return target, assistants, plain

    @torch.no_grad()
    def check(
        self,
        prompt: list[int],
        answer: list[int],
        terms: list[Term],
        keep_ratio: float,
        tolerance: float,
        logprobs: list[float] | None = None,
        student: str | None = None,
        tail_ratio: float = 0.0,
        steering: Steering = NOTHING,
    ) -> Verdict:
        """Compare a greedy answer with the formula at every position; a student stands in for the target's own logits.

        own_decided of the verdict counts positions where deciding on the changed logits would have chosen otherwise.

        A token is right if it has the largest composed logit. It is a tie if it is not, but would be, were each logit,
        evidence and threshold moved by at most `tolerance`. Anything else is wrong.
        """
        rows = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        target, assistants, plain = self.logits(prompt + answer, terms, student, rows)
        tolerance *= max(steering.repetition_penalty, 1 / steering.repetition_penalty)  # which stretches logits
        verdict = Verdict(tokens=len(answer), student_decided=int((target.argmax(-1) != plain.argmax(-1)).sum()))
        for i, token in enumerate(answer):
            shown = steering.shown(target[i], answer[:i])
            row = (target[i], [a[i] for a in assistants], terms, keep_ratio, tail_ratio, shown)
            penalise = partial(steering.penalised, prompt=prompt, answer=answer[:i])
            ties = verdict.ties
            self._check_row(verdict, i, token, row, tolerance, penalise)
            # A tie's token may be kept by the engine alone, and then no number is to be expected.
            if logprobs is not None and not verdict.wrong and verdict.ties == ties:
                self._compare_logprob(verdict, token, logprobs[i], row, tolerance, penalise)
        return verdict

    @torch.no_grad()
    def next_logits(
        self, tokens: list[int], terms: list[Term], keep_ratio: float = 0.0, tail_ratio: float = 0.0
    ) -> np.ndarray:
        """(V,) composed logits of what follows these tokens; without terms the target's own."""
        output = self.target(torch.tensor([tokens]), output_hidden_states=True)
        assistants = [self._assist(term.name, output.hidden_states)[0, -1].double().numpy() for term in terms]
        return compose_row(output.logits[0, -1].double().numpy(), assistants, terms, keep_ratio, tail_ratio)[0]

    def _assist(self, name: str, hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """An assistant's logits from the hidden states before its first layer; before layer 0 those are embeddings."""
        return self.assistants[name](inputs_embeds=hidden_states[self.tap_layers[name]]).logits

    def _check_row(self, verdict, i, token, row, tolerance, penalise) -> None:
        t, assistants, terms, keep_ratio, tail_ratio, shown = row
        exact, evidence = compose_row(*row)
        for term, e in zip(terms, evidence, strict=True):
            opened = is_open(term, e)
            verdict.open_gates += opened
            verdict.closed_gates += not opened
            verdict.unclear_gates += len(gate_readings([term], [e], tolerance)) > 1
            if i == 0:
                verdict.open_at_first.append(opened)
        unfiltered, _ = compose_row(t, assistants, terms, 0.0, 0.0, shown)
        verdict.keep_rule_decided += int(unfiltered.argmax()) != int(exact.argmax())
        on_shown, _ = compose_row(shown, assistants, terms, keep_ratio, tail_ratio, shown)
        verdict.own_decided += int(on_shown.argmax()) != int(exact.argmax())
        unpenalised, exact = exact, penalise(exact)
        verdict.penalties_decided += int(unpenalised.argmax()) != int(exact.argmax())
        if int(exact.argmax()) == token:
            return
        for gates in gate_readings(terms, evidence, tolerance):
            lenient, _ = compose_row(*row, gates=gates, slack=tolerance)
            strict, _ = compose_row(*row, gates=gates, slack=-tolerance)
            lenient, strict = penalise(lenient), penalise(strict)
            if lenient[token] > -math.inf and lenient[token] >= strict.max() - tolerance:
                verdict.ties += 1
                return
        verdict.wrong.append(
            f"position {i}: got token {token} (composed {exact[token]:.6f}, target {t[token]:.6f}), "
            f"expected {int(exact.argmax())} ({exact.max():.6f}); evidence {[round(e, 4) for e in evidence]}, {terms}, "
            f"keep_ratio {keep_ratio}, tail_ratio {tail_ratio}"
        )

    def _compare_logprob(self, verdict, token, logprob, row, tolerance, penalise) -> None:
        exact, evidence = compose_row(*row)
        clear = 5 * tolerance  # only rows in which no gate and no kept token hangs by less than this
        firm, _ = compose_row(*row, slack=clear)
        shy, _ = compose_row(*row, slack=-clear)
        if len(gate_readings(row[2], evidence, clear)) > 1 or not np.array_equal(firm, shy):
            return
        exact = penalise(exact)
        expected = exact[token] - (exact.max() + math.log(np.exp(exact - exact.max()).sum()))
        verdict.logprob_error = max(verdict.logprob_error, abs(expected - logprob))
        verdict.logprobs_compared += 1


def _round_inputs(rounded, _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (rounded(inputs[0]), *inputs[1:])


def compose_row(t, assistants, terms, keep_ratio, tail_ratio=0.0, shown=None, gates=None, slack=0.0):
    """composition.md for one row, written out. `slack` moves both thresholds down by that much."""
    vocab_size = len(t)
    shown = t if shown is None else shown
    evidence, taken = [], []
    for term, a in zip(terms, assistants, strict=True):
        log_p = a - a.max() - math.log(np.exp(a - a.max()).sum())
        c = log_p + math.log(vocab_size)
        taken.append(term.weight * (np.maximum(c - math.log(vocab_size) / 2, 0.0) if term.lowers else c))
        evidence.append(float((np.exp(log_p) * c).sum()))
    gates = [is_open(term, e) for term, e in zip(terms, evidence, strict=True)] if gates is None else gates
    if not any(gates):
        return shown, evidence
    k = max(1, math.floor(keep_ratio * vocab_size))
    threshold = np.sort(t)[::-1][k - 1]
    ratio = t.max() + math.log(keep_ratio) if keep_ratio > 0 else -math.inf
    kept = t >= min(ratio, threshold) - slack
    u = t - sum(part for part, g in zip(taken, gates, strict=True) if g)
    if tail_ratio > 0:
        kept &= u >= u[kept].max() + math.log(tail_ratio) - slack
    allowed = shown > -math.inf
    z = np.full(vocab_size, -math.inf)
    z[allowed] = np.where(kept, u, CUT)[allowed] + (shown[allowed] - t[allowed])
    return z, evidence


def is_open(term: Term, evidence: float) -> bool:
    """A set of weight 0 is not in force; delta = 0 is always open."""
    return term.weight > 0 and (term.gate_nats == 0 or evidence >= term.gate_nats)


def gate_readings(terms: list[Term], evidence: list[float], tolerance: float) -> list[list[bool]]:
    """Every way the gates may have fallen if each evidence is off by at most `tolerance`."""
    readings: list[list[bool]] = [[]]
    for term, e in zip(terms, evidence, strict=True):
        options = {is_open(term, e)}
        if term.weight > 0 and term.gate_nats > 0 and abs(e - term.gate_nats) <= tolerance:
            options = {True, False}
        readings = [[*r, o] for r in readings for o in sorted(options)]
    return readings
