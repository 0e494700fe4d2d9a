"""All that this package uses of Flower beyond its public interface; no other module touches it.

Tried on Flower 1.41 and 1.42 (`TESTED_FLOWER`); with another version no server is started, because neither the app nor
who controls the SuperLink could be checked. A job of the test workflow tries the newest Flower and reports. Used are:

* an empty `Run`, the process-wide `TaskIdentity` that `Message` reads, and the id that a SuperLink gives a message;
* the console scripts that Flower's package lists, called in this process;
* the module ``time`` in the loop of a SuperNode, which `pace` replaces;
* ``create_app``, which makes the SuperLink's web application, and which `lock` wraps; the header with a node's key;
* ``install_from_fab``, which unpacks the app (FAB) to be run, and which `pin` wraps;
* the control interface of the SuperLink: its paths, and Flower's protobuf messages (`ControlClient`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import importlib
import importlib.metadata
import io
import json
import os
import ssl
import time
import tomllib
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

from carefl_secure.strict_json import load_json

TESTED_FLOWER = ("1.41", "1.42")

RELAY = "carefl_relay.py"
COMPONENTS = {"serverapp": "carefl_relay:server", "clientapp": "carefl_relay:client"}
"""The one file of the app that is run, a copy of ``relay.py``, and what Flower calls in it."""

CONTROL = "CAREFL_CONTROL_KEY"
"""The variable that names the file with the key of the SuperLink's control interface."""

_HEADER = "x-carefl-control-key"
_CONTROLLED = "/v1/control"
_TRAFFIC = f"{_CONTROLLED}/traffic"  # ours
_NODE = b"flwr-public-key"  # in base64; Flower's own check of its signature decides the status of the response
_FIRST_LINES = 73  # bytes of a response's status line, its headers "date" and "server", and its blank line
_PROJECT = Path(__file__).with_name("relay.toml").read_text("utf-8")


def empty_run() -> Run:
    """Return a run without an engine, and let this process build messages for it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return Run.create_empty(run_id=1)


def stamp(message: Message) -> Message:
    """Give a message the id that a SuperLink would have given it, and return it."""
    message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
    return message


def load_commands(*names: str) -> dict[str, Callable[[], object]]:
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


def build_app(relay: Path) -> bytes:
    """Return the app (FAB) that holds the relay and nothing else."""
    components = "".join(f'{name} = "{one}"\n' for name, one in COMPONENTS.items())
    files = {"pyproject.toml": (_PROJECT + components).encode(), RELAY: relay.read_bytes()}
    listed = [f"{name},{hashlib.sha256(text).hexdigest()},{8 * len(text)}" for name, text in files.items()]
    with zipfile.ZipFile(held := io.BytesIO(), "w") as app:
        for name, text in {**files, ".info/CONTENT": "\n".join(listed).encode()}.items():
            app.writestr(zipfile.ZipInfo(name), text)
    return held.getvalue()


def check_app(content: bytes, relay: Path) -> None:
    """Refuse, with a `PermissionError`, an app (FAB) that is not the installed package's ``relay``."""
    with zipfile.ZipFile(io.BytesIO(content)) as app:
        known = sorted(app.namelist()) == sorted([".info/CONTENT", RELAY, "pyproject.toml"])
        if known and app.read(RELAY) == relay.read_bytes():
            about = tomllib.loads(app.read("pyproject.toml").decode())
            named = about["tool"]["flwr"]["app"]["components"]
            if named == COMPONENTS and about["project"].get("dependencies", []) == []:
                return
    raise PermissionError(
        "this app is not the relay of the installed package, so it is not run; a run between sites "
        "is submitted with carefl-secure submit RUN.yaml, by the same version"
    )


def pin(relay: Path) -> None:
    """Let Flower unpack and run no app but ``relay``; `ImportError` if it unpacks apps in another way."""
    from flwr.cli.install import install_from_fab as unpack

    def checked(fab: bytes, *others: Any, **options: Any) -> Path:
        check_app(fab, relay)
        return unpack(fab, *others, **options)

    for name in ("supernode.runtime.run_clientapp", "superlink.runtime.run_serverapp"):
        module = importlib.import_module(f"flwr.{name}")
        if vars(module).get("install_from_fab") is not unpack:
            raise ImportError("Flower unpacks apps in another way than it did")
        vars(module)["install_from_fab"] = checked


class _Locked:
    """A web application (ASGI) whose control interface asks for a key, and which counts the bytes of every node."""

    def __init__(self, app: Any, key: str) -> None:
        self._app, self._key = app, key.encode()
        self._traffic: dict[str, list[int]] = {}  # by public key: bytes that came from the node and went to it

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, headers = str(scope.get("path", "")), dict(scope.get("headers", ()))
        if not path.startswith(_CONTROLLED):
            counted = scope["type"] == "http" and _NODE in headers
            await (self._count if counted else self._app)(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif not hmac.compare_digest(headers.get(_HEADER.encode(), b""), self._key):
            await self._answer(send, 403, b"the control key of this server is needed")
        elif path == _TRAFFIC:
            await self._answer(send, 200, json.dumps(self._traffic).encode())
        else:
            await self._app(scope, receive, send)

    async def _answer(self, send: Any, status: int, body: bytes) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def _count(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on; count it and its response where the node proved its key."""
        up, down, status = len(f"{scope['method']} {scope['path']} HTTP/1.1\r\n\r\n") + _length(scope["headers"]), 0, 0

        async def received() -> Any:
            nonlocal up
            event = await receive()
            up += len(event.get("body", b""))
            return event

        async def sent(event: Any) -> None:
            nonlocal down, status
            status = event.get("status", status)
            down += len(event.get("body", b"")) + _length(event.get("headers", ()))
            await send(event)

        await self._app(scope, received, sent)
        if status == 200:
            count = self._traffic.setdefault(dict(scope["headers"])[_NODE].decode("latin-1"), [0, 0])
            count[0], count[1] = count[0] + up, count[1] + down + _FIRST_LINES


def _length(headers: Any) -> int:
    """Return the bytes of HTTP headers."""
    return sum(len(name) + len(value) + 4 for name, value in headers)


def lock() -> None:
    """Let this process's SuperLink ask for the control key; `ImportError` if it is made differently."""
    from flwr.superlink import main as service
    from flwr.superlink.routers.control.router import router

    make, key = service.create_app, Path(os.environ[CONTROL]).read_text("ascii").strip()
    if router.prefix != _CONTROLLED:
        raise ImportError("the control interface of the SuperLink is not where it was")

    def made(*words: Any, **options: Any) -> Any:
        app = make(*words, **options)
        app.add_middleware(_Locked, key=key)  # outside everything of Flower's
        return app

    vars(service)["create_app"] = made


class ControlClient:
    """Commands to the SuperLink at ``address`` (``host:port``), over TLS, with the control key in the file ``key``.

    Each raises `OSError` or `http.client.HTTPException`, whose text is the SuperLink's own, when it is refused.
    """

    def __init__(self, address: str, ca: Path, key: Path) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._ca, self._key = ca, key

    def _post(self, path: str, body: bytes) -> bytes:
        trust = ssl.create_default_context(cafile=str(self._ca))
        link = http.client.HTTPSConnection(self._host, int(self._port), context=trust, timeout=60)
        media = "application/protobuf"
        headers = {"content-type": media, "accept": media, _HEADER: self._key.read_text("ascii").strip()}
        try:
            link.request("POST", path, body, headers)
            reply = link.getresponse()
            content = reply.read()
        finally:
            link.close()
        if reply.status != 200:
            raise http.client.HTTPException(f"{reply.status} {content[:500].decode(errors='replace')}")
        return content

    def _call(self, command: str, kind: str, **fields: object) -> Any:
        from flwr.proto import control_pb2 as messages

        request = getattr(messages, f"{kind}Request")(**fields)
        reply = self._post(f"{_CONTROLLED}/{command}", request.SerializeToString())
        return getattr(messages, f"{kind}Response").FromString(reply)

    def nodes(self) -> dict[bytes, tuple[int, bool]]:
        """Return number and whether it is online of every registered node, by its public key (PEM)."""
        listed = self._call("list-nodes", "ListNodes").nodes_info
        return {bytes(one.public_key): (int(one.node_id), one.status == "online") for one in listed}

    def register(self, name: str, key: bytes) -> None:
        """Register the node that holds the private half of ``key`` (PEM)."""
        self._call("register-node", "RegisterNode", public_key=key, name=name)

    def start(self, app: bytes) -> str:
        """Start a run of an app (FAB) and return its number."""
        fab = {"hash_str": hashlib.sha256(app).hexdigest(), "content": app}
        return str(self._call("start-run", "StartRun", fab=fab).run_id)

    def status(self, run: str) -> str:
        """Return a run's status, such as ``finished:completed``."""
        found = self._call("list-runs", "ListRuns", run_id=int(run)).run_dict[int(run)].status
        return ":".join(filter(None, (found.status, found.sub_status)))

    def traffic(self) -> dict[bytes, tuple[int, int]]:
        """Return the bytes that came from every node and went to it since the SuperLink started, by key (PEM).

        All of HTTP is counted, heartbeats and requests for work too; what TLS adds is not.
        """
        counts = load_json(self._post(_TRAFFIC, b""))
        return {base64.b64decode(key): (up, down) for key, (up, down) in counts.items()}
