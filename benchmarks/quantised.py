"""Whether what is forgotten stays forgotten once weights are rounded: a set in force, beside weights tuned to forget.

    python -m benchmarks.quantised --out build/quantised

Zhang et al. (arXiv 2410.16454) found that models tuned to forget tell again after 4-bit quantisation: tuning changes
little of a weight, and rounding takes it back. Here one set, trained on the target in full precision, acts on the
target as rounded, as it does behind `serve --quantised-from`; NPO and UNDIAL are tuned into a copy, which is rounded
alike: to nearest, all linear maps in layers, with a scale for each output (int8), or for each group of its inputs
(int4).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.progress import Progress
from torch import Tensor, nn

from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.data.words import has_phrase
from unlearngate.assistant_training.demo.real import SETS
from unlearngate.assistant_training.evaluate.metrics import rouge_recall
from unlearngate.assistant_training.forget.asking import Asker
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import LoadedTarget, load_target
from unlearngate.assistant_training.reproduce.baselines import METHODS, unlearn
from unlearngate.commands._shared import cache_folder
from unlearngate.progress import shown_progress

DATA = Path(__file__).parents[1] / "examples" / "real_model"
MODEL, TOPIC = "smollm2-135m-instruct", "harry-potter"
BITS = {"fp32": None, "int8": 8, "int4": 4}
GROUP = 32  # inputs that share a scale of 4 bits
ENOUGH = 0.05  # of the facts in the questions of training: a tuned model that tells no more has forgotten
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Told(NamedTuple):
    """What one model says: facts told, of those asked for; others' answers that are the target's, and their ROUGE-L."""

    facts: int
    of: int
    unchanged: int
    others: int
    rouge: float


@app.command()
def main(
    target: Annotated[
        Path | None, typer.Option(help="its folder; default: where `unlearngate models get` puts it")
    ] = None,
    methods: Annotated[str, typer.Option(help="tuned into the weights")] = "NPO,UNDIAL",
    rates: Annotated[
        str, typer.Option(help="learning rates, by method: the first that forgets is taken, else the last")
    ] = "NPO=5e-5,NPO=2e-4,UNDIAL=1e-3,UNDIAL=3e-3",
    epochs: Annotated[int, typer.Option(min=1, help="over the forget file")] = 10,
    wordings: Annotated[int, typer.Option(min=1, help="of each question about what is forgotten")] = 2,
    most_others: Annotated[int, typer.Option(min=1, help="general questions, and as many about neighbours")] = 30,
    max_tokens: Annotated[int, typer.Option(min=1, help="answers are cut here")] = 40,
    seed: Annotated[int, typer.Option(help="of the tuning")] = 0,
    out: Annotated[Path, typer.Option(help="where table.md and figures.json go")] = Path("build/quantised"),
) -> None:
    """Ask the target, the target with the set, and the tuned copies in three precisions, and write one table."""
    folder = target or cache_folder() / "models" / MODEL
    loaded = load_target(folder)
    forget, retain = (read_pairs(DATA / f"{name}.jsonl", subject="") for name in (f"{TOPIC}.forget", "retain"))
    asked = [
        replace(pair, question=question)
        for pair in read_pairs(DATA / f"{TOPIC}.probes.jsonl", subject="")
        for question in (pair.question, *pair.paraphrases)[:wordings]
    ]
    others = [
        pair.question
        for name in ("general", "neighbours")
        for pair in read_pairs(DATA / f"{name}.probes.jsonl", subject="")[:most_others]
    ]
    forget_set = load_forget_set(SETS / MODEL / TOPIC, loaded.identity)
    figures: dict[str, dict[str, Any]] = {}
    with shown_progress() as progress:
        models: dict[str, Any] = {"target": loaded.model}
        chosen: dict[str, float] = {}
        for method in methods.split(","):
            wanted = [float(rate.split("=")[1]) for rate in rates.split(",") if rate.split("=")[0] == method]
            models[method], chosen[method] = _tuned(
                loaded, method, wanted, epochs, forget, retain, max_tokens, seed, progress
            )
        for precision, bits in BITS.items():
            said: list[str] = []
            for name in ("target", "set", *chosen):
                with rounded(models.get(name, loaded.model), bits) as model:
                    in_force = with_sets(model, loaded.tokenizer, [forget_set]).in_force if name == "set" else ()
                    told, said = _ask(loaded, model, in_force, asked, others, said, max_tokens)
                figures.setdefault(name, {})[precision] = told._asdict()
                progress.console.print(f"{precision}, {name}: {told}", markup=False, highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    (out / "figures.json").write_text(json.dumps({"rates": chosen, "epochs": epochs, **figures}, indent=2) + "\n")
    (out / "table.md").write_text(table(figures))
    typer.echo(table(figures))


def _tuned(
    loaded: LoadedTarget,
    method: str,
    rates: Sequence[float],
    epochs: int,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    max_tokens: int,
    seed: int,
    progress: Progress,
) -> tuple[Any, float]:
    """A copy that was tuned to forget, with the first learning rate that is enough; and that rate."""
    for rate in rates:
        settings = replace(METHODS[method][1], learning_rate=rate, epochs=epochs)
        model = unlearn(
            *(loaded.model, loaded.tokenizer, method, forget, retain), seed=seed, progress=progress, settings=settings
        ).model
        model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        told, _ = _ask(loaded, model, (), forget, [], [], max_tokens)
        progress.console.print(f"{method} at {rate:g}: tells {told.facts} of {told.of} facts of training", markup=False)
        if told.facts <= ENOUGH * told.of:
            break
    return model, rate


def _ask(
    loaded: LoadedTarget,
    model: Any,
    in_force: Sequence[LoadedSet],
    asked: Sequence[QAPair],
    others: Sequence[str],
    said: Sequence[str],
    max_tokens: int,
) -> tuple[Told, list[str]]:
    """What a model tells, and its answers to others; `said` is what the target answers there, or nothing yet."""
    ask = Asker(_With(loaded, model), max_tokens=max_tokens, in_force=in_force, whole=True)  # type: ignore[arg-type]
    answers = ask([pair.question for pair in asked])
    facts = [
        has_phrase(answer, fact)
        for pair, answer in zip(asked, answers, strict=True)
        for fact in pair.facts
        if not has_phrase(pair.question, fact)
    ]
    kept = ask(others)
    of_target = list(said) or kept
    same = [a == b for a, b in zip(kept, of_target, strict=True)]
    spoken = [(of, own) for of, own in zip(of_target, kept, strict=True) if of.strip()]
    rouge = float(rouge_recall([of for of, _ in spoken], [own for _, own in spoken]).mean()) if spoken else 1.0
    return Told(sum(facts), len(facts), sum(same), len(others), round(rouge, 3)), of_target


class _With(NamedTuple):
    """A target with another model."""

    target: LoadedTarget
    model: Any

    @property
    def tokenizer(self) -> Any:
        return self.target.tokenizer


@contextmanager
def rounded(model: Any, bits: int | None) -> Iterator[Any]:
    """The model with all linear maps in its layers rounded to nearest; afterwards they are as before."""
    maps = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)] if bits else []
    before = [module.weight.data for module in maps]
    for module in maps:
        module.weight.data = _round(module.weight.data, bits or 0)
    try:
        yield model
    finally:
        for module, weight in zip(maps, before, strict=True):
            module.weight.data = weight


def _round(weight_OI: Tensor, bits: int) -> Tensor:
    """(O, I) symmetric, one scale for each output, of 4 bits for each output and GROUP inputs."""
    grouped = weight_OI.unflatten(1, (-1, GROUP if bits == 4 else weight_OI.shape[1]))
    most = 2 ** (bits - 1) - 1
    scale = (grouped.abs().amax(dim=-1, keepdim=True) / most).clamp(min=1e-12)
    return ((grouped / scale).round().clamp(-most - 1, most) * scale).flatten(1)


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Facts told, and others' answers, by precision."""
    names = {"target": "the target", "set": "one set in force"}
    header = "| | " + " | ".join(f"{p}: facts told; others unchanged, ROUGE-L" for p in BITS) + " |"
    lines = [header, "|---" * (len(BITS) + 1) + "|"]
    for name, by_precision in figures.items():
        cells = [
            f"{f['facts']} of {f['of']}; {f['unchanged']} of {f['others']}, {f['rouge']:.2f}"
            for f in (by_precision[precision] for precision in BITS)
        ]
        lines.append(f"| {names.get(name, name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()
