"""Flower's SuperLink and SuperNodes as subprocesses: start, register, submit, ask for the status."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from carefl_secure.deployment.flower import prefork, relay
from carefl_secure.deployment.flower.processes import Processes, free_port
from carefl_secure.deployment.provisioning.certificates import write_private
from carefl_secure.errors import EngineError
from carefl_secure.federation.transport.flower_internals import CONTROL, ControlClient, build_app
from carefl_secure.strict_json import load_json

T = TypeVar("T")

COMPLETED = "finished:completed"
POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
_BIN = Path(sys.executable).parent
_PAUSE = 0.1
_AHEAD, _BEHIND = 5.0, 300.0  # seconds that Flower lets a node's clock be off


@dataclass(frozen=True)
class ServerAddress:
    """A bundle's file ``address``: a running SuperLink's ``host:port``, and the socket of what runs the rounds."""

    address: str
    socket: Path

    def write(self, bundle: Path) -> None:
        """Write it into the server's bundle."""
        (bundle / "address").write_text(json.dumps({"address": self.address, "socket": str(self.socket)}) + "\n")

    @classmethod
    def read(cls, bundle: Path) -> ServerAddress:
        """Read what `write` left; `EngineError` when no server runs from this bundle."""
        try:
            raw = load_json((bundle / "address").read_text())
            return cls(str(raw["address"]), Path(raw["socket"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"no server runs from {bundle}; start it with carefl-secure server start") from error


def _command(name: str, folder: Path) -> list[str]:
    """Begin the command line of one of Flower's servers, run by `prefork` in a new folder of the owner's alone."""
    return [sys.executable, "-P", str(Path(prefork.__file__).resolve()), str(folder), name]


def _health(address: str | None) -> list[str]:
    """Ask a server of Flower's for its health service (gRPC, without TLS) at ``host:port``."""
    return [] if address is None else ["--health-server-address", address]


def server_command(bundle: Path, host: str, port: int, state: Path | None, prefork_in: Path) -> list[str]:
    """Return the command line of a TLS SuperLink for registered nodes only; ``state``: its database (None: memory)."""
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


def node_command(bundle: Path, server: str, agent: Path, health: str | None = None) -> list[str]:
    """Return a SuperNode's command line, its runtime port on the loopback; ``agent`` is its agent's socket."""
    return [
        *_command("flower-supernode", agent.with_suffix(".prefork")),
        *("--root-certificates", str(bundle / "ca.crt")),
        *("--auth-supernode-private-key", str(bundle / "node.key")),
        *("--superlink", server),
        *("--host", "127.0.0.1", "--port", str(free_port())),
        *("--ssl-ca-certfile", str(bundle / "runtime-ca.crt")),
        *("--ssl-certfile", str(bundle / "runtime.pem")),
        *("--ssl-keyfile", str(bundle / "runtime.key")),
        *("--node-config", f'agent="{agent}"'),
        *_health(health),
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
    """A running SuperLink at ``host:port``; ``names`` are sites' by node number, after `register` or `submit`."""

    def __init__(self, address: str, bundle: Path) -> None:
        self._address, self._ca = address, bundle / "ca.crt"
        self._control = ControlClient(address, self._ca, control_key(bundle))
        self._keys = {
            load_ssh_public_key(path.read_bytes()).public_bytes(
                Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
            ): path.stem
            for path in sorted((bundle / "nodes").glob("*.pub"))
        }
        self.names: dict[int, str] = {}

    def healthy(self) -> bool:
        """Tell whether the SuperLink answers over TLS."""
        try:
            return probe(self._address, self._ca)[0]
        except (OSError, http.client.HTTPException):
            return False

    def wait(self, patience: float, alive: Callable[[], None] = lambda: None) -> None:
        """Wait until it is healthy; raise `EngineError` when it is not in time."""
        end = time.monotonic() + patience
        while not self.healthy():
            alive()
            if time.monotonic() > end:
                raise EngineError(
                    f"no SuperLink answers at {self._address} with the authority of this bundle; "
                    "start the server, and compare host, port and ca.crt"
                )
            time.sleep(_PAUSE)

    def register(self) -> int:
        """Register the public node keys of the bundle and return their number; `EngineError` when one is refused."""
        known = self._ask(self._control.nodes)
        for key, name in self._keys.items():
            if key not in known:
                self._ask(self._control.register, name, key)
        self.online()
        return len(self._keys)

    def online(self) -> dict[str, bool]:
        """Return, by the names of registered sites, which of them are online."""
        nodes = self._ask(self._control.nodes)
        self.names = {nodes[key][0]: name for key, name in self._keys.items() if key in nodes}
        return {name: nodes[key][1] for key, name in self._keys.items() if key in nodes}

    def submit(self) -> str:
        """Submit the relay and return the run's number; `EngineError` when it is not accepted."""
        self.online()
        return self._ask(self._control.start, build_app(Path(relay.__file__)))

    def traffic(self) -> dict[int, tuple[int, int]]:
        """Return what `ControlClient.traffic` does, by node number; empty where the SuperLink does not answer."""
        try:
            counts = self._control.traffic()
        except (OSError, http.client.HTTPException):
            return {}
        keys = {name: key for key, name in self._keys.items()}
        return {node: counts[keys[name]] for node, name in self.names.items() if keys[name] in counts}

    def finished(self, run: str, patience: float) -> str:
        """Wait for a run to finish and return its last status, `ControlClient.status`."""
        end = time.monotonic() + patience
        while not (status := self._ask(self._control.status, run)).startswith("finished") and time.monotonic() < end:
            time.sleep(_PAUSE)
        return status

    def _ask(self, command: Callable[..., T], *words: object) -> T:
        try:
            return command(*words)
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"the SuperLink at {self._address} refused: {error}; read its log") from error


def start_server(
    processes: Processes,
    bundle: Path,
    host: str,
    port: int,
    socket: Path,
    *,
    lasting: bool = True,
    health: str | None = None,
) -> None:
    """Start a SuperLink from its bundle; ``lasting`` keeps the nodes' registrations on disk, so they outlive it."""
    settings = {relay.SERVER_SOCKET: str(socket), CONTROL: str(control_key(bundle))}
    settings[POLL] = "0.5"  # its tasks are runs, not messages
    state = bundle / "state.db" if lasting else None
    command = server_command(bundle, host, port, state, socket.with_suffix(".prefork"))
    processes.start("superlink", [*command, *_health(health)], flower_environment(bundle / "flower", **settings))
