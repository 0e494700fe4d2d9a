"""Hundreds of clients on one machine: Flower's simulation on Ray, with the same app and strategy.

Of Flower's three ways to run Ray this engine takes `flwr.simulation.run_simulation`, though it is
deprecated: only there does the ServerApp run in this process, so that ledger and adapter stay here,
no HTTP server is started, and vectors are copied once between actor and server. ``flwr run`` and
``flower-superlink --simulation`` run the ServerApp in another process.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

from flwr.serverapp import Grid

from carefl_secure.config import Config
from carefl_secure.deployment.ray.actor import ActorApp, Order, Work, tasks_of
from carefl_secure.deployment.ray.cluster import RayCluster, require_ray
from carefl_secure.deployment.ray.grid import FlowerSimulation, RayGrid
from carefl_secure.errors import CareflError, EngineError, ProtocolError
from carefl_secure.federation.aggregation.base import Helper
from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.in_process import client_ledger, keep_refusal, make_parties
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.staged import Stage
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.transport.local_grid import Drop, LocalGrid, Record
from carefl_secure.progress import Reporter
from carefl_secure.run_folder import RunFolder


class RayParties:
    """The parties of a run on Ray; helpers keep a key between messages, so they stay in this process."""

    def __init__(self, order: Order, helpers: Sequence[Helper], reporter: Reporter) -> None:
        self._order = order
        self._cluster: RayCluster | None = None
        self._helpers = helpers
        self._reporter = reporter
        self._flower: FlowerSimulation | None = None
        self.cohort = order.cohort
        self.ledgers = [client_ledger(order.spec, index) for index in range(len(order.identities))]

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> Grid:
        """Start Ray and Flower, and wait until every client has answered who it is."""
        clients = len(self._order.identities)
        self._reporter.note(
            f"starting Ray with {workers} actor{'s' if workers > 1 else ''} for {clients} clients; "
            "each loads the model for itself (performance.workers)"
        )
        self._cluster = RayCluster()
        order = dataclasses.replace(self._order, scratch=self._cluster.scratch)
        self._cluster.start(workers, order.spec.plan.encoding.dimension)
        from ray import cloudpickle  # which takes functions that are defined anywhere

        try:
            sent = cloudpickle.dumps(order)
        except (pickle.PicklingError, TypeError) as error:
            raise EngineError(
                f"the run cannot be sent to actors: {error}; give the engine work to make tasks with"
            ) from error
        with open(os.open(order.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(sent)
        near = None
        if self._helpers:
            app = build_client_app(_no_session, self._refused, helpers=self._helper)
            near = LocalGrid(app, clients + len(self._helpers), drop=drop, record=record)
        self._flower = FlowerSimulation(ActorApp(order.file), clients)
        grid = RayGrid(self._flower, clients, near, order.log)
        grid.drop, grid.record = drop, record
        return grid

    def finish(self) -> None:
        """Let Flower end its run; `EngineError` when it does not end well."""
        if self._flower is not None:
            self._flower.finish()

    def close(self) -> None:
        """End every process that was started, and erase the keys made for this run."""
        try:
            if self._cluster and self._flower and not self._flower.ended:
                self._flower.abandon(self._cluster.kill_actors)
        finally:
            if self._cluster is not None:
                self._cluster.stop()
            if self._flower is not None:
                self._flower.close()
                self._flower = None
            for helper in self._helpers:
                helper.close()

    def _helper(self, partition: int) -> Helper | None:
        place = partition - len(self._order.identities)
        return self._helpers[place] if 0 <= place < len(self._helpers) else None

    def _refused(self, partition: int, error: CareflError) -> None:
        keep_refusal(self._order.spec.folder.helper(partition - len(self._order.identities)), error)


class RayEngine:
    """Makes the parties of one run on Ray; `EngineError` when Ray is not installed.

    With ``work`` an actor makes the tasks of all clients, once in its life. Without it the tasks
    themselves are sent, which must then be picklable and small.

    Guarantees
    ----------
    As on every engine: the same checks, ledgers and files, and under predictable noise the same adapter bit for bit,
    as long as the actors compute with as many threads as one process would (a single actor does; several share the
    cores). Processes listen on the loopback only; none outlives `Parties.close`. Memory grows with
    ``performance.workers``, the number of actors, each of which holds the model; there is one by default. Parties are
    simulated, not separated: whoever can read this process can read every client.
    """

    def __init__(self, reporter: Reporter, work: Work | None = None) -> None:
        require_ray()
        self._reporter = reporter
        self._work = work

    @classmethod
    def of(cls, config: Config, reporter: Reporter) -> RayEngine:
        """Return the engine for a configuration."""
        return cls(reporter, functools.partial(tasks_of, config))

    def start(self, spec: RunSpec) -> RayParties:
        """Return the parties; nothing runs before their grid is asked for."""
        clients, cohort, helpers = make_parties(spec)
        work = self._work or functools.partial(_as_given, list(spec.make_tasks()))
        folder = RunFolder(spec.folder.path.resolve(), spec.folder.stage)
        ledgers = None if spec.ledgers is None else spec.ledgers.resolve()
        sent = dataclasses.replace(spec, tasks=_none_here, folder=folder, ledgers=ledgers)
        identities = tuple(key.private_bytes_raw() for key in clients)
        order = Order(sent, cohort, identities, work, directory=Path.cwd(), scratch=Path())
        return RayParties(order, helpers, self._reporter)


def _none_here() -> Sequence[LocalTask]:
    raise EngineError("the tasks of a run on Ray are made by its actors")


def _as_given(tasks: Sequence[LocalTask], stage: Stage, base_hash: bytes) -> Sequence[LocalTask]:
    return tasks


def _no_session(partition: int) -> ClientSession:
    raise ProtocolError(f"partition {partition} is no helper of this run")
