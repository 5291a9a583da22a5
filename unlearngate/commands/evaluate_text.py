"""`unlearngate evaluate text`: how much of a text a running server says word for word, with and without sets."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from unlearngate.commands._shared import check_writable, errors_as_sentences, print_table
from unlearngate.progress import shown_progress

if TYPE_CHECKING:
    from unlearngate.assistant_training.evaluate.continuation import Continuations

_LETTERS = 40  # a run of so many is what a `verbatim` set withholds by default


def evaluate_text(
    server: Annotated[str, typer.Option(help="such as http://127.0.0.1:8000")],
    text: Annotated[list[Path], typer.Option(help="text, Markdown, HTML or PDF; repeat for several")],
    *,
    model: Annotated[str | None, typer.Option(help="the served model name; default: the server's first")] = None,
    key: Annotated[str | None, typer.Option(help="API key", envvar="UNLEARNGATE_API_KEY")] = None,
    combinations: Annotated[
        list[str] | None,
        typer.Option("--with", help="sets in force together, as a or a+b; may be repeated; the target comes first"),
    ] = None,
    words: Annotated[int, typer.Option(min=1, help="of a passage that are given, and as many that should follow")] = 50,
    passages: Annotated[int, typer.Option(min=1, help="at most, at even distances along the texts")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="continuations are cut here")] = 80,
    concurrency: Annotated[int, typer.Option(min=1, help="requests at a time")] = 32,
    out: Annotated[Path, typer.Option(help="where report.json goes, with every continuation; replaced")] = Path(
        "build/evaluation"
    ),
) -> None:
    """Measure how much of a text a server says word for word: passages are begun, and it goes on with them.

    For the plain target and every combination of sets: ROUGE-L of what should follow (MUSE's verbatim memorisation),
    the longest run of the text's letters that came out, and how many passages have a run of 40, which a set of kind
    `verbatim` withholds. `tofu` and `qa` measure knowledge; this measures words.

    Example:  unlearngate evaluate text --server http://127.0.0.1:8000 --text novel.txt --with novel-text
    """
    from openai import OpenAIError

    from unlearngate.assistant_training.attack.asking import served_model
    from unlearngate.assistant_training.data.documents import read_document
    from unlearngate.assistant_training.evaluate import continuation
    from unlearngate.errors import UnlearngateError
    from unlearngate.files import write_whole

    with errors_as_sentences():
        check_writable(out)
        texts = {str(path): read_document(path) for path in text}
        begun = continuation.passages(texts, words=words, most=passages)
        asked: list[tuple[str, ...]] = [(), *(tuple(one.split("+")) for one in combinations or [])]
        with shown_progress() as progress:
            bar = progress.add_task("asking the server", total=len(asked) * len(begun))
            try:
                rows = continuation.continuations(
                    *(server, key, model or served_model(server, key), begun, texts, asked),
                    max_tokens=max_tokens,
                    concurrency=concurrency,
                    tell=lambda: progress.advance(bar),
                )
            except OpenAIError as error:
                raise UnlearngateError(f"{server} does not answer as it should: {error}") from error
        body = {
            "warning": "This file holds passages of the text, and what was said.",
            "settings": {"server": server, "words": words, "max_tokens": max_tokens},
            "passages": [passage._asdict() for passage in begun],
            "continuations": [row._asdict() for row in rows],
        }
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "report.json", json.dumps(body, ensure_ascii=False, indent=1) + "\n", mode=0o600)
    header = ["in force", "passages", "ROUGE-L", "longest run, letters", f"passages with a run of {_LETTERS}"]
    print_table("said word for word", header, [_cells(row) for row in rows])
    typer.echo(f"{out / 'report.json'} is written")


def _cells(row: Continuations) -> list[str]:
    runs = sum(longest >= _LETTERS for longest in row.longest)
    number, longest = str(len(row.said)), str(max(row.longest))
    return ["+".join(row.forget_sets) or "target", number, f"{fmean(row.rouge):.2f}", longest, str(runs)]
