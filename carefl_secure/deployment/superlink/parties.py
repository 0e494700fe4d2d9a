"""The parties of a deployment as the server sees them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid

from carefl_secure.config import Config
from carefl_secure.deployment.flower.grid import SuperLinkGrid
from carefl_secure.deployment.flower.superlink import COMPLETED, Link
from carefl_secure.deployment.provisioning.sites import Roster
from carefl_secure.deployment.site.proposal import Proposal, cohort_of, propose
from carefl_secure.errors import ConfigError, EngineError
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.run_spec import RunSpec, system_keys
from carefl_secure.federation.transport.local_grid import Drop, Record
from carefl_secure.privacy import Ledger
from carefl_secure.progress import Reporter
from carefl_secure.runs.plan_from_config import aggregation_of

_START = 180.0


def refuse_unfit(spec: RunSpec, config: Config) -> None:
    """Refuse by a `ConfigError` what a specification asks beyond the configuration, which is all agents follow."""
    differs = {
        "stages": bool(spec.stage.name),
        "federation.aggregation": spec.aggregation != aggregation_of(config),
        "privacy.max_epsilon": spec.max_epsilon != config.privacy.max_epsilon,
        "the source of keys": (spec.key_source is system_keys) == config.unsafe_deterministic_noise,
    }
    if named := [name for name, unlike in differs.items() if unlike]:
        raise ConfigError(
            f"agents take {', '.join(named)} from the proposed configuration, which says otherwise "
            "than this run; put it into the configuration, or run with --engine inprocess"
        )


def refuse_stages(config: Config) -> None:
    """Refuse a run in stages: a site takes part in one stage only."""
    if config.stages.spaces:
        raise ConfigError(
            "a run in stages has no SuperLink; leave stages.spaces out, or run with --engine inprocess or ray"
        )


def refuse_workers(workers: int) -> None:
    """Refuse a number of workers: every client of a deployment is a process of its own."""
    if workers != 1:
        raise ConfigError(
            f"performance.workers={workers} has no effect on a SuperLink: all clients work at "
            "the same time; leave it out"
        )


class Pulse:
    """Raises when ``healthy``, asked every ``every`` seconds at most, has failed for ``patience`` seconds."""

    def __init__(self, healthy: Callable[[], bool], every: float = 5.0, patience: float = 30.0) -> None:
        self._healthy = healthy
        self._every, self._patience = every, patience
        self._asked = self._well = time.monotonic()

    def __call__(self) -> None:
        """Ask, unless it was asked just now; `EngineError` when it is gone."""
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


@dataclass(frozen=True)
class ProposedRun:
    """What is put before the parties: the proposal, who signs it, and who takes part."""

    proposal: Proposal
    submitter: Ed25519PrivateKey
    cohort: Cohort

    @classmethod
    def of(cls, spec: RunSpec, config: Config, roster: Roster, submitter: Ed25519PrivateKey) -> ProposedRun:
        """Return what follows from a specification; `PolicyError` where the roster does not fit."""
        run, base_hash = spec.folder.run_id, spec.base_hash
        if spec.server_lr is not None:
            config = config.with_server_lr(spec.server_lr)
        proposal = Proposal.of(run, config, spec.plan, base_hash)
        return cls(proposal, submitter, cohort_of(config, run, roster, base_hash))


class Deployed:
    """The parties of a run on a SuperLink; see `Parties`.

    The server relay connects to ``socket``; ``ledgers`` are those of clients on this machine; ``alive`` raises when a
    needed process has ended; ``patience`` is the seconds that the parties get to agree.
    """

    def __init__(
        self,
        link: Link,
        socket: Path,
        run: ProposedRun,
        reporter: Reporter,
        *,
        ledgers: Sequence[Ledger] = (),
        alive: Callable[[], None] = lambda: None,
        patience: float = _START,
    ) -> None:
        self._link, self._socket, self._proposed = link, socket, run
        self.cohort, self.ledgers = run.cohort, ledgers
        self._reporter, self._alive, self._patience = reporter, alive, patience
        self._grid: SuperLinkGrid | None = None
        self._run = ""

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> Grid:
        """Submit the relay, wait for its ServerApp and all nodes, and put the run before them."""
        refuse_workers(workers)
        self._grid = SuperLinkGrid(self._socket, self._alive)
        self._run = self._link.submit()
        self._reporter.note(f"Flower run {self._run}: submitted, waiting for all sites")
        self._grid.names = self._link.names
        self._grid.connect(_START)
        run, cohort = self._proposed, self.cohort
        parties = len(cohort.roster) + len(cohort.helpers)
        self._grid.places = propose(self._grid, run.proposal, run.submitter, parties, self._patience)
        self._reporter.note(f"all {parties} parties agreed to the run")
        # From here on a party may be lost, as long as min_survivors remain; the SuperLink may not.
        self._grid.alive = Pulse(self._link.healthy)
        self._grid.drop, self._grid.record = drop, record
        self._grid.retrying, self._grid.traffic = self._retrying, self._link.traffic
        return self._grid

    def finish(self) -> None:
        """Let the ServerApp end and ask for the status that Flower lists."""
        if self._grid is None:
            return
        self._grid.close()
        self._grid = None
        status = self._link.finished(self._run, 60)
        if status != COMPLETED:
            raise EngineError(
                f"all rounds are done, but Flower lists its run as {status!r}; the adapter stands "
                "in the run folder; read the SuperLink's log"
            )
        self._reporter.note(f"Flower run {self._run}: {status}")

    def _retrying(self, seconds: float, reason: str) -> None:
        self._reporter.note(f"{reason}; no vector was asked for and nothing charged, so again in {seconds:.0f} s")

    def close(self) -> None:
        """Hang up, if the run is not finished; Flower then lists it as failed."""
        if self._grid is not None:
            self._grid.abandon()
            self._grid = None
        self._socket.unlink(missing_ok=True)
