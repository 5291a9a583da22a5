"""`unlearngate keys`: who may use a server, and the forget sets that are in force for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from unlearngate.commands._shared import errors_as_sentences
from unlearngate.server.sets.caller import Logprobs

app = typer.Typer(help="Look after the API keys of a server: unlearngate serve --keys FILE.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="the keys file; a running server reads it again when it changes")]


@app.command("add")
def keys_add(
    file: File,
    id: Annotated[str, typer.Option("--id", help="how people and logs call the key")],
    tenant: Annotated[str, typer.Option(help="whose it is")],
    require: Annotated[
        list[str] | None, typer.Option(help="forget set in force for every request with this key; repeat for several")
    ] = None,
    default_set: Annotated[
        list[str] | None,
        typer.Option(help="in force when a request does not say, in place of the server's; repeat for several"),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="set that requests may name besides those above; repeat for several; '*': every set"),
    ] = None,
    instead: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TEXT", help="what the set NAME says instead with this key; repeat for several sets"),
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="may use the admin routes, and sees every set")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="may read /metrics")] = False,
    logprobs: Annotated[
        Logprobs | None,
        typer.Option(help="logprobs in requests with a required set, in place of the server's --logprobs"),
    ] = None,
) -> None:
    """Make an API key and print it. This is the only time: the file holds only its hash.

    Example:  unlearngate keys add keys.json --id acme-prod --tenant acme --require acme-takedown --allow acme-extra
    """
    from unlearngate.server.http.keys import ApiKey, changing, hash_secret, new_secret, write_keys

    secret = new_secret()
    with errors_as_sentences(), changing(file) as keys:
        key = ApiKey(
            id=id,
            tenant=tenant,
            sha256=hash_secret(secret),
            required=tuple(require or ()),
            default=tuple(default_set) if default_set else None,
            allowed=tuple(allow or ()),
            instead=_by_name(instead or []),
            admin=admin,
            metrics=metrics,
            logprobs=logprobs,
        )
        write_keys(file, keys.with_key(key))
    typer.echo(secret)


@app.command("list")
def keys_list(file: File) -> None:
    """Show the keys of a file: everything but the keys themselves, which the file does not hold."""
    from unlearngate.server.http.keys import read_keys

    with errors_as_sentences():
        keys = read_keys(file).keys
    table = Table("id", "tenant", "required", "default", "allowed", "flags", title=str(file), title_justify="left")
    for key in keys:
        flags = [flag for flag in ("admin", "metrics") if getattr(key, flag)]
        flags += [f"logprobs {key.logprobs}"] if key.logprobs else []
        default = "the server's" if key.default is None else ", ".join(key.default)
        table.add_row(key.id, key.tenant, ", ".join(key.required), default, ", ".join(key.allowed), ", ".join(flags))
    Console().print(table)


@app.command("remove")
def keys_remove(file: File, id: Annotated[str, typer.Argument(metavar="ID", help="of the key")]) -> None:
    """Remove a key from the file: a running server refuses it from its next request on."""
    from unlearngate.server.http.keys import changing, read_keys, write_keys

    with errors_as_sentences():
        read_keys(file)
        with changing(file) as keys:
            write_keys(file, keys.without_key(id))


def _by_name(options: list[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator or name in texts:
            raise ValueError(f"--instead must be NAME=TEXT, once for a set, got {option!r}")
        texts[name] = text
    return texts
