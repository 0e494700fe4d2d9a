"""An agent that is killed and started again: at every phase, and against everything it must check.

Agents, relays and sockets are real here; only Flower's own processes are not.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, RecordDict

from carefl_secure.deployment.flower import relay
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.party_keys import plain_fingerprint
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.site import agent as agents
from carefl_secure.deployment.site.accepted_run import Accepted
from carefl_secure.deployment.site.agent import Agent
from carefl_secure.deployment.site.budget import corpus_ledger
from carefl_secure.deployment.site.proposal import Proposal, propose
from carefl_secure.errors import CohortError, ModelError, PolicyError, PrivateRefusalError, ProtocolError, RunError
from carefl_secure.federation.server import strategy
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.federation.transport.error_codes import LOST, error_of_reply
from carefl_secure.federation.transport.local_grid import LocalGrid
from carefl_secure.federation.transport.messages import pack
from carefl_secure.privacy import Ledger
from carefl_secure.runs import plan_from_config as plan_setup
from tests.support import sites as _sites

CLIENTS, PEERS, MEMBERS = _sites.CLIENTS, _sites.PEERS, _sites.MEMBERS
Fault, RunningSite, SitesEngine = _sites.Fault, _sites.RunningSite, _sites.SitesEngine
known_plan, make_bundles, work = _sites.known_plan, _sites.make_bundles, _sites.work
allow, once, released, settings = _sites.allow, _sites.once, _sites.released, _sites.settings

ROUNDS = 3
VICTIM = "s1"
Quiet: Fault = lambda *_: None  # noqa: E731
Maker = Callable[..., SitesEngine]


@pytest.fixture
def found(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Return what founds a engine: bundles, and agents with a toy's work."""

    def make(fault: Fault = Quiet, *words: str, helpers: int = 0, unit: str = "record") -> SitesEngine:
        plan = known_plan(unit, ROUNDS)
        monkeypatch.setattr(agents, "Work", work())
        monkeypatch.setattr(strategy, "_RETRY", 0.2)
        monkeypatch.setattr(plan_setup, "plan_with", lambda *_, **__: plan)
        bundles = make_bundles(tmp_path, helpers)
        return SitesEngine(bundles, settings(*words), tmp_path_factory.mktemp("s"), fault)

    return make


def spends(site: RunningSite) -> int:
    return len(site.ledger.events())


# --- in a run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", ["true", "false"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("action", PEERS)
def test_an_agent_killed_at_any_phase_is_back_in_a_later_round(
    found: Maker, tmp_path: Path, action: str, moment: str, ahead: str
) -> None:
    fault = once(moment, action, "1", [VICTIM], again=True)
    engine = found(fault, f"federation.key_prefetch={ahead}")
    result = engine.run(known_plan("record", ROUNDS), tmp_path / "runs")
    assert isinstance(result, FederationResult), result
    assert len(engine.released) == ROUNDS
    # Out of the sum of its round where its vector did not arrive, and in every sum in the end.
    arrived = action in ("query.sign", "query.unmask")
    assert engine.released[0] == CLIENTS - (not arrived)
    assert engine.released[-1] == CLIENTS
    victim = next(site for site in engine.running if site.bundle.name == VICTIM)
    asked = {group for step, group in victim.received if step == "train.masked"}
    assert spends(victim) >= sum(engine.released) - (CLIENTS - 1) * ROUNDS
    assert spends(victim) <= len(asked)
    for site in engine.running:
        if site is not victim:
            assert spends(site) == ROUNDS
    # No round was begun twice by this site.
    begun = [group for step, group in victim.received if step == "query.advertise"]
    assert len(begun) == len(set(begun))


def test_a_site_whose_agent_is_not_there_yet_is_asked_again(found: Maker, tmp_path: Path) -> None:
    engine = found(once("before", "query.propose", "0", [VICTIM, "s3"], again=True))
    result = engine.run(known_plan("record", ROUNDS), tmp_path / "runs")
    assert isinstance(result, FederationResult), result
    assert engine.released == [CLIENTS] * ROUNDS
    for site in engine.running:  # whoever has agreed is not asked twice
        assert [step for step, _ in site.received].count("query.propose") == 1


def test_sites_that_are_not_there_in_time_end_the_submit(tmp_path: Path) -> None:
    plan = known_plan("record", ROUNDS)
    bundles = make_bundles(tmp_path)
    key = read_identity(bundles / "submit" / "submit.key")
    proposal = Proposal.of("a-run", settings(), plan, bytes(32))
    grid = LocalGrid(relay.client, CLIENTS)  # relays without an agent behind them
    began = time.monotonic()
    grid.names = {7: "hospital-x", **{node: f"s{i}" for i, node in enumerate(grid.get_node_ids())}}
    said = "0 of 4 parties agreed .*agent: site s0, site s1, site s2, site s3; not online: site hospital-x"
    with pytest.raises(CohortError, match=said):
        propose(grid, proposal, key, CLIENTS, 1.5)
    assert time.monotonic() - began >= 1.5


@pytest.mark.parametrize("action", PEERS)
def test_an_agent_that_stays_away_is_done_without(found: Maker, tmp_path: Path, action: str) -> None:
    engine = found(once("before", action, "1", [VICTIM], again=False))
    result = engine.run(known_plan("record", ROUNDS), tmp_path / "runs")
    assert isinstance(result, FederationResult), result
    assert engine.released[1:] == [CLIENTS - 1] * (ROUNDS - 1)


BEFORE_VECTORS = ("query.advertise", "query.share")


@pytest.mark.parametrize("action", BEFORE_VECTORS)
def test_below_min_survivors_before_any_vector_the_next_number_is_tried(
    found: Maker, tmp_path: Path, action: str
) -> None:
    engine = found(once("before", action, "1", ["s0", "s1"], again=True))
    result = engine.run(known_plan("record", ROUNDS), tmp_path / "runs")
    assert isinstance(result, FederationResult), result
    assert engine.folder is not None and engine.released == [CLIENTS] * (ROUNDS - 1)
    # Nobody was charged for the number that was given up, and nobody began it twice.
    assert len(Ledger(engine.folder.ledger).events()) == ROUNDS - 1
    for site in engine.running:
        assert spends(site) == ROUNDS - 1
        begun = [group for step, group in site.received if step == "query.advertise"]
        assert len(begun) == len(set(begun))
    log = [json.loads(line) for line in (engine.folder.path / "logs" / "server.jsonl").read_text().splitlines()]
    named = [line["refused"] for line in log if line["event"] == "phase" and line["round"] == 1 and line["refused"]]
    assert set(named[-1]) == {"s0", "s1"}  # by the sites' names


@pytest.mark.parametrize(("timeout", "tries"), [(0.5, 3), (60.0, 3), (0.3, 2), (0.1, 1)])
def test_parties_that_stay_away_are_waited_for_as_long_as_time_and_numbers_last(
    found: Maker, tmp_path: Path, timeout: float, tries: int
) -> None:
    engine = found(once("before", "query.advertise", "1", ["s0", "s1"], again=False))
    result = engine.run(known_plan("record", ROUNDS), tmp_path / "runs", timeout=timeout)
    assert isinstance(result, CohortError), result
    assert engine.folder is not None and not engine.folder.ledger.exists()
    there = next(site for site in engine.running if site.bundle.name == "s3")
    assert [group for step, group in there.received if step == "query.advertise"] == ["1", "2", "3"][:tries]


@pytest.mark.parametrize("action", [one for one in PEERS if one not in BEFORE_VECTORS])
def test_below_min_survivors_nothing_is_opened_and_the_run_can_be_resumed(
    found: Maker, tmp_path: Path, action: str
) -> None:
    plan = known_plan("record", ROUNDS)
    engine = found(once("before", action, "1", ["s0", "s1"], again=True))
    result = engine.run(plan, tmp_path / "runs")
    assert isinstance(result, CohortError), result
    assert engine.released == []
    assert engine.folder is not None
    assert engine.folder.read_checkpoint()["round"] == 0
    assert set(engine.folder.read_checkpoint()["adapter"].tolist()) == {0.0}  # type: ignore[union-attr]
    paid = len(Ledger(engine.folder.ledger).events()) if engine.folder.ledger.exists() else 0
    assert paid == 1
    again = engine.run(plan, tmp_path / "runs", resume=True)
    assert isinstance(again, FederationResult), again
    # What was paid for and lost is not run again.
    assert engine.released == [CLIENTS] * (ROUNDS - paid)
    assert len(Ledger(engine.folder.ledger).events()) == ROUNDS
    assert all(spends(site) <= ROUNDS for site in engine.running)


@pytest.mark.parametrize("action", MEMBERS)
def test_a_committee_member_lost_ends_the_run_or_with_a_spare_does_not(
    found: Maker, tmp_path: Path, action: str
) -> None:
    plan = known_plan("record", ROUNDS)
    words = ("federation.aggregation=committee", "federation.committee_members=3")
    engine = found(once("before", action, "1", ["h1"], again=True), *words, helpers=3)
    first = engine.run(plan, tmp_path / "runs")
    if action == MEMBERS[0]:  # no vector was asked for, so the next number is tried
        assert isinstance(first, FederationResult) and engine.released == [CLIENTS] * (ROUNDS - 1)
        return
    assert isinstance(first, CohortError)
    assert engine.released == []
    again = engine.run(plan, tmp_path / "runs", resume=True)
    assert isinstance(again, FederationResult), again
    assert engine.released == [CLIENTS] * len(again.rows)


@pytest.mark.parametrize("action", MEMBERS[1:])
def test_a_spare_member_is_back_in_a_later_round(found: Maker, tmp_path: Path, action: str) -> None:
    words = ("federation.aggregation=committee", "federation.committee_members=3")
    engine = found(
        once("before", action, "1", ["h1"], again=True), *words, "federation.committee_dropout_tolerance=1", helpers=3
    )
    for site in engine.running:
        allow(site.bundle, max_committee_dropout_tolerance=1)
    result = engine.run(known_plan("record", ROUNDS), tmp_path / "runs")
    assert isinstance(result, FederationResult), result
    assert engine.released == [CLIENTS] * ROUNDS
    back = next(site for site in engine.running if site.bundle.name == "h1")
    assert (MEMBERS[2], str(ROUNDS)) in back.received


@pytest.mark.parametrize("action", ["query.holder_key", "query.open_sum"])
def test_without_the_key_holder_nothing_is_opened_and_the_run_can_be_resumed(
    found: Maker, tmp_path: Path, action: str
) -> None:
    plan = known_plan("record", ROUNDS)
    fault = once("before", action, "1", ["h0"], again=True)
    engine = found(fault, "federation.aggregation=encrypted", helpers=1)
    first = engine.run(plan, tmp_path / "runs")
    if action == "query.holder_key":
        assert isinstance(first, FederationResult) and engine.released == [CLIENTS] * (ROUNDS - 1)
        return
    assert isinstance(first, CohortError)
    assert engine.released == []
    again = engine.run(plan, tmp_path / "runs", resume=True)
    assert isinstance(again, FederationResult), again
    assert engine.released == [CLIENTS] * (ROUNDS - 1)


def test_another_corpus_that_spends_in_the_meantime_stops_the_next_round(found: Maker, tmp_path: Path) -> None:
    plan = known_plan("record", ROUNDS)

    def fault(site: RunningSite, when: str, what: str, where: str) -> None:
        if (when, what, where) == ("before", "train.masked", "2") and site.bundle.name == VICTIM:
            other = Ledger(site.bundle / "ledgers" / "another.jsonl", {"client": VICTIM})
            assert plan.event is not None
            other.spend(plan.event, 1e6, plan.privacy.delta)
            allow(site.bundle, max_epsilon_total=100.0)

    engine = found(fault)
    victim = engine.bundles / "sites" / VICTIM
    allow(victim, max_epsilon_total=plan.privacy.target_epsilon or 0.0)
    result = engine.run(plan, tmp_path / "runs")
    # it refuses from then on: a dropout of each round, that the others go on without
    assert isinstance(result, FederationResult), result
    assert engine.released == [CLIENTS, CLIENTS - 1, CLIENTS - 1]
    site = next(site for site in engine.running if site.bundle.name == VICTIM)
    (own,) = [p for p in (victim / "ledgers").glob("*.jsonl") if p.stem != "another"]
    assert len(Ledger(own).events()) == 1
    assert "over max_epsilon_total" in (victim / "refusals.log").read_text()
    assert site.bundle.name == VICTIM


# --- an agent alone -----------------------------------------------------------------------------


class Site:
    """One site, spoken to by its test as a relay would."""

    def __init__(self, bundles: Path, plan: Any, run: str = "a-run") -> None:
        self.bundles, self.path, self.plan = bundles, bundles / "sites" / VICTIM, plan
        self.proposal = Proposal.of(run, settings(), plan, bytes(32))
        self.agent = self.open()

    def open(self) -> Agent:
        self.agent = Agent(SiteBundle.open(self.path))
        return self.agent

    def ask(self, content: RecordDict, action: str, group: str = "1") -> Any:
        head, contents = self.agent.answer({"action": action, "group": group}, content)
        return error_of_reply(Error(head["code"], head["reason"]), "node 1") if head else contents[0]

    def propose(self) -> Any:
        return self.ask(_sites.signed_anew(self.proposal, self.bundles), "query.propose")

    def advertise(self, number: int) -> Any:
        hello = pack(round=number, plan=self.plan.hash())
        return self.ask(hello, "query.advertise", str(number))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    plan = known_plan("record", ROUNDS)
    monkeypatch.setattr(agents, "Work", work())
    monkeypatch.setattr(plan_setup, "plan_with", lambda *_, **__: plan)
    return Site(make_bundles(tmp_path), plan)


def test_a_round_is_begun_once_also_by_the_next_agent(site: Site) -> None:
    assert isinstance(site.propose(), RecordDict)
    assert isinstance(site.advertise(2), RecordDict)
    for _ in range(2):
        site.open()
        for number in (1, 2):
            error = site.advertise(number)
            assert isinstance(error, ProtocolError), error
        assert isinstance(site.advertise(3), RecordDict)
        for number in (3, 4):  # begun, and beyond the plan of three rounds
            assert isinstance(site.advertise(number), ProtocolError)
        site.open()
        assert isinstance(site.advertise(3), ProtocolError)
        # A submitter that proposes the run anew begins it anew: rounds are then paid for anew.
        assert isinstance(site.propose(), RecordDict)
        assert isinstance(site.advertise(2), RecordDict)


def test_a_round_whose_secrets_are_gone_is_met_with_silence(site: Site) -> None:
    site.propose()
    site.advertise(1)
    site.open()
    for action in ("query.share", "train.masked", "query.sign", "query.unmask"):
        head, contents = site.agent.answer({"action": action, "group": "1"}, RecordDict())
        assert (head["code"], contents) == (LOST, [])
    head, _ = site.agent.answer({"action": "query.no_such_step", "group": "1"}, RecordDict())
    assert head["code"] != LOST
    assert not list((site.path / "ledgers").glob("*.jsonl"))
    # Once a round has begun, a step out of order is refused like any other.
    assert isinstance(site.advertise(2), RecordDict)
    assert isinstance(site.ask(RecordDict(), "query.unmask"), ProtocolError)


def test_nothing_secret_is_kept_and_nobody_else_may_read_it(site: Site) -> None:
    site.propose()
    site.advertise(1)
    kept = site.path / "accepted.json"
    assert kept.stat().st_mode & 0o077 == 0
    assert set(json.loads(kept.read_text())) == {"proposal", "submitter", "signature", "round", "numbers"}


def test_all_that_is_the_sites_own_is_checked_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.propose()
    site.advertise(1)

    allow(site.path, allowed_plans=["00" * 32])
    site.open()
    error = site.advertise(2)
    assert isinstance(error, PolicyError) and error.clause == "plan", error
    allow(site.path, allowed_plans=[], submitters=[])
    site.open()
    error = site.advertise(2)
    assert isinstance(error, PolicyError) and error.clause == "submitter", error
    key = read_identity(site.bundles / "submit" / "submit.key").public_key()
    allow(site.path, submitters=[key.public_bytes_raw().hex()])

    other = known_plan("record", ROUNDS + 1)
    monkeypatch.setattr(plan_setup, "plan_with", lambda *_, **__: other)
    site.open()
    assert isinstance(site.advertise(2), ProtocolError)
    monkeypatch.setattr(plan_setup, "plan_with", lambda *_, **__: site.plan)
    monkeypatch.setattr(agents, "Work", work(bytes([1]) * 32))
    site.open()
    assert isinstance(site.advertise(2), ModelError)
    monkeypatch.setattr(agents, "Work", work())

    site.open()
    assert isinstance(site.advertise(2), RecordDict)


def test_a_ledger_is_looked_at_again(site: Site) -> None:
    site.propose()
    path = site.agent._party._budget._ledger.path  # type: ignore[union-attr]
    ledger = Ledger(path, {"client": VICTIM})
    paid = {"run": site.proposal.run, "round": 1}
    ledger.spend(site.plan.event, 8.0, site.plan.privacy.delta, paid)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"torn')
    site.open()
    assert isinstance(site.advertise(1), PrivateRefusalError)  # a torn line is not cut off unasked
    ledger.recover()
    site.open()
    assert isinstance(site.advertise(1), RecordDict)
    assert len(ledger.events()) == 1
    path.write_bytes(whole.replace(b'"spend"', b'"note" ', 1))
    site.open()
    assert isinstance(site.advertise(2), PrivateRefusalError)


def test_a_stranger_does_not_end_the_run_in_progress(site: Site) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    site.propose()
    site.advertise(1)
    stranger = Ed25519PrivateKey.generate()
    error = site.ask(site.proposal.message(stranger), "query.propose")
    assert isinstance(error, PolicyError) and error.clause == "submitter"
    garbled = site.proposal.message(stranger)
    garbled["fields"]["signature"] = bytes(64)  # type: ignore[index]
    assert isinstance(site.ask(garbled, "query.propose"), PolicyError)
    assert isinstance(site.advertise(2), RecordDict)


def test_a_second_run_takes_the_place_of_the_first(site: Site) -> None:
    site.propose()
    site.advertise(1)
    first = site.plan
    second = Site(site.bundles, first, "b-run")
    second.agent = site.agent
    assert isinstance(second.propose(), RecordDict)
    site.open()
    kept = Accepted(site.path / "accepted.json")
    assert kept.proposal is not None and kept.last == -1
    proposal, _ = Proposal.read(kept.proposal)
    assert proposal.run == "b-run"
    # The round of the first run that was open is met with silence.
    head, _ = site.agent.answer({"action": "query.unmask", "group": "1"}, RecordDict())
    assert head["code"] == LOST


def test_a_damaged_memory_says_what_to_do(site: Site) -> None:
    site.propose()
    (site.path / "accepted.json").write_text("{")
    with pytest.raises(RunError, match="restore it from a backup"):
        site.open()


def test_a_full_disk_under_the_memory_sends_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from carefl_secure.deployment.site import accepted_run as accepted

    def full(*_: object, **__: object) -> None:
        raise RunError("cannot write: No space left on device")

    site.propose()
    monkeypatch.setattr(accepted, "write_atomically", full)
    assert isinstance(site.advertise(1), PrivateRefusalError)


def test_released_reads_the_server_ledger(found: Maker, tmp_path: Path) -> None:
    engine = found()
    assert isinstance(engine.run(known_plan("record", ROUNDS), tmp_path / "runs"), FederationResult)
    assert engine.folder is not None and released(engine.folder) == [CLIENTS] * ROUNDS


def test_a_ledger_belongs_to_the_site_and_not_to_its_place(site: Site) -> None:
    assert isinstance(site.propose(), RecordDict)
    bundle = SiteBundle.open(site.path)
    path = corpus_ledger(bundle)
    paid = {"run": site.proposal.run, "round": 1}
    event, delta = site.plan.event, site.plan.privacy.delta
    Ledger(path, {"client": VICTIM}).spend(event, 8.0, delta, paid)
    # Another roster, in which the site has another place.
    first, own, *others = bundle.roster.clients
    roster = dataclasses.replace(bundle.roster, clients=(own, first, *others))
    allow(site.path, roster=plain_fingerprint(roster.fingerprint))
    agent = Agent(dataclasses.replace(bundle, index=0, roster=roster))
    again = _sites.signed_anew(site.proposal, site.bundles)
    head, _ = agent.answer({"action": "query.propose", "group": "0"}, again)
    assert head == {}
    assert len(Ledger(path, {"client": VICTIM}).events()) == 1


def test_one_folder_has_one_ledger_however_it_is_written(site: Site) -> None:
    bundle = SiteBundle.open(site.path)
    paths = ("/srv/images", "/srv/images/", "/srv//images", "/srv/./images/.")
    assert len({corpus_ledger(dataclasses.replace(bundle, data=path)) for path in paths}) == 1
    others = ("/srv/image", None)
    assert len({corpus_ledger(dataclasses.replace(bundle, data=path)) for path in others}) == 2


def test_the_agents_socket_is_for_its_owner_and_group(site: Site, tmp_path: Path) -> None:
    socket = tmp_path / "a"
    threading.Thread(target=site.agent.serve, args=(socket,), daemon=True).start()
    end = time.monotonic() + 30
    while not socket.exists() or socket.stat().st_mode & 0o777 != 0o660:
        assert time.monotonic() < end
        time.sleep(0.01)
