"""The gates that are swept where none are given, against quantiles by hand."""

import math

import numpy as np
import pytest

from unlearngate.assistant_training.calibrate.gates import gates_of
from unlearngate.assistant_training.calibrate.positions import Positions


def file_of(*answers):
    answer_P = np.repeat(np.arange(len(answers)), [len(one) for one in answers])
    evidence_P = np.concatenate(answers).astype(np.float32)
    return Positions(answer_P, evidence_P, np.zeros(len(evidence_P)), np.zeros(len(evidence_P), dtype=bool))


def test_where_the_files_are_far_apart_there_are_gates_between_them():
    retain = file_of(*[[0.0, 0.3]] * 20, [0.1, 1.02])
    forget = file_of(*[[6.0, 7.0, 8.03]] * 20)
    gates = gates_of(forget, retain, 50_000)
    assert len(gates) == 10
    assert gates[0] == 0.35 and gates[-1] == 7.0  # just above the retain 90 %; the forget 50 %
    assert 1.05 in gates and 6.0 in gates  # closes on the highest retain answer; opens on every forget token
    assert sum(1.05 < gate < 6.0 for gate in gates) >= 3
    assert all(gate * 20 == pytest.approx(round(gate * 20)) for gate in gates)


def test_gates_are_inside_the_range_that_means_something(seed):
    rng = np.random.default_rng(seed)
    for vocab_size, retain_nats, forget_nats in ((300, 0.01, 5.7), (300, 5.7, 0.01), (50_000, 0.0, 0.0)):
        retain = file_of(*(rng.random((30, 4)) * retain_nats))
        forget = file_of(*(rng.random((30, 4)) * forget_nats))
        gates = gates_of(forget, retain, vocab_size)
        assert 1 <= len(gates) <= 14 and list(gates) == sorted(set(gates))
        assert gates[0] >= 0.25 and gates[-1] <= math.log(vocab_size)
    assert gates == (0.25,)  # an assistant that shows nothing


def test_it_is_the_highest_evidence_of_an_answer_that_counts_for_the_retain_file():
    # 99 % of the tokens show nothing, but a tenth of the answers has one that does.
    retain = file_of(*[[0.0] * 10] * 90, *[[0.0] * 9 + [3.0]] * 10)
    assert 3.05 in gates_of(file_of([4.0, 5.0]), retain, 50_000)
