"""Scores of answers in batches, against one row at a time in float64 without any of our composition."""

import math

import numpy as np
import pytest
import torch

from support.engine.tiny import make_target
from unlearngate.assistant_training.data.encoding import IGNORE, encode
from unlearngate.assistant_training.model.assistant import new_assistant
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.model.scoring import score
from unlearngate.manifest import Strength

ANSWERS = ["a", "Brindlemere, in the year 1911.", "forty-two", "none of these"]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    torch.set_num_threads(1)
    return load_target(make_target(tmp_path_factory.mktemp("scoring") / "tiny", seed=5), device="cpu")


@pytest.fixture(scope="module")
def assistants(target):
    """Two random ones that know something."""
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        assistant = new_assistant(target.model, num_layers=2, rank=4, alpha=8, model_id="tiny")
        for name, weight in assistant.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
        made.append(assistant.eval())
    return made


@pytest.fixture(scope="module")
def rows(target):
    return [encode(target.tokenizer, f"question {i}?", answer) for i, answer in enumerate(ANSWERS)]


def answer_logits(model, row):
    with torch.inference_mode():
        logits_TV = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    at = [t for t in range(1, len(row.labels)) if row.labels[t] != IGNORE]
    return logits_TV[[t - 1 for t in at]], [row.labels[t] for t in at]


def expected_log_p(target, row, in_force, mode):
    """docs/composition.md again, for one row, in torch float64; -inf where a token is cut."""
    t_TV, labels = answer_logits(target, row)
    vocab_size = t_TV.shape[1]
    z_TV, untouched = t_TV.clone(), []
    centred = [answer_logits(f.assistant, row)[0].log_softmax(-1) + math.log(vocab_size) for f in in_force]
    tau, rho = (
        max((f.strength.keep_ratio for f in in_force if f.rule == rule), default=0.0) for rule in ("contrast", "lower")
    )
    for position in range(len(labels)):
        taken, opened = torch.zeros(vocab_size, dtype=torch.double), False
        for c_TV, f in zip(centred, in_force, strict=True):
            c = c_TV[position]
            evidence = float(((c - math.log(vocab_size)).exp() * c).sum())
            sure = (c - math.log(vocab_size) / 2).clamp(min=0)
            if f.strength.weight > 0 and evidence >= f.strength.gate_nats:
                taken, opened = taken + f.strength.weight * (sure if f.rule == "lower" else c), True
        untouched.append(not opened)
        if opened:
            t = t_TV[position]
            kth = t.sort(descending=True).values[max(1, math.floor(tau * vocab_size)) - 1]
            kept = t >= min(float(t.max()) + (math.log(tau) if tau else -math.inf), float(kth))
            u = t - taken
            if mode == "sampling" and rho:
                kept &= u >= u[kept].max() + math.log(rho)
            z_TV[position] = torch.where(kept, u, torch.tensor(-math.inf) if mode == "sampling" else t)
    return z_TV.log_softmax(-1), labels, untouched


@pytest.mark.parametrize("mode", ["scoring", "sampling"])
@pytest.mark.parametrize("rules", [[], ["contrast"], ["lower"], ["contrast", "contrast"], ["lower", "contrast"]])
def test_scores_are_those_of_one_row_at_a_time(target, assistants, rows, rules, mode):
    strengths = [
        Strength(weight=0.7, keep_ratio=0.2, gate_nats=0.0),
        Strength(weight=1.2, keep_ratio=0.1, gate_nats=0.6),
    ]
    in_force = [LoadedSet(*of_set) for of_set in zip(assistants, strengths, rules, strict=False)]
    scored = score(target.model, rows, pad_id=0, in_force=in_force, mode=mode, batch_size=3)
    assert len(scored) == len(rows)
    for one, row in zip(scored, rows, strict=True):
        log_p_TV, labels, untouched = expected_log_p(target.model, row, in_force, mode)
        expected = log_p_TV[range(len(labels)), labels].numpy()
        assert np.array_equal(np.isneginf(one.log_p), np.isneginf(expected))
        finite = np.isfinite(expected)
        assert np.allclose(one.log_p[finite], expected[finite], atol=2e-4)
        assert one.untouched.tolist() == untouched
        assert (one.is_best == (log_p_TV.argmax(-1).numpy() == labels)).all()
        p_TV = log_p_TV.exp()
        log_p_TV = log_p_TV.nan_to_num(neginf=0.0)
        mean = (p_TV * log_p_TV).sum(-1)
        assert np.allclose(one.mean_log_p, mean.numpy(), atol=2e-4)
        std = (p_TV * (log_p_TV - mean[:, None]) ** 2).sum(-1).sqrt()
        assert np.allclose(one.std_log_p, std.numpy(), atol=5e-4)


def test_a_set_behind_a_closed_gate_touches_nothing(target, assistants, rows):
    closed = [LoadedSet(assistants[0], Strength(weight=1.0, keep_ratio=0.1, gate_nats=99.0))]
    plain, gated = score(target.model, rows, pad_id=0), score(target.model, rows, pad_id=0, in_force=closed)
    for one, other in zip(plain, gated, strict=True):
        assert np.array_equal(one.log_p, other.log_p)
        assert other.untouched.all()


def test_logits_that_are_not_finite_are_refused(target, rows):
    class Broken(torch.nn.Module):
        def forward(self, **inputs):
            output = target.model(**inputs)
            output.logits[..., 3] = math.nan
            return output

    broken = [LoadedSet(Broken(), Strength(weight=1.0, keep_ratio=0.1, gate_nats=0.0))]
    with pytest.raises(ValueError, match="NaN or infinity"):
        score(target.model, rows, pad_id=0, in_force=broken)
