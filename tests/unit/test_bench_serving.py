"""The serving benchmark's floors, by hand, and what it writes. No timing is asserted."""

import csv
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import serving
from benchmarks.shapes import configuration, make_sets, make_target

sys.path.remove(str(Path(__file__).parents[2]))


def test_the_floor_counts_layers_and_heads():
    """Llama-3.1-8B: 218.1 M weights a layer, 525.3 M in the head."""
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336
    head = 4096 * 128256
    assert serving.floor("llama-3.1-8b", 0, 8) == 1.0
    target = 32 * layer + head
    assert serving.floor("llama-3.1-8b", 1, 8) == pytest.approx(target / (target + 8 * layer + head))
    assert serving.floor("llama-3.1-8b", 2, 2) == pytest.approx(target / (target + 2 * (2 * layer + head)))


def test_an_unknown_shape_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"trial, qwen3-0\.6b or llama-3\.1-8b"):
        configuration("gpt-5")


class Clockwork:
    """In an engine's place: a step takes as long as it is told."""

    def __init__(self, step_s):
        self.step_s, self.asked = step_s, []

    def run(self, *, sets, prompt_tokens, new_tokens):
        self.asked.append(sets)
        return {"first_token_s": 1.0, "step_s": [self.step_s] * (new_tokens - 1), "memory_mib": 100.0}


def test_ratios_are_to_plain_vllm_in_the_same_round(tmp_path):
    situations = serving._situations([f"set-{i}" for i in range(16)], tapped=True)
    workers = {name: Clockwork(s) for name, s in {"plain": 0.1, "one": 0.2, "two": 0.4, "tapped": 0.125}.items()}
    ticks = []
    serving._measure(situations, workers, 4, 11, 3, lambda: ticks.append(1))
    assert len(ticks) == 3 and all(len(s.ratios) == 3 for s in situations)
    rows = serving._rows(situations, "trial", 4, 4, 2)
    ratios = {row["situation"]: row["ratio"] for row in rows}
    assert ratios["plain vLLM"] == 1.0 and ratios["no set in force"] == pytest.approx(0.5)
    assert ratios["two sets, every row"] == pytest.approx(0.25)
    assert ratios["tapped, one set, every row"] == pytest.approx(0.8)
    assert rows[0]["tokens_per_s"] == 40.0 and rows[0]["first_token_ms"] == 1000.0
    assert [["set-0"], [], ["set-0"], []] in workers["one"].asked
    assert [["set-0"], ["set-1"], ["set-2"], ["set-3"]] in workers["one"].asked
    with (tmp_path / "serving.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, serving.FIELDS)
        writer.writerows(rows)
    serving._draw(rows, tmp_path / "serving.png")
    assert (tmp_path / "serving.png").stat().st_size > 1000


def test_sets_and_targets_are_made_once(tmp_path, monkeypatch):
    import torch

    small = configuration("trial")
    small.hidden_size, small.intermediate_size, small.num_hidden_layers, small.vocab_size = 64, 64, 2, 128
    monkeypatch.setattr("benchmarks.shapes.configuration", lambda _: small)
    target = make_target(tmp_path / "target", "trial", torch.float32)
    names = make_sets(tmp_path / "sets", target, count=2, num_layers=1, tap_layer=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    make_target(tmp_path / "target", "trial", torch.float32)
    assert names == make_sets(tmp_path / "sets", target, count=2, num_layers=1, tap_layer=1) == ["set-0", "set-1"]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
