"""A whole deployment on this machine: the same kits, agents, TLS and node keys as between sites."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid

from carefl_secure.config import Config
from carefl_secure.errors import ConfigError, EngineError
from carefl_secure.federation.cohort import Aggregation, Cohort, Encryption, helpers_wanted
from carefl_secure.federation.engines.bridge import BridgeGrid
from carefl_secure.federation.engines.certificates import read_identity
from carefl_secure.federation.engines.guard import Guard
from carefl_secure.federation.engines.kit import Roster, Sites, provision
from carefl_secure.federation.engines.processes import Processes, free_port
from carefl_secure.federation.engines.proposal import Proposal, cohort_of, propose
from carefl_secure.federation.engines.signals import interrupt_on_terminate
from carefl_secure.federation.engines.superlink import (
    COMPLETED,
    Link,
    flower_environment,
    node_command,
    start_server,
    write_app,
)
from carefl_secure.federation.folder import RunFolder
from carefl_secure.federation.grid import Drop, Record
from carefl_secure.federation.planning import RunPlan
from carefl_secure.federation.task import LocalTask
from carefl_secure.noise import KeySource
from carefl_secure.privacy import Ledger
from carefl_secure.progress import Reporter

__all__ = ["Deployed", "Loopback", "Pulse"]

_START = 180.0
_AGENT = "carefl_secure.federation.engines.agent"


class Pulse:
    """Raises when a SuperLink has not answered for some time.

    The ServerApp that Flower started can outlive its SuperLink, and asks it for replies for ever.

    Parameters
    ----------
    healthy : callable() -> bool
        Asks it.
    every, patience : float, optional
        Seconds between two questions, and without a good answer before it counts as gone.
    """

    def __init__(
        self, healthy: Callable[[], bool], every: float = 5.0, patience: float = 30.0
    ) -> None:
        self._healthy = healthy
        self._every, self._patience = every, patience
        self._asked = self._well = time.monotonic()

    def __call__(self) -> None:
        """Ask, unless it was asked just now.

        Raises
        ------
        EngineError
            When it is gone.
        """
        now = time.monotonic()
        if now - self._asked < self._every:
            return
        if self._healthy():
            self._well = time.monotonic()
        elif now - self._well > self._patience:
            raise EngineError(
                f"the SuperLink has not answered for {now - self._well:.0f} seconds; start the "
                "server again and resume the run"
            )
        self._asked = time.monotonic()


class Deployed:
    """The parties of a run on a SuperLink; see `Parties`.

    Parameters
    ----------
    link : Link
    socket : Path
        Where the server relay connects to.
    proposal : Proposal
    submitter : Ed25519PrivateKey
    cohort : Cohort
    ledgers : sequence of Ledger
    reporter : Reporter
    scratch : Path
        Folder for the app that is submitted.
    alive : callable() -> None, optional
        Raises when a process that is needed has ended.
    patience : float, optional
        Seconds that the parties get to agree to the run.
    """

    def __init__(
        self,
        link: Link,
        socket: Path,
        proposal: Proposal,
        submitter: Ed25519PrivateKey,
        cohort: Cohort,
        ledgers: Sequence[Ledger],
        reporter: Reporter,
        scratch: Path,
        alive: Callable[[], None] = lambda: None,
        patience: float = _START,
    ) -> None:
        self._patience = patience
        self._link = link
        self._socket = socket
        self._proposal = proposal
        self._submitter = submitter
        self._cohort = cohort
        self._ledgers = ledgers
        self._reporter = reporter
        self._scratch = scratch
        self._alive = alive
        self._bridge: BridgeGrid | None = None
        self._run = ""

    @property
    def cohort(self) -> Cohort:
        """Who takes part."""
        return self._cohort

    @property
    def ledgers(self) -> Sequence[Ledger]:
        """Ledgers of the clients on this machine."""
        return self._ledgers

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> Grid:
        """Submit the relay, wait for its ServerApp and all nodes, and put the run before them."""
        self._bridge = BridgeGrid(self._socket, self._alive)
        self._run = self._link.submit(write_app(self._scratch / "app"))
        self._reporter.note(f"Flower run {self._run}: submitted, waiting for all sites")
        self._bridge.connect(_START)
        parties = len(self._cohort.roster) + len(self._cohort.helpers)
        self._bridge.places = propose(
            self._bridge, self._proposal, self._submitter, parties, self._patience
        )
        self._reporter.note(f"all {parties} parties agreed to the run")
        # From here on a party may be lost, as long as the floor holds; the SuperLink may not.
        self._bridge.alive = Pulse(self._link.healthy)
        self._bridge.drop, self._bridge.record = drop, record
        return self._bridge

    def finish(self) -> None:
        """Let the ServerApp end and ask for the status that Flower lists."""
        if self._bridge is None:
            return
        self._bridge.close()
        self._bridge = None
        status = self._link.finished(self._run, 60)
        if status != COMPLETED:
            raise EngineError(
                f"all rounds are done, but Flower lists its run as {status!r}; the adapter stands "
                "in the run folder; read the SuperLink's log"
            )
        self._reporter.note(f"Flower run {self._run}: {status}")

    def close(self) -> None:
        """Hang up, if the run is not finished; Flower then lists it as failed."""
        if self._bridge is not None:
            self._bridge.abandon()
            self._bridge = None
        self._socket.unlink(missing_ok=True)


class _Local(Deployed):
    """A deployment whose every process was started here; ``end`` stops and erases them."""

    launch: Callable[[], None]
    end: Callable[[], None]

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> Grid:
        """Start every process, then go on as between sites; `close` ends them in any case."""
        self.launch()
        return super().grid(workers, drop, record)

    def close(self) -> None:
        """Hang up, end every process, and erase the keys made for this run."""
        try:
            super().close()
            self._link.close()
        finally:
            self.end()


class Loopback:
    """Starts SuperLink, SuperNodes and agents on this machine for one run.

    Parameters
    ----------
    config : Config
    reporter : Reporter
    nodes : int
        Local sites; as many as the run has clients.

    Raises
    ------
    ConfigError
        When the numbers differ.

    Guarantees
    ----------
    Everything listens on the loopback only, behind TLS with an authority made for this run, and
    only nodes with registered keys are let in. No process that was started here outlives
    `Parties.close`, which also erases all private keys; where this process is killed, a guard does
    both.
    """

    def __init__(self, config: Config, reporter: Reporter, nodes: int) -> None:
        if nodes != config.federation.clients:
            raise ConfigError(
                f"{nodes} local nodes for {config.federation.clients} clients; give as many "
                "--local-nodes as --clients"
            )
        self._config = config
        self._reporter = reporter

    def __call__(
        self,
        plan: RunPlan,
        tasks: Sequence[LocalTask],
        folder: RunFolder,
        base_hash: bytes,
        key_source: Callable[[int], KeySource],
        ledgers: Path | None,
        max_epsilon: float | None,
        *,
        aggregation: Aggregation,
        committee_members: int,
        committee_spare: int,
        encryption: Encryption,
        keys_ahead: bool,
    ) -> Deployed:
        """Start everything and return the parties; on failure nothing is left behind."""
        home = Path(tempfile.mkdtemp(prefix="carefl-"))
        processes = Processes(folder.path / "logs")
        guard = Guard(home)
        restore = interrupt_on_terminate()

        def end() -> None:
            processes.stop()
            shutil.rmtree(home, ignore_errors=True)
            guard.release()
            restore()

        with ExitStack() as undo:
            undo.callback(end)
            deployed = self._start(home, processes, guard, plan, folder, base_hash, ledgers)
            undo.pop_all()
        deployed.end = end
        atexit.register(end)  # keys go even if the run never gets as far as its rounds
        return deployed

    def _start(
        self,
        home: Path,
        processes: Processes,
        guard: Guard,
        plan: RunPlan,
        folder: RunFolder,
        base_hash: bytes,
        ledgers: Path | None,
    ) -> _Local:
        config, port = self._config, free_port()
        kits = home / "kits"
        federation = config.federation
        helpers = helpers_wanted(
            federation.aggregation, federation.committee_members, federation.encryption
        )
        names = [f"site{i}" for i in range(config.federation.clients)]
        sites = Sites(
            "loopback",
            "127.0.0.1",
            port,
            dict.fromkeys(names, None),
            tuple(f"helper{i}" for i in range(helpers)),
            days=1,
        )
        provision(sites, kits)
        paths = [
            folder.client_ledger(i) if ledgers is None else ledgers / f"{i}.jsonl"
            for i in range(len(names))
        ]
        agents = {name: home / f"{i}.sock" for i, name in enumerate([*names, *sites.helpers])}
        for name in agents:
            _own_policy(kits / "sites" / name / "policy.yaml", config, plan)
        socket = home / "server.sock"
        link = Link(f"127.0.0.1:{port}", kits / "server" / "ca.crt", home / "flower")

        def launch() -> None:
            # Its imports take longer than all that Flower does until the agents are needed.
            nursery = processes.nursery(_AGENT, "carefl_secure.federation.setup")
            self._reporter.note(
                f"starting a SuperLink and {len(agents)} SuperNodes on the loopback"
            )
            start_server(processes, kits / "server", "127.0.0.1", port, socket, lasting=False)
            guard.watch(processes.groups)
            link.wait(_START, processes.check)
            link.register([kits / "server" / "nodes" / f"{name}.pub" for name in agents])
            for name, agent in agents.items():
                kit = kits / "sites" / name
                start = node_command(kit, f"127.0.0.1:{port}", agent)
                processes.start(f"node-{name}", start, flower_environment(kit / "flower"))
            guard.watch(processes.groups)
            for name, agent in agents.items():
                words = [str(kits / "sites" / name), str(agent), "--rehearsal", "--until-eof"]
                words += ["--keys", str(folder.keys.resolve())]
                if name in names:
                    words += ["--ledger", str(paths[names.index(name)].resolve())]
                processes.fork(f"agent-{name}", nursery, words)
            guard.watch(processes.groups)

        roster = Roster.read(kits / "server" / "roster.json")
        deployed = _Local(
            link,
            socket,
            Proposal.of(folder.run_id, config, plan, base_hash),
            read_identity(kits / "submit" / "submit.key"),
            cohort_of(config, folder.run_id, roster, base_hash),
            [Ledger(path, {"client": str(i)}) for i, path in enumerate(paths)],
            self._reporter,
            home,
            processes.check,
        )
        deployed.launch = launch
        return deployed


def _own_policy(path: Path, config: Config, plan: RunPlan) -> None:
    """Let a local site allow what its own person just asked for."""
    policy = yaml.safe_load(path.read_text())
    limit = config.privacy.max_epsilon or plan.privacy.target_epsilon or 1.0
    policy["max_epsilon_per_corpus"] = limit
    policy["max_epsilon_total"] = 2 * limit + (plan.privacy.target_epsilon or 0.0)
    policy["max_delta"] = plan.privacy.delta
    policy["allow_unprotected"] = True
    policy["min_clients"] = policy["min_survivors"] = 1
    path.write_text(yaml.safe_dump(policy))
