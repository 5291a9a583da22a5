"""A sweep against one setting at a time in float64, and against `score`, which composes as the server does."""

import math

import numpy as np
import pytest
import torch

from support.engine.tiny import make_target
from unlearngate.assistant_training.calibrate.positions import (
    Composed,
    Positions,
    compose_positions,
    compose_rows,
    least_evidence,
    read_positions,
    read_rows,
)
from unlearngate.assistant_training.calibrate.sweep import Grid, Measured, outcome, plain_outcome, sweep
from unlearngate.assistant_training.data.encoding import encode
from unlearngate.assistant_training.evaluate.metrics import answer_probability
from unlearngate.assistant_training.model.assistant import new_assistant
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.model.scoring import score
from unlearngate.errors import CalibrationError
from unlearngate.kernels.pairs import CUT, Pairs
from unlearngate.kernels.reference import compose_reference
from unlearngate.manifest import Strength

LENGTHS = [1, 4, 7, 2]  # tokens of each answer
FACTS = np.array([True, False, True, True])  # which of them name facts


def measured_at(drawn, grid, rule="contrast"):
    """What the two passes keep, for logits that are given."""
    target_NV, assistant_NV, labels_N, answer_N = drawn
    positions = Positions(answer_N, *read_rows(target_NV, assistant_NV, labels_N))
    lowest = least_evidence(grid.gates_nats[0])
    kept_N = positions.evidence_P >= lowest
    pairs = [(weight, keep_ratio) for weight in grid.weights for keep_ratio in grid.keep_ratios]
    composed = compose_rows(target_NV[kept_N], assistant_NV[kept_N].contiguous(), labels_N[kept_N], pairs, rule)
    return Measured(positions, Composed(np.array(lowest), np.array(pairs), *composed), FACTS)


def random_positions(seed, vocab_size=97):
    """Logits of a target that knows its labels mostly, with some tokens forbidden, and of an assistant now and then."""
    torch.manual_seed(seed)
    num = sum(LENGTHS)
    labels_N = torch.randint(vocab_size, (num,))
    target_NV, assistant_NV = torch.randn(num, vocab_size) * 3, torch.randn(num, vocab_size)
    target_NV[torch.rand(num, vocab_size) < 0.05] = -math.inf
    target_NV[torch.arange(num), labels_N] = torch.randn(num) * 4 + 6
    assistant_NV[torch.arange(num), labels_N] += torch.rand(num) * 12
    return target_NV, assistant_NV, labels_N, np.repeat(range(len(LENGTHS)), LENGTHS)


def plainly(target_NV, assistant_NV, labels_N, strength, rule="contrast"):
    """docs/composition.md in float64 by the reference, and the figures in loops."""
    num, vocab_size = target_NV.shape
    ratio = [strength.keep_ratio] * num
    lowers = rule == "lower"
    pairs = Pairs.build(
        *(range(num), [strength.weight] * num, [strength.gate_nats] * num, [0.0] * num if lowers else ratio),
        lowers_N=[lowers] * num,
        tail_ratio_R=ratio if lowers else None,
        vocab_size=vocab_size,
    )
    composed, opened = {}, []
    for mode in ("scoring", "sampling"):
        composed[mode] = target_NV.double()
        opened = compose_reference(composed[mode], assistant_NV.double(), pairs, mode=mode).open_N.tolist()
    labels = labels_N.tolist()
    log_p = {mode: z_NV.log_softmax(-1)[range(num), labels].tolist() for mode, z_NV in composed.items()}
    log_p["sampling"] = [-math.inf if value < CUT / 2 else value for value in log_p["sampling"]]
    log_p["plain"] = target_NV.double().log_softmax(-1)[range(num), labels].tolist()
    first, plain_first = composed["sampling"].argmax(-1).tolist(), target_NV.argmax(-1).tolist()
    answers, start = [], 0
    for length in LENGTHS:
        answers.append(range(start, start + length))
        start += length
    p = {
        mode: math.fsum(math.exp(sum(values[i] for i in a) / len(a)) for a in answers) / len(answers)
        for mode, values in log_p.items()
    }
    return {
        "probability": p["scoring"],
        "probability_served": p["sampling"],
        "right": sum(f == label for f, label in zip(first, labels, strict=True)) / num,
        "recited": sum(all(first[i] == labels[i] for i in a) for a in answers) / len(answers),
        "facts_told": sum(any(first[i] == labels[i] for i in answers[k]) for k in (0, 2, 3)) / 3,
        "untouched": sum(not o for o in opened) / num,
        "untouched_answers": sum(not any(opened[i] for i in a) for a in answers) / len(answers),
        "changed": sum(f != g for f, g in zip(first, plain_first, strict=True)) / num,
        "cut": sum(value == -math.inf for value in log_p["sampling"]) / num,
        "lost": p["plain"] - min(p["scoring"], p["sampling"]),
    }


@pytest.mark.parametrize("lowest", [0.0, 0.4])
@pytest.mark.parametrize("rule", ["contrast", "lower"])
def test_every_settings_figures_are_those_of_composing_it_alone(seed, rule, lowest):
    drawn = random_positions(seed)
    grid = Grid.of([2.0, 0.3, 1.0], [0.0, 0.3, 0.02, 1.0], [lowest, 0.8, 1.5, 99.0])
    measured = measured_at(drawn, grid, rule)
    settings = list(grid.strengths())
    assert len(settings) == 3 * 4 * 4
    for strength in settings:
        assert outcome(measured, strength)._asdict() == pytest.approx(
            plainly(*drawn[:3], strength, rule), rel=1e-4, abs=1e-6
        ), strength
    alone = plainly(*drawn[:3], Strength(weight=0.0, keep_ratio=0.0, gate_nats=0.0))
    assert plain_outcome(measured)._asdict() == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_measuring_leaves_the_logits_alone(seed):
    drawn = random_positions(seed)
    before_NV = drawn[0].clone()
    measured_at(drawn, Grid.of([1.0], [0.1], [0.0]))
    assert torch.equal(drawn[0], before_NV)


def test_logits_that_are_not_finite_are_refused(seed):
    target_NV, assistant_NV, labels_N, _ = random_positions(seed)
    assistant_NV[3, 5] = math.nan
    with pytest.raises(ValueError, match="1 rows of logits hold NaN"):
        read_rows(target_NV, assistant_NV, labels_N)


def test_without_facts_there_is_no_share_of_facts_told_and_what_was_not_composed_is_refused(seed):
    grid = Grid.of([1.0], [0.1], [0.5])
    measured = measured_at(random_positions(seed), grid)
    none = measured._replace(facts_A=np.zeros(len(LENGTHS), dtype=bool))
    assert outcome(none, next(grid.strengths())).facts_told is None
    for wrong in ((2.0, 0.1, 0.5), (1.0, 0.2, 0.5), (1.0, 0.1, 0.4)):
        with pytest.raises(ValueError, match="was not measured"):
            outcome(measured, Strength(weight=wrong[0], keep_ratio=wrong[1], gate_nats=wrong[2]))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny target, and an assistant that knows something."""
    torch.set_num_threads(1)
    target = load_target(make_target(tmp_path_factory.mktemp("sweep") / "tiny", seed=5), device="cpu")
    torch.manual_seed(1)
    assistant = new_assistant(target.model, num_layers=2, rank=4, alpha=8, model_id="tiny")
    for name, weight in assistant.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return target, assistant.eval()


@pytest.mark.parametrize("lowest", [0.0, 0.45])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_pass_over_answers_says_what_scoring_them_at_each_strength_says(models, batch_size, lowest):
    target, assistant = models
    texts = ["a", "Brindlemere, in the year 1911.", "forty-two", "none of these"]
    rows = [encode(target.tokenizer, f"question {i}?", text) for i, text in enumerate(texts)]
    grid = Grid.of([0.5, 1.5], [0.02, 0.3], [lowest, 0.5, 9.0])
    done = []
    given = {"pad_id": 0, "batch_size": batch_size, "advance": done.append}
    positions = read_positions(target.model, assistant, rows, **given)
    assert sum(done) == len(rows)
    assert positions.answer_P.tolist() == sorted(positions.answer_P)
    pairs = [(weight, keep_ratio) for weight in grid.weights for keep_ratio in grid.keep_ratios]
    done.clear()
    composed = compose_positions(target.model, assistant, rows, positions, pairs, lowest, rule="contrast", **given)
    assert sum(done) == len(set(positions.answer_P[positions.evidence_P >= lowest]))
    measured = Measured(positions, composed, np.zeros(len(rows), dtype=bool))
    for setting in sweep(measured, measured, grid):
        assert setting.forget == setting.retain
        scored = {
            mode: score(target.model, rows, pad_id=0, in_force=[LoadedSet(assistant, setting.strength)], mode=mode)
            for mode in ("scoring", "sampling")
        }
        p = {mode: answer_probability([one.log_p for one in answers]).mean() for mode, answers in scored.items()}
        assert setting.forget.probability == pytest.approx(p["scoring"], rel=1e-4)
        assert setting.forget.probability_served == pytest.approx(p["sampling"], rel=1e-4)
        right, untouched = (
            np.concatenate([getattr(one, key) for one in scored["sampling"]]).mean() for key in ("is_best", "untouched")
        )
        assert (setting.forget.right, setting.forget.untouched) == pytest.approx((right, untouched))
        answers = [one.untouched.all() for one in scored["sampling"]]
        assert setting.forget.untouched_answers == pytest.approx(np.mean(answers))


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        (([], [0.1], [0.0]), "weights to sweep must be numbers above 0, got none"),
        (([0.0], [0.1], [0.0]), "weights to sweep must be numbers above 0, got 0.0"),
        (([math.inf], [0.1], [0.0]), "weights to sweep must be numbers above 0, got inf"),
        (([1.0], [1.5], [0.0]), "keep ratios to sweep must be numbers from 0 to 1, got 1.5"),
        (([1.0], [0.1], [math.nan]), "gates to sweep must be nats of at least 0, got nan"),
    ],
)
def test_a_value_that_no_setting_can_have_is_named(axes, sentence):
    with pytest.raises(CalibrationError, match=sentence):
        Grid.of(*axes)
