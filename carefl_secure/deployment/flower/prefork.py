"""Flower's own commands, imported once and forked; the one module that touches Flower's internals.

Flower starts one ``flwr-clientapp`` per message and node, and spends more than a second of a core
on importing itself. Here a process that has imported all of Flower's commands stays next to the
SuperNode, and what the SuperNode starts by name is forked from it.

Internals used, tried on Flower 1.41 and 1.42 (`TESTED_FLOWER`, given on the command line):

* the console scripts that Flower's package lists are called in this process, with their own
  arguments; stand-ins for the commands that a server starts come first on its ``PATH``;
* the module ``time`` in the loop of a SuperNode is replaced by `Paced`;
* ``create_app``, which makes the SuperLink's web application, and the interceptor of the command
  ``flwr`` are given `lock` and `unlock`;
* ``install_from_fab``, with which ``flwr-clientapp`` and ``flwr-serverapp`` unpack the app (FAB)
  that they run, is replaced by `pin`.

With any other Flower neither server starts, because neither the app nor who controls the SuperLink
could be checked. The grids of this package import one more internal, the type `Run`, which Flower's
public abstract class `Grid` asks for.

Run by path, ``python -P prefork.py FOLDER TESTED COMMAND ...``, this file imports only Flower and
the standard library. With the command ``flwr`` alone it answers ``flwr`` commands in turn.

Guarantees
----------
A forked command is a process of its own, with nothing in it of earlier messages, as one that Flower starts itself. It
is forked from a process that never held a key: the two part before the SuperNode reads its own. Only the owner of
``FOLDER`` can have something forked. No app is run but the relay of the installed package, byte for byte. The control
interface of a SuperLink answers nobody but who can read the file that the variable `CONTROL` names; other accounts of
its machine cannot. TLS, node keys and tokens are Flower's, and untouched.
"""

from __future__ import annotations

import gc
import hmac
import importlib
import importlib.metadata
import io
import json
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPAWNED = ("flower-superexec", "flwr-clientapp", "flwr-serverapp")
"""What Flower's servers start by name."""

RELAY = "carefl_relay.py"
COMPONENTS = {"serverapp": "carefl_relay:server", "clientapp": "carefl_relay:client"}
"""The one file of the app that is run, a copy of ``relay.py``, and what Flower calls in it."""

CONTROL = "CAREFL_CONTROL_KEY"
"""The variable that names the file with the key of the SuperLink's control interface."""

_HEADER = "x-carefl-control-key"
_CONTROLLED = "/v1/control"
_INSTALL = "install a tested version of flwr"
_SHIM = """\
import os, socket, sys
try:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect({listener!r})
        link.sendall("\\0".join([{name!r}, *sys.argv[1:]]).encode())
        link.shutdown(socket.SHUT_WR)
        if link.recv(1):
            sys.exit(0)
except OSError:
    pass
if {pinned!r}:
    sys.exit("nothing to fork {name} from, and the plain command would run any app")
sys.stderr.write("nothing to fork {name} from; starting it anew\\n")
os.execv({plain!r}, [{plain!r}, *sys.argv[1:]])
"""
_BIN = Path(sys.executable).parent


def load(*names: str) -> dict[str, Callable[[], object]]:
    """Import Flower's commands by the names its package lists; `KeyError` if one is missing."""
    listed = {one.name: one for one in importlib.metadata.distribution("flwr").entry_points}
    return {name: listed[name].load() for name in names}


class Paced:
    """Replaces the module ``time`` in the loop of a SuperNode, with shorter sleeps.

    An idle node asks again after a tenth of the time it has been idle, between 0.1 second and Flower's own sleep:
    waiting grows by a tenth at most. A node that waits for its app to answer checks its own memory 20 times a second.
    """

    _LEAST, _ANSWER, _IDLE = 0.1, 0.05, 1.0

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._worked = clock()

    def sleep(self, seconds: float) -> None:
        """Sleep for no longer than asked."""
        if seconds < self._IDLE:  # an answer is being waited for
            self._sleep(min(seconds, self._ANSWER))
            self._worked = self._clock()
        else:
            idle = self._clock() - self._worked
            self._sleep(min(seconds, max(self._LEAST, idle / 10)))

    def __getattr__(self, name: str) -> Any:
        """Everything else is the module's own."""
        return getattr(time, name)


def pace() -> None:
    """Let this process's SuperNode sleep as `Paced` does; `ImportError` if Flower's loop moved."""
    from flwr.supernode import start_client_internal as loop

    if vars(loop).get("time") is not time:
        raise ImportError("the SuperNode's loop does not sleep as it did")
    vars(loop)["time"] = Paced()


def check_app(content: bytes) -> None:
    """Refuse, with a `PermissionError`, an app (FAB) that is not the installed package's relay."""
    with zipfile.ZipFile(io.BytesIO(content)) as app:
        known = sorted(app.namelist()) == sorted([".info/CONTENT", "pyproject.toml", RELAY])
        if known and app.read(RELAY) == Path(__file__).with_name("relay.py").read_bytes():
            about = tomllib.loads(app.read("pyproject.toml").decode())
            named = about["tool"]["flwr"]["app"]["components"]
            known = named == COMPONENTS and about["project"].get("dependencies", []) == []
            if known:
                return
    raise PermissionError(
        "this app is not the relay of the installed package, so it is not run; a run between sites "
        "is submitted with carefl-secure submit RUN.yaml, by the same version"
    )


def pin() -> None:
    """Let Flower unpack and run no other app; `ImportError` if it unpacks apps in another way."""
    from flwr.cli.install import install_from_fab as unpack

    def checked(fab: bytes, *others: Any, **options: Any) -> Path:
        check_app(fab)
        return unpack(fab, *others, **options)

    for name in ("supernode.runtime.run_clientapp", "superlink.runtime.run_serverapp"):
        module = importlib.import_module(f"flwr.{name}")
        if vars(module).get("install_from_fab") is not unpack:
            raise ImportError("Flower unpacks apps in another way than it did")
        vars(module)["install_from_fab"] = checked


def _control_key() -> str:
    return Path(os.environ[CONTROL]).read_text("ascii").strip()


class _Locked:
    """A web application (ASGI) whose control interface asks for a key."""

    def __init__(self, app: Any, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not str(scope.get("path", "")).startswith(_CONTROLLED):
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif hmac.compare_digest(dict(scope["headers"]).get(_HEADER.encode(), b""), self._key):
            await self._app(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"the control key of this server is needed"})


def lock() -> None:
    """Let this process's SuperLink ask for the control key; `ImportError` if it is made differently."""
    from flwr.superlink import main as service
    from flwr.superlink.routers.control.router import router

    make, key = service.create_app, _control_key()
    if router.prefix != _CONTROLLED:
        raise ImportError("the control interface of the SuperLink is not where it was")

    def made(*words: Any, **options: Any) -> Any:
        app = make(*words, **options)
        app.add_middleware(_Locked, key=key)  # outside everything of Flower's
        return app

    vars(service)["create_app"] = made


def unlock() -> None:
    """Let the command ``flwr`` show the control key."""
    from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor as Interceptor

    plain, key = Interceptor.intercept, _control_key()

    def intercept(self: Any, context: Any, call_next: Any) -> Any:
        context.request.headers[_HEADER] = key
        return plain(self, context, call_next)

    Interceptor.intercept = intercept  # type: ignore[method-assign]


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
        text = _SHIM.format(listener=str(path), name=name, plain=plain, pinned=pinned)
        script.write_text(text)
        words = shlex.join([sys.executable, "-ISs", str(script)])
        (folder / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (folder / name).chmod(0o700)
    return listener


def _serve(listener: socket.socket, parent: int) -> list[str]:
    """Fork for every caller until ``parent`` closes; return the command line in the fork alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is forked here
    while True:
        ready, _, _ = select.select([listener.fileno(), parent], [], [])
        if parent in ready:
            os._exit(0)
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


def _console() -> list[str]:
    """Answer lines (JSON lists of words) with what ``flwr`` said; return one in the fork alone."""
    answers = os.fdopen(os.dup(1), "w")  # a pipe to whoever asks, and no terminal
    while line := sys.stdin.readline():
        words = ["flwr", *json.loads(line)]
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, write), (2, write)):
                os.dup2(source, number)
            return words
        os.close(write)
        with os.fdopen(read, errors="replace") as stream:
            said = stream.read()
        os.waitpid(child, 0)
        answers.write(json.dumps(said) + "\n")
        answers.flush()
    sys.exit(0)


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
    folder, tested, *words = sys.argv[1:]
    # Nothing here computes, and a process with one thread is the one that forks soundly.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if words == ["flwr"]:
        programs = load("flwr")
        unlock()
        gc.freeze()
        sys.argv = _console()
        sys.exit(programs["flwr"]())  # type: ignore[arg-type]
    version = importlib.metadata.version("flwr")
    if not any(version.startswith(f"{one}.") for one in tested.split(",")):
        sys.exit(f"{words[0]} is not started: this was tested with Flower {tested}, not {version}; {_INSTALL}")
    try:
        pin()
        programs = load(words[0], *SPAWNED)
        {"flower-supernode": pace, "flower-superlink": lock}[words[0]]()
    except (ImportError, KeyError) as error:
        sys.exit(f"{words[0]} is not started: {error}; {_INSTALL}")
    words = _split(Path(folder)) or words
    sys.argv = words
    sys.exit(programs[words[0]]())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
