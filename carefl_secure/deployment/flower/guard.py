"""Ends the processes of a deployment on one machine when their owner is killed outright.

SIGKILL leaves no time to stop anything, and Flower's servers do not notice that their owner is
gone. The standard input of a guard ends with its owner. ``python guard.py FOLDER`` needs the
standard library alone, so it costs next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_DONE = "done"
_PATIENCE = 5.0


class Guard:
    """Watches processes and a folder with keys, erased if the owner is killed, until released."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-IS", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the owner
            text=True,
        )

    def watch(self, groups: Iterable[int]) -> None:
        """Watch over these processes, each the head of its group; telling one twice is fine."""
        self._say(*map(str, groups))

    def release(self) -> None:
        """Let go: the owner has stopped everything itself."""
        self._say(_DONE)
        self._process.communicate()

    def _say(self, *words: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it was ended, or released before
            self._process.stdin.write("".join(f"{word}\n" for word in words))
            self._process.stdin.flush()


def _born(process: int) -> str | None:
    """Return when a process was started, which tells it from a later one of the same number."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


def _signal(watched: dict[int, str], number: int) -> bool:
    """Signal all groups whose head still runs; tell whether there was any."""
    left = [process for process, born in watched.items() if _born(process) == born]
    for process in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process, number)
    return bool(left)


def main() -> None:
    """Wait for the owner's end; then, unless it said that it was done, end what it left."""
    folder = Path(sys.argv[1])
    watched: dict[int, str] = {}
    for line in sys.stdin:
        word = line.strip()
        if word == _DONE:
            return
        born = _born(int(word))
        if born is not None:
            watched.setdefault(int(word), born)
    end = time.monotonic() + _PATIENCE
    while _signal(watched, signal.SIGTERM) and time.monotonic() < end:
        time.sleep(0.1)
    _signal(watched, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
