"""Sites in this process: real agents behind real sockets, which can be killed and started again."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import yaml
from flwr.app import Message, RecordDict

from carefl_secure.config import Config, load_config
from carefl_secure.deployment.flower import relay
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.provision import rehearse
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.provisioning.sites import Roster, Sites
from carefl_secure.deployment.site.agent import Agent
from carefl_secure.deployment.site.proposal import Proposal
from carefl_secure.deployment.superlink.parties import Deployed, ProposedRun
from carefl_secure.errors import CareflError
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.privacy import Ledger
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from tests.support.running import federate

CLIENTS, DIMENSION, RECORDS = 4, 60, 10
PEERS = ("query.advertise", "query.share", "train.masked", "query.sign", "query.unmask")
MEMBERS = ("query.committee_announce", "query.committee_open", "query.committee_answer")


@functools.cache  # a plan is frozen, and its noise takes a while to find
def known_plan(unit: str = "record", rounds: int = 3) -> RunPlan:
    return plan_run(
        PlanRequest(
            unit=unit,  # type: ignore[arg-type]
            dimension=DIMENSION,
            clients=CLIENTS,
            rounds=rounds,
            public_records=30 * CLIENTS,
            sample_rate=0.5 if unit == "record" else 0.999999,
            clipping_norm=1.0,
            delta=1e-5,
            target_epsilon=None if unit == "none" else 8.0,
        )
    )


def settings(*words: str) -> Config:
    return load_config(None, ["simulation.dropout=0", f"federation.clients={CLIENTS}", *words])


class Fixed:
    """A task whose records have a unit gradient each."""

    dimension, records = DIMENSION, RECORDS

    def __init__(self, seed: int) -> None:
        gradients = np.random.default_rng(seed).normal(size=(RECORDS, DIMENSION))
        self.gradients = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)

    def clipped_sum(self, adapter: Any, indices: Any, number: int = 1) -> Any:
        return self.gradients[indices].sum(axis=0)


def work(base: bytes = bytes(32)) -> Callable[..., Any]:
    """Stand for `Work`: a site's base hash and task, without a model."""
    return lambda config, plan, index, own, log: SimpleNamespace(base_hash=base, task=Fixed(index))


def signed_anew(proposal: Proposal, bundles: Path) -> RecordDict:
    """Sign a proposal as its submitter would once more, with a run number of its own."""
    key = read_identity(bundles / "submit" / "submit.key")
    return dataclasses.replace(proposal, number=time.time_ns()).message(key)


def make_bundles(root: Path, helpers: int = 0, data: str | None = None) -> Path:
    names = {f"s{i}": data for i in range(CLIENTS)}
    sites = Sites("test", "127.0.0.1", 1, names, tuple(f"h{i}" for i in range(helpers)), days=1)
    rehearse(sites, root / "bundles")
    for path in (root / "bundles" / "sites").iterdir():
        allow(path, max_epsilon_total=100.0, allow_unprotected=True)
    return root / "bundles"


def allow(bundle: Path, **changes: Any) -> None:
    policy = yaml.safe_load((bundle / "policy.yaml").read_text())
    (bundle / "policy.yaml").write_text(yaml.safe_dump({**policy, **changes}))


Fault = Callable[["RunningSite", str, str, str], None]


class RunningSite:
    """What listens at one site: an agent, or for a while none."""

    def __init__(self, bundle: Path, socket: Path, fault: Fault) -> None:
        self.bundle, self.fault = bundle, fault
        self.received: list[tuple[str, str]] = []
        self.agent: Agent | None = None
        self.start()
        threading.Thread(target=Agent.serve, args=(self, socket), daemon=True).start()

    def start(self) -> None:
        self.agent = Agent(SiteBundle.open(self.bundle))

    def kill(self) -> None:
        """Forget all that was in memory, and drop the connection that is being served."""
        self.agent = None
        raise ConnectionResetError

    def answer(self, head: Any, content: Any) -> Any:
        action, group = head["action"], head["group"]
        self.fault(self, "before", action, group)
        if self.agent is None:
            raise ConnectionResetError
        self.received.append((action, group))
        reply = self.agent.answer(head, content)
        self.fault(self, "after", action, group)
        return reply

    def _refused(self, action: str, group: str, error: CareflError) -> Any:
        assert self.agent is not None
        return self.agent._refused(action, group, error)

    @property
    def ledger(self) -> Ledger:
        (path,) = (self.bundle / "ledgers").glob("*.jsonl")
        return Ledger(path)


class PushGrid(LocalGrid):
    """Flower's own Grid in the eyes of a relay or of Ray: messages are pushed, and each reply is pulled once."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._held: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._settle()
        ids = []
        for reply in self._exchanges(messages):
            ids.append(uuid.uuid4().hex if reply is None else reply.metadata.reply_to_message_id)
            if reply is not None:
                self._held[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._held.pop(name) for name in message_ids if name in self._held]


class NoLink:
    """A SuperLink in the eyes of its operator, where there is none: all is well."""

    names: ClassVar = {FIRST_NODE + i: f"s{i}" for i in range(CLIENTS)}

    def submit(self) -> str:
        return "1"

    def finished(self, run: str, patience: float) -> str:
        return "finished:completed"

    def traffic(self) -> dict[int, tuple[int, int]]:
        return {}

    def healthy(self) -> bool:
        return True

    def close(self) -> None:
        pass


class SitesEngine:
    """An engine: every site's relay and agent in threads, with real sockets between them."""

    def __init__(self, bundles: Path, config: Config, sockets: Path, fault: Fault) -> None:
        self.bundles, self.config, self.sockets = bundles, config, sockets
        homes = sorted((bundles / "sites").iterdir(), key=lambda p: (p.name[0] == "h", p.name))
        self.running = [RunningSite(home, sockets / home.name, fault) for home in homes]
        self.folder: RunFolder | None = None

    def start(self, spec: RunSpec) -> Deployed:
        key = read_identity(self.bundles / "submit" / "submit.key")
        grid = PushGrid(relay.client, len(self.running), workers=len(self.running))
        for site, context in zip(self.running, grid._contexts.values(), strict=True):
            context.node_config["agent"] = str(self.sockets / site.bundle.name)
        place = self.sockets / f"server{time.monotonic_ns()}"

        def serve() -> None:
            os.environ[relay.SERVER_SOCKET] = str(place)
            while True:
                try:
                    relay.main(grid, None)  # type: ignore[arg-type]
                    return
                except (FileNotFoundError, ConnectionRefusedError):
                    time.sleep(0.01)  # nobody listens yet
                except (EOFError, OSError):
                    return

        threading.Thread(target=serve, daemon=True).start()
        roster = Roster.read(self.bundles / "server" / "roster.json")
        return Deployed(
            NoLink(),  # type: ignore[arg-type]
            place,
            ProposedRun.of(spec, self.config, roster, key),
            SilentReporter(),
        )

    def run(
        self, plan: RunPlan, root: Path, *, resume: bool = False, **options: Any
    ) -> FederationResult | CareflError:
        """Run, or go on with the last run; return what it ended with."""
        federation = self.config.federation
        if not resume or self.folder is None:
            self.folder = RunFolder.create(root, "")
        try:
            return federate(
                plan,
                [Fixed(i) for i in range(CLIENTS)],
                np.zeros(DIMENSION, np.float32),
                optimizer=FedAvg(1.0),
                folder=self.folder,
                base_hash=bytes(32),
                engine=self,
                resume=resume,
                aggregation=federation.aggregation,
                committee_members=federation.committee_members,
                committee_dropout_tolerance=federation.committee_dropout_tolerance,
                key_prefetch=federation.key_prefetch,
                **options,
            )
        except CareflError as error:
            return error

    @property
    def released(self) -> list[int]:
        """Return how many clients were in every sum that was opened."""
        assert self.folder is not None
        return released(self.folder)


def released(folder: RunFolder) -> list[int]:
    entries = Ledger(folder.ledger).entries() if folder.ledger.exists() else ()
    return [int(e.payload["survivors"]) for e in entries if e.kind == "release"]


def once(moment: str, action: str, group: str, victims: Sequence[str], *, again: bool) -> Fault:
    """Return a fault: kill these sites at one moment of one round, and perhaps start them again."""
    left = set(victims)

    def fault(site: RunningSite, when: str, what: str, where: str) -> None:
        if (when, what, where) == (moment, action, group) and site.bundle.name in left:
            left.remove(site.bundle.name)
            try:
                site.kill()
            finally:
                if again:
                    site.start()

    return fault
