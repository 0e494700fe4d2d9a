"""What comes over an agent's socket and is no message: refused or hung up on, then forgotten."""

from __future__ import annotations

import contextlib
import json
import random
import socket as sockets
import struct
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, RecordDict

from carefl_secure.deployment.flower.relay import receive, send
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.site import agent as hearing
from carefl_secure.deployment.site.agent import Agent
from carefl_secure.errors import ProtocolError
from carefl_secure.federation.transport.error_codes import error_of_reply
from carefl_secure.federation.transport.messages import pack
from tests.support import sites as _sites

HEAD = {"action": "query.advertise", "group": "1"}
CONTENT = pack(round=1, plan=bytes(32), peers={0: b"abc", 2: b"d"})


@pytest.fixture
def place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    bundle = SiteBundle.open(_sites.make_bundles(tmp_path) / "sites" / "s0")
    socket = tmp_path_factory.mktemp("s") / "agent"
    threading.Thread(target=Agent(bundle).serve, args=(socket,), daemon=True).start()
    listening(socket)
    yield socket
    # Whatever it was sent, it answers the next one.
    with Client(str(socket), "AF_UNIX") as link:
        send(link, HEAD, [CONTENT])
        refused(link)


def listening(socket: Path) -> None:
    """Wait until an agent is there."""
    end = time.monotonic() + 60
    while True:
        try:
            Client(str(socket), "AF_UNIX").close()
            return
        except (ConnectionRefusedError, FileNotFoundError):
            assert time.monotonic() < end
            time.sleep(0.01)


def refused(link: Connection) -> None:
    head, contents = receive(link)
    assert not contents
    assert isinstance(error_of_reply(Error(head["code"], head["reason"]), "node 1"), ProtocolError)


class Frames:
    """A connection that keeps what is sent."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send_bytes(self, frame: bytes) -> None:
        self.frames.append(frame)


def frames() -> list[bytes]:
    kept: Any = Frames()
    send(kept, HEAD, [CONTENT])
    return list(kept.frames)


@pytest.mark.parametrize("kept", range(len(frames())))
def test_a_message_that_is_cut_off_is_dropped(place: Path, kept: int) -> None:
    with Client(str(place), "AF_UNIX") as link:
        for frame in frames()[:kept]:
            link.send_bytes(frame)
    # And inside a frame: its length says more than comes.
    with sockets.socket(sockets.AF_UNIX) as plain:
        plain.connect(str(place))
        plain.sendall(struct.pack("!i", 1 << 20) + b"abc")


@pytest.mark.parametrize(
    "whole",
    [
        b"",
        b"\0\0\0\0",
        b"\0\0\0\0not json",
        b"\0\0\0\0\xff\xfe",
        b"\0\0\0\0[]",
        b"\0\0\0\0{}",
        b"\0\0\0\0" + b"[" * 100_000,
        *(
            b"\0\0\0\0" + json.dumps(text).encode()
            for text in (
                {"head": [], "contents": [[]]},
                {"head": {}, "contents": []},
                {"head": {}, "contents": [[], []]},
                {"head": {}, "contents": 7},
                {"head": {}, "contents": [[["fields", ["config", [["a", {"blob": 5}]]]]]]},
                {"head": {}, "contents": [[["fields", ["config", [["a", {"no": 5}]]]]]]},
                {"head": {}, "contents": [[["fields", ["config", [["a", None]]]]]]},
                {"head": {}, "contents": [[["fields", ["arrays", [["a", "x", 3, "s", 1]]]]]]},
                {"head": {}, "contents": [[["fields", "config"]]]},
            )
        ),
    ],
)
def test_what_is_no_message_is_refused(place: Path, whole: bytes) -> None:
    with Client(str(place), "AF_UNIX") as link:
        link.send_bytes(whole)
        refused(link)


def test_a_message_with_a_flipped_bit_is_refused_or_dropped(place: Path) -> None:
    rng = random.Random(7)
    for _ in range(60):
        sent = frames()
        which = rng.randrange(len(sent))
        damaged = bytearray(sent[which])
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        sent[which] = bytes(damaged)
        # An agent that has understood enough hangs up in the middle.
        dropped = contextlib.suppress(BrokenPipeError, ConnectionResetError)
        with dropped, Client(str(place), "AF_UNIX") as link:
            for frame in sent:
                link.send_bytes(frame)
            if sent[0][:4] == frames()[0][:4]:  # else it waits for frames that never come
                refused(link)


def test_a_relay_that_stalls_is_hung_up_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "_STALLED", 1)
    with Client(str(place), "AF_UNIX") as stalled:
        stalled.send_bytes(frames()[0])
        with Client(str(place), "AF_UNIX") as link:  # waits for its turn
            send(link, HEAD, [CONTENT])
            refused(link)
        with pytest.raises(EOFError):
            stalled.recv_bytes()


def test_a_socket_left_by_a_killed_agent_is_no_hindrance(place: Path, tmp_path: Path) -> None:
    old = place.with_name("old")
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(old))
    assert old.exists()
    bundle = SiteBundle.open(tmp_path / "bundles" / "sites" / "s1")
    threading.Thread(target=Agent(bundle).serve, args=(old,), daemon=True).start()
    listening(old)
    with Client(str(old), "AF_UNIX") as link:
        send(link, HEAD, [RecordDict()])
        refused(link)
