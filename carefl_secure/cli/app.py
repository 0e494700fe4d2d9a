"""The command line itself: its commands, and how errors become exit codes."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from typer.core import TyperGroup

from carefl_secure import __version__
from carefl_secure.cli.completion import add_completion
from carefl_secure.cli.console import write_line
from carefl_secure.cli.data import cache, data
from carefl_secure.cli.deployment.server import node, server, submit
from carefl_secure.cli.deployment.site import provision, site, submitter
from carefl_secure.cli.deployment.status import doctor, status
from carefl_secure.cli.privacy.audit import audit, report, threat_model
from carefl_secure.cli.privacy.budget import budget
from carefl_secure.cli.privacy.ledger import ledger
from carefl_secure.cli.runs import runs, watch
from carefl_secure.cli.settings import command as settings
from carefl_secure.cli.streams import run_with_streams
from carefl_secure.cli.training.caption import caption
from carefl_secure.cli.training.evaluate import evaluate
from carefl_secure.cli.training.experiment import experiment
from carefl_secure.cli.training.predict import export, predict
from carefl_secure.cli.training.train import plan, pretrain, train
from carefl_secure.errors import CareflError, RunError
from carefl_secure.run_folder import Interrupted

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal, as shells have it."""

SETTINGS: Mapping[str, str] = {
    # Flower would report usage and ask for newer releases.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # An OpenMP pool that spins while it waits is many times slower next to other work.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}
"""Environment variables that libraries read when they are imported."""


class _Group(TyperGroup):
    """Turns every error of the package into its text and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CareflError as error:
            _complain(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            full = (
                error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and getattr(sys.stdout, "fault", None) is None
            )
            if error.filename is None and not full:  # a stream's
                raise
            advice = "free some space, and resume a run" if full else "check the path and its permissions"
            _complain(f"error: cannot use {error.filename or 'a file'}: {error.strerror}; {advice}")
            raise typer.Exit(RunError.exit_code) from error
        except KeyboardInterrupt as stop:
            _complain(f"interrupted; {stop}" if isinstance(stop, Interrupted) else "interrupted")
            raise typer.Exit(INTERRUPTED) from None


def _complain(text: str) -> None:
    write_line(Console(stderr=True), text)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"carefl-secure {__version__}")
        raise typer.Exit


def prepare_environment() -> None:
    """Set what the user has not set, before torch or flwr is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # It remarks at import that it could fetch a kernel from a hub and run it; we never want that.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


app = typer.Typer(
    name="carefl-secure",
    cls=_Group,
    no_args_is_help=True,
    epilog="Begin: carefl-secure train --epsilon 8; then carefl-secure report runs/NAME. Each command has --help.",
    # A trace with local variables would put images and labels into a log.
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune a small vision-language model across sites that keep their images private."""
    prepare_environment()


_COMMANDS: Mapping[str, tuple[Callable[..., None], ...]] = {
    "Train": (train, plan, pretrain, caption, experiment),
    "Follow and explain": (budget, report, audit, status, doctor, watch),
    "Use and score": (evaluate, predict, export),
    "Between sites": (provision, submit),
}
_GROUPS: Mapping[str, tuple[typer.Typer, ...]] = {
    "Train": (data, cache, settings),
    "Between sites": (site, submitter, node, server),
    "Follow and explain": (threat_model, ledger, runs),
}
for panel, commands in _COMMANDS.items():
    for command in commands:
        app.command(command.__name__, rich_help_panel=panel)(command)
for panel, groups in _GROUPS.items():
    for one in groups:
        app.add_typer(one, rich_help_panel=panel)
        add_completion(inner.callback for inner in one.registered_commands if inner.callback)
add_completion(command for commands in _COMMANDS.values() for command in commands)


def main() -> None:
    """Run the command line; SIGTERM ends a command as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_with_streams(app)
