"""The serving benchmark's floors, by hand, and what it writes. No timing is asserted."""

import csv
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
from benchmarks import serving
from benchmarks.floor import Machine
from benchmarks.shapes import configuration, make_sets, make_target
from benchmarks.two_models import TwoModels

sys.path.remove(str(Path(__file__).parents[3]))


CPU = torch.device("cpu")


def test_the_floor_counts_bytes_and_multiplications():
    """Llama-3.1-8B: 218.1 M weights a layer, 525.3 M in the head, 1.31 M in a layer's adapter of rank 16."""
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336
    adapter = 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    head = 4096 * 128256
    target = 32 * layer + head
    config = configuration("llama-3.1-8b")
    reads = Machine(CPU, torch.bfloat16, bytes_per_s=1e9, flops_per_s=1e30)  # multiplications cost nothing
    assert reads.step_s(config, [[]] * 7, 8) == pytest.approx(2 * target / 1e9)
    assert reads.step_s(config, [["a"], ["b"], ["a"]], 8) == pytest.approx(2 * (target + 2 * 8 * adapter) / 1e9)
    multiplies = Machine(CPU, torch.bfloat16, bytes_per_s=1e30, flops_per_s=1e9)
    branch = 8 * (layer + adapter) + head
    assert multiplies.step_s(config, [["a"], [], ["a", "b"]], 8) == pytest.approx(2 * (3 * target + 3 * branch) / 1e9)


def test_two_models_decode_as_many_tokens_as_they_are_told(tmp_path, monkeypatch):
    """The peer: the tiny target and a set of its own."""
    small = configuration("trial")
    small.hidden_size, small.intermediate_size, small.num_hidden_layers, small.vocab_size = 64, 64, 2, 128
    monkeypatch.setattr("benchmarks.shapes.configuration", lambda _: small)
    target = make_target(tmp_path / "target", "trial", torch.float32)
    make_sets(tmp_path / "sets", target, count=1, num_layers=1, tap_layer=0)
    answer = TwoModels(target, tmp_path / "sets", "set-0", torch.float32).run([["set-0"]] * 3, 5, 4)
    assert len(answer["step_s"]) == 3 and answer["first_token_s"] > 0


def test_an_unknown_shape_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"trial, smollm2-135m, qwen3-0\.6b or llama-3\.1-8b"):
        configuration("gpt-5")


class Clockwork:
    """In an engine's place: a step takes as long as it is told."""

    def __init__(self, step_s):
        self.step_s, self.asked = step_s, []

    def run(self, *, sets, prompt_tokens, new_tokens, lowers=False):
        self.asked.append((sets, lowers))
        return {"first_token_s": 1.0, "step_s": [self.step_s] * (new_tokens - 1), "memory_mib": 100.0}


SECONDS = {"plain": 0.1, "one": 0.2, "two": 0.4, "tapped": 0.125, "peer": 1.0}


def test_ratios_are_to_plain_vllm_in_the_same_round(tmp_path):
    situations = serving._situations([f"set-{i}" for i in range(16)], 4, tapped=True)
    workers = {name: Clockwork(s) for name, s in SECONDS.items()}
    ticks = []
    serving._measure(situations, workers, 4, 11, 3, lambda: ticks.append(1))
    assert len(ticks) == 3 and all(len(s.ratios) == 3 for s in situations)
    rows = serving._rows(situations, "trial", 4, 4, 2, Machine(CPU, torch.float32, 1e10, 1e11))
    ratios = {row["situation"]: row["ratio"] for row in rows}
    assert ratios["plain vLLM"] == 1.0 and ratios["no set in force"] == pytest.approx(0.5)
    assert ratios["two sets, every row"] == pytest.approx(0.25)
    assert ratios["tapped, one set, every row"] == pytest.approx(0.8)
    assert rows[0]["tokens_per_s"] == 40.0 and rows[0]["first_token_ms"] == 1000.0
    assert ([["set-0"], [], ["set-0"], []], False) in workers["one"].asked
    assert ([["set-0"], [], [], []], False) in workers["one"].asked
    assert ([["set-0"], ["set-1"], ["set-2"], ["set-3"]], False) in workers["one"].asked
    assert ([["set-0"]] * 4, True) in workers["one"].asked
    with (tmp_path / "serving.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, serving.FIELDS)
        writer.writerows(rows)
    serving._draw(rows, tmp_path / "serving.png")
    assert (tmp_path / "serving.png").stat().st_size > 1000


def test_sets_and_targets_are_made_once(tmp_path, monkeypatch):
    small = configuration("trial")
    small.hidden_size, small.intermediate_size, small.num_hidden_layers, small.vocab_size = 64, 64, 2, 128
    monkeypatch.setattr("benchmarks.shapes.configuration", lambda _: small)
    target = make_target(tmp_path / "target", "trial", torch.float32)
    names = make_sets(tmp_path / "sets", target, count=2, num_layers=1, tap_layer=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    make_target(tmp_path / "target", "trial", torch.float32)
    assert names == make_sets(tmp_path / "sets", target, count=2, num_layers=1, tap_layer=1) == ["set-0", "set-1"]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
