"""A guard ends what its owner left, and only when the owner was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from carefl_secure.deployment.flower.guard import Guard
from carefl_secure.deployment.superlink.parties import Pulse
from carefl_secure.errors import EngineError

OWNER = """\
import os, signal, sys
from pathlib import Path
from carefl_secure.deployment.flower.guard import Guard
from carefl_secure.deployment.flower.processes import Processes

home = Path(sys.argv[1])
processes = Processes(home)
guard = Guard(home)
for name in ("one", "two"):
    processes.start(name, ["sh", "-c", "sleep 600 & sleep 600"])
guard.watch(processes.groups)
print(*processes.groups, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_owner_leaves_no_process_and_no_key(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "node.key").write_text("secret")
    done = subprocess.run([sys.executable, "-c", OWNER, str(home)], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    groups = [int(word) for word in done.stdout.split()]
    assert len(groups) == 2
    end = time.monotonic() + 60
    while any(map(alive, groups)) or home.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_released_guard_touches_nothing(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        guard = Guard(tmp_path)
        guard.watch([bystander.pid])
        guard.release()
        guard.release()  # once more does no harm
        assert bystander.poll() is None and tmp_path.exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_superlink_that_does_not_answer_for_long_is_gone() -> None:
    answers = iter([True, False, False, False])
    pulse = Pulse(lambda: next(answers), every=0.0, patience=0.05)
    pulse()
    pulse()
    with pytest.raises(EngineError, match="resume the run"):
        for _ in range(2):
            time.sleep(0.06)
            pulse()


def test_a_superlink_is_not_asked_all_the_time() -> None:
    asked: list[int] = []
    pulse = Pulse(lambda: bool(asked.append(1)) or True, every=3600.0)
    for _ in range(100):
        pulse()
    assert not asked
