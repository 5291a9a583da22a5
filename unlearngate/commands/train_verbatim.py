"""`unlearngate train verbatim`: make a forget set of texts that must not come out word for word."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from unlearngate.assistant_training.train.settings import VerbatimSettings
from unlearngate.commands._shared import Label, errors_as_sentences
from unlearngate.manifest import LEAST_LETTERS
from unlearngate.progress import shown_progress

_DEFAULT = VerbatimSettings()


def train_verbatim(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="SETS/NAME", help="the forget set to write; its folder's name becomes the set's name", exists=False
        ),
    ],
    text: Annotated[
        list[Path], typer.Option(metavar="FILE...", help="what must not come out: text in UTF-8, Markdown, HTML, PDF")
    ],
    more: Annotated[list[Path] | None, typer.Argument(metavar="FILE", hidden=True)] = None,
    letters: Annotated[
        int, typer.Option(min=LEAST_LETTERS, help="a run of so many letters never comes out; shorter ones may")
    ] = _DEFAULT.letters,
    label: Label = None,
) -> None:
    """Write a forget set that keeps texts from being said word for word, by any target, whatever is sampled.

    It takes seconds, and needs no model and no network. A letter counts in any case, with or without accents; spaces,
    line breaks and punctuation do not count. While the set is in force a server forbids each token that would complete
    a run of LETTERS letters of a text; a beginning that the client gives counts too. What a text says may still be
    said in other words: `train uld` takes that away. Each FILE is a text; runs over two texts are not withheld.

    The set holds no text, but whoever has it can test a guess of half a run: keep it as secret as the texts.

    Example:  unlearngate train verbatim ./sets/acme --text novel.txt poems.txt --label "the works of A. C. Me"

    Then:  unlearngate serve ./Llama-3.1-8B-Instruct --forget-sets ./sets --required-set acme
    """
    with errors_as_sentences():
        from unlearngate.assistant_training.data.documents import read_document
        from unlearngate.assistant_training.train.verbatim import make_verbatim_set
        from unlearngate.passages import PASSAGES_FILE

        began, settings = time.monotonic(), VerbatimSettings(letters=letters)
        with shown_progress() as progress:
            texts = {str(path): read_document(path) for path in (*text, *(more or []))}
            made = make_verbatim_set(texts, out, settings, progress=progress, label=label)
    figures, size = made.manifest.metrics, (made.folder / PASSAGES_FILE).stat().st_size
    typer.echo(
        f"{made.reference} is written to {out}: {figures['letters']:,.0f} letters of {figures['texts']:.0f} texts, "
        f"{figures['seeds']:,.0f} seeds, {size / 1e6:.1f} MB, {time.monotonic() - began:.1f} s"
    )
    typer.echo(f"no run of {letters} letters comes out while it is in force; the set is as secret as the texts")
