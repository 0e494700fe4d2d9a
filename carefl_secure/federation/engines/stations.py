"""What stays running at a site and at the server, until somebody stops it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from carefl_secure.errors import EngineError, RunError
from carefl_secure.federation.engines.kit import Kit
from carefl_secure.federation.engines.processes import Processes
from carefl_secure.federation.engines.superlink import (
    Link,
    flower_environment,
    node_command,
    start_server,
)
from carefl_secure.federation.policy import read_policy

__all__ = ["run_node", "run_server"]

_START = 120.0


def run_node(path: Path, server: str | None, tell: Callable[[str], None]) -> None:
    """Run a site's agent and SuperNode until interrupted.

    Raises
    ------
    RunError
        When the kit is incomplete or expired.
    ConfigError
        When the policy is not understood.
    EngineError
        When one of the processes ends on its own, as a node without a registered key does.
    """
    kit = Kit.open(path)
    read_policy(kit.path / "policy.yaml")
    # A socket's path must be short, and its folder the owner's alone.
    home = Path(tempfile.mkdtemp(prefix="carefl-"))
    processes = Processes(kit.path / "logs")
    try:
        socket = home / "agent.sock"
        agent = [sys.executable, "-m", "carefl_secure.federation.engines.agent"]
        processes.start("agent", [*agent, str(kit.path), str(socket), "--until-eof"])
        env = flower_environment(kit.path / "flower")
        processes.start("supernode", node_command(kit.path, server or kit.server, socket), env)
        tell(f"site {kit.name}: serving {server or kit.server}; stop it with Ctrl-C")
        _watch(processes, kit)
    finally:
        processes.stop()
        shutil.rmtree(home, ignore_errors=True)


def _watch(processes: Processes, kit: Kit) -> None:
    while True:
        processes.check()
        if time.time() >= kit.expires:
            raise RunError("this site's kit has expired; ask for a new one")
        time.sleep(1.0)


def run_server(path: Path, host: str, tell: Callable[[str], None]) -> None:
    """Run a SuperLink until interrupted, and register the nodes of the kit.

    Raises
    ------
    RunError
        When the folder is no server kit.
    EngineError
        When the SuperLink does not start, or another server runs from the same kit.
    """
    try:
        port = int(json.loads((path / "kit.json").read_text())["port"])
        keys = sorted((path / "nodes").glob("*.pub"))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is no server kit: {error}; provision it anew") from error
    path = path.resolve()
    lock, address = path / "lock", path / "address"
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise EngineError(
            f"another server runs from {path}; stop it, or remove {lock} if it crashed"
        ) from None
    processes = Processes(path / "logs")
    try:
        start_server(processes, path, host, port, path / "run.sock")
        near = "127.0.0.1" if host == "0.0.0.0" else host
        link = Link(f"{near}:{port}", path / "ca.crt", path / "flower-cli")
        link.wait(_START, processes.check)
        link.register(keys)
        address.write_text(f"{near}:{port}\n")
        tell(f"serving {len(keys)} registered nodes on {host}:{port}; stop it with Ctrl-C")
        while True:
            processes.check()
            time.sleep(1.0)
    finally:
        address.unlink(missing_ok=True)
        processes.stop()
        lock.unlink(missing_ok=True)
