"""Time `compose` against its reference, torch.compile, the paper's way and a plain copy."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

# The repository's root is on the path for these imports only, and this script's folder not at all: `kernels` in either
# would be taken for another project's package of that name.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.providers import Case, Inputs, lack_of_memory, make_runs, provider_names
from benchmarks.record import ROOT, Environment, Recorder, Result, results_of
from benchmarks.timing import Timing, measure
from unlearngate.kernels.compose import MAX_VOCAB_SIZE

sys.path.remove(str(Path(__file__).parents[1]))

TEST_COMMAND = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "tests/unit/kernels/test_compose.py",
    "tests/unit/kernels/test_triton_compose.py",
]
ROWS = [1, 8, 64, 256, 1024]
VOCABS = [32_000, 128_256, 262_144]
SETS = [0, 1, 2]
QUICK_ROWS = [1, 8, 64]
QUICK_VOCABS = [128_256]
QUICK_SETS = [0, 1]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


class Dtype(StrEnum):
    """What logits are kept in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


_DTYPES = {Dtype.fp32: torch.float32, Dtype.bf16: torch.bfloat16, Dtype.fp16: torch.float16}


@app.command()
def main(
    rows: Annotated[list[int] | None, typer.Option(min=1, help="rows of the batch; repeat for several")] = None,
    vocab: Annotated[
        list[int] | None, typer.Option(min=2, max=MAX_VOCAB_SIZE, help="tokens in the vocab; repeat for several")
    ] = None,
    sets: Annotated[
        list[int] | None, typer.Option(min=0, help="forget sets in force in every row; repeat for several")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a few small cases, for a CPU")] = False,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: cuda if there is one")] = None,
    target_dtype: Annotated[Dtype, typer.Option(help="of the target's logits")] = Dtype.fp32,
    assistant_dtype: Annotated[
        Dtype | None, typer.Option(help="of the assistants' logits; default: bf16 on cuda, fp32 on cpu")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="of the CPU; default: torch's own choice")] = None,
    budget_s: Annotated[float, typer.Option(min=0.001, help="seconds for each provider in each case")] = 1.0,
    seed: Annotated[
        int | None, typer.Option(envvar="UNLEARNGATE_SEED", help="of the random logits; default: a fresh one")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for kernels.csv, which is replaced")] = Path("build/bench"),
) -> None:
    """Time compose, the one kernel on every token's path, against other ways of doing the same.

    First the tests of compose run on this machine; if one fails, nothing is timed. Then every case (rows x vocab x
    sets) is timed, the providers taking turns:

    - reference: the formula in plain torch, eager
    - compiled: the same under torch.compile
    - paper: as the ULD paper's released code does it, for a batch
    - ours: what the server runs
    - copy: moves the minimal bytes and nothing else; no kernel can be faster on large cases
    - empty: a launch that does nothing (cuda); no kernel can be faster on small cases

    On cuda, cases of at most 64 rows are also timed as CUDA graphs (NAME-graph), where no launch is waited for.
    GB/s = minimal bytes / median; minimal bytes = target read and written once, assistants read once.
    What is out of memory or too slow stays in the results, with a note. On a CPU that others use too, give fewer
    --threads than it has cores: with as many, small cases time the wait for a thread.

    Example:  python benchmarks/kernels.py --rows 8 --vocab 128256 --sets 1

    Then:  python benchmarks/plot.py build/bench/kernels.csv
    """
    console = Console()
    on = _device(device)
    dtypes = (_DTYPES[target_dtype], _DTYPES[assistant_dtype or (Dtype.bf16 if on.type == "cuda" else Dtype.fp32)])
    sizes = itertools.product(
        sorted(set(vocab or (QUICK_VOCABS if quick else VOCABS))),
        sorted(set(sets or (QUICK_SETS if quick else SETS))),
        sorted(set(rows or (QUICK_ROWS if quick else ROWS))),
    )
    cases = [Case(num_rows, vocab_size, num_sets, *dtypes) for vocab_size, num_sets, num_rows in sizes]
    if threads is not None:
        torch.set_num_threads(threads)
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    require_green(console)
    environment = Environment.read(on, seed)
    console.print(
        f"{environment.device}, {environment.threads} threads, torch {environment.torch_version}, --seed {seed}"
    )
    path = out / "kernels.csv"
    results = run_cases(cases, on, seed, budget_s, Recorder(path, environment), console)
    console.print(_table(results, environment))
    for result in results:
        if result.timing.note:
            console.print(
                f"{_title(result.case)}  {result.provider}: {result.timing.note}", markup=False, soft_wrap=True
            )
    console.print(f"{path} is written. Plot it:  python benchmarks/plot.py {path}", soft_wrap=True)
    if any("Error" in result.timing.note for result in results if result.provider.startswith("ours")):
        raise typer.Exit(1)


def require_green(console: Console) -> None:
    """Run the tests of what is to be timed.

    Raises: typer.Exit(1) if they fail: a wrong kernel has no speed.
    """
    with console.status("testing compose on this machine before timing it"):
        tested = subprocess.run(TEST_COMMAND, cwd=ROOT, capture_output=True, text=True, check=False)
    if tested.returncode:
        typer.echo(tested.stdout + tested.stderr, err=True)
        command = " ".join(["python", *TEST_COMMAND[1:]])
        typer.secho(f"error: the tests of compose fail, so nothing is timed; mend them first: {command}", err=True)
        raise typer.Exit(1)


def run_cases(
    cases: list[Case], device: torch.device, seed: int, budget_s: float, recorder: Recorder, console: Console
) -> list[Result]:
    """Time case by case, and record each as soon as it is done."""
    results: list[Result] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with recorder, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            announce = functools.partial(_announce, progress, task, case)
            announce("inputs")
            found = results_of(case, _run_case(case, device, seed, budget_s, announce))
            recorder.add(found)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            results += found
            progress.advance(task)
    return results


def _run_case(
    case: Case, device: torch.device, seed: int, budget_s: float, announce: Callable[[str], None]
) -> dict[str, Timing]:
    """Every provider's timing, with the inputs freed again."""
    note = lack_of_memory(case, "copy", device, allocated=False)
    try:
        if not note:
            inputs = Inputs(case, device, seed)
            return measure(make_runs(inputs), inputs, budget_s, announce)
    except torch.OutOfMemoryError:
        note = "out of memory: the inputs do not fit"
    finally:
        torch.compiler.reset()
    return {name: Timing(note=note) for name in provider_names(device)}


def _announce(progress: Progress, task: TaskID, case: Case, provider: str) -> None:
    progress.update(task, description=f"{_title(case)}  {provider}")


def _title(case: Case) -> str:
    return f"V {case.vocab_size}  sets {case.num_sets}  R {case.num_rows}"


def _device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in {"cuda", "cpu"}:
        raise typer.BadParameter(f"compose runs on cuda and cpu, got {name}", param_hint="--device")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here; use --device cpu", param_hint="--device")
    return device


def _table(results: list[Result], environment: Environment) -> Table:
    title = f"compose on {environment.device}, in microseconds, commit {environment.commit}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, show_edge=False)  # 80 columns
    for header in ("V", "sets", "R"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("provider", no_wrap=True)
    for header in ("median", "p20", "p80", "GB/s", "of copy", "ours/it"):
        table.add_column(header, justify="right", no_wrap=True)
    before = None
    for result in results:
        case, timing = result.case, result.timing
        if case != before and before is not None:
            table.add_section()
        before = case
        table.add_row(
            *(str(case.vocab_size), str(case.num_sets), str(case.num_rows), result.provider),
            *(_figure(timing.percentile_us(percent)) for percent in (50, 20, 80)),
            _figure(result.gb_per_s),
            "" if result.share_of_copy is None else f"{result.share_of_copy:.1%}",
            _figure(result.ours_over_this),
        )
    return table


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    app()
