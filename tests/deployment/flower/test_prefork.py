"""Flower's commands forked from a process that has them imported; a SuperNode that asks often."""

from __future__ import annotations

import importlib.metadata
import io
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.supernode import start_client_internal
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from carefl_secure.deployment.flower import prefork, relay, superlink
from carefl_secure.federation.transport import flower_internals
from carefl_secure.federation.transport.flower_internals import TESTED_FLOWER

# A SuperNode and its tools, as far as starting each other goes. What is forked writes who it is.
ACTORS = """\
import importlib.util, os, subprocess, sys, time
spec = importlib.util.spec_from_file_location("prefork", sys.argv.pop(1))
prefork = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prefork)
imported = os.getpid()

def server():
    print("server", os.getpid(), flush=True)
    subprocess.run(["flower-superexec", "--given", "a b"], check=True)
    sys.stdin.read()

def tool():
    print(*sys.argv, imported, os.getpid(), os.getppid(), flush=True)

from carefl_secure.federation.transport import flower_internals
flower_internals.load_commands = lambda *names: {name: tool for name in names} | {"flower-superlink": server}
flower_internals.lock = lambda: None
prefork.main()
"""


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until_gone(pid: int) -> bool:
    end = time.monotonic() + 60
    while not gone(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return gone(pid)


def run_plain(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", prefork.__file__, str(folder), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_waiting_grows_by_a_tenth_and_never_beyond_flowers_own() -> None:
    clock = Clock()
    paced = flower_internals.Paced(lambda: clock.now, clock.sleep)
    began = clock.now
    while clock.now < began + 60:
        before = clock.now
        paced.sleep(3)
        assert clock.now - before <= max(0.1, 0.1 * (before - began)) + 1e-9
    assert clock.slept[0] == 0.1 and max(clock.slept) == 3
    assert len(clock.slept) < 60  # asking every 0.1 s would be ten times as many
    assert paced.monotonic is time.monotonic


def test_work_makes_a_node_attentive_again() -> None:
    clock = Clock()
    paced = flower_internals.Paced(lambda: clock.now, clock.sleep)
    clock.now += 1000
    paced.sleep(3)
    paced.sleep(0.5)  # the wait for an answer
    paced.sleep(3)
    assert clock.slept == [3, 0.05, 0.1]
    paced.sleep(0.01)
    assert clock.slept[-1] == 0.01


def test_only_the_loop_of_the_supernode_is_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_client_internal, "time", time)
    flower_internals.pace()
    assert isinstance(start_client_internal.time, flower_internals.Paced)
    assert time.sleep is start_client_internal.time.__getattr__("sleep")
    with pytest.raises(ImportError, match="does not sleep as it did"):
        flower_internals.pace()  # which is how another Flower would look


def test_this_flower_is_one_that_was_tested() -> None:
    version = importlib.metadata.version("flwr")
    assert any(version.startswith(f"{one}.") for one in TESTED_FLOWER)
    assert set(flower_internals.load_commands(*prefork.SPAWNED)) == set(prefork.SPAWNED)
    with pytest.raises(KeyError):
        flower_internals.load_commands("no-such-command")


RELAY = Path(relay.__file__)


def unpacked(app: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(app)) as opened:
        return {name: opened.read(name) for name in opened.namelist() if not name.startswith(".info")}


def test_no_app_but_the_relay_is_run() -> None:
    """The app of a server, or of whoever reaches its control port, that does more than pass on."""
    app = flower_internals.build_app(RELAY)
    flower_internals.check_app(app, RELAY)
    files = unpacked(app)
    same, _ = build_fab_from_files(dict(files))  # Flower itself makes an app of the same files
    flower_internals.check_app(same, RELAY)
    relayed, about = files["carefl_relay.py"], files["pyproject.toml"]
    others = [
        {"carefl_relay.py": relayed + b"import socket\n"},
        {"more.py": b"import socket\n"},
        {"carefl_relay.py": relayed, "sitecustomize.py": b""},
        {"pyproject.toml": about.replace(b"carefl_relay:client", b"carefl_relay:server")},
        {"pyproject.toml": about.replace(b"dependencies = []", b'dependencies = ["evil"]')},
    ]
    for changed in others:
        fab, _ = build_fab_from_files({**files, **changed})
        with pytest.raises(PermissionError, match="not the relay of the installed package"):
            flower_internals.check_app(fab, RELAY)


def test_flower_unpacks_apps_through_the_check(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path;"
        "from carefl_secure.federation.transport.flower_internals import pin;"
        "pin(Path(sys.argv[1]));"
        "import flwr.supernode.runtime.run_clientapp as run_clientapp;"
        "run_clientapp.install_from_fab(open(sys.argv[2], 'rb').read(), skip_prompt=True)"
    )
    good, bad, other = tmp_path / "good.fab", tmp_path / "bad.fab", tmp_path / "other.py"
    good.write_bytes(flower_internals.build_app(RELAY))
    other.write_text("raise SystemExit\n")
    bad.write_bytes(flower_internals.build_app(other))
    env = superlink.flower_environment(tmp_path / "home")
    words = [sys.executable, "-c", script, str(RELAY)]
    for fab, code in ((good, 0), (bad, 1)):
        done = subprocess.run([*words, str(fab)], env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stderr
        assert ("PermissionError" in done.stderr) == bool(code)
    assert len(list((tmp_path / "home").rglob("carefl_relay.py"))) == 1


@pytest.mark.parametrize("name", ["flower-supernode", "flower-superlink"])
def test_a_server_of_another_flower_is_not_started(tmp_path: Path, name: str) -> None:
    other = (
        "import importlib.metadata as metadata, runpy, sys; sys.argv = sys.argv[1:];"
        "metadata.version = lambda _: '0.9.0';"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = [sys.executable, "-c", other, prefork.__file__, str(tmp_path / "prefork"), name, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"{name} is not started: this was tested with Flower 1.41, 1.42, not 0.9.0" in done.stderr
    assert not (tmp_path / "prefork").exists()


def test_who_does_not_have_the_key_controls_no_superlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any account of the server's machine reaches its port: Flower itself would take its app."""
    from flwr.superlink import main as service

    def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.url.path)

    plain = Starlette(routes=[Route("/{path:path}", answer, methods=["POST", "GET"])])
    monkeypatch.setattr(service, "create_app", lambda: plain)
    key = superlink.control_key(tmp_path)
    assert key.stat().st_mode & 0o777 == 0o600 and superlink.control_key(tmp_path) == key
    monkeypatch.setenv(flower_internals.CONTROL, str(key))
    flower_internals.lock()
    client = TestClient(service.create_app())
    right = {flower_internals._HEADER: key.read_text()}
    for path in ("/v1/control/start-run", "/v1/control/register-node", "/v1/control", "/v1/control%2fstart-run"):
        for headers in ({}, {flower_internals._HEADER: ""}, {flower_internals._HEADER: "0" * 64}):
            assert client.post(path, headers=headers).status_code == 403, path
        assert client.post(path, headers=right).status_code == 200
    assert client.post("/v1/fleet/pull-messages").status_code == 200
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/control/start-run"):
        pass


def test_a_superlink_counts_the_bytes_of_nodes_that_proved_their_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.superlink import main as service

    lengths: list[int] = []

    async def answer(request: Request) -> PlainTextResponse:
        head = f"POST {request.url.path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items()) + "\r\n"
        lengths.append(len(head) + len(await request.body()))
        return PlainTextResponse("x" * 1000, 200 if request.headers["flwr-public-key"] == "a2V5" else 401)

    plain = Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])
    monkeypatch.setattr(service, "create_app", lambda: plain)
    key = superlink.control_key(tmp_path)
    monkeypatch.setenv(flower_internals.CONTROL, str(key))
    flower_internals.lock()
    client = TestClient(service.create_app())
    for name in ("a2V5", "c3RyYW5nZXI="):
        for size in (0, 5000):
            client.post("/v1/fleet/push-object", headers={"flwr-public-key": name}, content=b"y" * size)
    assert client.post("/v1/control/traffic").status_code == 403
    counts = client.post("/v1/control/traffic", headers={flower_internals._HEADER: key.read_text()}).json()
    head = "HTTP/1.1 200 OK\r\ndate: Mon, 30 Nov 2026 14:19:36 GMT\r\nserver: uvicorn\r\n"
    head += "content-length: 1000\r\ncontent-type: text/plain; charset=utf-8\r\n\r\n"
    assert counts == {"a2V5": [sum(lengths[:2]), 2 * (len(head) + 1000)]}


def test_the_process_to_fork_from_has_one_thread() -> None:
    script = (
        "import importlib.util, os, sys;"
        "spec = importlib.util.spec_from_file_location('prefork', sys.argv[1]);"
        "prefork = importlib.util.module_from_spec(spec);"
        "spec.loader.exec_module(prefork);"
        "count = lambda: 40 + len(os.listdir('/proc/self/task'));"
        "prefork._split = lambda _: sys.exit(count());"
        "sys.argv[1:] = ['nowhere', 'flower-supernode'];"
        "prefork.main()"
    )
    done = subprocess.run([sys.executable, "-c", script, prefork.__file__], timeout=120, check=False)
    assert done.returncode == 41


def test_what_a_server_starts_by_name_is_forked_and_ends_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "prefork"
    running = subprocess.Popen(
        [sys.executable, "-c", ACTORS, prefork.__file__, str(folder), "flower-superlink"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdin is not None and running.stdout is not None
    try:
        said = [running.stdout.readline().split() for _ in range(2)]
        (server,) = (words[1] for words in said if words[0] == "server")
        (tool,) = (words for words in said if words[0] != "server")
        assert tool[:4] == ["flower-superexec", "--given", "a", "b"]
        imported, own, source = map(int, tool[4:])
        assert imported == int(server) == running.pid  # nothing was imported a second time
        assert source not in (own, imported)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert wait_until_gone(own) and not gone(source)
    finally:
        running.stdin.close()
        assert running.wait(60) == 0
        running.stdout.close()
    assert wait_until_gone(source)


def test_without_a_process_to_fork_from_the_plain_command_runs(tmp_path: Path) -> None:
    folder = tmp_path / "prefork"
    prefork._listen(folder).close()
    done = subprocess.run(
        [folder / "flower-superexec", "--version"], capture_output=True, text=True, timeout=120, check=True
    )
    assert importlib.metadata.version("flwr") in done.stdout
    assert "starting it anew" in done.stderr
    # The commands that run an app have no such way out: it would be run unchecked.
    for name in ("flwr-clientapp", "flwr-serverapp"):
        done = subprocess.run([folder / name, "--version"], capture_output=True, check=False)
        assert done.returncode == 1 and b"would run any app" in done.stderr


def test_a_server_whose_owner_is_killed_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """Flower's servers do not notice that their owner is gone; their standard input ends with it."""
    deaf = ACTORS.replace("    sys.stdin.read()\n", "    time.sleep(600)\n")
    running = subprocess.Popen(
        [sys.executable, "-c", deaf, prefork.__file__, str(tmp_path / "prefork"), "flower-superlink"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert running.stdin is not None and running.stdout is not None
    said = [running.stdout.readline().split() for _ in range(2)]
    (source,) = (int(words[-1]) for words in said if words[0] != "server")
    running.stdin.close()
    assert running.wait(60) != 0
    running.stdout.close()
    assert wait_until_gone(source)
