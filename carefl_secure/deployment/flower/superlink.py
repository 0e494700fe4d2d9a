"""Flower's SuperLink and SuperNodes as subprocesses: start, register, submit, ask for the status.

Only the relay is submitted. ``flwr run`` exits with 0 also for a failed run, so the status that the
SuperLink lists is the one that counts.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path

from carefl_secure.deployment.flower import prefork, relay
from carefl_secure.deployment.flower.processes import Processes, free_port
from carefl_secure.deployment.provisioning.certificates import write_private
from carefl_secure.errors import EngineError
from carefl_secure.federation.transport.local_grid import TESTED_FLOWER
from carefl_secure.strict_json import load_json

COMPLETED = "finished:completed"
POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
_BIN = Path(sys.executable).parent
_PAUSE = 0.1
_ANSWER = 120.0
_AHEAD, _BEHIND = 5.0, 300.0  # seconds that Flower lets a node's clock be off
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
"""


def write_app(folder: Path) -> Path:
    """Write the Flower app that is submitted: this package's relay and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    components = "".join(f'{name} = "{one}"\n' for name, one in prefork.COMPONENTS.items())
    (folder / "pyproject.toml").write_text(_APP + components)
    (folder / prefork.RELAY).write_text(Path(relay.__file__).read_text())
    return folder


def _command(name: str, prefork_in: Path | None) -> list[str]:
    """Begin the command line of one of Flower's servers, plain or run by `prefork`."""
    if prefork_in is None:
        return [str(_BIN / name)]
    script = str(Path(prefork.__file__).resolve())
    return [sys.executable, "-P", script, str(prefork_in), ",".join(TESTED_FLOWER), name]


def server_command(
    bundle: Path, host: str, port: int, state: Path | None, prefork_in: Path | None = None
) -> list[str]:
    """Return the command line of a SuperLink with TLS that only registered nodes may join.

    ``state`` is its database (None: in memory). ``prefork_in`` is a new folder for `prefork`,
    readable by the owner alone; without it Flower's plain command is used.
    """
    return [
        *_command("flower-superlink", prefork_in),
        *("--ssl-ca-certfile", str(bundle / "ca.crt")),
        *("--ssl-certfile", str(bundle / "server.pem")),
        *("--ssl-keyfile", str(bundle / "server.key")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *(() if state is None else ("--database", str(state))),
        *("--host", host, "--port", str(port)),
    ]


def node_command(bundle: Path, server: str, agent: Path, *, plain: bool = False) -> list[str]:
    """Return the command line of a SuperNode; its own runtime port stays on the loopback.

    ``server`` is ``host:port``; ``agent`` is the agent's socket, next to which a folder for
    `prefork` is made unless ``plain`` asks for Flower's own command.
    """
    return [
        *_command("flower-supernode", None if plain else agent.with_suffix(".prefork")),
        *("--root-certificates", str(bundle / "ca.crt")),
        *("--auth-supernode-private-key", str(bundle / "node.key")),
        *("--superlink", server),
        *("--host", "127.0.0.1", "--port", str(free_port())),
        *("--ssl-ca-certfile", str(bundle / "runtime-ca.crt")),
        *("--ssl-certfile", str(bundle / "runtime.pem")),
        *("--ssl-keyfile", str(bundle / "runtime.key")),
        *("--node-config", f'agent="{agent}"'),
    ]


def flower_environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of Flower's programs: offline, own home, quick to start a task."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        POLL: "0.1",
        "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        **more,
    }


def control_key(bundle: Path) -> Path:
    """Return the file with the control interface's key, made where a server bundle has none yet."""
    path = bundle.resolve() / "control.key"
    if not path.exists():
        write_private(path, secrets.token_hex(32).encode())
    return path


def probe(address: str, ca: Path) -> tuple[bool, float]:
    """Tell whether a SuperLink answers, also behind a proxy, and how far this clock is ahead.

    ``address`` is ``host:port``; the second value is in seconds, and good to one. Raises `OSError`
    or `http.client.HTTPException` where nothing answers under the authority ``ca``.
    """
    host, _, port = address.rpartition(":")
    trust = ssl.create_default_context(cafile=str(ca))
    link = http.client.HTTPSConnection(host, int(port), context=trust, timeout=5)
    try:
        link.request("POST", "/v1/fleet/pull-messages", b"")  # unsigned, so it is refused
        reply = link.getresponse()
    finally:
        link.close()
    date = reply.getheader("Date")
    ahead = 0.0 if date is None else time.time() - parsedate_to_datetime(date).timestamp()
    return reply.status not in (502, 503, 504), ahead


def check_clock(ahead: float) -> None:
    """Refuse, with an `EngineError`, a clock for which Flower would refuse a node's messages."""
    if not -_BEHIND < ahead < _AHEAD:
        where = "ahead of" if ahead > 0 else "behind"
        raise EngineError(
            f"this machine's clock is {abs(ahead):.0f} s {where} the server's, and Flower refuses "
            f"a node that is {_AHEAD:.0f} s ahead or {_BEHIND:.0f} s behind; set the clock"
        )


class Link:
    """A running SuperLink at ``host:port``, as its operator sees it.

    ``ca`` is the authority's certificate, in the server's bundle; ``home`` holds Flower's own
    settings, one per deployment. ``names`` are the sites' by the node numbers that the SuperLink gave them.
    """

    def __init__(self, address: str, ca: Path, home: Path) -> None:
        self._address = address
        self._ca = ca.resolve()
        self._home = home
        self._console: subprocess.Popen[str] | None = None
        home.mkdir(parents=True, exist_ok=True)
        self.env = flower_environment(home, **{prefork.CONTROL: str(control_key(ca.parent))})
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "carefl"\n\n[superlink.carefl]\n'
            f'address = "{address}"\nroot-certificates = "{self._ca}"\n'
        )
        known = home / "nodes.json"
        listed = load_json(known.read_text()) if known.exists() else {}
        self.names = {int(node): str(name) for node, name in listed.items()}

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
        """Wait until it is healthy; raise `EngineError` when it is not in time."""
        self._start_console()  # while the SuperLink starts
        end = time.monotonic() + patience
        while not self.healthy():
            alive()
            if time.monotonic() > end:
                self.close()
                raise EngineError(
                    f"no SuperLink answers at {self._address} with the authority of this bundle; "
                    "start the server, and compare host, port and ca.crt"
                )
            time.sleep(_PAUSE)

    def register(self, keys: Sequence[Path]) -> None:
        """Register public node keys, named like their sites; `EngineError` when one is refused."""
        for key in keys:
            said, text = self._ask("supernode", "register", str(key), "carefl")
            if said.get("success"):
                self.names[int(str(said["node-id"]))] = key.stem
            elif "already" not in text.lower():
                raise EngineError(f"the SuperLink did not register {key.name}: {text.strip()}")
        (self._home / "nodes.json").write_text(json.dumps(self.names))

    def submit(self, app: Path) -> str:
        """Submit the relay and return the run's number; `EngineError` when it is not accepted."""
        said, text = self._ask("run", str(app), "carefl")
        self.close()
        if not said.get("success"):
            raise EngineError(f"the SuperLink did not take the run: {text.strip()}")
        return str(said["run-id"])

    def status(self, run: str) -> str:
        """Return what the SuperLink lists for a run, such as ``finished:failed``."""
        said, text = self._ask("list", "carefl", "--run-id", run)
        runs = said.get("runs")
        if not isinstance(runs, list) or not runs:
            raise EngineError(f"the SuperLink lists no run {run}: {text.strip()}")
        return str(runs[0]["status"])

    def finished(self, run: str, patience: float) -> str:
        """Wait for a run to finish and return its last status."""
        end = time.monotonic() + patience
        try:
            while not (status := self.status(run)).startswith("finished"):
                if time.monotonic() > end:
                    return status
                time.sleep(_PAUSE)
            return status
        finally:
            self.close()

    def close(self) -> None:
        """End the process that answers ``flwr`` commands; the next command starts it again."""
        if self._console is not None:
            self._console.kill()
            self._console.communicate()
            self._console = None

    def _start_console(self) -> subprocess.Popen[str]:
        """Return the process that has ``flwr`` imported and answers one command after another."""
        if self._console is None:
            self._console = subprocess.Popen(
                _command("flwr", self._home),
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self._console

    def _ask(self, *words: str) -> tuple[dict[str, object], str]:
        """Give one ``flwr`` command; return the JSON object in its answer, and all of it."""
        console = self._start_console()
        assert console.stdin is not None and console.stdout is not None
        watch = threading.Timer(_ANSWER, console.kill)
        watch.start()
        try:
            console.stdin.write(json.dumps([*words, "--format", "json"]) + "\n")
            console.stdin.flush()
            line = console.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            self.close()
            raise EngineError(f"flwr {words[0]} did not answer within {_ANSWER:.0f} seconds")
        return _json(str(json.loads(line)))


def _json(text: str) -> tuple[dict[str, object], str]:
    """Read the JSON object that may follow other text."""
    if "{" not in text:
        return {}, text
    try:
        found = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
    except ValueError:
        return {}, text
    return (found if isinstance(found, dict) else {}), text


def start_server(
    processes: Processes, bundle: Path, host: str, port: int, socket: Path, *, lasting: bool = True
) -> None:
    """Start a SuperLink from a server bundle.

    ``socket`` is where the process that runs the rounds listens. ``lasting`` keeps the nodes'
    registrations on disk, so that they outlive the SuperLink.
    """
    settings = {relay.SERVER_SOCKET: str(socket), prefork.CONTROL: str(control_key(bundle))}
    settings[POLL] = "0.5"  # its tasks are runs, not messages
    state = bundle / "state.db" if lasting else None
    command = server_command(bundle, host, port, state, socket.with_suffix(".prefork"))
    processes.start("superlink", command, flower_environment(bundle / "flower", **settings))
