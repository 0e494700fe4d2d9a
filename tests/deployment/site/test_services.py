"""A site that waits for its server, and says why it cannot take part: clock, disk, processes."""

from __future__ import annotations

import shutil
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from carefl_secure.deployment.flower.superlink import Link, probe
from carefl_secure.deployment.provisioning.certificates import Authority
from carefl_secure.deployment.site import services
from carefl_secure.deployment.site.services import run_node
from carefl_secure.errors import EngineError
from carefl_secure.federation.transport.flower_internals import ControlClient
from tests.support.sites import make_bundles


class Server:
    """What answers at the server's address: a SuperLink, or a proxy with or without one."""

    def __init__(self, home: Path) -> None:
        self.status, self.ahead = 401, 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response_only(outer.status)
                now = datetime.now(UTC) - timedelta(seconds=outer.ahead)
                self.send_header("Date", format_datetime(now, usegmt=True))
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        authority = Authority("here", datetime.now(UTC) + timedelta(hours=1))
        certificate, key = authority.server(["127.0.0.1"])
        (home / "pem").write_bytes(certificate + key)
        self.ca = home / "ca.crt"
        self.ca.write_bytes(authority.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home / "pem")
        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.address = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_a_server_is_there_unless_its_proxy_says_otherwise(server: Server) -> None:
    for status, here in ((401, True), (404, True), (502, False), (503, False), (504, False)):
        server.status = status
        found, ahead = probe(server.address, server.ca)
        assert found == here and abs(ahead) < 2
    server.http.server_close()
    with pytest.raises(ConnectionError):
        probe(server.address, server.ca)


@pytest.mark.parametrize(("ahead", "said"), [(240.0, "2[34].* s ahead of"), (-600.0, "[56].* s b")])
def test_a_clock_that_is_off_is_named(server: Server, ahead: float, said: str) -> None:
    server.ahead = ahead
    with pytest.raises(EngineError, match=f"clock is {said}.*set the clock"):
        services._away(server.address, server.ca)
    server.ahead = 3.0 if ahead > 0 else -290.0
    assert not services._away(server.address, server.ca)


class Node:
    """The SuperNode's half of a site, with a script in the place of Flower's program."""

    def __init__(self, root: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.bundle = make_bundles(root) / "sites" / "s0"
        self.server, self.work, self.starts = server, root / "work", root / "starts"
        self.stays = root / "stays"
        script = f"echo x >> {self.starts}; test -e {self.stays} && exec sleep 60; exit 1"
        monkeypatch.setattr(services.superlink, "node_command", lambda *_: ["sh", "-c", script])
        monkeypatch.setattr(services.superlink, "probe", lambda address, _: probe(address, server.ca))

    def run(self) -> None:
        run_node(self.bundle, self.server.address, self.said.append, only="supernode",
                 socket=self.work / "agent.sock", work=self.work)  # fmt: skip


@pytest.fixture
def node(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, server, monkeypatch)


def passing(monkeypatch: pytest.MonkeyPatch, seconds: int, at: dict[int, Any]) -> None:
    """Let seconds of the site's loop pass quickly, do something at some, and interrupt it."""
    passed = iter(range(seconds))

    def sleep(_: float) -> None:
        threading.Event().wait(0.15)
        second = next(passed, None)
        if second is None:
            raise KeyboardInterrupt
        at.get(second, lambda: None)()

    clock = SimpleNamespace(sleep=sleep, time=lambda: 0.0, monotonic=lambda: 0.0)
    monkeypatch.setattr(services, "time", clock)


def test_a_node_that_gave_up_on_a_proxy_is_started_again_once_the_server_is_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.server.status = 502

    def back() -> None:
        node.stays.touch()
        node.server.status = 401

    passing(monkeypatch, 6, {3: back})
    with pytest.raises(KeyboardInterrupt):
        node.run()
    assert node.starts.read_text() == "x\n" * 2
    assert sum("does not answer; waiting until it does" in one for one in node.said) == 1


def test_a_node_that_ends_although_the_server_is_there_ends_the_site(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing(monkeypatch, 50, {})
    with pytest.raises(EngineError, match="supernode ended with 1"):
        node.run()
    node.server.ahead = 240.0
    with pytest.raises(EngineError, match=r"clock is 2[34]\d s ahead"):
        node.run()


def test_a_disk_that_is_full_is_said_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.stays.touch()
    usage = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=10), rmtree=shutil.rmtree)
    monkeypatch.setattr(services, "shutil", usage)
    passing(monkeypatch, 3, {})
    with pytest.raises(KeyboardInterrupt):
        node.run()
    assert sum("is full, so no round can be charged" in one for one in node.said) == 1


def test_nodes_are_known_by_the_names_of_their_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, held = make_bundles(tmp_path) / "server", dict[bytes, tuple[int, bool]]()

    def register(_: ControlClient, name: str, key: bytes) -> None:
        assert key not in held  # a SuperLink refuses one that it knows
        held[key] = 18446744073709551557 + len(held), name == "s0"

    monkeypatch.setattr(ControlClient, "nodes", lambda _: dict(held))
    monkeypatch.setattr(ControlClient, "register", register)
    names = sorted(path.stem for path in (bundle / "nodes").glob("*.pub"))
    for _ in range(2):  # the second time, the SuperLink knows them already
        link = Link("127.0.0.1:1", bundle)
        assert link.register() == len(names)
        assert sorted(link.names.values()) == names and min(link.names) == 18446744073709551557
    assert link.online() == {name: name == "s0" for name in names}
