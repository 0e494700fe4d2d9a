"""Flower itself: SuperLink and SuperNodes with TLS and node keys, on the loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = (
    "data.records=300",
    "federation.rounds=2",
    "federation.dropout=0",
    "unsafe_deterministic_noise=true",
    "evaluation.floors=false",
    "privacy.delta=1e-4",
)


def command(root: Path, name: str, *more: str) -> list[str]:
    sets = [word for one in (*WORDS, f"run.name={name}") for word in ("--set", one)]
    train = [sys.executable, "-c", "from carefl_secure.cli import main; main()", "train", "--quiet"]
    return [*train, *sets, "--run-dir", str(root), *more]


def left_behind(root: Path) -> list[str]:
    """Return the command lines of all processes that name or were given this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            place = os.readlink(entry / "cwd")
        except OSError:
            continue
        if int(entry.name) != os.getpid() and place == str(root):
            found.append(line)
    return found


@pytest.mark.slow
def test_a_deployment_gives_the_adapter_of_one_process_and_leaves_nothing(tmp_path: Path) -> None:
    for name, more in (
        ("near", ["--clients", "3"]),
        ("far", ["--engine", "superlink", "--local-nodes", "3"]),
    ):
        subprocess.run(command(tmp_path, name, *more), check=True, cwd=tmp_path, timeout=900)
    files = ("adapter/adapter_model.safetensors", "plan.json")
    for file in files:
        assert (tmp_path / "near" / file).read_bytes() == (tmp_path / "far" / file).read_bytes()
    assert not left_behind(tmp_path)
    assert not list((tmp_path / "far").rglob("*.key"))
    assert all((tmp_path / "far" / "clients" / f"{i}" / "ledger.jsonl").is_file() for i in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_deployment_leaves_no_process(tmp_path: Path, number: int) -> None:
    running = subprocess.Popen(
        command(tmp_path, "cut", "--engine", "superlink", "--local-nodes", "3"), cwd=tmp_path
    )
    deadline = time.monotonic() + 600
    while not (tmp_path / "cut" / "logs" / "node-site0.log").exists():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    assert left_behind(tmp_path)
    running.send_signal(number)
    assert running.wait(120) == 130
    end = time.monotonic() + 20  # Flower's own children watch for their parent once a while
    while left_behind(tmp_path) and time.monotonic() < end:
        time.sleep(0.5)
    assert not left_behind(tmp_path)
