"""``carefl-secure threat-model``: who might attack, what prevents it, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carefl_secure.cli.console import Json, result_console, result_table, say, write_json
from carefl_secure.errors import ConfigError

threat_model = typer.Typer(name="threat-model", no_args_is_help=True, help="Read and check the threat models.")

Folder = Annotated[Path | None, typer.Option("--dir", metavar="PATH", help="Folder of threat models.")]


@threat_model.command("list")
def list_(dir_: Folder = None, json: Json = False) -> None:
    """List all adversaries, one line each."""
    from carefl_secure.audit.threat_models.load import find_models, load_models

    models = load_models(find_models(dir_))
    counts = {m.name: {d: sum(t.defended == d for t in m.threats) for d in ("yes", "partly", "no")} for m in models}
    if json:
        rows = [{"name": m.name, "title": m.title, "threats": counts[m.name], "attacks": m.attacks} for m in models]
        write_json(rows)
        return
    words = ("name", "adversary", "audit attacks")
    table = result_table("name", "adversary", "held", "partly", "not", "audit attacks", left=words)
    for column in table.columns:
        column.no_wrap = False
    for m in models:
        table.add_row(m.name, m.title, *map(str, counts[m.name].values()), ", ".join(m.attacks))
    result_console().print(table)


@threat_model.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As 'list' shows it.")],
    dir_: Folder = None,
    json: Json = False,
) -> None:
    """Show one adversary: what it sees, what it may try, and what remains."""
    from carefl_secure.audit.threat_models.load import find_models, load_models, named

    model = named(load_models(find_models(dir_)), name)
    if json:
        typer.echo(model.model_dump_json(indent=2))
        return
    say(f"{model.title}\n{model.summary}\n")
    for title, items in (("after", model.assets), ("sees", model.sees), ("can", model.can)):
        say(f"  {title}: {'; '.join(items)}")
    say(f"  collusion: {model.collusion}\n")
    for threat in model.threats:
        say(f"[defended: {threat.defended}] {threat.id}: {threat.text}")
        say(f"  by: {threat.mitigation}")
        for title, names in (("settings", threat.keys), ("tests", threat.tests), ("measured by", threat.attacks)):
            if names:
                say(f"  {title}: {', '.join(names)}")
        say(f"  what remains: {threat.residual}\n")


@threat_model.command("check")
def check(dir_: Folder = None, json: Json = False) -> None:
    """Fail where a threat model names a test, a setting or an attack that does not exist."""
    from carefl_secure.audit.threat_models.load import check_models, find_models, load_models

    folder = find_models(dir_)
    models = load_models(folder)
    faults = check_models(models, folder.resolve().parent)
    if json:
        write_json({"models": len(models), "faults": faults})
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise ConfigError(f"the threat models do not fit the code; correct either:\n{listed}")
    if not json:
        threats = sum(len(model.threats) for model in models)
        say(f"{len(models)} threat models, {threats} threats: all that they name exists")


@threat_model.command("render")
def render_(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write; standard output without.")] = None,
    dir_: Folder = None,
) -> None:
    """Make the page of all threat models, with diagrams."""
    from carefl_secure.audit.threat_models.load import find_models, load_models
    from carefl_secure.audit.threat_models.page import render

    page = render(load_models(find_models(dir_)))
    if out is None:
        typer.echo(page, nl=False)
        return
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}; give another --out") from error
    say(f"{out}")
