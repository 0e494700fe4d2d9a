"""The sites of a deployment, reached through a SuperLink that runs on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from carefl_secure.config import Config
from carefl_secure.deployment.flower.processes import hold
from carefl_secure.deployment.flower.superlink import Link, ServerAddress
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.sites import REHEARSAL, Roster
from carefl_secure.deployment.site.proposal import SPENDING, VALID, ChargedRounds, next_number
from carefl_secure.deployment.superlink.parties import Deployed, ProposedRun, refuse_stages, refuse_unfit
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.transport.local_grid import Drop, Record
from carefl_secure.progress import Reporter
from carefl_secure.runs.plan_from_config import aggregation_of

PATIENCE = 1800.0
"""Seconds that sites get to agree to a run; in this time each encodes all of its images."""


def check_remote(config: Config, roster: Roster) -> None:
    """Refuse, before loading, what no deployment can run; the `ConfigError` names the setting and what to write."""
    refuse_stages(config)
    if config.federation.public_records is None:
        raise ConfigError(
            "set federation.public_records to the declared number of records of all sites; "
            "a server cannot count what it does not hold"
        )
    if config.unsafe_deterministic_noise:
        raise ConfigError("unsafe_deterministic_noise is for runs on one machine only")
    if config.dropout > 0:
        raise ConfigError(
            "simulation.dropout simulates clients that vanish, and sites would pay for rounds that "
            "it spoils; leave it at 0"
        )
    if config.data.labels == "auto" and config.data.words is None:
        raise ConfigError(
            "declare the labels, because no site may look at another's: name a label space in "
            "data.labels, or list the words in data.words"
        )
    federation, wanted = config.federation, aggregation_of(config).helpers
    if (federation.clients, wanted) != (len(roster.clients), len(roster.helpers)):
        raise ConfigError(
            f"the run wants {federation.clients} clients and {wanted} helpers, and the bundles are "
            f"for {len(roster.clients)} and {len(roster.helpers)}; set federation.clients and "
            "federation.aggregation to what was provisioned"
        )


class _Submitted(Deployed):
    """A run among sites, one at a time by a lock; ``charged`` remembers each round in which a site sent its vector."""

    undo: ExitStack
    charged: ChargedRounds

    def grid(self, workers: int, drop: Drop | None, record: Record | None) -> Grid:
        """Submit the relay; a socket that a crashed submitter left is removed first."""
        if drop is not None:
            raise ConfigError("a dropout is simulated on one machine only, never among sites")
        self._socket.unlink(missing_ok=True)
        seen: set[tuple[int, str]] = set()

        def watch(node: int, message: Message) -> None:
            meta = message.metadata
            if meta.dst_node_id != node and meta.message_type in SPENDING and not message.has_error():
                name, this = self._link.names.get(node), (node, meta.group_id)
                if name is not None and this not in seen:
                    seen.add(this)
                    self.charged.add(name, self._proposed.proposal.run)
            if record is not None:
                record(node, message)

        return super().grid(workers, drop, watch)

    def close(self) -> None:
        """Hang up if the run is not finished, and let the next one in."""
        try:
            super().close()
        finally:
            self.undo.close()


class Remote:
    """Submits to a SuperLink that `carefl-secure server start` runs on this machine.

    ``server`` and ``submit`` are the server's bundle and the submitter's; ``patience`` is the
    seconds that sites get to agree. Raises `ConfigError` when the configuration cannot be run among
    sites, `RunError` for a damaged bundle, `EngineError` when no server runs from the bundle.
    """

    def __init__(
        self, config: Config, reporter: Reporter, server: Path, submit: Path, patience: float = PATIENCE
    ) -> None:
        self._roster = Roster.read(server / "roster.json")
        self._key = read_identity(submit / "submit.key")
        if self._key.public_key().public_bytes_raw() not in self._roster.keys("submitter"):
            raise RunError(f"{submit} is no submitter in the roster of {server}; provision it anew")
        check_remote(config, self._roster)
        if self._roster.rehearsal:
            reporter.note(REHEARSAL)
        self._place = ServerAddress.read(server)
        self._config, self._reporter, self._patience = config, reporter, patience
        self._server, self._submit = server, submit

    def start(self, spec: RunSpec) -> Deployed:
        """Return the parties; `ConfigError` for what only one machine can give, `EngineError` if no server is free."""
        refuse_unfit(spec, self._config)
        if spec.ledgers is not None:
            raise ConfigError("every site keeps its own ledger; leave privacy.ledgers out")
        with ExitStack() as undo:
            taken = f"another run is under way on the server of {self._server}; wait for its end"
            undo.enter_context(hold(self._server / "submit.lock", taken))
            link = Link(self._place.address, self._server)
            link.wait(10)
            run = ProposedRun.of(spec, self._config, self._roster, self._key)
            number = next_number(self._submit)
            until, charged = run.proposal.issued + self._patience + VALID, ChargedRounds(self._submit)
            run = replace(run, proposal=replace(run.proposal, number=number, expires=until, charged=charged.rounds))
            deployed = _Submitted(link, self._place.socket, run, self._reporter, patience=self._patience)
            deployed.undo, deployed.charged = undo.pop_all(), charged
        return deployed
