"""What a server, or a submitter, asks a site for in order to learn or to take more than agreed.

The agents, their bundles, policies, ledgers and proposals are real; where records matter, so are
images, loader and base model.
"""

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
from flwr.app import ConfigRecord, RecordDict
from PIL import Image

from carefl_secure.config import Config
from carefl_secure.deployment.flower.relay import PROPOSE
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.site import agent as agents
from carefl_secure.deployment.site import own_work, proposal
from carefl_secure.deployment.site.agent import Agent
from carefl_secure.deployment.site.budget import corpus_ledger
from carefl_secure.deployment.site.proposal import ChargedRounds, Proposal, next_number
from carefl_secure.deployment.site.site_log import SiteLog
from carefl_secure.errors import ProtocolError, RunError
from carefl_secure.federation.local_update.task import DeferredTask
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.transport import error_codes
from carefl_secure.federation.transport.messages import Fields, pack, pack_adapter, with_adapter
from carefl_secure.privacy import Ledger
from carefl_secure.run_folder import write_atomically
from carefl_secure.runs import corpora, plan_from_config
from tests.support.sites import CLIENTS, Fixed, allow, known_plan, make_bundles, settings, work

ROUNDS = 3
Head = Mapping[str, Any]
SEALED = {"code": 1025, "reason": "the client refused for a reason that only its own log has"}


class Asked:
    """All sites of a deployment, asked by whoever holds the server."""

    def __init__(self, bundles: Path, config: Config, plan: RunPlan, base: bytes) -> None:
        self.bundles, self.config, self.plan, self.base = bundles, config, plan, base
        self.key = read_identity(bundles / "submit" / "submit.key")
        self.agents = [self.open(i) for i in range(CLIENTS)]

    def open(self, site: int) -> Agent:
        return Agent(SiteBundle.open(self.bundles / "sites" / f"s{site}"))

    def restart(self, site: int) -> None:
        self.agents[site] = self.open(site)

    def proposal(self, run: str = "a-run", **changes: Any) -> RecordDict:
        made = Proposal.of(run, self.config, self.plan, self.base)
        return dataclasses.replace(made, **changes).message(self.key)

    def ask(self, site: int, action: str, content: RecordDict) -> tuple[Head, Any]:
        head, contents = self.agents[site].answer({"action": action, "group": "x"}, content)
        return head, contents[0] if contents else None

    def propose(self, site: int, content: RecordDict | None = None) -> Head:
        return self.ask(site, PROPOSE, content or self.proposal())[0]

    def advertise(self, site: int, number: int) -> tuple[Head, Any]:
        return self.ask(site, "query.advertise", pack(round=number, plan=self.plan.hash()))

    def upload(self, number: int) -> list[tuple[Head, Any]]:
        """Have all sites take part in a round until they upload, and return what each said."""
        advertised = [self.advertise(i, number) for i in range(CLIENTS)]
        if any(head for head, _ in advertised):
            return advertised
        peers = {i: Fields(b, "index", "message").octets("message") for i, (_, b) in
                 enumerate(advertised)}  # fmt: skip
        said = [self.ask(i, "query.share", pack(peers=peers))[1] for i in range(CLIENTS)]
        shares = [Fields(one, maps=["shares"]).map("shares") for one in said]
        adapter = pack_adapter(np.zeros(self.plan.encoding.dimension, np.float32))
        replies = []
        for i in range(CLIENTS):
            mine = {j: shares[j][i] for j in range(CLIENTS) if j != i}
            content = pack(round=number, plan=self.plan.hash(), shares=mine)
            replies.append(self.ask(i, "train.masked", with_adapter(content, adapter)))
        return replies

    def spends(self, site: int) -> int:
        path = corpus_ledger(self.agents[site].bundle)
        return len(Ledger(path).events()) if path.exists() else 0


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    plan = known_plan("record", ROUNDS)
    monkeypatch.setattr(agents, "Work", work())
    monkeypatch.setattr(plan_from_config, "plan_with", lambda *_, **__: plan)
    return Asked(make_bundles(tmp_path), settings(), plan, bytes(32))


def clause(head: Head) -> str:
    return error_codes._CLAUSE_NAMES[head["code"] - 9000]


# --- no more than was signed ----------------------------------------------------------------------


def test_no_round_beyond_the_signed_plan_although_the_policy_allows_more(toy: Asked) -> None:
    """A plan of three rounds was once driven to 44 rounds and four times its epsilon."""
    for i in range(CLIENTS):
        allow(toy.bundles / "sites" / f"s{i}", max_epsilon_per_corpus=50.0)
        assert toy.propose(i) == {}
    for number in range(1, ROUNDS + 1):
        assert all(head == {} for head, _ in toy.upload(number))
    for number in (ROUNDS + 1, 100):
        assert all(head["code"] == 1030 for head, _ in toy.upload(number))
    toy.restart(0)
    assert toy.advertise(0, ROUNDS + 1)[0]["code"] == 1030
    log = (toy.agents[0].bundle.path / "refusals.log").read_text()
    assert "beyond the signed plan, which ends with round 3" in log
    assert [toy.spends(i) for i in range(CLIENTS)] == [ROUNDS] * CLIENTS


def test_a_restarted_agent_begins_no_round_twice_also_once_it_has_taken_the_run_up(toy: Asked) -> None:
    """Keys made ahead for a later round once let the restarted agent begin an old one anew."""
    for i in range(CLIENTS):
        toy.propose(i)
    assert all(head == {} for head, _ in toy.upload(1))
    toy.restart(0)
    ahead = pack(round=2, plan=toy.plan.hash())
    assert toy.ask(0, "query.advertise_prefetch", ahead)[0] == {}
    head, _ = toy.advertise(0, 1)
    assert head["code"] == 1030
    log = (toy.agents[0].bundle.path / "refusals.log").read_text()
    assert "round 1 comes after round 1; a round is never repeated" in log
    assert toy.advertise(0, 2)[0] == {} and toy.spends(0) == 1


def test_a_round_is_on_disk_before_it_is_charged(toy: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is killed while it computes sits the round out, and charges it once."""
    for i in range(CLIENTS):
        toy.propose(i)
    noted: list[int] = []
    spend = Ledger.spend

    def seen(self: Ledger, *words: Any) -> Any:
        home = self.path.parents[1]
        noted.append(json.loads((home / "accepted.json").read_text())["round"])
        return spend(self, *words)

    monkeypatch.setattr(Ledger, "spend", seen)
    assert all(head == {} for head, _ in toy.upload(1)) and noted == [1] * CLIENTS


def test_two_agents_of_one_bundle_begin_a_round_once(toy: Asked) -> None:
    toy.propose(0)
    other = toy.open(0)
    content = pack(round=1, plan=toy.plan.hash())
    assert other.answer({"action": "query.advertise"}, content)[0] == {}
    assert toy.advertise(0, 1)[0]["code"] == 1030


# --- signed proposals that come again -------------------------------------------------------------


def test_a_signed_proposal_is_not_put_forward_again(toy: Asked) -> None:
    """Whoever kept one could end the run in progress and have its rounds begun anew."""
    first, second = toy.proposal(), toy.proposal("b-run")
    assert toy.propose(0, first) == {} == toy.propose(0, first)  # its reply may have been lost
    assert toy.advertise(0, 1)[0] == {}
    assert clause(toy.propose(0, first)) == "replay"
    assert toy.advertise(0, 2)[0] == {}  # the run in progress goes on
    assert toy.propose(0, second) == {}
    for _ in range(2):
        for content in (first, toy.proposal(number=1)):
            assert clause(toy.propose(0, content)) == "replay"
        toy.restart(0)
    assert toy.advertise(0, 1)[0] == {}  # of the second run
    equal = dataclasses.replace(Proposal.read(second)[0], run="c-run").message(toy.key)
    assert clause(toy.propose(0, equal)) == "replay"
    assert "run number 1 is not above" in (toy.agents[0].bundle.path / "refusals.log").read_text()


def test_a_refused_proposal_is_not_put_forward_again_once_the_policy_allows_it(toy: Asked) -> None:
    path, content = toy.bundles / "sites" / "s0", toy.proposal()
    allow(path, max_rounds=1)
    assert clause(toy.propose(0, content)) == "rounds"
    allow(path, max_rounds=100)
    assert clause(toy.propose(0, content)) == "replay"
    assert toy.propose(0) == {}


def test_a_proposal_has_its_time(toy: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    clock = SimpleNamespace(time=lambda: now, time_ns=time.time_ns, monotonic=time.monotonic)
    monkeypatch.setattr(proposal, "time", clock)
    content = toy.proposal()
    for passed, refused in ((-400, True), (3601, True), (3599, False), (-299, False)):
        now = time.time() + passed
        head = toy.propose(0, content)
        assert (head != {} and clause(head) == "stale") == refused, (passed, head)
    log = (toy.agents[0].bundle.path / "refusals.log").read_text()
    assert "signed 400 s in the future" in log and "set the clock that is wrong" in log


@pytest.mark.parametrize(
    "text", ["a: [", "[1, 2]", "", "[" * 3000, "privacy: {epsilon: 1}\nprivacy: {epsilon: 9}", "a: " + "9" * 5000]
)
def test_settings_that_can_be_read_in_two_ways_or_none_are_refused(toy: Asked, text: str) -> None:
    made = dataclasses.replace(Proposal.of("a-run", toy.config, toy.plan, toy.base), config=text)
    with pytest.raises(ProtocolError, match="not readable"):
        own_work.own_config(made, toy.agents[0].bundle, rehearsal=False)


def test_a_stranger_uses_up_no_number(toy: Asked) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    theirs = dataclasses.replace(Proposal.read(toy.proposal())[0], number=1 << 62)
    assert clause(toy.propose(0, theirs.message(Ed25519PrivateKey.generate()))) == "submitter"
    assert toy.propose(0) == {}


def test_run_numbers_grow_also_where_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next_number(tmp_path)
    clock = SimpleNamespace(time_ns=lambda: first - 10**12)
    monkeypatch.setattr(proposal, "time", clock)
    assert [next_number(tmp_path) for _ in range(3)] == [first + 1, first + 2, first + 3]


# --- one refusal for all that is private ----------------------------------------------------------


def test_every_private_cause_gives_the_same_bytes(toy: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a record, a label or the ledger is the reason, the server learns only that it is."""
    site = toy.agents[0].bundle
    ledger, event, delta = corpus_ledger(site), toy.plan.event, toy.plan.privacy.delta
    ledger.parent.mkdir()
    assert event is not None

    def spent(path: Path) -> None:
        Ledger(path, {"client": "s0"}).spend(event, 1e9, delta, {"run": "earlier", "round": 1})

    def torn(path: Path) -> None:
        spent(path)
        path.write_bytes(path.read_bytes()[:-9])

    def foreign(path: Path) -> None:
        Ledger(path, {"client": "another"}).append("note", {})

    def hub(path: Path) -> None:
        (tmp_path / "some-org" / "some-model").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        toy.config = settings("model.base=some-org/some-model")

    seen = {}
    for cause in (spent, torn, foreign, hub):
        cause(ledger)
        head, contents = toy.agents[0].answer({"action": PROPOSE}, toy.proposal(cause.__name__))
        seen[cause.__name__] = json.dumps(head)
        assert contents == []
        ledger.unlink(missing_ok=True)
    toy.config = settings()
    spent(ledger.parent / "other-corpus.jsonl")
    allow(site.path, max_epsilon_total=8.0)
    seen["other corpora"] = json.dumps(toy.propose(0))
    allow(site.path, max_epsilon_total=100.0)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("carefl_secure.deployment.site.accepted_run.write_atomically", full)
    seen["disk"] = json.dumps(toy.propose(0))
    monkeypatch.setattr("carefl_secure.deployment.site.accepted_run.write_atomically",
                        write_atomically)  # fmt: skip
    monkeypatch.setattr(agents, "Work", full)
    seen["reading"] = json.dumps(toy.propose(0))
    assert set(seen.values()) == {json.dumps(SEALED)}, seen
    log = [json.loads(one) for one in (site.path / "agent.jsonl").read_text().splitlines()]
    assert {one["code"] for one in log} == {SEALED["code"]}


def test_only_causes_that_follow_from_public_agreements_have_numbers_of_their_own() -> None:
    public = {"ConfigError", "ModelError", "PolicyError", "ProtocolError", "CohortError"}
    for kind in error_codes._REASONS:
        for party in ("client", "committee member", "key holder"):
            sent = error_codes.refusal(kind("a secret"), party)  # type: ignore[arg-type]
            sealed = error_codes.seal(sent)
            if kind.__name__ in public:
                assert (sealed.code, sealed.reason) == (sent.code, sent.reason)
            else:
                assert {"code": sealed.code, "reason": sealed.reason} == SEALED
    assert error_codes.seal(error_codes.refusal(type("New", (Exception,), {})())).code == 1025  # type: ignore[arg-type]


@pytest.mark.parametrize("declared", [1, 136, 137, 138])
def test_how_many_records_a_site_holds_shows_in_no_answer(
    toy: Asked, monkeypatch: pytest.MonkeyPatch, declared: int
) -> None:
    """Nine proposals once found the exact number: fewer declared than held was refused."""
    held = Fixed(0)
    held.records = 137  # type: ignore[misc]
    held.gradients = np.tile(held.gradients, (14, 1))[:137]
    task = DeferredTask(held.dimension, lambda: held)
    monkeypatch.setattr(agents, "Work", lambda *_: SimpleNamespace(base_hash=bytes(32), task=task))
    fewer = dataclasses.replace(toy.plan.privacy, public_records=declared)
    toy.plan = dataclasses.replace(toy.plan, privacy=fewer)
    monkeypatch.setattr(plan_from_config, "plan_with", lambda *_, **__: toy.plan)
    assert [toy.propose(i) for i in range(CLIENTS)] == [{}] * CLIENTS
    said = toy.upload(1)
    assert [head for head, _ in said] == [{}] * CLIENTS
    (length,) = {len(Fields(body, "upload").octets("upload")) for _, body in said}
    assert length > 0


# --- neighbouring sites ---------------------------------------------------------------------------


def _images(folder: Path, **classes: int) -> Path:
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (40 * number, 5 * i, 90)).save(folder / name / f"{i}.png")
    return folder


def _more(folder: Path) -> None:
    _images(folder, anger=7, joy=6)


def _another_label(folder: Path) -> None:
    _images(folder, anger=6, joy=6, fear=1)


def _damaged(folder: Path) -> None:
    _images(folder, anger=7, joy=6)
    whole = (folder / "anger" / "6.png").read_bytes()
    (folder / "anger" / "6.png").write_bytes(whole[: len(whole) // 2])


def _nothing_left(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def _bad_row(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": 7}\n')


NEIGHBOURS: Mapping[str, tuple[Callable[[Path], None], int | None]] = {
    "one record more, above what is declared": (_more, 13),
    "a record with another label": (_another_label, 12),
    "a damaged image": (_damaged, 12),
    "no record": (_nothing_left, None),
    "a row that cannot be read": (_bad_row, None),
}
"""What is done to a copy of a site of 12 records, and how many it then trains on, if it can."""


@functools.cache
def _agreed() -> tuple[RunPlan, bytes]:
    """Return plan and base hash of a run over 12 declared records, which take a while to find."""
    from carefl_secure.runs.build import base_hash_of, label_scorer

    config = _run_of(Path("/images"))
    adapter = label_scorer(config, corpora.agreed_space(config)).adapter
    plan = plan_from_config.plan_with(config, 12, adapter.dimension)
    return plan, base_hash_of(adapter.base.digest, config)


def _run_of(source: Path, *words: str) -> Config:
    return settings(
        f"data.source={source}", "data.words=[anger,joy]", "data.at_sites=true",
        "federation.public_records=12", "federation.rounds=2", "privacy.delta=1e-5", *words,
    )  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return _images(tmp_path / "images", anger=6, joy=6)


@pytest.fixture
def asked(images: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    plan, base = _agreed()
    monkeypatch.setattr(plan_from_config, "plan_with", lambda *_, **__: plan)
    return Asked(make_bundles(images.parent, data=str(images)), _run_of(images), plan, base)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_two_neighbouring_sites_give_the_same_answers(
    asked: Asked, images: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One picture of a class once changed the reply to a proposal; so did the number of records."""
    change, records = NEIGHBOURS[name]
    made: list[DeferredTask] = []
    real = own_work.Work

    def one_real(config: Config, plan: RunPlan, index: int, own: bool, log: SiteLog) -> Any:
        if index:
            task = Fixed(index)
            task.dimension = plan.encoding.dimension  # type: ignore[misc]
            task.gradients = np.zeros((10, plan.encoding.dimension))
            return SimpleNamespace(base_hash=asked.base, task=task)
        work = real(config, plan, index, own, log)
        made.append(work.task)  # type: ignore[arg-type]
        return work

    monkeypatch.setattr(agents, "Work", one_real)
    said = []
    for changed in (False, True):
        if changed:
            change(images)
            for path in (asked.bundles / "sites").glob("*/ledgers/*.jsonl"):
                path.unlink()  # another world, in which nothing was spent either
        head, body = asked.ask(0, PROPOSE, asked.proposal())
        assert head == {}, (asked.agents[0].bundle.path / "refusals.log").read_text()
        for i in range(1, CLIENTS):
            assert asked.propose(i) == {}
        upload, masked = asked.upload(1)[0]
        said.append((head, _bytes(body), upload, len(Fields(masked, "upload").octets("upload"))))
    assert said[0] == said[1] and said[0][2] == {}
    assert made[0].make().records == 12
    log = (asked.agents[0].bundle.path / "refusals.log").read_text()
    if records is None:
        assert "DataError" in log
    else:
        assert made[1].make().records == records
        assert ("more than the 12 that the run declares" in log) == (records > 12)
        assert "skipped: 1 x" in log or records > 12


def _bytes(content: RecordDict) -> dict[str, Any]:
    (record,) = content.values()
    assert isinstance(record, ConfigRecord)
    return dict(record)


def test_a_proposal_is_answered_before_a_record_is_opened(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """So neither the answer nor its time depends on one."""
    gate, entered = threading.Event(), threading.Event()
    load = corpora.load_own

    def waits(*words: Any) -> Any:
        entered.set()
        assert gate.wait(60)
        return load(*words)

    monkeypatch.setattr(corpora, "load_own", waits)
    assert asked.propose(0) == {} and asked.advertise(0, 1)[0] == {}
    assert entered.wait(60) and not gate.is_set()
    gate.set()


def test_under_unit_person_who_is_not_named_is_left_out(tmp_path: Path) -> None:
    folder = _images(tmp_path / "images", anger=3, joy=3)
    rows = [
        {"file_name": f"{label}/{i}.png", "label": label, "subject": f"{label}{i}"}
        for label in ("anger", "joy")
        for i in range(3)
    ]
    del rows[0]["subject"]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    log = SiteLog(tmp_path)
    held = corpora.load_own(_run_of(folder, "privacy.unit=person"), log)
    assert [len(share) for share in held.shares] == [5]
    assert "1 x no subject" in (tmp_path / "refusals.log").read_text()


# --- a disk that is full --------------------------------------------------------------------------


def test_a_full_disk_under_the_logs_is_said_and_changes_no_answer(
    toy: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = toy.agents[0].bundle.path
    for name in ("agent.jsonl", "refusals.log"):
        (home / name).mkdir()  # a folder cannot be appended to either
    assert toy.propose(0) == {}
    assert clause(toy.propose(0, toy.proposal(number=1))) == "replay"
    assert "refusals.log cannot be written" in caplog.text
    assert "run number 1 is not above" in caplog.text  # what the file would have held


# --- what was spent is not forgotten --------------------------------------------------------------


def test_an_older_copy_of_the_ledger_is_refused_by_name(toy: Asked, tmp_path: Path) -> None:
    """A backup that was put back once spent the rounds after it a second time, unnoticed."""
    path = corpus_ledger(toy.agents[0].bundle)
    for i in range(CLIENTS):
        allow(toy.bundles / "sites" / f"s{i}", max_epsilon_per_corpus=50.0)
        toy.propose(i)
    assert all(head == {} for head, _ in toy.upload(1))
    backup = path.read_bytes()
    assert all(head == {} for head, _ in toy.upload(2))
    memory = ChargedRounds(tmp_path)
    for _ in range(2):
        memory.add("s0", "a-run")
    known = ChargedRounds(tmp_path).rounds
    assert known == {"s0": {"a-run": 2}}

    def again(site: int, number: int) -> Head:
        made = toy.proposal("next", charged=known, number=time.time_ns() + number)
        return toy.propose(site, made)

    assert again(0, 1) == {}
    path.write_bytes(backup)
    toy.restart(0)
    assert again(0, 2) == SEALED
    log = (toy.agents[0].bundle.path / "refusals.log").read_text()
    assert "rollback: this site took part in 2 rounds of run a-run" in log and "hold 1" in log
    path.unlink()
    toy.restart(0)
    assert again(0, 3) == SEALED
    assert again(1, 4) == {}  # another site's ledger is not in question
    path.write_bytes(backup)
    toy.restart(0)
    assert toy.propose(0, toy.proposal("other", charged={"s0": {"a-run": 1}}, number=time.time_ns() + 5)) == {}


def test_what_a_submitter_remembers_is_bounded_and_checked(tmp_path: Path) -> None:
    memory = ChargedRounds(tmp_path)
    for i in range(60):
        memory.add("s0", f"run-{i}")
    memory.add("s0", "run-30")
    assert memory.rounds["s0"]["run-30"] == 2 and len(memory.rounds["s0"]) == 50
    assert (tmp_path / "charged.json").stat().st_mode & 0o077 == 0
    (tmp_path / "charged.json").write_text('{"rounds": {"s0": {"a": -1}}}')
    with pytest.raises(RunError, match=r"charged\.json"):
        ChargedRounds(tmp_path)
