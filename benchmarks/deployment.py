"""What a deployment costs: to start it, an exchange of messages, a round; beside Flower's own way.

    python benchmarks/deployment.py [--quick] [--json]

A SuperLink and three SuperNodes on the loopback, with TLS and node keys, and the real protocol
between peers with a task that costs nothing: ledgers, noise, masks and signatures are those of a
real run. The same is deployed twice, one after the other: as this project starts it, and Flower's
own way, with its own commands, its own intervals and its own ``Grid.send_and_receive``. The sites'
agents are threads of this process, so that every moment is read from one clock; a third row has the
same rounds without any network.

An exchange is everything between a message to every node and the last of their replies. It splits
in three: "out" until a site's agent has the message, "work" until it has answered, "back" until the
reply is here; means over the messages. "waits" is what Flower's idle intervals alone come to, half
of each being lost on average, and is part of out and back.

Bars: a round at least 2.5 times as fast as Flower's own way, and a start no slower. About three
minutes on two cores; ``--quick`` runs fewer rounds.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Client, Listener
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from _bench import Bar, Report, arguments, finish, say
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from carefl_secure.deployment.flower import relay
from carefl_secure.deployment.flower.grid import SuperLinkGrid
from carefl_secure.deployment.flower.processes import Processes, free_port
from carefl_secure.deployment.flower.relay import SERVER_SOCKET, receive, send
from carefl_secure.deployment.flower.superlink import (
    COMPLETED,
    POLL,
    Link,
    control_key,
    flower_environment,
    node_command,
    server_command,
    start_server,
)
from carefl_secure.deployment.provisioning.provision import rehearse
from carefl_secure.deployment.provisioning.site_bundle import node_folder
from carefl_secure.deployment.provisioning.sites import Sites
from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.in_process import Clients
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.server.run import run_federation
from carefl_secure.federation.transport.exchange import wait_for_nodes
from carefl_secure.federation.transport.flower_internals import ControlClient, build_app
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.run_folder import RunFolder

NODES, DIMENSION = 3, 10_000
FASTER, PATIENCE = 2.5, 600.0
NEAR, OURS, THEIRS = "in one process", "ours", "Flower's own way"
WAITS = {OURS: 0.1 + 0.1 + 0.05 + 0.1, THEIRS: 3.0 + 1.0 + 0.5 + 3.0}

_OWN_EXCHANGE = '''

def _exchange(grid, link, head, contents):
    """Flower's own way to ask and to wait."""
    messages = [
        Message(content, int(node), action, group_id=head["group"])
        for content, node, action in zip(contents, head["nodes"], head["actions"])
    ]
    places = {int(node): place for place, node in enumerate(head["nodes"])}
    found = list(grid.send_and_receive(messages, timeout=head["timeout"]))
    answers, bodies = [], []
    for reply in found:
        place = places[reply.metadata.src_node_id]
        if reply.has_error():
            answers.append({"place": place, "code": reply.error.code, "reason": reply.error.reason})
        else:
            answers.append({"place": place, "body": len(bodies)})
            bodies.append(reply.content)
    if answers:
        send(link, {"answers": answers}, bodies)
    send(link, {"answers": []})
'''


class Task:
    """Records whose gradient is one unit vector: no model, all of the protocol."""

    records, dimension = 10, DIMENSION

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        """Return one entry per record."""
        total = np.zeros(DIMENSION)
        total[0] = len(indices)
        return total


class Times:
    """The moments of every message, by exchange: sent, at an agent, answered, and back here."""

    def __init__(self) -> None:
        self.started = self.ready = time.monotonic()
        self._moments: dict[tuple[str, str], list[list[float]]] = {}

    def note(self, step: int, group: str, action: str) -> None:
        """Keep the moment of one step of one message."""
        steps = self._moments.setdefault((group, action), [[], [], [], []])
        steps[step].append(time.monotonic())

    def exchanges(self) -> tuple[int, dict[str, float]]:
        """Return how many there were, and the mean seconds of one and of its parts."""
        found = []
        for sent, came, left, back in self._moments.values():
            moments = [float(np.mean(step)) for step in (sent, came, left, back)]
            found.append([max(back) - min(sent), *np.diff(moments)])
        means = map(float, np.mean(found, axis=0))
        return len(found), dict(zip(("exchange", "out", "work", "back"), means, strict=True))


class Deployment(Clients):
    """The parties of a run whose messages go through a real SuperLink and real SuperNodes."""

    own: bool
    home: Path
    times: Times

    def grid(self, workers: int, drop: Any, record: Any) -> Grid:  # type: ignore[override]
        """Deploy everything, and time it."""
        times, home = self.times, self.home

        def seen(node: int, message: Message) -> None:
            step = 3 if message.metadata.src_node_id == node else 0
            times.note(step, message.metadata.group_id, message.metadata.message_type)

        self._undo = ExitStack()
        processes = Processes(home / "logs")
        self._undo.callback(processes.stop)
        times.started = time.monotonic()
        names, port = [f"site{i}" for i in range(self.nodes)], free_port()
        sites = Sites("bench", "127.0.0.1", port, dict.fromkeys(names), (), days=1)
        rehearse(sites, home / "bundles")
        sockets = [home / f"{place}.sock" for place in range(self.nodes)]
        for place, path in enumerate(sockets):
            agent = (path, _only(self.session(place)), times)
            thread = threading.Thread(target=_serve, args=agent)
            thread.start()
            self._undo.callback(_dismiss, path, thread)
        self._link = self._start(processes, port, names, sockets)
        bridge = SuperLinkGrid(home / "server.sock", processes.check)
        self._undo.callback(bridge.abandon)
        self._run = self._own_run(port) if self.own else self._link.submit()
        bridge.connect(PATIENCE)
        wait_for_nodes(bridge, self.nodes, PATIENCE)
        times.ready = time.monotonic()
        bridge.record = seen
        self._grid = bridge
        return bridge

    def _start(self, processes: Processes, port: int, names: list[str], sockets: list[Path]) -> Link:
        server, home = self.home / "bundles" / "server", self.home
        address, socket = f"127.0.0.1:{port}", home / "server.sock"
        if self.own:
            env = flower_environment(server / "flower", **{SERVER_SOCKET: str(socket)})
            command = server_command(server, "127.0.0.1", port, server / "state.db", home)
            processes.start("superlink", _plain(command), _own(env))
        else:
            start_server(processes, server, "127.0.0.1", port, socket, lasting=False)
        link = Link(address, server)
        link.wait(PATIENCE, processes.check)
        link.register()
        for name, agent in zip(names, sockets, strict=True):
            bundle = home / "bundles" / "sites" / name
            env = flower_environment(bundle / "flower")
            command = node_command(node_folder(bundle), address, agent)
            if self.own:
                command, env = _plain(command), _own(env)
            processes.start(f"node-{name}", command, env)
        return link

    def _own_run(self, port: int) -> str:
        """Submit the relay with Flower's own exchange in it."""
        server, changed = self.home / "bundles" / "server", self.home / "relay.py"
        changed.write_text(Path(relay.__file__).read_text() + _OWN_EXCHANGE)
        control = ControlClient(f"127.0.0.1:{port}", server / "ca.crt", control_key(server))
        return control.start(build_app(changed))

    def finish(self) -> None:
        """Let the ServerApp end, and believe Flower's own status only."""
        self._grid.close()
        status = self._link.finished(self._run, PATIENCE)
        if status != COMPLETED:
            raise RuntimeError(f"Flower lists the run as {status}")

    def close(self) -> None:
        """Stop every process that was started."""
        if hasattr(self, "_undo"):
            self._undo.close()
        super().close()


def _plain(command: Sequence[str]) -> list[str]:
    """Return the command line of Flower's own program, without the process that it is forked from."""
    python, _, _, _, name, *words = command
    return [str(Path(python).with_name(name)), *words]


def _own(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with Flower's own interval."""
    return {name: value for name, value in env.items() if name != POLL}


def _only(session: ClientSession) -> LocalGrid:
    """Return a grid with one client, as an agent has."""
    return LocalGrid(build_client_app(lambda _: session), 1)


def _serve(path: Path, local: LocalGrid, times: Times) -> None:
    """Answer for one site, as an agent does; one who hangs up at once ends it."""
    with Listener(str(path), "AF_UNIX") as listener:
        while True:
            with listener.accept() as link:
                try:
                    head, contents = receive(link)
                except EOFError:
                    return
                group, action = head["group"], head["action"]
                message = Message(contents[0], FIRST_NODE, action, group_id=group)
                times.note(1, group, action)
                (reply,) = local.send_and_receive([message])
                times.note(2, group, action)
                if reply.has_error():
                    send(link, {"code": reply.error.code, "reason": reply.error.reason}, [])
                else:
                    send(link, {}, [reply.content])


def _dismiss(path: Path, thread: threading.Thread) -> None:
    while not path.exists() and thread.is_alive():
        time.sleep(0.01)
    Client(str(path), "AF_UNIX").close()
    thread.join()


def play(name: str, plan: RunPlan) -> dict[str, Any]:
    """Run all rounds one way and return the row of figures."""
    say(f"{name}: {plan.privacy.rounds} rounds with {NODES} nodes")
    times = Times()
    with tempfile.TemporaryDirectory(prefix="carefl-") as root:

        def start(spec: RunSpec) -> Clients:
            if name == NEAR:
                return Clients(spec)
            deployment = Deployment(spec)
            deployment.own, deployment.times = name == THEIRS, times
            deployment.home = Path(root)
            return deployment

        spec = RunSpec(
            stage=Stage.only(plan),
            tasks=lambda: [Task() for _ in range(NODES)],
            folder=RunFolder.create(Path(root), ""),
            base_hash=bytes(32),
        )
        result = run_federation(
            spec, np.zeros(DIMENSION, np.float32), FedAvg(1.0), engine=SimpleNamespace(start=start)
        )
    rounds = [float(row["seconds"]) for row in result.rows]
    row = {"way": name, "rounds": len(rounds), "round_s": float(np.mean(rounds))}
    if name == NEAR:
        return row
    count, means = times.exchanges()
    return {
        **row,
        "start_s": times.ready - times.started,
        "exchanges": count,
        **{f"{part}_s": value for part, value in means.items()},
        "waits_s": WAITS[name],
    }


def main() -> int:
    """Deploy both ways and set the rounds beside those without a network."""
    asked = arguments(__doc__)
    rounds = 2 if asked.quick else 4
    plan = plan_run(
        PlanRequest(
            unit="record",
            dimension=DIMENSION,
            clients=NODES,
            rounds=rounds,
            public_records=10 * NODES,
            sample_rate=0.5,
            clipping_norm=1.0,
            delta=1e-3,
            target_epsilon=8.0,
        )
    )
    near, ours, theirs = (play(name, plan) for name in (NEAR, OURS, THEIRS))
    report = Report("A SuperLink and three SuperNodes on the loopback: TLS, node keys, peers")
    report.rows += [ours, theirs]
    report.notes += [
        "Wall seconds, means over all rounds; out + work + back are means over the messages of an",
        "exchange, which lasts until the last reply. waits: Flower's idle intervals, all added.",
        f"The same rounds in one process: {near['round_s']:.3f} s each.",
    ]
    report.bars += [
        Bar("times faster: a round", theirs["round_s"] / ours["round_s"], FASTER),
        Bar("times faster: an exchange", theirs["exchange_s"] / ours["exchange_s"], FASTER),
        Bar("times faster: the start", theirs["start_s"] / ours["start_s"], 1.0),
    ]
    return finish(report, asked.json)


if __name__ == "__main__":
    sys.exit(main())
