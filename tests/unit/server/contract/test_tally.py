"""Open gates through shared memory: leases, tags, and counts against a dictionary that remembers everything."""

import random
import subprocess
import sys

import numpy as np
import pytest

from unlearngate.errors import UnlearngateError
from unlearngate.server.contract.tally import TALLY_VARIABLE, Tally, engine_text


@pytest.fixture
def tally(tmp_path):
    return Tally.create(tmp_path, max_num_seqs=4, max_model_len=50)


def write(tally, *cells):
    leases, positions, bits = (np.array(column, dtype=np.int64) for column in zip(*cells, strict=True))
    tally.write(leases, positions, bits)


def test_counts_are_those_of_the_tokens_that_were_received(tally, seed):
    rng = random.Random(seed)
    truth: dict[int, dict[int, int]] = {}
    for _ in range(200):
        if rng.random() < 0.2 and (lease := tally.lease()):
            truth[lease] = {}
        for lease, cells in truth.items():
            again = rng.random() < 0.2 and cells  # a preempted or chunked row is computed twice
            position = len(cells) - 1 if again else len(cells)
            if position < tally.width:
                cells[position] = rng.randrange(256)
                write(tally, (lease, position, cells[position]), (0, 3, 255), (lease, -1, 255))
    assert len(truth) > 3
    for lease, cells in truth.items():
        num_tokens = rng.randint(0, len(cells))  # what was computed beyond the tokens received does not count
        expected = [sum(cells[p] >> branch & 1 for p in range(num_tokens)) for branch in range(8)]
        assert tally.open_tokens(lease, num_tokens) == expected, f"seed {seed}"
        assert tally.open_tokens(lease, len(cells) + 1) is None


def test_a_slots_former_sequence_neither_counts_nor_passes_for_the_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr("unlearngate.server.contract.tally._BUDGET_BYTES", 0)
    tally = Tally.create(tmp_path, max_num_seqs=1, max_model_len=4)
    for _ in range(600):  # tags come round more than twice
        lease = tally.lease()
        assert tally.lease() == 0  # all are taken
        assert tally.open_tokens(lease, 1) is None
        write(tally, (lease, 0, 1), (lease, 1, 3))
        assert tally.open_tokens(lease, 2)[:3] == [2, 1, 0]
        tally.release(lease)
    assert tally.open_tokens(0, 1) is None


def test_what_another_process_writes_is_read_here(tally):
    lease = tally.lease()
    code = (
        "import numpy as np; from unlearngate.server.contract.tally import Tally; t = Tally.attach(); "
        f"t.write(np.array([{lease}]), np.array([0]), np.array([2])); "
        "t.add_step(700); t.add_step(300); t.set_counts(np.arange(5) + 6)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
    assert tally.open_tokens(lease, 1) == [0, 1, 0, 0, 0, 0, 0, 0]
    assert list(tally.totals()) == [2, 1000, 6, 7, 8, 9, 10]
    assert tally.totals().bad_rows == 6
    shown = engine_text(tally).decode().splitlines()
    assert 'unlearngate_draft_tokens_total{sets="none"} 7.0' in shown
    assert 'unlearngate_accepted_draft_tokens_total{sets="some"} 10.0' in shown


def test_an_engine_without_a_server_has_no_tally(monkeypatch):
    monkeypatch.delenv(TALLY_VARIABLE, raising=False)
    assert Tally.attach() is None


def test_a_disk_without_room_is_told_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnlearngateError, match="TMPDIR"):
        Tally.create(tmp_path / "file", max_num_seqs=4, max_model_len=50)


def test_what_a_sequence_says_is_kept_beside_its_gates(tally):
    lease, other = tally.lease(), tally.lease()
    assert tally.sentence_of(lease) is None
    write(tally, (lease, 0, 3 << 8 | 5), (other, 0, 5), (0, 0, 1 << 8), (other, -1, 2 << 8))
    assert (tally.sentence_of(lease), tally.sentence_of(other)) == (3, 0)
    assert tally.open_tokens(lease, 1) == [1, 0, 1, 0, 0, 0, 0, 0]
    write(tally, (lease, 0, 0))  # the first position again, as after a part of a prompt
    assert tally.sentence_of(lease) == 0
    assert tally.sentence_of(lease + 1) is None  # the slot's next tag
