"""Bundles, policy, agents and relays: a whole deployment but for Flower's own processes."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from carefl_secure.config import Config, load_config
from carefl_secure.deployment.engines import choose_engine
from carefl_secure.deployment.flower import relay
from carefl_secure.deployment.flower.grid import SuperLinkGrid
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.provision import rehearse
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.provisioning.sites import Roster, Sites, read_sites
from carefl_secure.deployment.site import agent as agents
from carefl_secure.deployment.site.agent import Agent
from carefl_secure.deployment.site.own_work import refuse_paths
from carefl_secure.deployment.site.proposal import Proposal
from carefl_secure.deployment.superlink.local import Loopback
from carefl_secure.deployment.superlink.parties import Deployed, ProposedRun
from carefl_secure.errors import (
    CohortError,
    ConfigError,
    EngineError,
    PolicyError,
    PrivateRefusalError,
    ProtocolError,
    RunError,
)
from carefl_secure.federation.aggregation.registry import helper_actions
from carefl_secure.federation.client.app import _ACTIONS
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.transport.error_codes import error_of_reply, refusal
from carefl_secure.noise import DeterministicKeySource, KeySource
from carefl_secure.privacy import Ledger
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs import plan_from_config
from tests.support.running import federate
from tests.support.sites import PushGrid

CLIENTS = 4
PlanToy = Callable[..., RunPlan]
TasksToy = Callable[..., list[Any]]


def settings(*words: str) -> Config:
    return load_config(
        None, ["unsafe_deterministic_noise=true", "simulation.dropout=0", f"federation.clients={CLIENTS}", *words]
    )


@functools.cache  # a plan is frozen, and its noise takes a while to find
def known_plan(clients: int, unit: str = "record", rounds: int = 2) -> RunPlan:
    return plan_run(
        PlanRequest(
            unit=unit,  # type: ignore[arg-type]
            dimension=60,
            clients=clients,
            rounds=rounds,
            public_records=30 * clients,
            sample_rate=0.5,
            clipping_norm=1.0,
            delta=1e-5,
            target_epsilon=None if unit == "none" else 8.0,
        )
    )


@pytest.fixture
def plan_toy() -> PlanToy:
    return known_plan


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    sites = Sites("test", "127.0.0.1", 1, {f"s{i}": None for i in range(CLIENTS)}, days=1)
    rehearse(sites, tmp_path / "bundles")
    for path in (tmp_path / "bundles" / "sites").iterdir():
        allow(path, max_epsilon_total=100.0)
    return tmp_path / "bundles"


def allow(bundle: Path, **changes: Any) -> None:
    policy = yaml.safe_load((bundle / "policy.yaml").read_text())
    (bundle / "policy.yaml").write_text(yaml.safe_dump({**policy, **changes}))


def toy_sites(monkeypatch: pytest.MonkeyPatch, plan: RunPlan, tasks: list[Any]) -> None:
    """Let sites follow a toy's plan, with its tasks in place of a model."""

    def work(config: Config, plan: RunPlan, index: int, *_: Any) -> Any:
        return SimpleNamespace(base_hash=bytes(32), task=tasks[index])

    monkeypatch.setattr(agents, "Work", work)
    monkeypatch.setattr(plan_from_config, "plan_with", lambda *_, **__: plan)


def proposal(plan: RunPlan, config: Config, run: str = "a-run") -> Proposal:
    return Proposal.of(run, config, plan, bytes(32))


def submitter(bundles: Path) -> Ed25519PrivateKey:
    return read_identity(bundles / "submit" / "submit.key")


# --- relay ------------------------------------------------------------------------------------


def test_the_relay_passes_on_every_step_that_exists() -> None:
    assert set(relay.ACTIONS) == {relay.PROPOSE, *_ACTIONS, *helper_actions()}


def test_the_bundle_is_the_relay_alone_and_imports_nothing_of_ours() -> None:
    text = Path(relay.__file__).read_text()
    assert "carefl_secure" not in text
    assert len(text.encode()) < 20_000


class Pipe:
    """A connection that is a list."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send_bytes(self, frame: bytes) -> None:
        self.frames.append(frame)

    def recv_bytes(self, most: int) -> bytes:
        if not self.frames:
            raise EOFError
        return self.frames.pop(0)


def test_records_survive_the_socket_bit_for_bit() -> None:
    vector = np.random.default_rng(0).normal(size=7).astype(np.float32)
    vector[0] = np.float32("nan")
    content = RecordDict(
        {"c": ConfigRecord({"i": 2**62, "b": b"\x00\xff", "l": [b"a", b""], "n": [1, -2]}), "a": ArrayRecord([vector])}
    )
    pipe: Any = Pipe()
    relay.send(pipe, {"x": 1}, [content, RecordDict()])
    head, (back, empty) = relay.receive(pipe)
    assert head == {"x": 1}
    assert dict(back["c"]) == dict(content["c"])
    assert back["a"].to_numpy_ndarrays()[0].tobytes() == vector.tobytes()  # type: ignore[union-attr]
    assert not list(empty)
    with pytest.raises(EOFError):
        relay.receive(pipe)


def test_a_record_that_could_carry_figures_is_not_carried() -> None:
    pipe: Any = Pipe()
    with pytest.raises(TypeError):
        relay.send(pipe, {}, [RecordDict({"m": MetricRecord({"loss": 1.0})})])
    assert not pipe.frames


# --- bundles -------------------------------------------------------------------------------------


def test_no_secret_stands_in_any_other_kit(tmp_path: Path) -> None:
    sites = Sites("t", "localhost", 1, {"a": "/d", "b": "/d", "c": None}, ("h",))
    rehearse(sites, tmp_path / "k")
    parties = [*(tmp_path / "k" / "sites").iterdir()]
    homes = [*parties, tmp_path / "k/server", tmp_path / "k/submit"]
    secrets = [(home, path) for home in homes for path in home.rglob("*.key")]
    # Node, identity and runtime key of each of four sites, the server's and the submitter's.
    assert len(secrets) == 4 * 3 + 2
    for home, path in secrets:
        assert path.stat().st_mode & 0o077 == 0
        body = [line for line in path.read_bytes().splitlines() if b"---" not in line]
        # No line of the key, which is 60 characters and more of randomness, is anywhere else;
        # the first line of an OpenSSH key is the same in all keys.
        needle = body[-2] if len(body) > 2 else body[0]
        for other in homes:
            for file in other.rglob("*"):
                if file.is_file() and file != path:
                    assert needle not in file.read_bytes(), (home, file)
    raw = [read_identity(h / "identity.key").private_bytes_raw() for h in parties]
    for place, secret in enumerate(raw):
        for other in homes:
            for file in other.rglob("*"):
                if file.is_file() and file != homes[place] / "identity.key":
                    text = file.read_bytes()
                    assert secret not in text and secret.hex().encode() not in text
    rosters = {Roster.read(home / "roster.json") for home in homes[:-1]}
    assert len(rosters) == 1 and rosters.pop().rehearsal


def test_kits_expire_and_incomplete_ones_are_refused(bundles: Path) -> None:
    path = bundles / "sites" / "s0"
    bundle = SiteBundle.open(path)
    with pytest.raises(RunError, match="expired"):
        SiteBundle.open(path, now=bundle.expires)
    with pytest.raises(RunError, match="choose a new folder"):
        rehearse(Sites("x", "h", 1, {"a": None}), bundles)
    (path / "supernode" / "node.key").unlink()
    with pytest.raises(RunError, match=r"supernode lacks node\.key"):
        SiteBundle.open(path)
    (path / "bundle.json").write_text("{}")
    with pytest.raises(RunError, match=r"bundle\.json: name is missing; role is missing"):
        SiteBundle.open(path)


@pytest.mark.parametrize(
    "text",
    ["[]", "clients: {}", "clients: {a: /x}\nhelpers: [a]", "clients: {submitter: /x}",
     "clients: {a: /x}\nsubmitters: []", "clients: {a: /x}\nport: 0",
     "clients: {a: /x}\nkey: 1", "clients: {'../a': /x}", "clients: {a: /x}\ndays: 0", "a: ["],
)  # fmt: skip
def test_a_wrong_list_of_sites_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sites.yaml").write_text(text)
    with pytest.raises(ConfigError):
        read_sites(tmp_path / "sites.yaml")


# --- agents -----------------------------------------------------------------------------------


def ask(agent: Agent, content: RecordDict, action: str = relay.PROPOSE) -> dict[str, Any]:
    head, _ = agent.answer({"action": action, "group": "1"}, content)
    return head


def error_in(head: dict[str, Any]) -> Exception:
    return error_of_reply(Error(head["code"], head["reason"]), "node 1")


def test_an_agent_answers_no_step_before_a_proposal(bundles: Path) -> None:
    agent = Agent(SiteBundle.open(bundles / "sites/s0"), rehearsal=True)
    for action in relay.ACTIONS[1:]:
        assert isinstance(error_in(ask(agent, RecordDict(), action)), ProtocolError)
    assert not (bundles / "sites/s0/ledgers").exists()


def test_an_agent_refuses_what_its_policy_its_roster_or_its_kit_do_not_allow(
    bundles: Path, plan_toy: PlanToy, tasks_toy: TasksToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_toy(CLIENTS)
    toy_sites(monkeypatch, plan, tasks_toy(CLIENTS, plan.encoding.dimension, 10))
    bundle, key = SiteBundle.open(bundles / "sites/s0"), submitter(bundles)
    good = proposal(plan, settings())

    def refused(agent: Agent, asked: Proposal, by: Ed25519PrivateKey = key) -> str:
        asked = dataclasses.replace(asked, number=time.time_ns())
        error = error_in(ask(agent, asked.message(by)))
        assert isinstance(error, (PolicyError, ProtocolError, PrivateRefusalError)), error
        # Whatever was refused, no round is open.
        assert isinstance(error_in(ask(agent, RecordDict(), "query.advertise")), ProtocolError)
        return error.clause if isinstance(error, PolicyError) else type(error).__name__

    agent = Agent(bundle, rehearsal=True)
    assert ask(agent, good.message(key)) == {}
    assert refused(agent, good, Ed25519PrivateKey.generate()) == "submitter"
    other = dataclasses.replace(good, plan_hash=bytes(32))
    assert refused(agent, other) == "ProtocolError"
    assert refused(agent, proposal(plan, settings("federation.aggregation=committee"))) == "roster"
    # Predictable noise is for rehearsals, whatever else the policy allows.
    allow(bundle.path, allow_unprotected=True)
    assert refused(Agent(bundle), good) == "unprotected"
    allow(bundle.path, max_epsilon_total=7.0)
    assert refused(Agent(bundle, rehearsal=True), good) == "PrivateRefusalError"
    late = dataclasses.replace(bundle, expires=time.time() - 1)
    error = error_in(ask(Agent(late, rehearsal=True), good.message(key)))
    assert isinstance(error, PolicyError) and error.clause == "expired"
    # A signature does not carry over to another proposal.
    signed, forged = good.message(key), proposal(plan, settings(), "b-run").message(key)
    for record in forged.values():
        record["signature"] = next(iter(signed.values()))["signature"]
    error = error_in(ask(agent, forged))
    assert isinstance(error, PolicyError) and error.clause == "submitter"
    log = [json.loads(line) for line in (bundle.path / "agent.jsonl").read_text().splitlines()]
    assert {"time", "run", "action", "round", "code"} == set().union(*log)
    assert (bundle.path / "refusals.log").read_text().count("PolicyError") >= 5


@pytest.mark.parametrize(
    "named",
    [
        "model.base=/srv/models/other",
        "model.base=../models/other",
        "model.base=models",
        "model.prompt=/etc/hostname",
        "model.prompt=prompt.txt",
        "data.source=/srv/images",
    ],
)
def test_no_file_of_the_proposers_choosing_is_opened(named: str) -> None:
    with pytest.raises(PolicyError) as caught:
        refuse_paths(settings(named), own_data=False)
    assert caught.value.clause == "path"
    assert isinstance(error_of_reply(refusal(caught.value), "node 1"), PolicyError)


def test_what_is_no_path_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_paths(settings(), own_data=False)
    refuse_paths(settings("model.base=some-org/some-model", "model.prompt=face"), own_data=False)
    refuse_paths(settings("data.source=/the/sites/own"), own_data=True)
    # A folder that happens to be called like a hub id would be opened in its place.
    (tmp_path / "some-org" / "some-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="path"):
        refuse_paths(settings("model.base=some-org/some-model"), own_data=False)


# --- a whole deployment, without Flower's processes --------------------------------------------


class NoLink:
    """What a SuperLink says to its operator, where there is none: always that all is well."""

    names: Mapping[int, str] = {}

    def submit(self) -> str:
        return "1"

    def healthy(self) -> bool:
        return True

    def finished(self, run: str, patience: float) -> str:
        return "finished:completed"

    def traffic(self) -> dict[int, tuple[int, int]]:
        return {}


class Toy:
    """An engine: agents and relays in threads, with real sockets between them."""

    def __init__(self, bundles: Path, config: Config, sockets: Path) -> None:
        self.bundles, self.config, self.sockets = bundles, config, sockets
        self.agents: list[Agent] = []
        self.threads: list[threading.Thread] = []
        self.failure: list[BaseException] = []
        self.patience = 60.0

    def start(self, spec: RunSpec) -> Deployed:
        folder = spec.folder
        app_grid = PushGrid(relay.client, CLIENTS, workers=CLIENTS)
        for i, context in enumerate(app_grid._contexts.values()):
            bundle = SiteBundle.open(self.bundles / "sites" / f"s{i}")
            agent = Agent(bundle, ledger=folder.client_ledger(i), rehearsal=True)
            path = self.sockets / f"{i}"
            context.node_config["agent"] = str(path)
            threading.Thread(target=agent.serve, args=(path,), daemon=True).start()
            self.agents.append(agent)

        def serve() -> None:
            while not (self.sockets / "server").exists():
                time.sleep(0.01)
            try:
                relay.main(app_grid, None)  # type: ignore[arg-type]
            except (EOFError, OSError) as error:
                self.failure.append(error)

        self.threads.append(threading.Thread(target=serve, daemon=True))
        self.threads[-1].start()
        roster = Roster.read(self.bundles / "server" / "roster.json")
        return Deployed(
            NoLink(),  # type: ignore[arg-type]
            self.sockets / "server",
            ProposedRun.of(spec, self.config, roster, submitter(self.bundles)),
            SilentReporter(),
            patience=self.patience,
        )


@pytest.fixture
def sockets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Path:
    home = tmp_path_factory.mktemp("s")  # a socket's path must be short
    monkeypatch.setenv(relay.SERVER_SOCKET, str(home / "server"))
    return home


def deterministic(index: int) -> KeySource:
    return DeterministicKeySource(b"0/" + str(index).encode())


def run(plan: RunPlan, tasks: list[Any], root: Path, **options: Any) -> Any:
    folder = RunFolder.create(root, "")
    result = federate(
        plan,
        tasks,
        np.zeros(plan.encoding.dimension, np.float32),
        optimizer=FedAvg(1.0),
        folder=folder,
        base_hash=bytes(32),
        key_source=deterministic,
        **options,
    )
    return folder, result


def test_sites_behind_sockets_give_the_adapter_of_one_process_bit_for_bit(
    bundles: Path,
    sockets: Path,
    tmp_path: Path,
    plan_toy: PlanToy,
    tasks_toy: TasksToy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_toy(CLIENTS, rounds=2)
    tasks = tasks_toy(CLIENTS, plan.encoding.dimension, 10)
    toy_sites(monkeypatch, plan, tasks)
    _, near = run(plan, tasks, tmp_path / "near")
    engine = Toy(bundles, settings(), sockets)
    folder, far = run(plan, tasks, tmp_path / "far", engine=engine)
    np.testing.assert_array_equal(near.adapter, far.adapter)
    assert np.any(far.adapter)
    assert [r["epsilon"] for r in near.rows] == [r["epsilon"] for r in far.rows]
    for i in range(CLIENTS):
        assert len(Ledger(folder.client_ledger(i)).events()) == 2
    engine.threads[0].join(10)
    assert not engine.threads[0].is_alive() and not engine.failure
    assert not (sockets / "server").exists()


def test_one_site_that_says_no_stops_the_run_before_anything_is_spent(
    bundles: Path,
    sockets: Path,
    tmp_path: Path,
    plan_toy: PlanToy,
    tasks_toy: TasksToy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_toy(CLIENTS, rounds=2)
    tasks = tasks_toy(CLIENTS, plan.encoding.dimension, 10)
    toy_sites(monkeypatch, plan, tasks)
    allow(bundles / "sites" / "s2", max_epsilon_per_corpus=1.0)
    engine = Toy(bundles, settings(), sockets)
    with pytest.raises(PolicyError, match="more epsilon than the site's policy"):
        run(plan, tasks, tmp_path / "far", engine=engine)
    (folder,) = (tmp_path / "far").iterdir()
    assert not (folder / "ledger.jsonl").exists() or not Ledger(folder / "ledger.jsonl").events()
    assert not list(folder.glob("clients/*/ledger.jsonl"))
    engine.threads[0].join(10)
    assert engine.failure  # the relay was hung up on, which Flower lists as a failed run


def test_a_missing_agent_is_silence_and_too_much_of_it_stops_the_run(
    bundles: Path,
    sockets: Path,
    tmp_path: Path,
    plan_toy: PlanToy,
    tasks_toy: TasksToy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_toy(CLIENTS)
    tasks = tasks_toy(CLIENTS, plan.encoding.dimension, 10)
    toy_sites(monkeypatch, plan, tasks)
    engine = Toy(bundles, settings(), sockets)
    engine.patience = 2.0
    monkeypatch.setattr(relay, "Client", Cut(relay.Client, str(sockets / "1")))
    with pytest.raises(CohortError, match="3 of 4 parties"):
        run(plan, tasks, tmp_path / "far", engine=engine)


class Cut:
    """Connects to every socket but one."""

    def __init__(self, connect: Any, dead: str) -> None:
        self.connect, self.dead = connect, dead

    def __call__(self, path: str, *rest: Any) -> Any:
        if path == self.dead:
            raise ConnectionRefusedError
        return self.connect(path, *rest)


def test_two_servers_cannot_listen_at_one_place(sockets: Path) -> None:
    one = SuperLinkGrid(sockets / "server")
    with pytest.raises(OSError):
        SuperLinkGrid(sockets / "server")
    one.close()


def test_a_bridge_that_lost_its_server_app_says_so(sockets: Path) -> None:
    grid = SuperLinkGrid(sockets / "server")
    with pytest.raises(EngineError, match="did not start"):
        grid.connect(0.0)
    with pytest.raises(EngineError, match="not started"):
        grid.get_node_ids()
    link = relay.Client(str(sockets / "server"), "AF_UNIX")
    grid.connect(5.0)
    link.close()
    with pytest.raises(EngineError, match="is gone"):
        grid.send_and_receive([Message(RecordDict(), 1, "query.role", group_id="1")])
    grid.abandon()


def test_engines_are_chosen_by_name() -> None:
    assert choose_engine("inprocess") is None
    with pytest.raises(ConfigError, match="no engine"):
        choose_engine("mars")
    assert choose_engine("superlink") is Loopback
