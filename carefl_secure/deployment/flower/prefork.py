"""Flower's servers run by path, ``python -P prefork.py FOLDER COMMAND ...``, with what they start forked.

Flower starts one ``flwr-clientapp`` per message and node, and spends more than a second of a core on importing itself.
Here a process that has imported all of Flower's commands stays next to the SuperNode, and what the SuperNode starts by
name is forked from it: stand-ins for these commands come first on its ``PATH``.

Guarantees
----------
A forked command is a process of its own, with nothing in it of earlier messages, as one that Flower starts itself. It
is forked from a process that never held a key: the two part before the SuperNode reads its own. Only the owner of
``FOLDER`` can have something forked. No app is run but the relay of the installed package, byte for byte. The control
interface of a SuperLink answers nobody but who can read the file that the variable `CONTROL` names; other accounts of
its machine cannot. TLS, node keys and tokens are Flower's, and untouched. Where standard input is a pipe, its end, as
when the process that holds it is killed, ends the server and all that it started.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import select
import shlex
import shutil
import signal
import socket
import stat
import sys
import time
from pathlib import Path

SPAWNED = ("flower-superexec", "flwr-clientapp", "flwr-serverapp")
"""What Flower's servers start by name."""

_INSTALL = "install a tested version of flwr"
_PATIENCE = 5.0
_SHIM = (Path(__file__).parent / "templates" / "shim.txt").read_text("utf-8")
_BIN = Path(sys.executable).parent


def _listen(folder: Path) -> socket.socket:
    """Make the folder with the socket and with the stand-ins for Flower's commands."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    path = folder / "listener"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    for name in SPAWNED:
        script = folder / f"{name}.py"
        plain, pinned = str(_BIN / name), name != "flower-superexec"
        script.write_text(_SHIM.format(listener=str(path), name=name, plain=plain, pinned=pinned))
        words = shlex.join([sys.executable, "-ISs", str(script)])
        (folder / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (folder / name).chmod(0o700)
    return listener


def _serve(listener: socket.socket, parent: int) -> list[str]:
    """Fork for every caller until ``parent`` closes; return the command line in the fork alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is forked here
    # Only where the server heads the group is the group all its own.
    owner = [0] if stat.S_ISFIFO(os.fstat(0).st_mode) and os.getpgid(0) == os.getppid() else []
    while True:
        ready, _, _ = select.select([listener.fileno(), parent, *owner], [], [])
        if parent in ready:
            os._exit(0)
        if 0 in ready and not os.read(0, 1):
            # The server does not notice that its owner is gone: end it, and all that it started.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)
            time.sleep(_PATIENCE)
            os.killpg(0, signal.SIGKILL)
        if listener.fileno() not in ready:
            continue
        link, _ = listener.accept()
        with link:
            said = b""
            while part := link.recv(4096):
                said += part
            words = said.decode().split("\0")
            if words[0] not in SPAWNED:
                continue
            if os.fork() == 0:
                break
            link.sendall(b"1")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener.close()
    os.close(parent)
    return words


def _split(folder: Path) -> list[str] | None:
    """Part into the process to fork from and the one to go on; return a forked command line."""
    listener = _listen(folder)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
    gc.freeze()  # what is imported stays shared between the processes
    end, held = os.pipe()
    if os.fork() == 0:
        os.close(held)
        return _serve(listener, end)
    os.close(end)
    listener.close()
    return None


def main() -> None:
    """Run one of Flower's servers, and fork what it starts."""
    folder, *words = sys.argv[1:]
    # Nothing here computes, and a process with one thread is the one that forks soundly.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from carefl_secure.federation.transport.flower_internals import TESTED_FLOWER, load_commands, lock, pace, pin

    version = importlib.metadata.version("flwr")
    if not any(version.startswith(f"{one}.") for one in TESTED_FLOWER):
        tested = ", ".join(TESTED_FLOWER)
        sys.exit(f"{words[0]} is not started: this was tested with Flower {tested}, not {version}; {_INSTALL}")
    try:
        pin(Path(__file__).with_name("relay.py"))
        programs = load_commands(words[0], *SPAWNED)
        {"flower-supernode": pace, "flower-superlink": lock}[words[0]]()
    except (ImportError, KeyError) as error:
        sys.exit(f"{words[0]} is not started: {error}; {_INSTALL}")
    words = _split(Path(folder)) or words
    sys.argv = words
    sys.exit(programs[words[0]]())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
