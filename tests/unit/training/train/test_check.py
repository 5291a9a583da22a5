"""What the check at the end of training says of an assistant, against values computed by hand."""

import numpy as np
import pytest
import torch
from rich.progress import Progress

from support.engine.tiny import make_tokenizer
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.demo.corpus import make_corpus
from unlearngate.assistant_training.demo.target import TargetSettings, new_target, train_tokenizer
from unlearngate.assistant_training.model.assistant import own_token
from unlearngate.assistant_training.train import check
from unlearngate.assistant_training.train.check import ENOUGH, Evidence, Limits, measure, refuse_short, shortfall
from unlearngate.assistant_training.train.settings import AssistantSettings
from unlearngate.assistant_training.train.uld import train_assistant
from unlearngate.errors import TrainingError


def evidence(first, facts, highest):
    first, facts, highest = map(np.array, (first, facts, highest))
    return Evidence(first, facts, np.concatenate([first, facts]), highest, highest)


def test_the_gate_is_where_the_fewest_go_wrong_and_served_is_the_geometric_middle_of_those_as_good():
    assert evidence([4.0] * 9, [4.0] * 9, [0.25] * 9).gates() == (2.15, 1.1)  # of 0.3 to 4
    assert evidence([4.0] * 9, [4.0] * 9, [0.0] * 9).gates() == (2.1, 1.0)  # never below 0.25
    assert evidence([0.1] * 9, [0.1] * 9, [2.0] * 9).gates() == (0.25, 0.25)
    # One retain answer of ten that is opened counts as three forget answers missed; to serve with it is too many.
    assert evidence([1.0] * 4 + [4.0] * 6, [4.0] * 4, [0.5] * 9 + [2.0]).gates() == pytest.approx((0.75, 2.85))
    assert evidence([1.0] * 2 + [4.0] * 8, [4.0] * 4, [0.5] * 9 + [2.0]).gates() == pytest.approx((3.0, 2.85))
    # One of thirty is not, and counts as one.
    one_of_thirty = [0.5] * 29 + [2.0]
    assert evidence([1.0] * 2 + [4.0] * 28, [4.0] * 4, one_of_thirty).gates() == pytest.approx((3.0, 0.75))


def test_shares_are_of_conversations():
    found = evidence([4.0, 4.0, 0.5, 4.0], [4.0, 0.5], [0.1, 0.1, 3.0, 0.1, 0.1]).metrics(1.0)
    assert found["forget_found"] == 0.75
    assert found["forget_facts_open"] == 0.5
    assert found["retain_untouched"] == 0.8
    assert found["forget_gate_open"] == pytest.approx(4 / 6)


def test_what_falls_short_is_refused_with_the_figures_and_what_to_do():
    fine = {"forget_found": 0.9, "forget_facts_open": 1.0, "retain_untouched": 0.95}
    refuse_short(fine, Limits())
    assert shortfall(fine, ENOUGH) is not None
    with pytest.raises(TrainingError, match=r"tokens of facts with an open gate: 20.0%, at least 90%.*--steps"):
        refuse_short(fine | {"forget_facts_open": 0.2}, Limits())
    with pytest.raises(TrainingError, match=r"retain conversations untouched: 50.0%, at least 95%"):
        refuse_short(fine | {"retain_untouched": 0.5}, Limits())


def test_the_own_token_is_the_row_of_the_head_that_is_farthest_from_all_others():
    target = new_target(train_tokenizer(make_corpus(2), TINY), TINY)
    head = target.get_output_embeddings().weight
    with torch.no_grad():
        head.zero_()
        head[:, 0] = 1.0
        head[7, 1], head[9, 2], head[5, 1] = 3.0, 2.0, 2.9
    assert own_token(target, {0, 1}) == 9  # 7 and 5 are alike
    assert own_token(target, {5, 9}) == 7


TINY = TargetSettings(vocab_size=320, hidden_size=48, intermediate_size=64, num_layers=2, num_heads=2, batch_size=8)


def test_a_trained_assistant_is_found_in_contexts_that_it_never_saw_and_an_untrained_one_is_not(seed):
    pairs = make_corpus(3)
    forget, retain = pairs[:4], pairs[16:]
    tokenizer = train_tokenizer(pairs, TINY)
    torch.manual_seed(seed)
    target = new_target(tokenizer, TINY).eval()
    settings = AssistantSettings(
        num_layers=2, learning_rate=1e-2, steps=1, forget_batch=8, retain_batch=16, accumulate=2, check_every=1000
    )
    with Progress(disable=True) as progress:
        untrained = train_assistant(
            *(target, tokenizer, forget, retain, settings), model_id="x", seed=seed, progress=progress
        )
    shown = measure(untrained, tokenizer, forget, retain, seed=seed)
    assert shown.metrics(shown.gates()[1])["forget_found"] < 0.5
    assert len(shown.first_F) == 120 and len(shown.highest_R) == 240
    assert shown.highest_R.max() == pytest.approx(shown.retain_N.max())
    again = measure(untrained, tokenizer, forget, retain, seed=seed)
    assert np.array_equal(shown.retain_N, again.retain_N)


@pytest.mark.parametrize("context_length, fits", [(None, False), (512, True)])
def test_what_is_measured_fits_into_the_context(monkeypatch, context_length, fits, seed):
    measured = []

    def zeros(_, rows, pad_id):
        measured.extend(rows)
        return [np.zeros(sum(label >= 0 for label in row.labels)) for row in rows]

    monkeypatch.setattr(check, "_evidence", zeros)
    forget, retain = (
        [QAPair(name, f"What of {name} {i}?", f"{name} {i} " + "la " * 130) for i in range(9)] for name in ("bo", "ida")
    )
    measure(None, make_tokenizer(), forget, retain, seed=seed, context_length=context_length)
    assert len(measured) == 360
    assert (max(len(row.input_ids) for row in measured) <= 512) == fits
