"""What ``flwr run .`` starts: a wrapper around ``carefl-secure train`` on one machine, and never a run between sites.

On a SuperLink of ``carefl-secure server start`` this app refuses: runs there are signed and submitted with
``carefl-secure submit``. Elsewhere, as in Flower's simulation, it runs ``carefl-secure train`` on the embedded corpus
with the installed package. Flower's own nodes take no part in that, which the first line of the log says; with
``--engine ray`` they do the work.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from carefl_secure.deployment.flower.relay import SERVER_SOCKET, client

__all__ = ["REFUSAL", "WRAPPER", "client", "command", "server"]

REFUSAL = (
    "a run between sites is signed by who submits it, and flwr run signs nothing: use "
    "'carefl-secure submit RUN.yaml --server BUNDLE --key BUNDLE' on the server's machine"
)
WRAPPER = (
    "this is a wrapper: 'carefl-secure train' runs in one process of its own, and Flower's nodes take no part; "
    "'carefl-secure train --engine ray' runs the clients on Flower's simulated nodes"
)
_log = logging.getLogger("flwr")
_PROGRAM = "from carefl_secure.cli import main; main()"

server = ServerApp()


def command(settings: Mapping[str, object]) -> list[str]:
    """Return the demonstration's command line; ``settings``, Flower's run configuration, are options of ``train``."""
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    # The app bundle holds no weights; -P keeps this program off its copy of the package.
    return [sys.executable, "-P", "-c", _PROGRAM, "train", *words]


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the demonstration; `RuntimeError` when it fails, or on the server of a deployment."""
    if SERVER_SOCKET in os.environ:
        raise RuntimeError(REFUSAL)
    _log.info("%s", WRAPPER)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command(context.run_config),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        _log.info("%s", line)  # Flower keeps it as the log of the run
    if done.returncode:
        raise RuntimeError(f"carefl-secure train ended with exit code {done.returncode}")
