"""Flower itself: SuperLink and SuperNodes with TLS and node keys, on the loopback.

The waits are long because the machine may be busy; nothing here judges how long anything takes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from carefl_secure.config import load_config
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.train import train

WORDS = (
    "data.records=120",
    "federation.rounds=2",
    "unsafe_deterministic_noise=true",
    "evaluation.baselines=false",
    "privacy.delta=1e-3",
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


def nothing_left(root: Path) -> bool:
    """Wait a little: Flower's own children look for their parent once a while."""
    end = time.monotonic() + 60
    while (found := left_behind(root)) and time.monotonic() < end:
        time.sleep(0.1)
    return not found


def test_a_deployment_gives_the_adapter_of_one_process_and_leaves_nothing(tmp_path: Path) -> None:
    near = (*WORDS, "run.name=near", f"run.dir={tmp_path}", "federation.clients=3")
    train(load_config(None, near), SilentReporter())
    far = command(tmp_path, "far", "--engine", "superlink", "--local-nodes", "3")
    done = subprocess.run(far, cwd=tmp_path, timeout=900, capture_output=True, text=True)
    logs = tmp_path / "far" / "logs"
    assert done.returncode == 0, done.stderr + "".join(
        f"\n--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(logs.glob("*.log"))
    )
    assert nothing_left(tmp_path)
    for file in ("adapter/adapter_model.safetensors", "plan.json"):
        assert (tmp_path / "near" / file).read_bytes() == (tmp_path / "far" / file).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "far/metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]
    assert all(row["survivors"] == 3 for row in rows)
    assert not list((tmp_path / "far").rglob("*.key"))
    assert all((tmp_path / "far" / "clients" / f"{i}" / "ledger.jsonl").is_file() for i in range(3))
    # Nothing fell back to Flower's own, slower commands.
    assert not [log for log in logs.glob("*.log") if "slower" in log.read_text()]
    assert not [log for log in logs.glob("*.log") if "anew" in log.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_deployment_leaves_no_process(tmp_path: Path, number: int) -> None:
    running = subprocess.Popen(command(tmp_path, "cut", "--engine", "superlink", "--local-nodes", "3"), cwd=tmp_path)
    deadline = time.monotonic() + 600
    while not (tmp_path / "cut" / "logs" / "node-site0.log").exists():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    assert left_behind(tmp_path)
    running.send_signal(number)
    assert running.wait(120) == 130
    assert nothing_left(tmp_path)
