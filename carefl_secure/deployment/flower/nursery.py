"""Several processes of one module, forked from one that has its imports: sites of one machine.

An agent imports torch and a model library before it can do anything: eight seconds of a core and
300 MB, for each of the sites that a loopback deployment has. Here that is done once, in a process
that then forks; what was imported is shared. Between sites nothing changes: there is one agent.

``python -m carefl_secure.deployment.flower.nursery SOCKET MODULE ...`` imports the modules and
forks the ``main`` of the first for everyone who asks at the inherited socket.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from carefl_secure.errors import EngineError

__all__ = ["Forked", "Nursery"]

_GONE = 255  # how a process ended that only the nursery could have waited for is not known


class Forked:
    """A process that the nursery forked, as `subprocess.Popen` shows one.

    Parameters
    ----------
    pid : int
    stdin : file
        The writing end of its standard input.
    """

    def __init__(self, pid: int, stdin: IO[bytes]) -> None:
        self.pid = pid
        self.stdin = stdin
        self._end: int | None = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return None while it runs, and 255 afterwards."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises
        ------
        TimeoutExpired
            Of `subprocess`, when it still runs.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self._end is not None:
            watch = select.poll()
            watch.register(self._end, select.POLLIN)
            if not watch.poll(None if timeout is None else 1000 * timeout):
                return None
            os.close(self._end)
            self._end = None
        return _GONE


class Nursery:
    """Forks processes of one module.

    Parameters
    ----------
    module : str
        Its ``main`` is what a forked process runs, with the words given as its command line.
    imports : sequence of str
        What else to import before the first fork.
    log : Path
        Where the nursery's own output goes.

    Guarantees
    ----------
    A forked process is the head of a session of its own. The nursery reads no key and no record: it
    imports and forks. It ends when this object is closed, or when the process that holds it ends in
    whatever way; what it forked lives on.
    """

    def __init__(self, module: str, imports: Sequence[str], log: Path) -> None:
        self._link, theirs = socket.socketpair()
        name = "carefl_secure.deployment.flower.nursery"
        words = [sys.executable, "-m", name, str(theirs.fileno()), module, *imports]
        with theirs, log.open("ab") as file:
            self._process = subprocess.Popen(
                words,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def fork(self, words: Sequence[str], log: IO[bytes]) -> Forked:
        """Fork a process; its standard input ends when this process does.

        Raises
        ------
        EngineError
            When the nursery has ended.
        """
        heard, told = os.pipe()
        try:
            socket.send_fds(self._link, [json.dumps(list(words)).encode()], [heard, log.fileno()])
            pid = self._link.recv(32)
        except OSError:
            pid = b""
        finally:
            os.close(heard)
        if not pid:
            os.close(told)
            raise EngineError("the process that agents are forked from has ended; read its log")
        return Forked(int(pid), os.fdopen(told, "wb", buffering=0))

    def close(self) -> None:
        """End it, and leave what it forked alone."""
        self._link.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def _serve(link: socket.socket) -> list[str]:
    """Fork for every request; return, in the forked process only, its command line."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        said, numbers, _, _ = socket.recv_fds(link, 1 << 16, 2)
        if not said:
            sys.exit(0)
        if os.fork() == 0:
            break
        for number in numbers:
            os.close(number)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    link.send(str(os.getpid()).encode())  # from here on it can be signalled with its children
    for number, place in zip((*numbers, numbers[1]), (0, 1, 2), strict=True):
        os.dup2(number, place)
    for number in numbers:
        os.close(number)
    link.close()
    return [str(word) for word in json.loads(said)]


def main() -> None:
    """Import, then fork for as long as the other end is there."""
    number, *modules = sys.argv[1:]
    first, *_ = [importlib.import_module(name) for name in modules]
    gc.freeze()  # what is imported stays shared
    sys.argv = [modules[0], *_serve(socket.socket(fileno=int(number)))]
    first.main()


if __name__ == "__main__":
    main()
