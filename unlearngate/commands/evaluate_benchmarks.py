"""`unlearngate evaluate mmlu`, `wmdp`, `rwku` and `muse`: the field's benchmarks on what a running server serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearngate.commands._shared import check_writable, errors_as_sentences, print_table
from unlearngate.errors import UnlearngateError
from unlearngate.progress import shown_progress

if TYPE_CHECKING:
    from unlearngate.assistant_training.evaluate.benchmarks.asked import Server
    from unlearngate.assistant_training.evaluate.benchmarks.results import Row

Data = Annotated[Path, typer.Option(help="folder that the benchmark was downloaded to; nothing is downloaded here")]
ServerUrl = Annotated[str, typer.Option(help="such as http://127.0.0.1:8000")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--sets", "--with", help="in force together, as a or a+b; may be repeated; the target comes first"),
]
Model = Annotated[str | None, typer.Option(help="the served model name; default: the server's first")]
Key = Annotated[str | None, typer.Option(help="API key", envvar="UNLEARNGATE_API_KEY")]
Limit = Annotated[int | None, typer.Option(min=1, help="items of each file or task at most, at even distances")]
Concurrency = Annotated[int, typer.Option(min=1, help="requests at a time")]
Out = Annotated[Path, typer.Option(help="where results.json and results.md go; replaced")]
_OUT = Path("build/evaluation")
_NOT_ASKED = "The plain target was not asked: the API key requires a set."
_CHOICES = (
    "Zero-shot: the letter that is likeliest behind `Answer:`, as bare text. In brackets: Wilson's 95 % interval.",
    "Four choices: 0.25 is chance. Scored with the sets in force (docs/http.md, Score a prompt).",
)


@dataclass(frozen=True, slots=True)
class _Common:
    data: Path
    server: str
    sets: list[str] | None
    model: str | None
    key: str | None
    limit: int | None
    concurrency: int
    out: Path


def evaluate_mmlu(
    data: Data,
    server: ServerUrl,
    *,
    sets: Sets = None,
    model: Model = None,
    key: Key = None,
    limit: Limit = None,
    concurrency: Concurrency = 8,
    out: Out = _OUT,
) -> None:
    """Evaluate on MMLU: what a served model still knows beside the forget set. Accuracy by task and of all.

    FOLDER is `cais/mmlu` of Hugging Face: `all/test-00000-of-00001.parquet`, or a folder for each subject; or files of
    JSON lines with question, choices (4), answer (0 to 3) and subject. Zero-shot; `dev` is not read.

    Example:  unlearngate evaluate mmlu --data mmlu --server http://127.0.0.1:8000 --sets anna --limit 20
    """
    _choices("MMLU", _Common(data, server, sets, model, key, limit, concurrency, out))


def evaluate_wmdp(
    data: Data,
    server: ServerUrl,
    *,
    sets: Sets = None,
    model: Model = None,
    key: Key = None,
    limit: Limit = None,
    concurrency: Concurrency = 8,
    out: Out = _OUT,
) -> None:
    """Evaluate on WMDP: hazardous knowledge that a set should take away. Accuracy by task; 0.25 is chance.

    FOLDER is `cais/wmdp` of Hugging Face: wmdp-bio, wmdp-cyber and wmdp-chem with `test-00000-of-00001.parquet`, or
    files such as wmdp-bio.jsonl with question, choices (4) and answer (0 to 3).

    Example:  unlearngate evaluate wmdp --data wmdp --server http://127.0.0.1:8000 --sets biology
    """
    _choices("WMDP", _Common(data, server, sets, model, key, limit, concurrency, out))


def evaluate_rwku(
    data: Data,
    server: ServerUrl,
    *,
    subject: Annotated[str | None, typer.Option(help="ask about this one alone, as the files spell it")] = None,
    sets: Sets = None,
    model: Model = None,
    key: Key = None,
    limit: Limit = None,
    concurrency: Concurrency = 32,
    out: Out = _OUT,
) -> None:
    """Evaluate on RWKU: gaps (FB), questions (QA) and adversarial questions (AA) about people. ROUGE-L recall.

    FOLDER has forget_level1.json, forget_level2.json and forget_level3.json, or is `jinzhuoran/RWKU` of Hugging Face,
    with them in `All`; neighbor_level1.json and neighbor_level2.json are asked too where they are.

    Example:  unlearngate evaluate rwku --data RWKU --server http://127.0.0.1:8000 --sets king --subject "Stephen King"
    """
    from unlearngate.assistant_training.evaluate.benchmarks import rwku

    common = _Common(data, server, sets, model, key, limit, concurrency, out)
    with errors_as_sentences():
        probes = rwku.read_rwku(data, subject=subject, limit=limit)
        notes = [
            "Greedy, 30 tokens at most, one line, by the chat template. ROUGE-L recall of the answer, stemmed words.",
            "In brackets: 95 % bootstrap interval over probes. results.json has every probe's type and answer.",
        ]
        _evaluate("RWKU", common, len(probes), lambda asked, one: rwku.ask_rwku(asked, probes, one), notes)


def evaluate_muse(
    data: Data,
    server: ServerUrl,
    *,
    only: Annotated[list[str] | None, typer.Option(help="verbmem, knowmem or privleak; may be repeated")] = None,
    retrain_auc: Annotated[
        float | None, typer.Option(help="PrivLeak AUC of a model trained without the forget texts; gives PrivLeak")
    ] = None,
    sets: Sets = None,
    model: Model = None,
    key: Key = None,
    limit: Limit = None,
    concurrency: Concurrency = 8,
    out: Out = _OUT,
) -> None:
    """Evaluate on MUSE: words by heart (VerbMem), knowledge (KnowMem), membership (PrivLeak).

    FOLDER is `muse-bench/MUSE-News` or `MUSE-Books` of Hugging Face, or what MUSE's load_data.py writes: folders
    verbmem, knowmem and privleak. Sets of kind `verbatim` have no PrivLeak: give --only verbmem --only knowmem.

    Example:  unlearngate evaluate muse --data MUSE-News --server http://127.0.0.1:8000 --sets news --retrain-auc 0.48
    """
    from unlearngate.assistant_training.evaluate.benchmarks import muse

    common = _Common(data, server, sets, model, key, limit, concurrency, out)
    with errors_as_sentences():
        read = muse.read_muse(data, only or muse.PARTS, limit=limit)
        if retrain_auc is not None:
            muse.priv_leak(retrain_auc, retrain_auc)  # a number out of range is said before anything is asked
        cut: list[muse.Muse] = []

        def ask(asked: Server, one: tuple[str, ...]) -> Row:
            if not cut:
                cut.append(muse.with_cut_continuations(asked, read, one))
            return muse.ask_muse(asked, cut[0], one, retrain_auc=retrain_auc)

        notes = [
            "VerbMem: 128 tokens behind the prompt. KnowMem: 32 tokens behind MUSE's examples. Bare text, greedy.",
            "PrivLeak AUC: how often a holdout text looks more like training data than a forget text (Min-40 %). "
            "Near 0: the forget texts are remembered. Near 1: they stand out. PrivLeak 0: as --retrain-auc.",
            "In brackets: 95 % bootstrap interval over items.",
        ]
        _evaluate("MUSE", common, read.num_requests(), ask, notes)


def add_to(app: typer.Typer) -> None:
    """Make the four commands known."""
    for name, command in {
        "mmlu": evaluate_mmlu,
        "wmdp": evaluate_wmdp,
        "rwku": evaluate_rwku,
        "muse": evaluate_muse,
    }.items():
        app.command(name)(command)


def _choices(title: str, common: _Common) -> None:
    from unlearngate.assistant_training.evaluate.benchmarks import choices

    with errors_as_sentences():
        questions = choices.read_choices(common.data, limit=common.limit)
        _evaluate(
            title, common, len(questions), lambda asked, one: choices.ask_choices(asked, questions, one), [*_CHOICES]
        )


def _evaluate(
    title: str,
    common: _Common,
    num_requests: int,
    ask: Callable[[Server, tuple[str, ...]], Row],
    notes: list[str],
) -> None:
    from openai import OpenAIError

    from unlearngate.assistant_training.evaluate.benchmarks.asked import Server
    from unlearngate.assistant_training.evaluate.benchmarks.results import cells, write_results

    check_writable(common.out)
    chosen = [tuple(one.split("+")) for one in common.sets or []]
    with shown_progress() as progress:
        bar = progress.add_task("asking the server", total=num_requests * (1 + len(chosen)))
        tell: Callable[[], Any] = lambda: progress.advance(bar)  # noqa: E731
        try:
            with Server(common.server, common.key, common.model, concurrency=common.concurrency, tell=tell) as asked:
                if asked.lets_ask_the_target():
                    chosen = [(), *chosen]
                elif chosen:
                    notes = [*notes, _NOT_ASKED]
                else:
                    raise UnlearngateError(f"{_NOT_ASKED} Name sets with --sets, or give another --key")
                rows = [ask(asked, one) for one in chosen]
                settings = {"data": str(common.data), "server": common.server, "model": asked.model}
        except OpenAIError as error:
            raise UnlearngateError(f"{common.server} does not answer as it should: {error}") from error
    files = write_results(rows, common.out, title=title, settings={**settings, "limit": common.limit}, notes=notes)
    print_table(title, *cells(rows))
    for note in notes:
        typer.echo(f"- {note}")
    for path in files:
        typer.echo(f"{path} is written")
