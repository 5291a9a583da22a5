"""What forgetting costs while decoding, as ratios to plain vLLM in the same run."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import torch
import typer
from rich.progress import Progress

from benchmarks.floor import Machine
from benchmarks.record import Environment
from benchmarks.shapes import configuration, make_sets, make_target

PLAIN, OFF, PEER = "plain vLLM", "no set in force", "two models in a loop"
FIELDS = (
    *("shape", "batch", "situation", "tokens_per_s", "ratio", "ratio_low", "ratio_high", "floor", "share_of_floor"),
    *("step_p50_ms", "step_p99_ms", "first_token_ms", "prefill_2000_ms", "memory_mib"),
    *("device", "threads", "commit", "date"),
)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Situation:
    """Which sets are in force in which rows, and the engine that is asked."""

    name: str
    engine: str
    sets_per_row: Sequence[Sequence[str]]  # row i has the (i mod length)-th
    lowers: bool = False  # the sets raise nothing, as those that are trained by default
    ratios: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    steps_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    memory_mib: float = 0.0

    @property
    def more(self) -> dict[str, bool]:
        """What its engine is told beside sets and lengths."""
        return {"lowers": True} if self.lowers else {}

    def sets(self, batch: int) -> list[list[str]]:
        """The names in force in each of `batch` rows."""
        return [list(self.sets_per_row[row % len(self.sets_per_row)]) for row in range(batch)]


class Worker:
    """An engine's process."""

    def __init__(self, arguments: Sequence[str | Path]) -> None:
        module = "benchmarks.two_models" if "--peer" in arguments else "benchmarks.engine_worker"
        command = [sys.executable, "-m", module, *(str(a) for a in arguments if a != "--peer")]
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._read()

    def run(self, **wish: Any) -> dict[str, Any]:
        """See engine_worker and two_models."""
        assert self._process.stdin is not None
        print(json.dumps(wish), file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._log.seek(0)
        raise RuntimeError(f"the engine ended:\n{self._log.read()[-3000:]}")


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="where serving.csv and serving.png go")] = Path("build/bench"),
    shape: Annotated[
        str, typer.Option(help="trial, smollm2-135m, qwen3-0.6b or llama-3.1-8b; weights are random")
    ] = "trial",
    batches: Annotated[str, typer.Option(help="rows, comma-separated")] = "1,16,64",
    layers: Annotated[int, typer.Option(min=1, help="K, an assistant's layers")] = 4,
    tapped_layers: Annotated[int, typer.Option(min=0, help="m, a tapped assistant's layers; 0: none")] = 2,
    new_tokens: Annotated[int, typer.Option(min=4, help="that each row decodes, in each round")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="in which all situations take turns, after each start")] = 3,
    starts: Annotated[int, typer.Option(min=1, help="of all engines: where memory falls is luck, some per cent")] = 3,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    eager: Annotated[bool, typer.Option(help="without CUDA graphs and compilation")] = False,
) -> None:
    """Decode with plain vLLM and with ours, in turns, and write how much slower ours is.

    The floor is what the shape needs on this machine (benchmarks/floor.py): every weight and adapter in use read once,
    the target's and the assistants' multiplications done, at the speeds that a large matrix product and a large read
    have here. Ratios: medians over rounds of ours to plain in the same round.

    Example:  python -m benchmarks.serving --batches 1,16 --rounds 3
    """
    sizes = [int(size) for size in batches.split(",")]
    cache = Path(tempfile.gettempdir()) / f"unlearngate-bench-{shape}-{dtype}"
    target = make_target(cache / "target", shape, getattr(torch, dtype))
    tap = configuration(shape).num_hidden_layers - tapped_layers
    common: list[str | Path] = [
        "--target",
        target,
        "--max-rows",
        str(max(sizes)),
        "--dtype",
        dtype,
        *(["--eager"] if eager else []),
    ]
    engines: dict[str, list[str | Path]] = {"plain": []}
    names = make_sets(cache / f"sets-{layers}", target, count=16, num_layers=layers, tap_layer=0)
    first: list[str | Path] = ["--sets", cache / f"sets-{layers}"]
    engines |= {"one": [*first, "--max-loaded", "16"], "two": [*first, "--branches", "2", "--max-loaded", "2"]}
    if tapped_layers:
        folder = cache / f"tapped-{tapped_layers}"
        make_sets(folder, target, count=1, num_layers=tapped_layers, tap_layer=tap)
        engines["tapped"] = ["--sets", folder]
    engines["peer"] = ["--sets", cache / f"sets-{layers}", "--peer"]
    machine = Machine.measure(torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, dtype))
    typer.echo(f"{machine.bytes_per_s / 1e9:.1f} GB/s, {machine.flops_per_s / 1e9:.0f} GFLOP/s")
    situations = {batch: _situations(names, batch, tapped=bool(tapped_layers)) for batch in sizes}
    with Progress() as progress:
        bar = progress.add_task("engines start", total=starts * (len(engines) + len(sizes) * rounds))
        tick = partial(progress.update, bar, advance=1)
        for _ in range(starts):
            with ExitStack() as stack:
                work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                workers = {}
                for name, options in engines.items():
                    workers[name] = Worker([*common, *options, "--work", work / name])
                    stack.callback(workers[name].close)
                    tick()
                for batch in sizes:
                    _measure(situations[batch], workers, batch, new_tokens, rounds, tick)
    rows = [row for batch in sizes for row in _rows(situations[batch], shape, batch, layers, tapped_layers, machine)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "serving.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    _draw(rows, out / "serving.png")
    for row in rows:
        typer.echo(
            f"batch {row['batch']:>3}  {row['situation']:<28} {row['tokens_per_s']:>8} tokens/s  {row['ratio']:.3f} of "
            f"plain ({row['ratio_low']:.3f}-{row['ratio_high']:.3f}), floor {row['floor']:.3f}"
        )


def _situations(names: Sequence[str], batch: int, *, tapped: bool) -> list[Situation]:
    one = [names[0]]
    found = [
        Situation(PLAIN, "plain", [[]]),
        Situation(OFF, "one", [[]]),
        Situation("one set, every row", "one", [one]),
        Situation("one set that lowers", "one", [one], lowers=True),
        Situation("one set, every other row", "one", [one, []]),
        Situation("one set, one row", "one", [one, *[[]] * (batch - 1)]),
        Situation("16 sets, one a row", "one", [[name] for name in names]),
        Situation("one set, every row, room for two", "two", [one]),
        Situation("two sets, every row", "two", [list(names[:2])]),
    ]
    if tapped:
        found.append(Situation("tapped, one set, every row", "tapped", [one]))
    found.append(Situation(PEER, "peer", [one]))
    return found


def _measure(
    situations: list[Situation], workers: dict[str, Worker], batch: int, new_tokens: int, rounds: int, tick: Any
) -> None:
    """Rounds in which all take turns, after a warm-up round that does not count."""
    for round_number in range(-1, rounds):
        plain = 0.0
        for situation in situations:
            wanted = situation.sets(batch)
            worker = workers[situation.engine]
            answer = worker.run(sets=wanted, prompt_tokens=32, new_tokens=new_tokens, **situation.more)
            is_long = batch == 1 and situation.name != PEER
            long = worker.run(sets=wanted[:1], prompt_tokens=2000, new_tokens=2, **situation.more) if is_long else None
            if round_number < 0:
                continue
            rate = batch * len(answer["step_s"]) / sum(answer["step_s"])
            plain = rate if situation.name == PLAIN else plain
            situation.rates.append(rate)
            situation.ratios.append(rate / plain)
            situation.steps_s += answer["step_s"]
            situation.first_s.append(answer["first_token_s"])
            situation.memory_mib = answer["memory_mib"]
            if long:
                situation.prefill_s.append(long["first_token_s"])
        if round_number >= 0:
            tick()


def _rows(
    situations: list[Situation], shape: str, batch: int, layers: int, tapped_layers: int, machine: Machine
) -> list[dict[str, Any]]:
    where = Environment.read(machine.device, 0)
    config = configuration(shape)
    plain_s = machine.step_s(config, [[]] * batch, 0)
    rows = []
    for situation in situations:
        own_layers = tapped_layers if situation.engine == "tapped" else layers
        bound = plain_s / machine.step_s(config, situation.sets(batch), own_layers)
        ratio = statistics.median(situation.ratios)
        values = [shape, batch, situation.name, round(statistics.median(situation.rates), 1), ratio,
                  min(situation.ratios), max(situation.ratios), bound, ratio / bound,
                  *(1e3 * float(np.percentile(situation.steps_s, p)) for p in (50, 99)),
                  1e3 * statistics.median(situation.first_s),
                  1e3 * statistics.median(situation.prefill_s) if situation.prefill_s else "",
                  round(situation.memory_mib), where.device, where.threads, where.commit, where.date]  # fmt: skip
        rows.append(dict(zip(FIELDS, values, strict=True)))
    return rows


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = list(dict.fromkeys(row["batch"] for row in rows))
    names = list(dict.fromkeys(row["situation"] for row in rows))
    for offset, size in enumerate(sizes):
        mine = {row["situation"]: row for row in rows if row["batch"] == size}
        places = [index + 0.8 * offset / len(sizes) for index in range(len(names))]
        errors = [
            [mine[name]["ratio"] - mine[name]["ratio_low"] for name in names],
            [mine[name]["ratio_high"] - mine[name]["ratio"] for name in names],
        ]
        axes.bar(places, [mine[name]["ratio"] for name in names], 0.8 / len(sizes), yerr=errors, label=f"{size} rows")
        axes.plot(places, [mine[name]["floor"] for name in names], "k_", markersize=14)
    axes.set_xticks([index + 0.4 * (len(sizes) - 1) / len(sizes) for index in range(len(names))])
    axes.set_xticklabels([name.replace(", ", ",\n") for name in names], fontsize=8)
    axes.set(ylabel="decoded tokens/s, plain vLLM = 1", title=f"{rows[0]['shape']}, {rows[0]['device']}; lines: floors")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    app()
