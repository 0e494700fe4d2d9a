"""Processes that this one started and that end with it, whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from carefl_secure.errors import EngineError

_PATIENCE = 5.0
_MOST = 10_000_000


def open_log(path: Path) -> IO[bytes]:
    """Open a log to append to; one of more than 10 MB becomes ``NAME.1``, in the place of the one before."""
    if path.exists() and path.stat().st_size > _MOST:
        path.replace(path.with_name(f"{path.name}.1"))
    return path.open("ab")


def free_port() -> int:
    """Return a port of the loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def hold(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock that the system takes back when this process dies; `EngineError` ``taken`` if another does."""
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EngineError(taken) from error
        yield


def interrupt_on_terminate() -> Callable[[], None]:
    """Let SIGTERM end a command as Ctrl-C does; return what puts the former handler back."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    return lambda: (signal.signal(signal.SIGTERM, before), None)[1]


class Processes:
    """Named processes, each heading its own group, so children end with it; ``logs``: folder of their output."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes], IO[bytes]]] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one process, in the place of an ended one of this name.

        One of this name that was started here before and outlived its owner is ended first; its number and the time
        when it was started, in ``NAME.pid``, tell it from any other. Standard input ends when this process does.
        Raises `EngineError` when the program is missing.
        """
        for one in [one for one in self._running if one[0] == name and one[1].poll() is not None]:
            one[1].communicate()
            one[2].close()
            self._running.remove(one)
        identity, log = self._logs / f"{name}.pid", open_log(self._logs / f"{name}.log")
        _end_former(identity)
        try:
            process = subprocess.Popen(
                list(command),
                env=None if env is None else dict(env),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            log.close()
            raise EngineError(f"cannot start {command[0]}: {error.strerror}; is the package installed?") from error
        identity.write_text(f"{process.pid} {_born(process.pid)}")
        self._running.append((name, process, log))
        return process

    def ended(self, name: str) -> bool:
        """Tell whether the process of this name has ended on its own."""
        return any(process.poll() is not None for one, process, _ in self._running if one == name)

    def check(self, but: str = "") -> None:
        """Raise an `EngineError` with name and log when one of them, except ``but``, has ended on its own."""
        for name, process, _ in self._running:
            code = process.poll()
            if code is not None and name != but:
                raise EngineError(f"{name} ended with {code}; read {self._logs / name}.log for the reason")

    def stop(self) -> None:
        """End all of them and their children: politely first, then by force."""
        for _, process, _ in reversed(self._running):
            _signal(process.pid, signal.SIGTERM)
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
        deadline = time.monotonic() + _PATIENCE
        for _, process, log in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process.pid, signal.SIGKILL)
            process.wait()
            log.close()
        self._running.clear()


def _born(process: int) -> str | None:
    """Return when a process was started, which tells it from a later one of the same number; None once it ended.

    A zombie has ended: where process 1 reaps nothing, as in a container without init, it stays.
    """
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _end_former(identity: Path) -> None:
    """End the process that a file names, with its group, if it still runs."""
    process, _, born = identity.read_text().partition(" ") if identity.exists() else ("", "", "")
    end = time.monotonic() + _PATIENCE
    while process.isdecimal() and born == _born(int(process)):
        _signal(int(process), signal.SIGTERM if time.monotonic() < end else signal.SIGKILL)
        time.sleep(0.1)


def _signal(group: int, number: int) -> None:
    """Signal a whole group; that it is gone already is as good."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
