"""What stays running at a site and at the server, until somebody stops it."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path

from carefl_secure.data.open_corpus import detect
from carefl_secure.deployment.flower import superlink
from carefl_secure.deployment.flower.processes import Processes, hold, interrupt_on_terminate
from carefl_secure.deployment.provisioning.site_bundle import Half, SiteBundle, node_folder, read_server_manifest
from carefl_secure.deployment.provisioning.sites import REHEARSAL, Roster
from carefl_secure.errors import ConfigError, RunError

_START = 120.0
_STABLE = 60.0  # a SuperNode that ran for longer ended for no lasting reason
_LEAST_FREE = 1 << 20  # bytes
_SOCKET_LENGTH = 100  # of the 108 bytes that Linux has for a socket's path


def run_node(
    path: Path,
    server: str | None,
    tell: Callable[[str], None],
    *,
    only: Half | None = None,
    socket: Path | None = None,
    work: Path | None = None,
    health: str | None = None,
) -> None:
    """Run a site's agent and SuperNode until interrupted.

    ``server`` (``host:port``) replaces the bundle's. With ``only``, one half runs here and the other under another
    account or in another container; ``socket`` is where they meet. ``work`` is the folder for logs and Flower's own
    files, by default the bundle. ``health`` is the ``host:port`` of the SuperNode's health service (gRPC, no TLS), if
    it shall have one. Raises `RunError` for an incomplete or expired bundle, `ConfigError` for an invalid policy or a
    half without socket, `DataError` when the site's folder holds no corpus, and `EngineError` when a process ends on
    its own, as a node without a registered key does, or one whose clock is wrong. A SuperNode that gave up because the
    server was away is started again when that is back.
    """
    if (only is None) != (socket is None):
        raise ConfigError("--only and --socket go together: the two halves meet at the socket")
    bundle = SiteBundle.open(path, half=only)
    if only != "supernode":
        bundle.read_policy()
        if bundle.data is not None:
            detect(Path(bundle.data))
    if bundle.roster.rehearsal:
        tell(REHEARSAL)
    elif only is None:
        tell("one account runs both halves of this site; between sites, start each in its own with --only")
    address, authority = server or bundle.server, node_folder(path) / "ca.crt"
    command, env = [""], dict[str, str]()
    with ExitStack() as undo:
        undo.callback(interrupt_on_terminate())
        # A socket's path must be short, and its folder the owner's alone.
        home = Path(tempfile.mkdtemp(prefix="carefl-"))
        undo.callback(shutil.rmtree, home, ignore_errors=True)
        place = home / "agent.sock" if socket is None else socket.absolute()
        if len(bytes(place)) > _SOCKET_LENGTH:
            raise ConfigError(f"the path {place} is too long for a socket; choose a shorter one")
        work = bundle.path if work is None else work
        if only != "supernode":
            undo.callback(place.unlink, missing_ok=True)
        processes = Processes(work / "logs")
        undo.callback(processes.stop)
        if only != "supernode":
            agent = [sys.executable, "-m", "carefl_secure.deployment.site.agent"]
            processes.start("agent", [*agent, str(bundle.path), str(place), "--until-eof"])
            tell(f"site {bundle.name}: the agent holds keys, records, ledger and policy")
        if only != "agent":
            env = superlink.flower_environment(work / "flower")
            if socket is not None:  # Flower's files next to a socket are not for the other half
                place = home / "agent.sock"
                place.symlink_to(socket.absolute())
            command = superlink.node_command(node_folder(bundle.path), address, place, health)
            processes.start("supernode", command, env)
            tell(f"site {bundle.name}: serving {address}; stop it with Ctrl-C")
        away, full, since = False, False, time.monotonic()
        while True:
            ended = processes.ended("supernode")
            before, away = away, ended and _away(address, authority)
            if away and not before:
                tell(f"site {bundle.name}: {address} does not answer; waiting until it does")
            elif ended and not away and (before or time.monotonic() - since > _STABLE):
                processes.start("supernode", command, env)
                since = time.monotonic()
            processes.check(but="supernode" if away else "")
            if time.time() >= bundle.expires:
                raise RunError("this site's bundle has expired; ask for a new one")
            before, full = full, shutil.disk_usage(work).free < _LEAST_FREE
            if full and not before:
                tell(f"site {bundle.name}: the disk of {work} is full, so no round can be charged")
            time.sleep(1.0)


def _away(address: str, authority: Path) -> bool:
    """Tell whether the server is away; `EngineError` where this clock keeps the node from it."""
    try:
        here, ahead = superlink.probe(address, authority)
    except (OSError, HTTPException):
        return True
    superlink.check_clock(ahead)
    return not here


def run_server(
    path: Path, host: str, tell: Callable[[str], None], port: int | None = None, health: str | None = None
) -> None:
    """Run a SuperLink on ``host`` until interrupted, and register the nodes of the bundle.

    ``port`` replaces the bundle's, behind a proxy; ``health`` is as for `run_node`. Raises `RunError` when the folder
    is no server bundle or has expired, `EngineError` when the SuperLink does not start or another server runs there.
    """
    manifest = read_server_manifest(path)
    port = port or manifest.port
    path = path.resolve()
    with ExitStack() as undo:
        undo.callback(interrupt_on_terminate())
        undo.enter_context(hold(path / "lock", f"another server runs from {path}; stop it first"))
        socket = path / "run.sock"
        if len(bytes(socket)) > _SOCKET_LENGTH:
            home = Path(tempfile.mkdtemp(prefix="carefl-"))
            undo.callback(shutil.rmtree, home, ignore_errors=True)
            socket = home / "run.sock"
        undo.callback(shutil.rmtree, socket.with_suffix(".prefork"), ignore_errors=True)
        processes = Processes(path / "logs")
        undo.callback(processes.stop)
        superlink.start_server(processes, path, host, port, socket, health=health)
        near = "127.0.0.1" if host == "0.0.0.0" else host
        link = superlink.Link(f"{near}:{port}", path)
        link.wait(_START, processes.check)
        nodes = link.register()
        undo.callback((path / "address").unlink, missing_ok=True)
        superlink.ServerAddress(f"{near}:{port}", socket).write(path)
        if Roster.read(path / "roster.json").rehearsal:
            tell(REHEARSAL)
        tell(f"serving {nodes} registered nodes on {host}:{port}; stop it with Ctrl-C")
        while True:
            processes.check()
            time.sleep(1.0)
