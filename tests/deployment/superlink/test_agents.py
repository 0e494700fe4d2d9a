"""Agents forked from one process that has the imports: they share these, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carefl_secure.deployment.flower.processes import Processes
from carefl_secure.errors import EngineError

# What is forked writes who it is, and ends with its standard input.
ACTORS = """\
import json, os, sys
from carefl_secure.deployment.superlink.local import fork_all
imported = os.getpid()
def program():
    print(*sys.argv[1:], imported, os.getpid(), os.getpgid(0), flush=True)
    sys.stdin.buffer.read()
    print("ended", flush=True)
fork_all(json.loads(sys.argv[1]), program)
sys.exit(1)
"""
NAMES = ("a", "b", "c")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.stop()


def lines(path: Path, wanted: int) -> list[list[str]]:
    wait(lambda: path.is_file() and len(path.read_text().splitlines()) >= wanted)
    return [line.split() for line in path.read_text().splitlines()]


def wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def start(processes: Processes, root: Path) -> tuple[int, list[int]]:
    """Start three; return the process that they were forked from, and their own."""
    orders = [{"log": str(root / f"{name}.log"), "words": [name, "a b"]} for name in NAMES]
    head = processes.start("actors", [sys.executable, "-c", ACTORS, json.dumps(orders)])
    pids = []
    for name in NAMES:
        said = lines(root / f"{name}.log", 1)[0]
        assert said[:3] == [name, "a", "b"]
        assert said[3] == said[5] == str(head.pid)  # imported once; one group
        pids.append(int(said[4]))
    assert len({head.pid, *pids}) == 4
    processes.check()
    return head.pid, pids


def test_the_keys_of_a_run_whose_owner_is_killed_are_erased(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "node.key").write_text("secret")
    command = [sys.executable, "-m", "carefl_secure.deployment.superlink.local", str(home)]
    # The owner is gone before the agents were asked for.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=120, check=False)
    assert done.returncode == 1 and not home.exists()


def test_they_share_the_imports_and_are_ended_with_their_group(processes: Processes, tmp_path: Path) -> None:
    head, pids = start(processes, tmp_path)
    processes.stop()
    wait(lambda: all(map(gone, (head, *pids))))


def test_the_end_of_their_owner_reaches_all(processes: Processes, tmp_path: Path) -> None:
    head, pids = start(processes, tmp_path)
    stdin = processes._running[0][1].stdin
    assert stdin is not None
    stdin.close()  # as the system does for an owner that is killed
    wait(lambda: all(map(gone, pids)))
    processes._running[0][1].wait(60)
    assert gone(head)


def test_one_that_is_killed_ends_all_and_the_log_says_which(processes: Processes, tmp_path: Path) -> None:
    _, pids = start(processes, tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    processes._running[0][1].wait(60)
    with pytest.raises(EngineError, match="actors ended with 1; read"):
        processes.check()
    assert f"ended with -9; read {tmp_path / 'b.log'}" in (tmp_path / "actors.log").read_text()
    wait(lambda: all(map(gone, pids)))
