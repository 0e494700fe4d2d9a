"""Processes whose owner is killed outright: they end by themselves, or at the next start, and no others do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carefl_secure.deployment.flower import processes as module
from carefl_secure.deployment.flower.processes import Processes, open_log

OWNER = """\
import os, signal, sys
from pathlib import Path
from carefl_secure.deployment.flower.processes import Processes

processes = Processes(Path(sys.argv[1]))
print(processes.start("one", ["sh", "-c", "sleep 600 & sleep 600"]).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[int]:
    """A process that does not notice that its owner was killed."""
    done = subprocess.run([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    group = int(done.stdout)
    assert alive(group)
    yield group
    if alive(group):
        os.killpg(group, signal.SIGKILL)


def test_what_a_killed_owner_left_is_ended_by_the_next_start(tmp_path: Path, orphan: int) -> None:
    processes = Processes(tmp_path)
    try:
        # Another name is another's, and stays.
        processes.start("two", ["sleep", "600"])
        assert alive(orphan)
        new = processes.start("one", ["sleep", "600"])
        wait(lambda: not alive(orphan))
        assert new.poll() is None
    finally:
        processes.stop()
    assert not alive(new.pid)


def test_a_process_that_only_has_the_number_of_a_former_one_is_left_alone(tmp_path: Path, orphan: int) -> None:
    (tmp_path / "one.pid").write_text(
        f"{orphan} 12345"
    )  # as after the numbers went round, or a restart of the machine
    processes = Processes(tmp_path)
    for damaged in (f"{orphan} 12345", "", "nonsense", f"{orphan}"):
        (tmp_path / "one.pid").write_text(damaged)
        processes.start("one", ["true"]).wait()
    assert alive(orphan)
    processes.stop()


def test_a_zombie_that_nobody_reaps_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat() -> list[str]:
        return Path(f"/proc/{former.pid}/stat").read_text().rsplit(")", 1)[1].split()

    former, processes = subprocess.Popen(["true"], start_new_session=True), Processes(tmp_path)
    wait(lambda: stat()[0] == "Z")
    (tmp_path / "one.pid").write_text(f"{former.pid} {stat()[19]}")
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("it waits for a process that has ended"))
    assert processes.start("one", ["true"]).wait() == 0
    processes.stop()
    assert former.wait() == 0


def test_a_log_that_has_grown_is_put_aside_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 10)
    path = tmp_path / "agent.log"
    for text in ("first", " and", " more", "second", " one", " too", "third"):
        with open_log(path) as log:
            log.write(text.encode())
    assert path.read_text() == "third"
    assert (tmp_path / "agent.log.1").read_text() == "second one too"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["agent.log", "agent.log.1"]
