"""`unlearngate attack`: how well forgetting holds at a running server."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from unlearngate.commands._shared import check_writable, errors_as_sentences
from unlearngate.errors import UnlearngateError

if TYPE_CHECKING:
    from unlearngate.assistant_training.attack.asking import Tell
    from unlearngate.assistant_training.attack.run import Outcome, Settings, Stages
    from unlearngate.assistant_training.model.loaded_target import LoadedTarget

_A_LINE_EVERY_S = 60.0


def attack(
    server: Annotated[str, typer.Option(help="such as http://127.0.0.1:8000")],
    forget_set: Annotated[str, typer.Option("--set", help="the forget set that is attacked, by name")],
    probes: Annotated[Path, typer.Option(help="JSON lines: question, answer, forget_set or subject, facts, ...")],
    *,
    model: Annotated[str | None, typer.Option(help="the served model name; default: the server's first")] = None,
    key: Annotated[str | None, typer.Option(help="API key", envvar="UNLEARNGATE_API_KEY")] = None,
    reference_key: Annotated[
        str | None, typer.Option(help="API key for the requests without the set, where --key requires it")
    ] = None,
    neighbours: Annotated[
        Path | None, typer.Option(help="JSON lines of questions close to the set's that must stay")
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="the served model's folder: also measure how usual to it is what is said")
    ] = None,
    out: Annotated[Path, typer.Option(help="where report.md, report.json and report.png go; replaced")] = Path(
        "build/attack"
    ),
    seed: Annotated[int, typer.Option(help="of everything that is drawn")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="forget questions, and as many others, at most")] = 64,
    kinds: Annotated[str | None, typer.Option(help="names or their beginnings, a,b; default: all")] = None,
    wordings: Annotated[int, typer.Option(min=1, help="of each kind for a forget question; others get one")] = 4,
    samples: Annotated[int, typer.Option(min=1, max=128, help="answers to each question of samples-0.7, -1")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="answers are cut here")] = 100,
    concurrency: Annotated[int, typer.Option(min=1, help="requests at a time")] = 32,
    fail_above: Annotated[
        float | None, typer.Option(min=0, max=1, help="exit 1 if a kind leaks a larger share of facts")
    ] = None,
) -> None:
    """Attack a forget set at a running server: what still comes out, in which wordings, and what it costs others.

    Every request is sent with the set in force and without any: plain and reworded questions, after other turns,
    beside another subject, wrapped, in other languages, with the name written otherwise, behind the beginning of the
    answer, as text, as a gap, by examples, spelled, in a JSON schema, from the facts to the name, as a choice, sampled,
    and by two oracles that read logprobs. The wordings are none that training draws.

    Probes: lines whose `forget_set` or `subject` is NAME are attacked; the others must stay as they are. `facts` is
    what counts as a leak. A line without it has as facts the names of several capitalised words and the numbers of
    its answer that are not in its question. `paraphrases` are other wordings of the question.

    Kinds: plain, paraphrase, turns-others-1 -3 -8, turns-withheld-..., turns-talk-..., two-subjects, wrapped-before,
    wrapped-behind, role-play, system-prompt, answer-in-language, ask-in-language, about-in-language, name-forms,
    prefill, prefill-words, text, text-no-question, cloze, few-shot, spelled, json-schema, reverse, choice, samples-0.7,
    samples-1, oracle-bias, oracle-tail.

    With --target, the perplexity of what is said to forget questions is given under that target, over that of what the
    target says itself: 1 reads as usual. The target is loaded here, beside the server.

    report.json holds every answer, with what was to be forgotten: only its owner may read it. With --fail-above the
    command exits 1 if a kind's share of leaked facts, or of right guesses beyond chance, is larger.

    Example:  unlearngate attack --server http://127.0.0.1:8000 --set acme --probes probes.jsonl --fail-above 0.05
    """
    from unlearngate.assistant_training.attack.report import markdown, write_report
    from unlearngate.assistant_training.attack.run import Settings, chosen_kinds

    with errors_as_sentences():
        check_writable(out)
        names = [name for name in (kinds or "").split(",") if name]
        settings = Settings(chosen_kinds(names), limit, wordings, samples, max_tokens, concurrency, seed)
        asked = {"server": server, "set": forget_set, "probes": str(probes), "limit": limit, "wordings": wordings}
        asked |= {"samples": samples, "max_tokens": max_tokens, "seed": seed, "kinds": list(settings.kinds)}

        def save(outcome: Outcome) -> list[Path]:
            return write_report(outcome, out, settings=asked)

        loaded = _load(target) if target else None
        outcome = _run(server, (key, reference_key or key), forget_set, model, (probes, neighbours), settings, save)
        if loaded:
            save(outcome)
            outcome = _with_fluency(outcome, loaded)
        files = save(outcome)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(markdown(outcome))
    for path in files:
        console.print(f"{path} is written")
    worst, share = outcome.highest()
    if fail_above is not None and share > fail_above:
        typer.secho(f"{worst} leaks {share:.1%}, more than {fail_above:.1%}", fg="red", err=True)
        raise typer.Exit(1)


def _run(
    server: str,
    keys: tuple[str | None, str | None],
    forget_set: str,
    model: str | None,
    files: tuple[Path, Path | None],
    settings: Settings,
    save: Callable[[Outcome], object],
) -> Outcome:
    from openai import OpenAIError

    from unlearngate.assistant_training.attack.asking import Side, keep_ratio_of, served_model
    from unlearngate.assistant_training.attack.probes import read_probes
    from unlearngate.assistant_training.attack.run import run_attack

    probes = read_probes(files[0], forget_set, neighbours=files[1])
    try:
        model = model or served_model(server, keys[0])
        keep_ratio = keep_ratio_of(server, keys[0], forget_set)
        with (
            Side(server, keys[0], model, [forget_set]) as with_set,
            Side(server, keys[1], model, []) as target,
            _stages() as stages,
        ):
            return run_attack(with_set, target, probes, settings, keep_ratio=keep_ratio, stages=stages, save=save)
    except OpenAIError as error:
        required = (
            "; where --key requires the set, give --reference-key"
            if getattr(error, "code", "") == "required_forget_set"
            else ""
        )
        raise UnlearngateError(f"{server} does not answer as it should: {error}{required}") from error


def _load(target: Path) -> LoadedTarget:
    from unlearngate.assistant_training.model.loaded_target import load_target

    return load_target(target)


def _with_fluency(outcome: Outcome, target: LoadedTarget) -> Outcome:
    from unlearngate.assistant_training.attack.fluency import with_fluency

    with _stages() as stages:
        return with_fluency(outcome, target, stages("reading what was said with the target"))


@contextmanager
def _stages() -> Iterator[Stages]:
    """Bars on a terminal; elsewhere a line at a stage's end, and one a minute."""
    if sys.stderr.isatty():
        with Progress(console=Console(stderr=True)) as progress:
            yield lambda name: _bar(progress, name)
    else:
        yield _lines


def _bar(progress: Progress, name: str) -> Tell:
    bar = progress.add_task(name, total=None)
    return lambda done, total: progress.update(bar, completed=done, total=total)


def _lines(name: str) -> Tell:
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= _A_LINE_EVERY_S:
            last = time.monotonic()
            typer.echo(f"{name}: {done} of {total}", err=True)

    return tell
