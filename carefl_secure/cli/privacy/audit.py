"""``carefl-secure audit`` and ``report``: attack a finished run, and state what it spent and protects."""

from __future__ import annotations

from typing import Annotated

import typer

from carefl_secure.cli.console import Json, Quiet, Run, require_run, say
from carefl_secure.cli.reporter import running
from carefl_secure.errors import ConfigError


def audit(
    run: Run,
    threat_model: Annotated[str | None, typer.Option(metavar="NAME", help="Only attacks of this adversary.")] = None,
    records: Annotated[int, typer.Option(min=50, help="Members, and as many non-members, to attack with.")] = 1000,
    canaries: Annotated[int, typer.Option(min=64, help="Canaries of the one-run bound, each by coin flip.")] = 1000,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Attack a run with what each adversary would see, and write RUN/audit/.

    Exit code 22 means that a promise was falsified. An audit finds faults; it does not prove
    privacy. It reads private records, so keep its figures where the records are.
    """
    require_run(run)
    attacks = None
    if threat_model is not None:
        from carefl_secure.audit.threat_models.load import find_models, load_models, named

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
        say(result.summary())
        say(f"  {run / 'audit' / f'{name}.md'}")
    refuse_falsified(result)


def report(run: Run, json: Json = False) -> None:
    """Write the privacy report of a run into its folder; a void report exits with an error.

    Everything is read from the run folder, and epsilon is recomputed from its ledgers.
    """
    require_run(run)
    from carefl_secure.report import refuse_void, write_report

    found, files = write_report(run)
    if json:
        typer.echo(found.as_json())
    else:
        for text in (found.summary(), *(f"  {file}" for file in files)):
            say(text)
    refuse_void(found)
