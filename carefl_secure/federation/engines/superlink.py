"""Flower's SuperLink and SuperNodes, driven from here: start, register, submit, ask for the status.

What is submitted is only the relay. ``flwr run`` ends with 0 also for a failed run, so the status
that the SuperLink lists is the one that counts.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from carefl_secure.errors import EngineError
from carefl_secure.federation.engines import relay
from carefl_secure.federation.engines.processes import Processes, free_port

__all__ = ["COMPLETED", "Link", "node_command", "server_command", "write_app"]

COMPLETED = "finished:completed"
_BIN = Path(sys.executable).parent
_APP = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "carefl-relay"
version = "1.0.0"
description = "Carries messages to software that is installed on the sites"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "carefl"

[tool.flwr.app.components]
serverapp = "carefl_relay:server"
clientapp = "carefl_relay:client"
"""


def write_app(folder: Path) -> Path:
    """Write the Flower app that is submitted: this package's relay and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(_APP)
    (folder / "carefl_relay.py").write_text(Path(relay.__file__).read_text())
    return folder


def server_command(kit: Path, host: str, port: int, state: Path) -> list[str]:
    """Return the command line of a SuperLink with TLS that only registered nodes may join."""
    return [
        str(_BIN / "flower-superlink"),
        *("--ssl-ca-certfile", str(kit / "ca.crt")),
        *("--ssl-certfile", str(kit / "server.pem")),
        *("--ssl-keyfile", str(kit / "server.key")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--database", str(state)),
        *("--host", host, "--port", str(port)),
    ]


def node_command(kit: Path, server: str, agent: Path) -> list[str]:
    """Return the command line of a SuperNode; its own runtime port stays on the loopback."""
    return [
        str(_BIN / "flower-supernode"),
        *("--root-certificates", str(kit / "ca.crt")),
        *("--auth-supernode-private-key", str(kit / "node.key")),
        *("--superlink", server),
        *("--host", "127.0.0.1", "--port", str(free_port())),
        *("--ssl-ca-certfile", str(kit / "runtime-ca.crt")),
        *("--ssl-certfile", str(kit / "runtime.pem")),
        *("--ssl-keyfile", str(kit / "runtime.key")),
        *("--node-config", f'agent="{agent}"'),
    ]


def flower_environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of Flower's programs: offline, own home, quick to start a task."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        **more,
    }


class Link:
    """A running SuperLink, as its operator sees it.

    Parameters
    ----------
    address : str
        ``host:port``.
    ca : Path
        The authority's certificate.
    home : Path
        Folder for Flower's own settings; one per deployment.
    """

    def __init__(self, address: str, ca: Path, home: Path) -> None:
        self._address = address
        self._ca = ca.resolve()
        home.mkdir(parents=True, exist_ok=True)
        self.env = flower_environment(home)
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "carefl"\n\n[superlink.carefl]\n'
            f'address = "{address}"\nroot-certificates = "{self._ca}"\n'
        )

    def healthy(self) -> bool:
        """Tell whether the SuperLink answers over TLS."""
        trust = ssl.create_default_context(cafile=str(self._ca))
        try:
            url = f"https://{self._address}/health"
            with urllib.request.urlopen(url, context=trust, timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def wait(self, patience: float, alive: Callable[[], None] = lambda: None) -> None:
        """Wait until it is healthy.

        Raises
        ------
        EngineError
            When it is not in time.
        """
        end = time.monotonic() + patience
        while not self.healthy():
            alive()
            if time.monotonic() > end:
                raise EngineError(
                    f"no SuperLink answers at {self._address} with the authority of this kit; "
                    "start the server, and compare host, port and ca.crt"
                )
            time.sleep(0.2)

    def register(self, keys: Sequence[Path]) -> None:
        """Register public node keys; one that is registered already is left as it is.

        Raises
        ------
        EngineError
            When the SuperLink refuses one.
        """
        running = [self._start("supernode", "register", str(key), "carefl") for key in keys]
        for key, process in zip(keys, running, strict=True):
            said, text = _json(process)
            if not said.get("success") and "already" not in text.lower():
                raise EngineError(f"the SuperLink did not register {key.name}: {text.strip()}")

    def submit(self, app: Path) -> str:
        """Submit the relay and return the run's number.

        Raises
        ------
        EngineError
            When the SuperLink does not take it.
        """
        said, text = _json(self._start("run", str(app), "carefl"))
        if not said.get("success"):
            raise EngineError(f"the SuperLink did not take the run: {text.strip()}")
        return str(said["run-id"])

    def status(self, run: str) -> str:
        """Return what the SuperLink lists for a run, such as ``finished:failed``."""
        said, text = _json(self._start("list", "carefl", "--run-id", run))
        runs = said.get("runs")
        if not isinstance(runs, list) or not runs:
            raise EngineError(f"the SuperLink lists no run {run}: {text.strip()}")
        return str(runs[0]["status"])

    def finished(self, run: str, patience: float) -> str:
        """Wait for a run to finish and return its last status."""
        end = time.monotonic() + patience
        while not (status := self.status(run)).startswith("finished"):
            if time.monotonic() > end:
                return status
        return status

    def _start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(_BIN / "flwr"), *words, "--format", "json"],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )


def _json(process: subprocess.Popen[str]) -> tuple[dict[str, object], str]:
    """Read the JSON object that may follow other text."""
    try:
        text, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise EngineError("flwr did not answer within two minutes") from error
    if "{" not in text:
        return {}, text
    try:
        found = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
    except ValueError:
        return {}, text
    return (found if isinstance(found, dict) else {}), text


def start_server(processes: Processes, kit: Path, host: str, port: int, socket: Path) -> None:
    """Start a SuperLink from a server kit; the rounds' own process listens on ``socket``."""
    env = flower_environment(kit / "flower", **{relay.SERVER_SOCKET: str(socket)})
    processes.start("superlink", server_command(kit, host, port, kit / "state.db"), env)
