"""Processes forked from one that has the imports: found, signalled and ended like any other."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from carefl_secure.deployment.flower.nursery import Nursery
from carefl_secure.deployment.flower.processes import Processes
from carefl_secure.errors import EngineError

ACTOR = """\
import os, sys
imported = os.getpid()
def main():
    print(*sys.argv[1:], imported, os.getpid(), os.getsid(0), flush=True)
    sys.stdin.read()
    print("ended", flush=True)
"""


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "carefl_actor.py").write_text(ACTOR)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "carefl_actor"


def lines(path: Path, wanted: int) -> list[list[str]]:
    end = time.monotonic() + 60
    while len(found := path.read_text().splitlines()) < wanted and time.monotonic() < end:
        time.sleep(0.02)
    return [line.split() for line in found]


def test_forked_processes_share_the_imports_and_nothing_else(actor: str, tmp_path: Path) -> None:
    processes = Processes(tmp_path / "logs")
    try:
        nursery = processes.nursery(actor)
        pids = [processes.fork(name, nursery, [name, "word"]).pid for name in ("a", "b")]
        said = [lines(tmp_path / "logs" / f"{name}.log", 1)[0] for name in ("a", "b")]
        assert [words[:2] for words in said] == [["a", "word"], ["b", "word"]]
        assert said[0][2] == said[1][2] == str(nursery._process.pid)
        assert [words[3:] for words in said] == [[str(pid)] * 2 for pid in pids]
        processes.check()
    finally:
        processes.stop()
    for pid in (*pids, nursery._process.pid):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_end_of_standard_input_reaches_a_forked_process(actor: str, tmp_path: Path) -> None:
    processes = Processes(tmp_path / "logs")
    try:
        nursery = processes.nursery(actor)
        process = processes.fork("a", nursery, [])
        other = processes.fork("b", nursery, [])
        process.stdin.close()
        assert process.wait(60) == 255
        assert lines(tmp_path / "logs" / "a.log", 2)[1] == ["ended"]
        assert other.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.01)
    finally:
        processes.stop()


def test_one_that_is_killed_is_missed(actor: str, tmp_path: Path) -> None:
    processes = Processes(tmp_path / "logs")
    try:
        process = processes.fork("a", processes.nursery(actor), [])
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        with pytest.raises(EngineError, match="a ended with 255"):
            processes.check()
    finally:
        processes.stop()


def test_a_module_that_cannot_be_imported_is_an_error_that_says_where_to_look(
    tmp_path: Path,
) -> None:
    nursery = Nursery("carefl_no_such_module", [], tmp_path / "nursery.log")
    try:
        with (tmp_path / "a.log").open("wb") as log, pytest.raises(EngineError, match="its log"):
            nursery.fork([], log)
        assert "carefl_no_such_module" in (tmp_path / "nursery.log").read_text()
    finally:
        nursery.close()
