"""`unlearngate reproduce`: the results table. Only the command line knows both the offline and the online side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unlearngate.command_errors import errors_as_sentences


def reproduce(
    data: Annotated[Path, typer.Option(help="folder of TOFU's JSON lines (full.jsonl, forget10_perturbed.jsonl, ...)")],
    out: Annotated[Path, typer.Option(help="where models and results go")] = Path("build/reproduce"),
    seeds: Annotated[int, typer.Option(min=1, help="how many, from 0 on")] = 3,
    authors: Annotated[int, typer.Option(help="that the target learns: 3 to 20, or 200 for all")] = 20,
    forget_authors: Annotated[int, typer.Option(min=1, max=20, help="that must be forgotten: the last ones")] = 2,
) -> None:
    """Train targets on TOFU from scratch, make them forget in every way we know, and write the results table.

    Every method runs with settings fixed beforehand; its last epoch counts. What OUT holds already is not done again,
    so a killed run goes on, and more seeds can be added. Writes OUT/results.md, results.json and results.png.

    Example:  unlearngate reproduce --data data/tofu --seeds 3
    """
    from rich.progress import Progress

    from unlearngate.assistant_training.reproduce import ReproduceSettings
    from unlearngate.assistant_training.reproduce import reproduce as run
    from unlearngate.assistant_training.results import markdown, write_results
    from unlearngate.assistant_training.tofu import read_benchmark

    with errors_as_sentences():
        benchmark = read_benchmark(data, num_authors=authors, num_forget_authors=forget_authors)
        with Progress() as progress:
            rows = run(benchmark, out, seeds=range(seeds), settings=ReproduceSettings(), progress=progress)
    console = Console()
    console.print(markdown(rows), markup=False, soft_wrap=True)
    for path in write_results(rows, out):
        console.print(f"{path} is written", soft_wrap=True)
