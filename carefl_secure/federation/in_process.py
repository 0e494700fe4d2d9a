"""All parties played in one process: keys, ledgers and sessions, and who vanishes in a round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message

from carefl_secure.errors import CareflError, LedgerError, ProtocolError
from carefl_secure.federation.aggregation.base import ClientSetup, Helper
from carefl_secure.federation.aggregation.registry import find_protocol
from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.run_spec import RunSpec, Simulation
from carefl_secure.federation.transport.local_grid import FIRST_NODE, Drop, LocalGrid, Record
from carefl_secure.noise import SystemKeySource
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import make_folder, write_atomically

_LATER = frozenset({"train.masked", "train.submit", "query.sign", "query.unmask"})


class InProcess:
    """The engine that plays all parties in this process."""

    def start(self, spec: RunSpec) -> Clients:
        """Return the parties; they are there at once."""
        return Clients(spec)


class Clients:
    """All clients of a simulated run, and the helpers that its aggregation protocol needs.

    Identity keys come anew from the operating system's entropy; a resumed run has another roster. With n clients,
    helper h has node and ``partition-id`` n + h. Raises ConfigError when the number of tasks is not that of the plan.
    """

    def __init__(self, spec: RunSpec) -> None:
        tasks = spec.make_tasks()
        identities, self.cohort, self.helpers = make_parties(spec)
        self._folder = spec.folder
        self._grid: LocalGrid | None = None
        self.ledgers = [client_ledger(spec, index) for index in range(len(tasks))]
        self.sessions = [
            ClientSession(
                ClientSetup(spec.plan, self.cohort, index, identities[index], spec.key_source(index)),
                task,
                self.ledgers[index],
                max_epsilon=spec.max_epsilon,
                memory=spec.folder.client(index),
                storage_key=storage_key(spec, index),
                last_round=spec.stage.offset + spec.plan.privacy.rounds,
            )
            for index, task in enumerate(tasks)
        ]

    @property
    def nodes(self) -> int:
        """How many nodes the grid needs."""
        return len(self.sessions) + len(self.helpers)

    def session(self, index: int) -> ClientSession:
        """Return the session of one client."""
        if not 0 <= index < len(self.sessions):
            raise ProtocolError(f"partition {index} is no client of this run")
        return self.sessions[index]

    def helper(self, index: int) -> Helper | None:
        """Return the helper of one ``partition-id``, or None where that is a client's."""
        place = index - len(self.sessions)
        return self.helpers[place] if 0 <= place < len(self.helpers) else None

    def keep_refusal(self, index: int, error: CareflError) -> None:
        """Write a refusal's own text where only the client or the helper reads it."""
        place = index - len(self.sessions)
        keep_refusal(self._folder.client(index) if place < 0 else self._folder.helper(place), error)

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> LocalGrid:
        """Return the grid that reaches all parties."""
        protocol = self.cohort.aggregation
        app = build_client_app(self.session, self.keep_refusal, helpers=self.helper, protocol=protocol)
        self._grid = LocalGrid(app, self.nodes, workers=workers, drop=drop, record=record)
        return self._grid

    def finish(self) -> None:
        """Do nothing: a run in this process has no status but its own."""

    def close(self) -> None:
        """Stop the nodes and erase every secret that a round left open."""
        if self._grid is not None:
            self._grid.close()
        for session in self.sessions:
            session.close()
        for helper in self.helpers:
            helper.close()


def make_parties(spec: RunSpec) -> tuple[list[Ed25519PrivateKey], Cohort, list[Helper]]:
    """Make a simulated run's keys; return the clients' private keys, the cohort and the helpers."""
    plan, aggregation = spec.plan, spec.aggregation
    count = plan.privacy.clients
    clients = [Ed25519PrivateKey.generate() for _ in range(count)]
    private = [Ed25519PrivateKey.generate() for _ in range(aggregation.helpers)]
    cohort = Cohort(spec.folder.run_id.encode(), _public(clients), spec.base_hash, _public(private), aggregation)
    protocol = find_protocol(cohort.aggregation)
    helpers = [
        protocol.helper(ClientSetup(plan, cohort, index, key, spec.key_source(count + index)))
        for index, key in enumerate(private)
    ]
    return clients, cohort, helpers


def _public(private: Sequence[Ed25519PrivateKey]) -> tuple[bytes, ...]:
    return tuple(key.public_key().public_bytes_raw() for key in private)


def keep_refusal(home: Path, error: CareflError) -> None:
    """Write a refusal's own text to the party's folder, where only the party reads it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "refusals.log").open("a") as file:
        file.write(f"{type(error).__name__}: {error}\n")


def storage_key(spec: RunSpec, index: int) -> bytes | None:
    """Return what seals a simulated client's banded noise; None without such noise.

    Identities are made anew at each start, so the key is a file of mode 0600 next to what it seals: no secrecy gained.
    """
    if spec.plan.privacy.correlation is None:
        return None
    path = spec.folder.client(index) / "storage.key"
    if not path.exists():
        make_folder(path.parent)
        write_atomically(path, SystemKeySource().key("storage"), private=True)
    return path.read_bytes()


def client_ledger(spec: RunSpec, index: int) -> Ledger:
    """Return a simulated client's ledger, in a folder that exists then."""
    path = spec.folder.client_ledger(index) if spec.ledgers is None else spec.ledgers / f"{index}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"cannot make the ledger folder {path.parent}: {error}") from error
    return Ledger(path, {"client": str(index)})


def dropping_out(plan: RunPlan, simulation: Simulation) -> tuple[int, Drop]:
    """Return how many clients drop out of each round, ``min_survivors`` allowing, and `LocalGrid`'s hook for it."""
    clients, seed = plan.privacy.clients, simulation.seed
    count = min(round(simulation.dropout * clients), clients - plan.privacy.min_survivors)

    def drop(node: int, message: Message) -> bool:
        if message.metadata.message_type not in _LATER:
            return False
        rng = np.random.default_rng([seed, int(message.metadata.group_id)])
        return node - FIRST_NODE in rng.choice(clients, count, replace=False)

    return count, drop
