"""The start scripts and systemd units that travel in a bundle; none of them holds a secret.

A site has two of each, for two accounts: the agent, which holds keys, records, ledger and policy, and the SuperNode,
which runs the code that the server delivers. They share the group ``carefl``, which alone reaches the agent's socket.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "templates"
_UNIT = (_FOLDER / "unit.service").read_text("utf-8")
# The agent has no network; what it reads is in its own folder, the images, and /opt/carefl. On a
# machine with a GPU, PrivateDevices=no lets it use the card.
_AGENT = (_FOLDER / "agent.conf").read_text("utf-8")
_ONLINE = "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n"
_SOCKET = '--socket "${CAREFL_SOCKET:-/run/carefl/agent.sock}"'


def write_site_files(home: Path, node: Path, title: str) -> None:
    """Write ``start.sh`` and a unit for agent (``home``) and SuperNode (``node``), which meet at ``CAREFL_SOCKET``."""
    _write(home, f"node start --only agent {_SOCKET}", "carefl-agent", f"{title}, agent", _AGENT)
    _write(node, f"node start --only supernode {_SOCKET}", "carefl-supernode", f"{title}, SuperNode", _ONLINE)


def write_server_files(home: Path, title: str) -> None:
    """Write the server's ``start.sh`` and unit, on loopback port ``CAREFL_PORT`` (9093); ``home`` is its bundle."""
    _write(home, 'server start --port "${CAREFL_PORT:-9093}"', "carefl-server", title, _ONLINE)


def _write(home: Path, command: str, name: str, title: str, more: str) -> None:
    script = home / "start.sh"
    script.write_text(f'#!/bin/sh\nset -eu\nexec carefl-secure {command} "$@" "$(dirname "$0")"\n')
    script.chmod(0o755)
    unit = _UNIT.format(title=title, user=name, home=f"/var/lib/{name}", more=more)
    (home / f"{name}.service").write_text(unit)
