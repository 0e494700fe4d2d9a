"""The start scripts and units of a bundle: two accounts at a site, hardened, and commands that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from carefl_secure.deployment.provisioning.service_files import write_server_files, write_site_files

ANALYZE = shutil.which("systemd-analyze")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("agent", "supernode", "server")}
    for path in found.values():
        path.mkdir()
    write_site_files(found["agent"], found["supernode"], "t site a")
    write_server_files(found["server"], "t server")
    return found


def value(unit: str, name: str) -> str:
    (found,) = re.findall(rf"(?m)^{name}=(.*)$", unit)
    return str(found)


def test_the_halves_of_a_site_are_two_accounts_that_share_a_socket(folders: dict[str, Path]) -> None:
    agent = (folders["agent"] / "carefl-agent.service").read_text()
    node = (folders["supernode"] / "carefl-supernode.service").read_text()
    assert value(agent, "User") != value(node, "User")
    assert value(agent, "Group") == value(node, "Group") == "carefl"
    # What the SuperNode's unit may write or read of the agent is nothing: folders of their own.
    assert value(agent, "ReadWritePaths") != value(node, "ReadWritePaths")
    assert value(agent, "PrivateNetwork") == "yes"
    assert value(agent, "RestrictAddressFamilies") == "AF_UNIX"
    assert value(agent, "RuntimeDirectoryMode") == "0750"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("agent", "node start --only agent --socket /run/carefl/agent.sock {home}"),
        ("supernode", "node start --only supernode --socket /run/carefl/agent.sock {home}"),
        ("server", "server start --port 9093 {home}"),
    ],
)
def test_a_start_script_runs_the_command_on_its_own_folder(
    folders: dict[str, Path], tmp_path: Path, name: str, words: str
) -> None:
    command = tmp_path / "bin" / "carefl-secure"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    script = folders[name] / "start.sh"
    done = subprocess.run([script], env={"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == words.format(home=folders[name])


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_and_little_exposure(folders: dict[str, Path]) -> None:
    assert ANALYZE is not None
    for name, most in (("agent", 10), ("supernode", 20), ("server", 20)):
        unit = str(next(folders[name].glob("*.service")))
        done = subprocess.run([ANALYZE, "verify", unit], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr
        # In tenths; a unit without hardening has 96.
        words = [ANALYZE, "security", "--offline=true", f"--threshold={most}", unit]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
