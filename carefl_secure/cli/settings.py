"""``carefl-secure settings``: every setting with its allowed values, default and meaning."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from carefl_secure.cli.console import Json, result_console, result_table, say, write_json
from carefl_secure.config.explain import KNOWN, Setting, settings, unknown
from carefl_secure.errors import ConfigError

command = typer.Typer(name="settings", no_args_is_help=True, help="List and explain the settings of a run.")


@command.command("list")
def list_settings(
    section: Annotated[str | None, typer.Argument(metavar="SECTION", help="Only this section.")] = None,
    json: Json = False,
) -> None:
    """List the settings with their defaults and allowed values."""
    found = [one for key, one in _plain().items() if section in (None, key.split(".")[0])]
    if not found:
        raise ConfigError(f"there is no section {section!r}; carefl-secure settings list shows all")
    if json:
        write_json([dataclasses.asdict(one) for one in found])
        return
    table = result_table("setting", "default", "allowed", left=("setting", "default", "allowed"))
    table.columns[2].no_wrap = False
    for one in found:
        table.add_row(one.key, one.default, one.allowed)
    result_console().print(table)


@command.command("show")
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Such as privacy.epsilon.")], json: Json = False
) -> None:
    """Explain one setting."""
    if key not in KNOWN:
        raise ConfigError(unknown(key))
    one = _plain()[key]
    if json:
        write_json(dataclasses.asdict(one))
    else:
        say(f"{one.key}: {one.meaning}\n  allowed  {one.allowed}\n  default  {one.default}")


def _plain() -> dict[str, Setting]:
    """Return every setting by its key, without the marks of Markdown."""
    return {one.key: dataclasses.replace(one, allowed=one.allowed.replace("`", "")) for one in settings()}
