"""``carefl-secure audit``, ``report`` and ``threat-model``: attacks on a run, its report, who might attack and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carefl_secure.cli import console as cli
from carefl_secure.cli.reporter import running
from carefl_secure.errors import ConfigError


def audit(
    run: cli.Run,
    threat_model: Annotated[str | None, typer.Option(metavar="NAME", help="Only attacks of this adversary.")] = None,
    records: Annotated[int, typer.Option(min=50, help="Members, and as many non-members, to attack with.")] = 1000,
    canaries: Annotated[int, typer.Option(min=64, help="Canaries of the one-run bound, each by coin flip.")] = 1000,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Attack a run with what each adversary would see, and write RUN/audit/.

    Exit code 22 means that a promise was falsified. An audit finds faults; it does not prove
    privacy. It reads private records, so keep its figures where the records are.
    """
    cli.require_run(run)
    attacks = None
    if threat_model is not None:
        from carefl_secure.audit.threat_models import find_models, load_models, named

        attacks = named(load_models(find_models()), threat_model).attacks
        if not attacks:
            raise ConfigError(f"no attack measures the threats of {threat_model!r}; leave it out")
    # Heavy imports wait until the options are checked.
    from carefl_secure.audit.run import audit_run, refuse_falsified

    name = "audit" if threat_model is None else f"audit-{threat_model}"

    with running(quiet) as reporter:
        result = audit_run(run, reporter, attacks=attacks, records=records, canaries=canaries, name=name)
    if json:
        typer.echo(result.as_json())
    else:
        cli.say(result.summary())
        cli.say(f"  {run / 'audit' / f'{name}.md'}")
    refuse_falsified(result)


def report(
    run: cli.Run,
    dpia: Annotated[
        bool, typer.Option("--dpia", help="Write a prefilled data protection impact assessment too (Art. 35 GDPR).")
    ] = False,
    json: cli.Json = False,
) -> None:
    """Write the privacy report of a run into its folder; exits with an error where it is void or lacks the adapter.

    Everything is read from the run folder, and epsilon is recomputed from its ledgers. --dpia adds dpia.html, for the
    auditor, and dpia-public.html; passages for the controller to complete are marked in both.
    """
    cli.require_run(run)
    from carefl_secure.report import refuse_void, refuse_without_adapter, write_report

    found, files = write_report(run, dpia=dpia)
    if json:
        typer.echo(found.as_json())
    else:
        for text in (found.summary(), *(f"  {file}" for file in files)):
            cli.say(text)
    refuse_void(found)
    refuse_without_adapter(run, found)


threat_model = cli.group("threat-model", "Read and check the threat models.")

Folder = Annotated[Path | None, typer.Option("--dir", metavar="PATH", help="Folder of threat models.")]


@threat_model.command("list")
def list_(dir_: Folder = None, json: cli.Json = False) -> None:
    """List all adversaries, one line each."""
    from carefl_secure.audit.threat_models import find_models, load_models

    models = load_models(find_models(dir_))
    counts = {m.name: {d: sum(t.defended == d for t in m.threats) for d in ("yes", "partly", "no")} for m in models}
    if json:
        rows = [{"name": m.name, "title": m.title, "threats": counts[m.name], "attacks": m.attacks} for m in models]
        cli.write_json(rows)
        return
    words = ("name", "adversary", "audit attacks")
    table = cli.result_table("name", "adversary", "held", "partly", "not", "audit attacks", left=words)
    for column in table.columns:
        column.no_wrap = False
    for m in models:
        table.add_row(m.name, m.title, *map(str, counts[m.name].values()), ", ".join(m.attacks))
    cli.result_console().print(table)


@threat_model.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As 'list' shows it.")],
    dir_: Folder = None,
    json: cli.Json = False,
) -> None:
    """Show one adversary: what it sees, what it may try, and what remains."""
    from carefl_secure.audit.threat_models import find_models, load_models, named

    model = named(load_models(find_models(dir_)), name)
    if json:
        typer.echo(model.model_dump_json(indent=2))
        return
    cli.say(f"{model.title}\n{model.summary}\n")
    for title, items in (("after", model.assets), ("sees", model.sees), ("can", model.can)):
        cli.say(f"  {title}: {'; '.join(items)}")
    cli.say(f"  collusion: {model.collusion}\n")
    for threat in model.threats:
        cli.say(f"[defended: {threat.defended}] {threat.id}: {threat.text}")
        cli.say(f"  by: {threat.mitigation}")
        for title, names in (("settings", threat.keys), ("tests", threat.tests), ("measured by", threat.attacks)):
            if names:
                cli.say(f"  {title}: {', '.join(names)}")
        cli.say(f"  what remains: {threat.residual}\n")


@threat_model.command("check")
def check(dir_: Folder = None, json: cli.Json = False) -> None:
    """Fail where a threat model names a test, a setting or an attack that does not exist."""
    from carefl_secure.audit.threat_models import check_models, find_models, load_models

    folder = find_models(dir_)
    models = load_models(folder)
    faults = check_models(models, folder.resolve().parent)
    if json:
        cli.write_json({"models": len(models), "faults": faults})
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise ConfigError(f"the threat models do not fit the code; correct either:\n{listed}")
    if not json:
        threats = sum(len(model.threats) for model in models)
        cli.say(f"{len(models)} threat models, {threats} threats: all that they name exists")


@threat_model.command("render")
def render_(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write; standard output without.")] = None,
    dir_: Folder = None,
) -> None:
    """Make the page of all threat models, with diagrams."""
    from carefl_secure.audit.threat_models import ATLAS, LINDDUN, STRIDE, find_models, load_models
    from carefl_secure.report.render.page import threat_models_page

    page = threat_models_page(load_models(find_models(dir_)), stride=STRIDE, linddun=LINDDUN, atlas=ATLAS)
    if out is None:
        typer.echo(page, nl=False)
        return
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}; give another --out") from error
    cli.say(f"{out}")
