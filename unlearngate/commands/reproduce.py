"""`unlearngate reproduce`: the results table. Only the command line knows both the offline and the online side."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unlearngate.commands._shared import errors_as_sentences
from unlearngate.errors import UnlearngateError
from unlearngate.progress import shown_progress


class ScaleName(StrEnum):
    """How much of TOFU, and how large a target."""

    small = "small"
    forget01 = "forget01"
    forget05 = "forget05"
    forget10 = "forget10"


def reproduce(
    data: Annotated[Path, typer.Option(help="folder of TOFU's JSON lines (full.jsonl, forget10_perturbed.jsonl, ...)")],
    out: Annotated[Path, typer.Option(help="where models and results go")] = Path("build/reproduce"),
    seeds: Annotated[int, typer.Option(min=1, help="how many, from 0 on")] = 3,
    scale: Annotated[
        ScaleName,
        typer.Option(
            help="small: 20 authors, the last 2 forgotten, a tiny target, for 2 cores; the others: all 200 authors, "
            "1, 5 or 10 % of them forgotten, 110 M weights, for a GPU"
        ),
    ] = ScaleName.small,
    augmentation: Annotated[
        Path | None, typer.Option(help="folder of ULD's augmentation of TOFU (forget01_paraphrase.jsonl, ...)")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="instead of the table: choose every method's settings on other authors")
    ] = False,
    depths: Annotated[
        bool, typer.Option("--depths", help="instead of the table: assistants of 1 to half of the target's layers")
    ] = False,
    tuned: Annotated[Path | None, typer.Option(help="a tuned.json, to use in place of the built-in settings")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one")] = None,
) -> None:
    """Train targets on TOFU from scratch, make them forget by every method we have, and write the results table.

    Every method runs with settings fixed beforehand; its last epoch counts. The built-in ones were chosen by --tune,
    which forgets the two authors before the table's. What OUT holds already is not done again, so a killed run resumes,
    and more seeds can be added. Writes OUT/results.md, results.json and results.png.

    Example:  unlearngate reproduce --data data/tofu --augmentation data/tofu_uld_aug --seeds 3

    Before it, to choose anew:  unlearngate reproduce --data data/tofu --out build/tuning --tune

    After it, with the same options, what fewer layers cost:  unlearngate reproduce --data data/tofu --depths
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from unlearngate.assistant_training.reproduce.depths import DEPTHS_FILE, with_depths, write_depths
    from unlearngate.assistant_training.reproduce.results import markdown, write_results
    from unlearngate.assistant_training.reproduce.run import reproduce as run
    from unlearngate.assistant_training.reproduce.scales import SCALES, large_costs, read_augmented_forget
    from unlearngate.assistant_training.reproduce.tuning import tune as try_settings
    from unlearngate.assistant_training.reproduce.tuning import with_tuned

    disable_progress_bar()  # ours are shown
    console = Console()
    with errors_as_sentences():
        if tune and depths:
            raise UnlearngateError("--tune and --depths are two runs: give one of them")
        chosen = SCALES[scale.value]
        benchmark = chosen.read(data, for_tuning=tune)
        settings = chosen.settings(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        settings = with_tuned(settings, tuned) if tuned else settings
        augmented = read_augmented_forget(augmentation, benchmark) if augmentation else []
        with shown_progress() as progress:
            if tune:
                _, path = try_settings(benchmark, out, settings=settings, progress=progress, augmented=augmented)
                console.print(path.read_text(), markup=False)
                console.print(f"{path} is written; use it with --tuned", soft_wrap=True)
                return
            run_with = partial(run, benchmark, out, seeds=range(seeds), progress=progress, augmented=augmented)
            if depths:
                rows = run_with(settings=with_depths(settings), results_file=DEPTHS_FILE)
                for path in write_depths(rows, out, settings.target.num_layers):
                    console.print(f"{path} is written", soft_wrap=True)
                return
            rows = run_with(settings=settings)
            costs = large_costs(benchmark, out, settings.device, progress) if scale is ScaleName.small else []
        console.print(markdown(rows, costs), markup=False, soft_wrap=True)
        for path in write_results(rows, out, costs, settings=asdict(settings), scale=scale.value):
            console.print(f"{path} is written", soft_wrap=True)
