"""From texts to a forget set that keeps them from being said word for word: no model, no network."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.progress import Progress

from unlearngate.artefact import ForgetSet, data_digest, load_forget_set, now, save_passages
from unlearngate.assistant_training.train.settings import VerbatimSettings
from unlearngate.errors import DataError, TrainingError
from unlearngate.manifest import FIXED_BOUNDS, FIXED_STRENGTH, NAME_PATTERN, LabelText, Windows
from unlearngate.passages import letters, seeds_of


def make_verbatim_set(
    texts: Mapping[str, str], out: Path, settings: VerbatimSettings, *, progress: Progress, label: str | None = None
) -> ForgetSet:
    """Hash the windows of every text; write them as the forget set `out`, of kind `verbatim`, named like the folder.

    Args:
        texts: by what they are called in errors, such as their file. No window spans two of them.
        out: the set's folder; a set that is there is replaced.
        settings: what of the texts is withheld.
        progress: shows how far it is.
        label: what the set is about, for people; None: its name.

    Returns: the set. Two runs on the same texts differ in their salt, and so in every seed.
    Raises: DataError naming a text that is too short; TrainingError if `out`, `label` or the
        settings cannot be a set's; ArtefactError if something else is at `out`. Nothing is written then.
    """
    windows = _windows(settings)
    _check(out, label)
    if not texts:
        raise DataError("there is no text; give at least one file with --text")
    of_texts = {name: letters(text) for name, text in texts.items()}
    for name, text in of_texts.items():
        if len(text) < settings.letters:
            raise DataError(
                f"{name} has {len(text)} letters, and runs of {settings.letters} are withheld: all of it could be "
                "said; leave it out, or lower --letters"
            )
    total = sum(map(len, of_texts.values()))
    task = progress.add_task("hashing letters", total=total)
    seeds = seeds_of(of_texts.values(), windows, lambda number: progress.advance(task, number))
    return save_passages(
        out,
        seeds=seeds,
        manifest={
            "name": out.name,
            "version": "1",
            "kind": "verbatim",
            "target": None,
            "tap_layer": 0,
            "num_layers": 0,
            "rank": 0,
            "windows": windows,
            "recommended": FIXED_STRENGTH,
            "bounds": FIXED_BOUNDS,
            "label": label,
            "training": asdict(settings),
            "data_digests": {"texts": data_digest([{"letters": text} for text in of_texts.values()])},
            "metrics": {"texts": float(len(of_texts)), "letters": float(total), "seeds": float(len(seeds))},
            "created_at": now(),
        },
    )


def _windows(settings: VerbatimSettings) -> Windows:
    try:
        return Windows(
            letters=settings.letters,
            seed_letters=settings.seed_letters,
            hash="blake2b-mix32",
            salt=secrets.token_hex(8),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise TrainingError(f"--letters {settings.letters} cannot be: {first['msg']}") from error


def _check(out: Path, label: str | None) -> None:
    if not re.fullmatch(NAME_PATTERN, out.name):
        raise TrainingError(f"{out.name!r} cannot name a forget set: lower-case letters, digits, '.', '_' and '-' only")
    if out.exists():
        load_forget_set(out)  # anything but a forget set must not be replaced
    try:
        TypeAdapter(LabelText | None).validate_python(label)
    except ValidationError as error:
        raise TrainingError(f"{label!r} cannot be a set's label: {error.errors()[0]['msg']}") from error
