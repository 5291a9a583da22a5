"""The kernel benchmark counts, compares and records what it says it does. No timing is asserted."""

import csv
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[3]))
from benchmarks import kernels, plot, providers, timing
from benchmarks.providers import Case, compose_paper, draw_target
from benchmarks.record import FIELDS, results_of
from benchmarks.timing import Timing
from unlearngate.kernels.pairs import CUT, Pairs
from unlearngate.kernels.reference import compose_reference

sys.path.remove(str(Path(__file__).parents[3]))

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
GREEN, RED = ([sys.executable, "-c", f"raise SystemExit({code})"] for code in (0, 1))
TINY = ["--device", "cpu", "--threads", "1", "--vocab", "512", "--budget-s", "0.01"]


@pytest.fixture(autouse=True)
def same_threads():
    """--threads is the process's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "case, expected",
    [
        (Case(8, 128_256, 0, torch.float32, torch.bfloat16), 0),
        (Case(1, 32_000, 1, torch.float32, torch.bfloat16), 320_000),
        (Case(8, 128_256, 2, torch.float32, torch.bfloat16), 12_312_576),
        (Case(2, 1000, 2, torch.bfloat16, torch.float32), 24_000),
    ],
)
def test_minimal_bytes_are_each_input_once_and_each_output_once(case, expected):
    assert case.min_bytes == expected


def test_speed_is_minimal_bytes_over_the_median_and_a_share_of_the_copys():
    case = Case(1, 32_000, 1, torch.float32, torch.bfloat16)
    timings = {"paper": Timing([400.0]), "ours": Timing([50.0, 40.0, 10.0]), "copy": Timing([20.0])}
    paper, ours, copy = results_of(case, timings)
    assert [r.gb_per_s for r in (paper, ours, copy)] == [0.8, 8.0, 16.0]
    assert [r.share_of_copy for r in (paper, ours, copy)] == [0.05, 0.5, 1.0]
    assert [r.ours_over_this for r in (paper, ours, copy)] == [0.1, 1.0, 2.0]


def test_a_graph_is_held_against_graphs():
    timings = {n: Timing([us]) for n, us in {"ours": 9.0, "copy": 6.0, "ours-graph": 4.0, "copy-graph": 2.0}.items()}
    shares = {r.provider: r.share_of_copy for r in results_of(Case(1, 512, 1), timings)}
    assert shares["ours-graph"] == 0.5 and shares["copy-graph"] == 1.0


@pytest.mark.parametrize("num_sets", [1, 2])
@pytest.mark.parametrize("keep_ratio", [0.01, 0.1])
def test_the_papers_way_is_the_reference_up_to_a_constant_in_each_row(seed, num_sets, keep_ratio):
    num_rows, vocab_size, weight = 5, 512, 0.75
    generator = torch.Generator().manual_seed(seed)
    target_RV = draw_target(num_rows, vocab_size, generator).bfloat16().double()
    assistant_NV = torch.randn(num_rows * num_sets, vocab_size, generator=generator).double()
    row_N = [row for row in range(num_rows) for _ in range(num_sets)]
    pairs = Pairs.build(
        row_N, [weight] * len(row_N), [0.0] * len(row_N), [keep_ratio] * num_rows, vocab_size=vocab_size
    )
    paper_RV = compose_paper(target_RV, assistant_NV, weight=weight, keep_ratio=keep_ratio)
    compose_reference(target_RV, assistant_NV, pairs)
    kept_RV = target_RV > CUT
    assert torch.equal(torch.isfinite(paper_RV), kept_RV)
    for row in range(num_rows):
        difference = (paper_RV[row] - target_RV[row])[kept_RV[row]]
        assert difference.numel() >= math.floor(keep_ratio * vocab_size)
        assert (difference - difference[0]).abs().max() < 1e-10


def test_inputs_are_what_an_engine_has_and_are_brought_back(seed):
    inputs = providers.Inputs(Case(3, 512, 2), CPU, seed)
    fresh_SRV = inputs.target_SRV.clone()
    assert torch.equal(fresh_SRV, fresh_SRV.bfloat16().float()) and (fresh_SRV.std(-1) > 1).all()
    assert (inputs.assistant_SNV.std(-1) > 1).all()
    for name, run in providers.make_runs(inputs).items():
        if name != "compiled":
            run(0)
            inputs.restore()
    assert torch.equal(inputs.target_SRV, fresh_SRV)


def test_a_run_writes_every_provider_of_every_case_and_its_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "TEST_COMMAND", GREEN)
    # Compiling takes seconds, and needs a C++ compiler.
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    sizes = ["--rows", "1", "--rows", "3", "--sets", "0", "--sets", "1"]
    done = CliRunner().invoke(kernels.app, [*TINY, *sizes, "--seed", "7", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    with (tmp_path / "kernels.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == FIELDS
    names = providers.provider_names(CPU)
    assert [(x["sets"], x["R"], x["provider"]) for x in lines] == [(s, r, p) for s in "01" for r in "13" for p in names]
    for line in lines:
        assert bool(line["median_us"]) != bool(line["note"]), line
        assert line["seed"] == "7" and line["threads"] == "1" and line["commit"] and line["device"]
    noted = {(line["sets"], line["provider"]) for line in lines if line["note"]}
    assert noted == {("0", "paper"), ("0", "copy")}

    written = plot.plot(tmp_path / "kernels.csv")
    assert [path.name for path in written] == ["kernels.svg", "kernels.png"]
    assert ET.parse(written[0]).getroot().tag.endswith("svg")
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_nothing_is_timed_while_the_tests_are_red(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "TEST_COMMAND", RED)
    done = CliRunner().invoke(kernels.app, [*TINY, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "nothing is timed" in done.output
    assert not (tmp_path / "out").exists()


def test_what_gates_the_timing_are_the_tests_of_compose():
    assert kernels.TEST_COMMAND[1:3] == ["-m", "pytest"]
    assert (ROOT / kernels.TEST_COMMAND[-1]).is_file()


def test_what_is_too_slow_or_fails_stays_with_a_note(seed, monkeypatch):
    def fails(s):
        raise RuntimeError("no such kernel\nand a long story")

    def lacks(s):
        raise torch.OutOfMemoryError("a long story")

    inputs = providers.Inputs(Case(1, 512, 1), CPU, seed)
    monkeypatch.setattr(timing, "SLOWEST", -1)
    slow = timing.measure({"reference": lambda s: None}, inputs, 0.01)["reference"]
    assert slow.note.startswith("too slow") and slow.percentile_us(50) is None
    monkeypatch.setattr(timing, "SLOWEST", 1e9)
    found = timing.measure({"reference": fails, "paper": lacks, "ours": lambda s: None}, inputs, 0.01)
    assert found["reference"].note == "RuntimeError: no such kernel"
    assert found["paper"].note == "out of memory"
    assert not found["ours"].note and len(found["ours"].samples_us) >= 3


def test_a_case_that_this_cpu_cannot_hold_stays_with_a_note(monkeypatch):
    monkeypatch.setattr(providers, "free_bytes", lambda: 2**20)
    found = kernels._run_case(Case(64, 32_000, 1), CPU, 0, 0.01, lambda name: None)
    assert tuple(found) == providers.provider_names(CPU)
    assert all(t.note.startswith("out of memory: needs about") for t in found.values())


def test_a_csv_with_nothing_to_draw_is_refused(tmp_path):
    path = tmp_path / "kernels.csv"
    path.write_text(",".join(FIELDS) + "\n")
    with pytest.raises(ValueError, match=r"run kernels\.py with --sets 1"):
        plot.plot(path)
