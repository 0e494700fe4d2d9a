"""The bytes that are printed for a round, against those that cross the sockets of every site."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carefl_secure.federation.server.run import FederationResult
from carefl_secure.run_folder import RunFolder
from tests.support import deployment as _deployment
from tests.support.federation import toy_plan

CLIENTS, ROUNDS, DIMENSION = _deployment.CLIENTS, 3, 40_960

pytestmark = pytest.mark.slow


class Counter:
    """Passes a site's connections on to the server's port and counts the bytes, TLS included."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.up = self.down = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            threading.Thread(target=self._pass, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, "down"), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        try:
            while data := source.recv(1 << 16):
                setattr(self, way, getattr(self, way) + len(data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, Counter]]]:
    plan = toy_plan(CLIENTS, DIMENSION, rounds=ROUNDS)
    one = _deployment.Deployment(tmp_path_factory.mktemp("logs"), plan)
    counters = {name: Counter(one.port) for name in one.names}
    one.ports = {name: counter.port for name, counter in counters.items()}
    try:
        one.start()
        yield one, counters
    finally:
        one.stop()
        for counter in counters.values():
            counter.close()


def test_the_bytes_of_a_round_are_those_of_every_sites_connections(
    counted: tuple[Any, dict[str, Counter]], tmp_path: Path
) -> None:
    deployment, counters = counted
    folder, seen = RunFolder.create(tmp_path, "", "wire"), list[dict[str, tuple[int, int]]]()

    def crossed() -> dict[str, tuple[int, int]]:
        return {name: (counter.up, counter.down) for name, counter in counters.items()}

    def record(node: int, message: Any) -> None:
        if len(seen) < int(message.metadata.group_id):  # the first message of a round
            seen.append(crossed())

    result = deployment.run(folder, record=record)
    assert isinstance(result, FederationResult), result
    seen.append(crossed())
    lines = [one for one in folder.read_events() if one["event"] == "traffic"]
    assert [one["round"] for one in lines] == list(range(1, ROUNDS + 1))
    packed = deployment.plan.encoding.padded * deployment.plan.encoding.bits / 8
    for number, (line, row) in enumerate(zip(lines, result.rows, strict=True)):
        for name in deployment.names:
            real = [after - before for before, after in zip(seen[number][name], seen[number + 1][name], strict=True)]
            said = line["bytes_up_down"][name]
            print(f"round {number + 1}, {name}: {said} counted by the server, {real} on the connections")
            # TLS adds its records, and the moments of the two readings differ by some requests for work.
            assert said == pytest.approx(real, rel=0.12)
            assert said[0] > packed and said[1] > 4 * DIMENSION
        means = [sum(line["bytes_up_down"][name][way] for name in deployment.names) / CLIENTS for way in (0, 1)]
        assert [row["bytes_up"], row["bytes_down"]] == pytest.approx(means, abs=1)
