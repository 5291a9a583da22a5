"""`unlearngate evaluate`: how much is forgotten, and what it costs. Only the command line knows both sides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from unlearngate.commands import evaluate_benchmarks
from unlearngate.commands._shared import ChatTemplateKwargs, check_writable, errors_as_sentences, switches_of
from unlearngate.commands.evaluate_text import evaluate_text
from unlearngate.errors import UnlearngateError
from unlearngate.progress import shown_progress

if TYPE_CHECKING:
    from unlearngate.assistant_training.data.tofu import Benchmark, Question
    from unlearngate.assistant_training.evaluate.figures import ModelFigures
    from unlearngate.kernels.pairs import Mode

app = typer.Typer(help="Measure what forget sets take away, and what they leave.", no_args_is_help=True)
app.command("text")(evaluate_text)
evaluate_benchmarks.add_to(app)


class ModeChoice(StrEnum):
    """Of the probabilities: what `compose` does with tokens that are not kept."""

    scoring = "scoring"
    sampling = "sampling"
    both = "both"


_MODES: dict[ModeChoice, tuple[Mode, ...]] = {
    ModeChoice.scoring: ("scoring",),
    ModeChoice.sampling: ("sampling",),
    ModeChoice.both: ("scoring", "sampling"),
}
Target = Annotated[
    Path | None, typer.Argument(help="the target's Hugging Face checkpoint folder; left out with --server")
]
Sets = Annotated[
    list[Path] | None, typer.Option(help="a forget set, or a folder with one sub-folder per set; may be repeated")
]
With = Annotated[
    list[str] | None,
    typer.Option("--with", help="sets in force together, as a or a+b; may be repeated; default: every set alone"),
]
RetainModel = Annotated[
    Path | None, typer.Option(help="folder of a model that never saw the forget questions; gives forget quality")
]
ModeOption = Annotated[
    ModeChoice, typer.Option(help="of probabilities: scoring gives every token one, sampling is what is served")
]
Samples = Annotated[int, typer.Option(min=0, help="sampled answers to each forget question, for leak@k; 0: none")]
MaxTokens = Annotated[int, typer.Option(min=1, help="answers are cut here")]
BatchSize = Annotated[int, typer.Option(min=1, help="questions at a time")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one")]
Server = Annotated[str | None, typer.Option(help="ask a running server instead, such as http://127.0.0.1:8000")]
ServedName = Annotated[str | None, typer.Option("--model", help="with --server: the served model name")]
Concurrency = Annotated[int, typer.Option(min=1, help="with --server: requests at a time")]
Out = Annotated[Path, typer.Option(help="where report.json, report.md and pictures go; replaced")]
Seed = Annotated[int, typer.Option(help="of sampled answers and of the intervals")]


@app.callback()
def evaluate() -> None:
    """Measure what forget sets take away, and what they leave."""


@app.command("tofu")
def evaluate_tofu(
    target: Target = None,
    *,
    data: Annotated[Path, typer.Option(help="folder of TOFU's JSON lines (full.jsonl, forget10_perturbed.jsonl, ...)")],
    sets: Sets = None,
    combinations: With = None,
    retain_model: RetainModel = None,
    authors: Annotated[int, typer.Option(help="that the target learned: 3 to 20, the last ones, or 200: all")] = 200,
    forget_authors: Annotated[
        int, typer.Option(min=1, max=20, help="that are to be forgotten, the last ones: 2 is forget01, 20 forget10")
    ] = 20,
    mode: ModeOption = ModeChoice.scoring,
    samples: Samples = 4,
    max_tokens: MaxTokens = 100,
    batch_size: BatchSize = 32,
    device: Device = None,
    server: Server = None,
    model: ServedName = None,
    concurrency: Concurrency = 32,
    chat_template_kwargs: ChatTemplateKwargs = None,
    out: Out = Path("build/evaluation"),
    seed: Seed = 0,
) -> None:
    """Evaluate on TOFU: the plain target, forget sets alone and combined, and a retain model beside them.

    Probability, ROUGE-L, truth ratio, forget quality, model utility, extraction strength, exact memorisation, leak@k,
    gate shares; membership inference if the data folder has holdout10.jsonl. With --server only what needs no
    probabilities. Writes OUT/report.json with every number per question, OUT/report.md and pictures. Nothing is
    selected: what is given is evaluated as it is.

    Example:  unlearngate evaluate tofu ./target --data tofu --sets ./sets --with a --with a+b --retain-model ./retain

    A running server:  unlearngate evaluate tofu --server http://127.0.0.1:8000 --model NAME --data tofu --with a+b
    """
    from unlearngate.assistant_training.data.tofu import read_benchmark
    from unlearngate.assistant_training.evaluate.qa import as_questions

    with errors_as_sentences():
        benchmark = read_benchmark(data, num_authors=authors, num_forget_authors=forget_authors)
        holdout = as_questions(benchmark.holdout)
        settings = {"data": str(data), "authors": authors, "forget_authors": forget_authors}
        options = _Options(
            *(target, sets or [], combinations or [], retain_model, mode, samples, max_tokens, batch_size, device),
            *(server, model, concurrency, out, seed, switches_of(chat_template_kwargs)),
        )
        _evaluate(benchmark, holdout, settings, options)


@app.command("qa")
def evaluate_qa(
    target: Target = None,
    *,
    forget: Annotated[Path, typer.Option(help="JSON lines with question and answer: what must be forgotten")],
    retain: Annotated[Path, typer.Option(help="JSON lines of the same form: what must stay")],
    holdout: Annotated[
        Path | None, typer.Option(help="JSON lines of the same kind that no model saw; gives membership inference")
    ] = None,
    sets: Sets = None,
    combinations: With = None,
    retain_model: RetainModel = None,
    mode: ModeOption = ModeChoice.scoring,
    samples: Samples = 4,
    max_tokens: MaxTokens = 100,
    batch_size: BatchSize = 32,
    device: Device = None,
    server: Server = None,
    model: ServedName = None,
    concurrency: Concurrency = 32,
    chat_template_kwargs: ChatTemplateKwargs = None,
    out: Out = Path("build/evaluation"),
    seed: Seed = 0,
) -> None:
    """Evaluate on questions and answers of your own, in the form that `unlearngate train uld` takes.

    Documents are taken as `train uld` takes them, and continued as bare text: MUSE's verbatim memorisation.
    Probability, ROUGE-L, extraction strength, exact memorisation, leak@k, gate shares, answers unchanged; truth ratio
    for the lines that have "variants", and forget quality if there is a retain model; membership inference if there is
    a holdout file. With --server only what needs no probabilities. Writes OUT/report.json, report.md and pictures.

    Example:  unlearngate evaluate qa ./target --forget acme.jsonl --retain others.jsonl --sets ./sets/acme

    A running server:  unlearngate evaluate qa --server http://127.0.0.1:8000 --model NAME --forget a.jsonl ...
    """
    from unlearngate.assistant_training.data.pairs import read_pairs
    from unlearngate.assistant_training.evaluate.qa import as_questions

    with errors_as_sentences():
        if holdout and server:
            raise UnlearngateError("--holdout needs probabilities, which a server does not give; leave it out")
        files = {"forget": forget, "retain": retain, **({"holdout": holdout} if holdout else {})}
        asked = {name: as_questions(read_pairs(path, subject=name, documents=True)) for name, path in files.items()}
        unseen = asked.pop("holdout", [])
        settings = {name: str(path) for name, path in files.items()}
        options = _Options(
            *(target, sets or [], combinations or [], retain_model, mode, samples, max_tokens, batch_size, device),
            *(server, model, concurrency, out, seed, switches_of(chat_template_kwargs)),
        )
        _evaluate(asked, unseen, settings, options)


@dataclass(frozen=True, slots=True)
class _Options:
    """What both commands take."""

    target: Path | None
    sets: Sequence[Path]
    combinations: Sequence[str]
    retain_model: Path | None
    mode: ModeChoice
    samples: int
    max_tokens: int
    batch_size: int
    device: str | None
    server: str | None
    model: str | None
    concurrency: int
    out: Path
    seed: int
    chat_template_kwargs: dict[str, Any]


def _evaluate(
    asked: Benchmark | dict[str, list[Question]],
    holdout: Sequence[Question],
    settings: dict[str, Any],
    options: _Options,
) -> None:
    from unlearngate.assistant_training.evaluate.report import markdown, write_report

    check_writable(options.out)
    named = {**settings, **{key: str(value) for key, value in asdict(options).items() if value not in (None, [], {})}}
    rows, cut = _ask(options, asked) if options.server else _run(options, asked, holdout)
    files = write_report(rows, options.out, settings=named, notes=cut)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(markdown(rows, cut))
    for path in files:
        console.print(f"{path} is written")


def _run(
    options: _Options, asked: Benchmark | dict[str, list[Question]], holdout: Sequence[Question]
) -> tuple[list[ModelFigures], list[str]]:
    """The rows, and what to know of answers that are longer than what is decoded."""
    from unlearngate.assistant_training.data.lengths import (
        longest_of_each,
        num_tokens,
        refuse_longer_than_context,
        warning_of_cut,
    )
    from unlearngate.assistant_training.evaluate import run as evaluation_run
    from unlearngate.assistant_training.model.loaded_target import load_target

    if not options.target or options.model:
        raise UnlearngateError("give a TARGET folder, or --server with --model")
    target = load_target(options.target, device=options.device).with_switches(options.chat_template_kwargs)
    retained = load_target(options.retain_model, device=options.device) if options.retain_model else None
    retained = retained.with_switches(options.chat_template_kwargs) if retained else None
    cut, sets = [], evaluation_run.question_sets(asked)
    for name, questions in {**sets, "holdout": holdout}.items():
        answers = longest_of_each(target.tokenizer, [(q.answer, q.paraphrased, *q.perturbed) for q in questions])
        turns = zip([q.question for q in questions], answers, strict=True)
        refuse_longer_than_context(target.tokenizer, turns, target.context_length, name)
    for name, questions in sets.items():
        lengths = num_tokens(target.tokenizer, [q.answer for q in questions])
        if warning := warning_of_cut(name, lengths, options.max_tokens):
            cut.append(warning)
            typer.secho(warning, fg="yellow", err=True)
    known = evaluation_run.find_sets(options.sets, target.identity)
    chosen = evaluation_run.combinations(options.combinations, list(known))
    for name, forget_set in known.items():
        if (trained := forget_set.manifest.chat_template_kwargs) != options.chat_template_kwargs:
            with_others = f"was trained with --chat-template-kwargs '{json.dumps(trained)}', and is asked with others"
            typer.secho(f"note: {name} {with_others}", fg="yellow", err=True)
    evaluation = evaluation_run.Evaluation(
        asked=asked,
        holdout=holdout,
        modes=_MODES[options.mode],
        num_samples=options.samples,
        max_tokens=options.max_tokens,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    with shown_progress() as progress:
        rows = evaluation_run.evaluate_models(
            *(target, known, chosen, evaluation), retain_model=retained, progress=progress
        )
    return rows, cut


def _ask(options: _Options, asked: Benchmark | dict[str, list[Question]]) -> tuple[list[ModelFigures], list[str]]:
    """The rows, and what to know of the plain target's answers that were cut."""
    from openai import OpenAIError

    from unlearngate.assistant_training.evaluate import run as evaluation_run
    from unlearngate.assistant_training.evaluate.served import cut_answers, evaluate_server
    from unlearngate.served import ServedSets

    in_process = options.target or options.sets or options.retain_model or options.mode != ModeChoice.scoring
    if in_process or not options.server or not options.model:
        raise UnlearngateError(
            "--server needs --model, and takes no TARGET, --sets, --retain-model or --mode: it has its own sets, "
            "and gives no probabilities"
        )
    answers, asking = options.out / "answers.jsonl", False
    try:
        there = [card["id"] for card in ServedSets(options.server).cards()]
        chosen = evaluation_run.combinations(options.combinations, there)
        options.out.mkdir(parents=True, exist_ok=True)
        asking = True
        with answers.open("w", encoding="utf-8", buffering=1) as kept, shown_progress() as progress:
            rows = evaluate_server(
                *(options.server, options.model, evaluation_run.question_sets(asked), chosen),
                num_samples=options.samples,
                seed=options.seed,
                max_tokens=options.max_tokens,
                concurrency=options.concurrency,
                chat_template_kwargs=options.chat_template_kwargs,
                kept=kept,
                progress=progress,
            )
        cut = [cut_answers(name, columns, options.max_tokens) for name, columns in rows[0].questions.items()]
        return rows, [note for note in cut if note]
    except OpenAIError as error:
        kept_in = f"; what it answered until then is in {answers}" if asking else ""
        raise UnlearngateError(
            f"{options.server} does not answer as an unlearngate server would: {error}{kept_in}"
        ) from error
