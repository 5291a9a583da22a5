"""docs/deployment.md's formulas give what an engine really takes, to the byte or the block."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.deploy import sizing
from support.deploy.sizing_run import BLOCK_SIZE, BRANCHES, MAX_LOADED
from support.engine.tiny import family_config
from unlearngate.server.contract.tally import Tally

pytestmark = pytest.mark.e2e
LAYERS, RANK = 2, 8


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    program = Path(sizing.__file__).with_name("sizing_run.py")
    tests = program.parents[2]
    done = subprocess.run(
        [sys.executable, program, tmp_path_factory.mktemp("sizing")],
        env={**os.environ, "PYTHONPATH": str(tests)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def shape():
    c = family_config("llama")
    return sizing.Shape(
        c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads,
        c.head_dim, bytes=4,
    )  # fmt: skip


def test_the_cache_holds_as_many_blocks_as_the_formula_gives(figures, shape, print_figures):
    per_token = sizing.kv_bytes_per_token(shape, branches=BRANCHES, branch_layers=LAYERS)
    assert figures["num_blocks"] == 2**30 // (per_token * BLOCK_SIZE)
    print_figures(
        f"sizing: {per_token} bytes of KV a token, {figures['num_blocks']} blocks in 1 GiB, as the engine has"
    )


def test_slots_take_what_the_formula_gives(figures, shape):
    assert figures["slot_bytes"] == sizing.slot_bytes(
        shape, branches=BRANCHES, branch_layers=LAYERS, max_rank=RANK, max_loaded=MAX_LOADED
    )


def test_a_set_takes_what_the_formula_gives(figures, shape):
    assert figures["set_bytes"] == sizing.set_bytes(shape, branch_layers=LAYERS, rank=RANK, number_bytes=4)


def test_branches_have_no_weights_of_their_own(figures):
    assert figures["parameter_bytes"] == figures["checkpoint_bytes"]


@pytest.mark.parametrize("max_num_seqs, max_model_len", [(8, 512), (256, 8192), (1024, 131072)])
def test_counting_open_gates_takes_what_the_formula_gives(tmp_path, monkeypatch, max_num_seqs, max_model_len):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    Tally.create(tmp_path, max_num_seqs=max_num_seqs, max_model_len=max_model_len)
    expected = sizing.gate_bytes(max_num_seqs=max_num_seqs, max_model_len=max_model_len)
    assert (tmp_path / "tally").stat().st_size == expected
