"""`unlearngate sets`: look after forget sets, on disk and on a running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearngate.commands._shared import Label, errors_as_sentences, print_table
from unlearngate.errors import ArtefactError

if TYPE_CHECKING:
    from unlearngate.artefact import ForgetSet

app = typer.Typer(
    help="Look after forget sets. A running server notices what changes in its --forget-sets folder within seconds; "
    "running requests keep the version that they started with.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="folder with one sub-folder per forget set")]


@app.command("list")
def sets_list(
    folder: Annotated[Path | None, typer.Argument(help="folder with one sub-folder per forget set")] = None,
    url: Annotated[str | None, typer.Option(help="ask this server instead, e.g. http://127.0.0.1:8000")] = None,
) -> None:
    """Print the forget sets below FOLDER, or those that a server has in force.

    With --url the API key is read from the environment variable UNLEARNGATE_API_KEY, if the server needs one; an
    admin key lists every version. Example:  unlearngate sets list --url http://127.0.0.1:8000
    """
    with errors_as_sentences():
        if (folder is None) == (url is None):
            raise typer.BadParameter("name a FOLDER or --url URL, one of them", param_hint="FOLDER")
        if url is not None:
            from unlearngate.served import ServedSets

            header, rows = (
                ["forget set", "kind", "version", "current", "pinned", "proven"],
                _served_rows(ServedSets(url).cards()),
            )
            print_table(url, header, rows)
            return
        assert folder is not None
        loaded, refused = _load_below(folder)
    _print_sets(folder, loaded, refused)


@app.command("add")
def sets_add(
    source: Annotated[Path, typer.Argument(help="the forget set's folder, as training wrote it")],
    folder: Folder,
    replace: Annotated[
        bool, typer.Option("--replace", help="take the place of a version that is there already")
    ] = False,
    forced: Annotated[
        bool,
        typer.Option("--force", help="also if it would do nothing; servers then put it in force unasked"),
    ] = False,
) -> None:
    """Verify a forget set and copy it to FOLDER/NAME, atomically: a reader of FOLDER sees all of it or nothing.

    With --replace it replaces the old version atomically: a server always sees one of the two.
    Example:  unlearngate sets add runs/acme-takedown sets --replace
    """
    from unlearngate.acting import force, refuse_idle, why_idle
    from unlearngate.artefact import load_forget_set
    from unlearngate.placing import place

    with errors_as_sentences():
        forget_set = load_forget_set(source)
        if not forced:
            refuse_idle(forget_set)
        folder.mkdir(parents=True, exist_ok=True)
        found = _folders_of(forget_set.name, folder)
        if len(found) > 1:
            names = ", ".join(str(path) for path in found)
            raise ArtefactError(
                folder, f"has several folders of forget set {forget_set.name!r}: {names}; remove all but one"
            )
        idle = why_idle(forget_set.manifest)
        if forced and (idle or forget_set.manifest.canaries):
            force(folder, forget_set.digest)
            why = f"it does nothing: {idle}" if idle else "no server asks its canaries"
            typer.secho(f"forced, though {why}", fg="yellow", err=True)
        place(forget_set, found[0] if found else folder / forget_set.name, replace=replace)
    typer.echo(f"{forget_set.reference} is in {folder}")
    if switches := forget_set.manifest.chat_template_kwargs:
        typer.echo(f"trained with the chat template's switches {json.dumps(switches)}: serve requests with the same")


@app.command("remove")
def sets_remove(
    name: Annotated[str, typer.Argument(help="the forget set's name")],
    folder: Folder,
) -> None:
    """Remove a forget set from FOLDER. A server retires it: new requests for it fail, running ones finish.

    Example:  unlearngate sets remove acme-takedown sets
    """
    from unlearngate.placing import remove

    with errors_as_sentences():
        found = _folders_of(name, folder)
        if not found:
            raise ArtefactError(
                folder, f"holds no forget set {name!r}; `unlearngate sets list {folder}` prints what it holds"
            )
        for path in found:
            remove(path)
            typer.echo(f"removed {path}")


@app.command("verify")
def sets_verify(
    folder: Folder,
    target: Annotated[Path | None, typer.Option(help="also check that they were made for this target")] = None,
    enable_undial: Annotated[
        bool, typer.Option("--enable-undial", help="with --target: as a server started with this option would")
    ] = False,
    quantised_from: Annotated[
        str | None, typer.Option(help="with --target: as a server of this quantised target with this option would")
    ] = None,
) -> None:
    """Check every forget set below FOLDER as the server would; exit 1 if one would be refused.

    Without --target only the files themselves are checked, not whether they fit together on one server.
    """
    from unlearngate.sentences import Sentences
    from unlearngate.server.sets.registry import Registry
    from unlearngate.target import identify_quantised, identify_target

    with errors_as_sentences():
        if target:
            if quantised_from is None:
                identity = identify_target(target)
            else:
                identity = identify_quantised(target, quantised_from).target
            registry = Registry(identity, folder, Sentences(target), needs_proof=quantised_from is not None)
            try:
                registry.discover(folder, undial=enable_undial)
            except ArtefactError as error:
                registry.refused.setdefault(str(error.path), error.message)
            loaded, refused = list(registry.sets.values()), list(registry.refused.values())
        else:
            loaded, refused = _load_below(folder, acting=True)
    _print_sets(folder, loaded, refused)


@app.command("instead")
def sets_instead(
    folder: Annotated[Path, typer.Argument(metavar="SETS/NAME", help="the forget set's own folder")],
    text: Annotated[
        str | None, typer.Argument(help="what to say instead, with {label} filled in; left out: as it is")
    ] = None,
    label: Label = None,
    nothing: Annotated[bool, typer.Option("--nothing", help="say nothing instead any more")] = False,
    target: Annotated[Path | None, typer.Option(help="also check that this target can say it")] = None,
) -> None:
    """Write a new version of a forget set that says TEXT instead of answers that would begin from what is forgotten.

    Only the manifest changes, and with it the digest. The server refuses a TEXT of more than 128 of the target's
    tokens; --target says so now. Example:  unlearngate sets instead sets/acme "I cannot tell you about {label}."
    """
    from unlearngate.artefact import load_forget_set, rewrite_forget_set
    from unlearngate.sentences import Sentences

    with errors_as_sentences():
        if nothing == (text is not None) and (nothing or label is None):
            raise typer.BadParameter("give a TEXT, --nothing or a --label", param_hint="TEXT")
        forget_set = load_forget_set(folder)
        manifest = forget_set.manifest
        wording = {
            "instead": None if nothing else manifest.instead if text is None else text,
            "label": manifest.label if label is None else label,
        }
        sentence = manifest.model_copy(update=wording).sentence()
        if target is not None and sentence is not None:
            Sentences(target).tokens(sentence)
        changed = rewrite_forget_set(forget_set, folder, **wording)
    typer.echo(f"{changed.reference} says: {sentence}" if sentence else f"{changed.reference} says nothing instead")


def _load_below(folder: Path, *, acting: bool = False) -> tuple[list[ForgetSet], list[str]]:
    """The sets below a folder, and why others are refused; with `acting` also those that do nothing, unless forced."""
    from unlearngate.acting import forced_digests, refuse_idle
    from unlearngate.artefact import load_forget_set, set_folders

    loaded, refused = [], []
    for path in set_folders(folder):
        try:
            forget_set = load_forget_set(path)
            if acting and forget_set.digest not in forced_digests(folder):
                refuse_idle(forget_set)
            loaded.append(forget_set)
        except ArtefactError as error:
            refused.append(error.message)
    return loaded, refused


def _folders_of(name: str, folder: Path) -> list[Path]:
    """The sub-folders whose manifest has this name; if it cannot be read, the folder's own name counts."""
    from unlearngate.artefact import MANIFEST_FILE, set_folders

    found = []
    for path in set_folders(folder):
        try:
            said = json.loads((path / MANIFEST_FILE).read_bytes())["name"]
        except (OSError, ValueError, KeyError, TypeError):
            said = path.name
        if said == name:
            found.append(path)
    return found


def _served_rows(cards: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for card in cards:
        only_current = [{**{field: card.get(field) for field in ("digest", "version", "proven")}, "current": True}]
        for version in card.get("versions", only_current):
            fields = ("current", "pinned", "proven")
            marks = [{True: "yes", False: "no", None: "?"}[version.get(field)] for field in fields]
            rows.append([f"{card['id']}@{version['digest'][:12]}", card["kind"], version["version"], *marks])
    return rows


def _print_sets(folder: Path, loaded: list[ForgetSet], refused: list[str]) -> None:
    """The table of the sets, and what is refused; exit 1 if anything is."""
    header = ["forget set", "kind", "version", "tap", "layers", "rank", "canaries"]
    rows = []
    for forget_set in loaded:
        m = forget_set.manifest
        numbers = (m.tap_layer, m.num_layers, m.rank, len(m.canaries))
        rows.append([forget_set.reference, m.kind, m.version, *map(str, numbers)])
    print_table(str(folder), header, rows)
    for reason in refused:
        typer.secho(f"refused: {reason}", fg="red", err=True)
    raise typer.Exit(1 if refused else 0)
