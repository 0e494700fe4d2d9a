"""``carefl-secure audit``: attack a finished run, as its adversaries could."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from carefl_secure.cli.reporter import RichReporter
from carefl_secure.errors import ConfigError
from carefl_secure.progress import Reporter, SilentReporter

__all__ = ["audit"]


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    threat_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only the attacks of this adversary."),
    ] = None,
    records: Annotated[
        int, typer.Option(min=50, help="Members, and as many others, to attack the adapter with.")
    ] = 1000,
    canaries: Annotated[
        int, typer.Option(min=64, help="Coin-flipped canaries of the one-run bound.")
    ] = 1000,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the result as JSON.")] = False,
) -> None:
    """Attack a run on what each adversary would see, and write RUN/audit/.

    Exit code 22 says that a promise was falsified. An audit finds faults; it proves no privacy.
    It reads private records: keep its figures where the records are.
    """
    attacks = None
    if threat_model is not None:
        from carefl_secure.audit.threat_models.load import find_models, load_models, named

        attacks = named(load_models(find_models()), threat_model).attacks
        if not attacks:
            raise ConfigError(f"no attack measures the threats of {threat_model!r}; leave it out")
    # Heavy imports wait until the options are known to be sound.
    from carefl_secure.audit.run import AuditResult, audit_run, refuse_falsified

    name = "audit" if threat_model is None else f"audit-{threat_model}"

    def run_with(reporter: Reporter) -> AuditResult:
        return audit_run(
            run, reporter, attacks=attacks, records=records, canaries=canaries, name=name
        )

    if quiet:
        result = run_with(SilentReporter())
    else:
        with RichReporter(Console(stderr=True)) as reporter:
            result = run_with(reporter)
    if json:
        typer.echo(result.as_json())
    else:
        for text in (result.summary(), f"  {run / 'audit' / f'{name}.md'}"):
            Console().print(text, markup=False, highlight=False, soft_wrap=True)
    refuse_falsified(result)
