"""``carefl-secure cache``: the vision features that this machine keeps, and their erasure."""

from __future__ import annotations

import dataclasses
import json as json_
from pathlib import Path
from typing import Annotated

import typer

from carefl_secure.cli.console import Json, result_console, result_table, say
from carefl_secure.errors import ConfigError

cache = typer.Typer(name="cache", no_args_is_help=True, help="List and erase stored vision features.")

Folder = Annotated[Path | None, typer.Option(metavar="DIR", help="model.feature_cache; by default the user's cache.")]


def _root(folder: Path | None) -> Path:
    from carefl_secure.model.vision.shards import cache_folder

    root = cache_folder(folder or "auto")
    assert root is not None
    return root


@cache.command("list")
def list_(folder: Folder = None, json: Json = False) -> None:
    """List the encoders whose features are stored, with images and size.

    Features are as private as the images that they were made of.
    """
    from carefl_secure.model.vision.shards import list_encoders

    root = _root(folder)
    found = list_encoders(root)
    if json:
        rows = [dataclasses.asdict(one) for one in found]
        typer.echo(json_.dumps({"folder": str(root), "encoders": rows}, indent=2))
        return
    if not found:
        say(f"no vision features are stored in {root}")
        return
    table = result_table("name", "base model", "type", "images", "MB", left=("name", "base model", "type"))
    for one in found:
        table.add_row(one.name[:12], one.base, one.dtype, f"{one.images:,}", f"{one.size / 1e6:,.1f}")
    result_console().print(table)
    say(f"in {root}; erase with 'carefl-secure cache delete NAME' or '--all'")


@cache.command("delete")
def delete(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Names, or how they begin.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Erase the features of all encoders.")] = False,
    folder: Folder = None,
) -> None:
    """Erase stored features; later runs encode the images again.

    Files are unlinked, not overwritten: what the medium keeps is for disk encryption to protect.
    """
    from carefl_secure.model.vision.shards import delete_encoders, list_encoders

    root = _root(folder)
    if everything == bool(names):
        raise ConfigError("name what to erase, or give --all; see 'carefl-secure cache list'")
    chosen = [one.name for one in list_encoders(root)] if everything else names or []
    freed = delete_encoders(root, chosen)
    say(f"erased the features of {len(chosen)} encoders in {root}: {freed / 1e6:,.1f} MB")
