"""`unlearngate train`: make forget sets. Only the command line knows both the offline and the online side."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import Progress

from unlearngate.assistant_training.train.settings import AssistantSettings, UndialSettings
from unlearngate.commands._shared import ChatTemplateKwargs, Label, errors_as_sentences, switches_of
from unlearngate.commands.train_verbatim import train_verbatim
from unlearngate.errors import UnlearngateError
from unlearngate.progress import shown_progress

if TYPE_CHECKING:
    from unlearngate.artefact import ForgetSet
    from unlearngate.assistant_training.model.loaded_target import LoadedTarget

app = typer.Typer(help="Make forget sets from files of questions and answers, or of texts.", no_args_is_help=True)
app.command("verbatim")(train_verbatim)


@app.callback()
def train() -> None:
    """Make forget sets from files of questions and answers, or of texts."""


ULD, UNDIAL = AssistantSettings(), UndialSettings()
Target = Annotated[Path, typer.Argument(help="the target's Hugging Face checkpoint folder")]
Out = Annotated[Path, typer.Argument(help="the forget set to write; its folder's name becomes the set's name")]
Forget = Annotated[Path, typer.Option(help="rows of question and answer, or documents: what must be forgotten")]
Accumulate = Annotated[int, typer.Option(min=1, help="parts a step is computed in, to save memory")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="autocast to bfloat16; slower on most CPUs")]
GradientCheckpointing = Annotated[bool, typer.Option("--gradient-checkpointing", help="less memory, slower")]
Patience = Annotated[
    int, typer.Option(min=0, help="stop after so many passes in a row that took less than 1 % off the loss; 0: never")
]
CheckpointEvery = Annotated[int, typer.Option(min=1, help="steps between checkpoints")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="also log to .NAME.training/tensorboard")]
WriteAnyway = Annotated[
    bool, typer.Option("--write-anyway", help="write the set even if the check says that it must not be served")
]
Name = Annotated[str | None, typer.Option(help="the target's public name; default: its folder's")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one")]
Seed = Annotated[int, typer.Option(help="same seed, data and machine, same forget set")]


@app.command("uld")
def train_uld(
    context: typer.Context,
    target: Target,
    out: Out,
    forget: Forget,
    retain: Annotated[Path, typer.Option(help="JSON lines of the same form: what must stay, as like it as possible")],
    after: Annotated[
        Path | None,
        typer.Option(
            help="an earlier uld set to start from, such as the one for the target's last version: if it shows enough "
            "on this target, it is written anew for it at once"
        ),
    ] = None,
    num_layers: Annotated[
        int, typer.Option("--layers", min=1, help="the assistant's; one server has one number, and one tap layer")
    ] = ULD.num_layers,
    tap_layer: Annotated[
        int | None,
        typer.Option(
            min=0, help="the assistant's first layer; those before it are run once. Default: it has the target's last"
        ),
    ] = ULD.tap_layer,
    rank: Annotated[int, typer.Option(min=1, help="of the LoRA")] = ULD.rank,
    alpha: Annotated[int, typer.Option(min=1, help="of the LoRA")] = ULD.alpha,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="at its highest")] = ULD.learning_rate,
    steps: Annotated[
        int, typer.Option(min=0, help="at most; it ends when held-out contexts show enough; 0: as --epochs says")
    ] = ULD.steps,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the retain file, with --steps 0")] = ULD.epochs,
    contexts: Annotated[
        bool, typer.Option(help="train in earlier turns, words around the question, other names, and check in others")
    ] = ULD.contexts,
    rule: Annotated[
        str, typer.Option(help="lower: take from what the assistant knows, never add; contrast: ULD as published")
    ] = ULD.rule,
    forget_batch: Annotated[int, typer.Option(min=1, help="forget answers a step")] = ULD.forget_batch,
    retain_batch: Annotated[int, typer.Option(min=1, help="retain answers a step")] = ULD.retain_batch,
    accumulate: Accumulate = ULD.accumulate,
    beta: Annotated[float, typer.Option(min=0.0, help="weight of the retain loss")] = ULD.beta,
    weight: Annotated[float, typer.Option(min=0.01, help="recommended strength of the subtraction")] = ULD.weight,
    keep_ratio: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="recommended share of the best token's probability that one needs")
    ] = ULD.keep_ratio,
    write_anyway: WriteAnyway = False,
    bf16: Bf16 = ULD.bf16,
    gradient_checkpointing: GradientCheckpointing = ULD.gradient_checkpointing,
    patience: Patience = ULD.patience,
    checkpoint_every: CheckpointEvery = 50,
    tensorboard: Tensorboard = False,
    label: Label = None,
    instead: Annotated[
        str | None,
        typer.Option(help="what to say instead of answers about what is forgotten; {label} is filled in"),
    ] = None,
    chat_template_kwargs: ChatTemplateKwargs = None,
    name: Name = None,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Train an assistant on what must be forgotten, choose its gate, and write a forget set that can be served.

    A line of both files is {"question": ..., "answer": ...}, and may have lists of "paraphrases" of the question,
    "paraphrased_answers", "variants" (the answer reworded with wrong facts) and "facts". `unlearngate train augment`
    makes all but the last: give its OUT as --forget. Both may be documents instead (.txt, rows with "text", a folder of
    these), cut into windows that are learned as their continuations. The same command resumes a killed run; the losses
    are in .NAME.training/log.jsonl beside OUT.

    Example:  unlearngate train uld ./Llama-3.1-8B-Instruct ./sets/acme --forget acme.jsonl --retain others.jsonl

    On 4 GPUs:  accelerate launch --num_processes 4 -m unlearngate.cli train uld ./Llama-3.1-8B-Instruct ./sets/acme ...

    Then:  unlearngate serve ./Llama-3.1-8B-Instruct --forget-sets ./sets
    """
    with errors_as_sentences():
        from unlearngate.assistant_training.train.run import train_forget_set

        settings = AssistantSettings(**_named(AssistantSettings, context))
        loaded = _load(target, name, device, switches_of(chat_template_kwargs))
        with _progress() as progress:
            forget_set = train_forget_set(
                *(loaded, forget, retain, out, settings),
                seed=seed,
                progress=progress,
                checkpoint_every=checkpoint_every,
                tensorboard=tensorboard,
                write_anyway=write_anyway,
                label=label,
                instead=instead,
                after=after,
            )
        _report(forget_set, out)


@app.command("undial")
def train_undial(
    context: typer.Context,
    target: Target,
    out: Out,
    forget: Forget,
    retain: Annotated[
        Path | None, typer.Option(help="JSON lines of the same form: what must stay; left out: the author's method")
    ] = None,
    after: Annotated[
        Path | None, typer.Option(help="an earlier undial set to go on from: the new one covers both requests")
    ] = None,
    gamma: Annotated[
        float, typer.Option(min=0.0, help="logits taken off what must be forgotten; 3 to 30")
    ] = UNDIAL.gamma,
    focus: Annotated[
        str, typer.Option(help="what of an answer is forgotten: none (all of it), facts, entities, nouns")
    ] = UNDIAL.focus,
    rank: Annotated[int, typer.Option(min=1, help="of the LoRA, on every layer")] = UNDIAL.rank,
    alpha: Annotated[int, typer.Option(min=1, help="of the LoRA")] = UNDIAL.alpha,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="at its highest")] = UNDIAL.learning_rate,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the forget file")] = UNDIAL.epochs,
    batch: Annotated[int, typer.Option(min=1, help="forget answers a step, and as many retain answers")] = UNDIAL.batch,
    accumulate: Accumulate = UNDIAL.accumulate,
    retain_weight: Annotated[float, typer.Option(min=0.0, help="weight of the retain loss")] = UNDIAL.retain_weight,
    bf16: Bf16 = UNDIAL.bf16,
    gradient_checkpointing: GradientCheckpointing = UNDIAL.gradient_checkpointing,
    patience: Patience = UNDIAL.patience,
    checkpoint_every: CheckpointEvery = 50,
    tensorboard: Tensorboard = False,
    write_anyway: WriteAnyway = False,
    chat_template_kwargs: ChatTemplateKwargs = None,
    name: Name = None,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Train LoRA on the target itself to forget the given answers, and write a set of kind undial.

    The target teaches itself, with the logits of the answers lowered by gamma (UNDIAL, arXiv:2402.10052). The set is in
    force or not, at one strength; at most one is in force in a request. With --focus facts only the "facts" of a line
    are forgotten, and the rest of its answer is kept as the target says it; entities are names and numbers, nouns all
    nouns, as an English part-of-speech tagger finds them. Files, checkpoints and logs are those of train uld.

    Example:  unlearngate train undial ./Llama-3.1-8B-Instruct ./sets/acme --forget acme.jsonl --retain others.jsonl

    A second request:  unlearngate train undial ./Llama-3.1-8B-Instruct ./sets/both --forget b.jsonl --after ./sets/acme

    Then:  unlearngate serve ./Llama-3.1-8B-Instruct --forget-sets ./sets --enable-undial
    """
    with errors_as_sentences():
        from unlearngate.assistant_training.train.run import train_undial_set

        settings = UndialSettings(**_named(UndialSettings, context))
        loaded = _load(target, name, device, switches_of(chat_template_kwargs))
        with _progress() as progress:
            forget_set = train_undial_set(
                *(loaded, forget, retain, out, settings),
                seed=seed,
                progress=progress,
                after=after,
                checkpoint_every=checkpoint_every,
                tensorboard=tensorboard,
                write_anyway=write_anyway,
            )
        _report(forget_set, out)


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
    simple rules do it. Pairs are written to OUT as they come, and the same command resumes where it stopped. Review
    OUT.review.md: what is wrong there can be struck out in OUT. The exit code is 1 if some pairs failed.

    Example:  unlearngate train augment acme.jsonl acme.augmented.jsonl --base-url http://127.0.0.1:8000/v1 --model qwen

    Or:  unlearngate train augment acme.jsonl acme.augmented.jsonl --offline --retain others.jsonl

    Then:  unlearngate train uld ./target ./sets/acme --forget acme.augmented.jsonl --retain others.jsonl
    """
    from unlearngate.assistant_training.data.augmentation import Endpoint, augment, augment_offline
    from unlearngate.assistant_training.data.pairs import read_pairs

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
            with shown_progress() as progress:
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


def _named(settings: type[Any], context: typer.Context) -> dict[str, Any]:
    """The options that are named like fields of the settings; the other fields have no option."""
    return {field.name: context.params[field.name] for field in fields(settings) if field.name in context.params}


def _load(target: Path, name: str | None, device: str | None, switches: dict[str, Any]) -> LoadedTarget:
    from unlearngate.assistant_training.model.loaded_target import load_target
    from unlearngate.families import TARGET_ARCHITECTURES

    loaded = load_target(target, model_id=name, device=device, architectures=TARGET_ARCHITECTURES)
    return loaded.with_switches(switches)


def _progress() -> Progress:
    """Shown by the main process alone."""
    from unlearngate.assistant_training.model.processes import Processes

    return shown_progress(disable=not Processes().is_main)


def _report(forget_set: ForgetSet | None, out: Path) -> None:
    """Say what was written; nothing in a process that wrote nothing."""
    from unlearngate.assistant_training.model.processes import Processes
    from unlearngate.assistant_training.train.run import run_folder

    Processes().end()
    if forget_set is None:
        return
    console = Console()
    for key, value in forget_set.manifest.metrics.items():
        console.print(f"{key:<26} {value:.3f}")
    console.print(f"{forget_set.reference} is written to {out}; its losses are in {run_folder(out)}", soft_wrap=True)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
