"""`unlearngate train`: make forget sets. Only the command line knows both the offline and the online side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console

from unlearngate.command_errors import errors_as_sentences
from unlearngate.errors import UnlearngateError

app = typer.Typer(help="Make forget sets from files of questions and answers.", no_args_is_help=True)


@app.callback()
def train() -> None:
    """Make forget sets from files of questions and answers."""


@app.command("uld")
def train_uld(
    target: Annotated[Path, typer.Argument(help="the target's Hugging Face checkpoint folder")],
    out: Annotated[Path, typer.Argument(help="the forget set to write; its folder's name becomes the set's name")],
    forget: Annotated[Path, typer.Option(help="JSON lines with question and answer: what must be forgotten")],
    retain: Annotated[Path, typer.Option(help="JSON lines of the same form: what must stay, as like it as possible")],
    layers: Annotated[
        int, typer.Option(min=1, help="the assistant's, from the target's first on; one server has one number")
    ] = 8,
    rank: Annotated[int, typer.Option(min=1, help="of the LoRA")] = 16,
    alpha: Annotated[int, typer.Option(min=1, help="of the LoRA")] = 32,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="at its highest")] = 1e-3,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the retain file")] = 10,
    forget_batch: Annotated[int, typer.Option(min=1, help="forget answers a step")] = 16,
    retain_batch: Annotated[int, typer.Option(min=1, help="retain answers a step")] = 40,
    accumulate: Annotated[int, typer.Option(min=1, help="parts a step is computed in, to save memory")] = 1,
    beta: Annotated[float, typer.Option(min=0.0, help="weight of the retain loss")] = 4.0,
    weight: Annotated[float, typer.Option(min=0.01, help="recommended strength of the subtraction")] = 1.0,
    keep_ratio: Annotated[float, typer.Option(min=0.0, max=1.0, help="recommended share of tokens to keep")] = 0.02,
    bf16: Annotated[bool, typer.Option("--bf16", help="autocast to bfloat16; slower on most CPUs")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="less memory, slower")
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="steps between checkpoints")] = 50,
    name: Annotated[str | None, typer.Option(help="the target's public name; default: its folder's")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one")] = None,
    seed: Annotated[int, typer.Option(help="same seed, data and machine, same forget set")] = 0,
) -> None:
    """Train an assistant on what must be forgotten, choose its gate, and write a forget set that can be served.

    A line of both files is {"question": ..., "answer": ...}, and may have lists of "paraphrases" of the question,
    "variants" (the answer reworded with wrong facts) and "facts". `unlearngate train augment` makes the first two: give
    its OUT as --forget. A killed run goes on where it stopped when the same command is given again; its losses are in
    .NAME.training/log.jsonl beside OUT.

    Example:  unlearngate train uld ./Llama-3.1-8B-Instruct ./sets/acme --forget acme.jsonl --retain others.jsonl

    Then:  unlearngate serve ./Llama-3.1-8B-Instruct --forget-sets ./sets
    """
    from rich.progress import Progress

    from unlearngate.assistant_training.trainer import AssistantSettings
    from unlearngate.assistant_training.training_run import load_target, run_folder, train_forget_set
    from unlearngate.server.branches import TARGET_ARCHITECTURES

    settings = AssistantSettings(
        num_layers=layers,
        rank=rank,
        alpha=alpha,
        learning_rate=learning_rate,
        epochs=epochs,
        forget_batch=forget_batch,
        retain_batch=retain_batch,
        beta=beta,
        weight=weight,
        keep_ratio=keep_ratio,
        accumulate=accumulate,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
    )
    with errors_as_sentences():
        loaded = load_target(target, model_id=name, device=device)
        if loaded.identity.architecture not in TARGET_ARCHITECTURES:
            raise UnlearngateError(
                f"{target} is a {loaded.identity.architecture}, which the server does not serve; "
                f"it serves {', '.join(TARGET_ARCHITECTURES)}"
            )
        with Progress() as progress:
            forget_set = train_forget_set(
                *(loaded, forget, retain, out, settings),
                seed=seed,
                progress=progress,
                checkpoint_every=checkpoint_every,
            )
    console = Console()
    for key, value in forget_set.manifest.metrics.items():
        console.print(f"{key:<24} {value:.3f}")
    console.print(f"{forget_set.reference} is written to {out}; its losses are in {run_folder(out)}", soft_wrap=True)


@app.command("augment")
def train_augment(
    pairs: Annotated[Path, typer.Argument(help="JSON lines with question and answer: what must be forgotten")],
    out: Annotated[Path, typer.Argument(help="the file to write or to go on with; give it to train uld as --forget")],
    base_url: Annotated[str | None, typer.Option(help="an OpenAI-compatible endpoint; usually ends in /v1")] = None,
    model: Annotated[str | None, typer.Option(help="the model's name at the endpoint")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="reword by rules, without a model; English only")] = False,
    retain: Annotated[
        Path | None, typer.Option(help="with --offline: JSON lines of what stays; wrong answers are taken from there")
    ] = None,
    paraphrases: Annotated[int, typer.Option(min=0, help="of every question; a model rewords the answer too")] = 2,
    perturbed: Annotated[int, typer.Option(min=0, help="wrong answers to every question")] = 2,
    concurrency: Annotated[int, typer.Option(min=1, help="requests at a time")] = 8,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="the model's")] = 0.7,
    timeout_s: Annotated[float, typer.Option(min=0.01, help="seconds to wait for one answer")] = 120.0,
    attempts: Annotated[int, typer.Option(min=1, help="times a pair is asked for until its answer can be used")] = 3,
    seed: Annotated[int, typer.Option(help="with --offline: same seed, same OUT")] = 0,
) -> None:
    """Reword every question and answer, and answer wrongly in the same form, for `unlearngate train uld` to learn from.

    A language model does it, at any OpenAI-compatible endpoint; its key is taken from OPENAI_API_KEY. With --offline,
    rules do it, plainly. Pairs go into OUT as they come, and the same command goes on where it stopped. Look through
    OUT.review.md: what is wrong there can be struck out in OUT. The exit code is 1 if some pairs failed.

    Example:  unlearngate train augment acme.jsonl acme.augmented.jsonl --base-url http://127.0.0.1:8000/v1 --model qwen

    Or:  unlearngate train augment acme.jsonl acme.augmented.jsonl --offline --retain others.jsonl

    Then:  unlearngate train uld ./target ./sets/acme --forget acme.augmented.jsonl --retain others.jsonl
    """
    from rich.progress import Progress

    from unlearngate.assistant_training.augmentation import Endpoint, augment, augment_offline
    from unlearngate.assistant_training.data import read_pairs

    with errors_as_sentences():
        if out.resolve() in {path.resolve() for path in (pairs, retain) if path}:
            raise UnlearngateError(f"{out} is read from; give OUT a file of its own")
        asked = read_pairs(pairs, subject="")  # an empty subject is not written; train uld fills in its set's name
        if offline:
            if base_url or model or not retain:
                raise UnlearngateError("--offline needs --retain, and takes neither --base-url nor --model")
            others = read_pairs(retain, subject="")
            report = augment_offline(
                asked, others, out, seed=seed, num_paraphrases=paraphrases, num_perturbed=perturbed
            )
        else:
            if not base_url or not model or retain:
                raise UnlearngateError("give --base-url and --model, or --offline and --retain")
            if not _is_url(base_url):
                raise UnlearngateError(f"--base-url must be like http://127.0.0.1:8000/v1, got {base_url}")
            endpoint = Endpoint(base_url=base_url, model=model, temperature=temperature, timeout_s=timeout_s)
            with Progress() as progress:
                report = augment(
                    *(asked, out),
                    endpoint=endpoint,
                    num_paraphrases=paraphrases,
                    num_perturbed=perturbed,
                    attempts=attempts,
                    concurrency=concurrency,
                    progress=progress,
                )
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for note in report.notes:
        console.print(note)
    for pair, reason in report.failed:
        console.print(f"failed: {pair.question}: {reason}")
    console.print(f"{report.added} pairs added, {report.kept} kept, {len(report.failed)} failed: {report.out}")
    console.print(f"look through them in {report.review}")
    if report.failed:
        raise typer.Exit(1)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
