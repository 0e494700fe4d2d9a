"""The start script and the systemd unit that travel in a bundle; neither holds a secret."""

from __future__ import annotations

from pathlib import Path

_UNIT = """\
[Unit]
Description=CAREFL {title}
Wants=network-online.target
After=network-online.target

[Service]
# Make an account "carefl", install the package at /opt/carefl, and copy the bundle to
# /var/lib/carefl, owned by that account.
User=carefl
WorkingDirectory=/var/lib/carefl
Environment=PATH=/opt/carefl/bin:/usr/bin:/bin HOME=/var/lib/carefl
ExecStart=/bin/sh /var/lib/carefl/start.sh
# It ends its own processes, and with 130.
KillMode=mixed
TimeoutStopSec=30
SuccessExitStatus=130
Restart=on-failure
RestartSec=10
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=yes
ReadWritePaths=/var/lib/carefl

[Install]
WantedBy=multi-user.target
"""


def write_service_files(home: Path, command: str, title: str) -> None:
    """Write ``start.sh``, which runs a command on its own folder, and ``carefl.service``.

    ``home`` is the bundle, ``command`` one of ``carefl-secure``, such as ``node start``; ``title``
    describes the unit.
    """
    script = home / "start.sh"
    script.write_text(f'#!/bin/sh\nset -eu\nexec carefl-secure {command} "$(dirname "$0")" "$@"\n')
    script.chmod(0o755)
    (home / "carefl.service").write_text(_UNIT.format(title=title))
