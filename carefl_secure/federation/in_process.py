"""All parties played in one process: keys, ledgers and sessions, and who vanishes in a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message

from carefl_secure.errors import CareflError, ConfigError, LedgerError, ProtocolError
from carefl_secure.federation.aggregation.helper_session import (
    Helper,
    HolderSession,
    MemberSession,
)
from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.cohort import (
    Aggregation,
    Cohort,
    helpers_wanted,
    make_cohort,
)
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport.local_grid import FIRST_NODE, Drop, LocalGrid, Record
from carefl_secure.noise import KeySource
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import RunFolder

__all__ = ["Clients", "ledger_path", "make_parties", "vanishing"]

_LATER = frozenset({"train.masked", "train.submit", "query.sign", "query.unmask"})


class Clients:
    """All clients of a simulated run, and the helpers that its way of summing needs.

    Identity keys are made anew from the operating system's entropy: in a simulation the roster
    lives as long as the process, and a resumed run has another one.

    Parameters
    ----------
    plan : RunPlan
        The agreed plan.
    tasks : sequence of LocalTask
        One per client.
    folder : RunFolder
        Names the run and holds what the clients keep, under ``clients/<index>/``.
    base_hash : bytes
        32 bytes over the frozen base model.
    key_source : callable(int) -> KeySource
        Fresh keys of a client.
    ledgers : Path, optional
        Folder of ledgers that outlive the run, ``<index>.jsonl`` each; ``clients/<index>/`` by
        default.
    max_epsilon : float, optional
        The clients' own limit; the plan's target by default.
    aggregation : {"pairwise", "committee", "encrypted"}, optional
        The way of summing.
    committee_members : int, optional
        Size of the committee, where there is one.
    committee_dropout_tolerance : int, optional
        Members that may vanish once all have announced.
    key_prefetch : bool, optional
        Whether the keys of a round are made on the way of the round before.

    Raises
    ------
    ConfigError
        When the number of tasks is not that of the plan.

    Notes
    -----
    Nodes and ``partition-id`` go on from the clients to the helpers: with n clients, member or key
    holder h has n + h.
    """

    def __init__(
        self,
        plan: RunPlan,
        tasks: Sequence[LocalTask],
        folder: RunFolder,
        base_hash: bytes,
        key_source: Callable[[int], KeySource],
        ledgers: Path | None = None,
        max_epsilon: float | None = None,
        *,
        aggregation: Aggregation = "pairwise",
        committee_members: int = 3,
        committee_dropout_tolerance: int = 0,
        key_prefetch: bool = True,
    ) -> None:
        identities, self.cohort, self.helpers = make_parties(
            plan,
            len(tasks),
            folder.run_id,
            base_hash,
            key_source,
            aggregation=aggregation,
            committee_members=committee_members,
            committee_dropout_tolerance=committee_dropout_tolerance,
            key_prefetch=key_prefetch,
        )
        self._folder = folder
        self._grid: LocalGrid | None = None
        self.ledgers = [
            Ledger(ledger_path(folder, ledgers, index), {"client": str(index)})
            for index in range(len(tasks))
        ]
        self.sessions = [
            ClientSession(
                index,
                identities[index],
                plan,
                self.cohort,
                task,
                self.ledgers[index],
                key_source(index),
                max_epsilon=max_epsilon,
                memory=folder.client_memory(index),
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
        home = self._folder.client(index) if place < 0 else self._folder.helper(place)
        path = home / "refusals.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{type(error).__name__}: {error}\n")

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> LocalGrid:
        """Return the grid that reaches all parties."""
        app = build_client_app(self.session, self.keep_refusal, helpers=self.helper)
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


def make_parties(
    plan: RunPlan,
    tasks: int,
    run: str,
    base_hash: bytes,
    key_source: Callable[[int], KeySource],
    *,
    aggregation: Aggregation,
    committee_members: int,
    committee_dropout_tolerance: int,
    key_prefetch: bool,
) -> tuple[list[Ed25519PrivateKey], Cohort, list[Helper]]:
    """Make the keys of everybody in a simulated run.

    Parameters
    ----------
    plan, base_hash, key_source, aggregation, committee_members, committee_dropout_tolerance, \
    key_prefetch
        As in `Clients`.
    tasks : int
        How many tasks there are for the plan's clients.
    run : str

    Returns
    -------
    tuple
        The clients' private keys, the cohort, and the helpers.

    Raises
    ------
    ConfigError
        When the number of tasks is not that of the plan.
    """
    if tasks != plan.privacy.clients:
        raise ConfigError(f"{tasks} tasks for {plan.privacy.clients} clients; give one each")
    clients = [Ed25519PrivateKey.generate() for _ in range(tasks)]
    wanted = helpers_wanted(aggregation, committee_members)
    private = [Ed25519PrivateKey.generate() for _ in range(wanted)]
    cohort = make_cohort(
        run,
        _public(clients),
        _public(private),
        base_hash,
        aggregation=aggregation,
        committee_dropout_tolerance=committee_dropout_tolerance,
        key_prefetch=key_prefetch,
    )
    helpers: list[Helper] = [
        HolderSession(index, key, plan, cohort)
        if aggregation == "encrypted"
        else MemberSession(index, key, plan, cohort, key_source(tasks + index))
        for index, key in enumerate(private)
    ]
    return clients, cohort, helpers


def _public(private: Sequence[Ed25519PrivateKey]) -> tuple[bytes, ...]:
    return tuple(key.public_key().public_bytes_raw() for key in private)


def ledger_path(folder: RunFolder, ledgers: Path | None, index: int) -> Path:
    """Return where a simulated client's ledger lies, in a folder that exists then."""
    path = folder.client_ledger(index) if ledgers is None else ledgers / f"{index}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"cannot make the ledger folder {path.parent}: {error}") from error
    return path


def vanishing(plan: RunPlan, fraction: float, seed: int) -> tuple[int, Drop]:
    """Choose who vanishes after the key phase of each round.

    Parameters
    ----------
    plan : RunPlan
        Gives clients and floor.
    fraction : float
        Share of the clients, in [0, 1). ``round(fraction * n)`` of them vanish in every round, but
        never so many that fewer than the floor remain.
    seed : int
        The run's seed; who vanishes is part of the simulation and not secret.

    Returns
    -------
    tuple of int and callable
        How many vanish, and the hook for `LocalGrid`.

    Raises
    ------
    ConfigError
        When the share is out of range.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"dropout must lie in [0, 1), not {fraction}")
    clients = plan.privacy.clients
    count = min(round(fraction * clients), clients - plan.privacy.min_survivors)

    def drop(node: int, message: Message) -> bool:
        if message.metadata.message_type not in _LATER:
            return False
        rng = np.random.default_rng([seed, int(message.metadata.group_id)])
        return node - FIRST_NODE in rng.choice(clients, count, replace=False)

    return count, drop
