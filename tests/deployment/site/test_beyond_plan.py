"""A server that asks for more rounds than the plan has: real agents, messages made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.site import agent as agents
from carefl_secure.deployment.site.agent import Agent
from carefl_secure.deployment.site.proposal import Proposal
from carefl_secure.errors import PrivateRefusalError, ProtocolError
from carefl_secure.federation.transport.messages import Fields, pack, pack_adapter, vector_hash, with_adapter
from carefl_secure.privacy import Ledger
from carefl_secure.runs import plan_from_config
from tests.support.sites import CLIENTS, DIMENSION, allow, known_plan, make_bundles, settings, signed_anew, work

ROUNDS = 3
BEYOND = 1000 + ProtocolError.exit_code
SPENT = 1000 + PrivateRefusalError.exit_code  # the budget, and no more is said


class Server:
    """Asks every site for rounds of one accepted run, whatever the plan says."""

    def __init__(self, root: Path) -> None:
        self.plan = known_plan("record", ROUNDS)
        self.bundles = make_bundles(root)
        for path in (self.bundles / "sites").iterdir():
            allow(path, max_epsilon_per_corpus=50.0)  # far more than the plan's own target
        self.start()

    def start(self) -> None:
        """Start all agents, again where they ran before."""
        sites = self.bundles / "sites"
        self.agents = [Agent(SiteBundle.open(sites / f"s{i}")) for i in range(CLIENTS)]

    def propose(self, run: str = "a-run") -> None:
        proposal = Proposal.of(run, settings(), self.plan, bytes(32))
        message = signed_anew(proposal, self.bundles)
        for index in range(CLIENTS):
            assert self.ask(index, "query.propose", message)[0] == 0

    def ask(self, index: int, action: str, content: Any) -> tuple[int, Any]:
        head, body = self.agents[index].answer({"action": action, "group": "1"}, content)
        return (head["code"], None) if head else (0, body[0])

    def begin(self, number: int, plan: bytes | None = None) -> tuple[set[int], dict[int, bytes]]:
        header = {"round": number, "plan": plan or self.plan.hash()}
        codes, adverts = set(), {}
        for index in range(CLIENTS):
            code, reply = self.ask(index, "query.advertise", pack(**header))
            codes.add(code)
            if not code:
                adverts[index] = Fields(reply, "index", "message").octets("message")
        return codes, adverts

    def round(self, number: int) -> set[int]:
        """Play one round up to the uploads; return the codes of the answers."""
        codes, adverts = self.begin(number)
        if codes != {0}:
            return codes
        shares = {}
        for index in range(CLIENTS):
            _, reply = self.ask(index, "query.share", pack(peers=adverts))
            shares[index] = Fields(reply, maps=["shares"]).map("shares")
        adapter, codes = np.zeros(DIMENSION, np.float32), set()
        assert len(vector_hash(adapter)) == 32
        for index in range(CLIENTS):
            inbox = {j: box[index] for j, box in shares.items() if j != index}
            content = pack(round=number, plan=self.plan.hash(), shares=inbox)
            whole = with_adapter(content, pack_adapter(adapter))
            codes.add(self.ask(index, "train.masked", whole)[0])
        return codes

    def spends(self) -> list[int]:
        sites = sorted((self.bundles / "sites").iterdir())
        return [len(Ledger(next((s / "ledgers").glob("*.jsonl"))).events()) for s in sites]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server(tmp_path)
    monkeypatch.setattr(agents, "Work", work())
    monkeypatch.setattr(plan_from_config, "plan_with", lambda *_, **__: made.plan)
    made.propose()
    return made


def test_no_site_goes_on_past_the_plan(server: Server) -> None:
    """44 rounds and epsilon 8 were driven under a plan of 3 rounds and epsilon 2."""
    assert [server.round(number) for number in (1, 2, 3)] == [{0}] * 3
    for number in (4, 5, 44, 2**40, 2**63 - 1):
        assert server.round(number) == {BEYOND}
    for number in (3, 1, 0, -1, -(2**63)):  # repeated, earlier, or none at all
        assert server.round(number) == {BEYOND}
    assert server.spends() == [ROUNDS] * CLIENTS


def test_attempts_of_a_run_are_bounded_across_restarts_and_proposals(server: Server) -> None:
    """A number begins anew where the submitter proposes the run again; its charges do not."""
    assert [server.round(number) for number in (1, 2)] == [{0}] * 2
    server.start()
    assert server.round(2) == {BEYOND}
    server.propose()
    assert server.round(1) == {0}  # the third and last attempt
    server.propose()
    assert server.round(1) == {SPENT}
    assert server.spends() == [ROUNDS] * CLIENTS


def test_a_plan_does_not_change_between_rounds(server: Server) -> None:
    assert server.round(1) == {0}
    other = known_plan("record", ROUNDS + 1).hash()
    codes, adverts = server.begin(2, other)
    assert codes == {BEYOND} and not adverts
    assert server.round(3) == {0}
    assert server.spends() == [2] * CLIENTS


def test_an_attempt_that_read_no_record_is_free_and_cannot_be_repeated(server: Server) -> None:
    """One site's shares are damaged in transit: nobody is charged, and the number is used up."""
    codes, adverts = server.begin(1)
    assert codes == {0}
    inboxes: dict[int, dict[int, bytes]] = {index: {} for index in range(CLIENTS)}
    for index in range(CLIENTS):
        _, reply = server.ask(index, "query.share", pack(peers=adverts))
        for peer, sealed in Fields(reply, maps=["shares"]).map("shares").items():
            damaged = sealed[:-1] + bytes([sealed[-1] ^ (index == 3)])
            inboxes[peer][index] = damaged
    box = pack_adapter(np.zeros(DIMENSION, np.float32))
    for index in range(3):
        content = pack(round=1, plan=server.plan.hash(), shares=inboxes[index])
        for _ in range(2):  # asking again changes nothing
            assert server.ask(index, "train.masked", with_adapter(content, box))[0] != 0
    assert server.round(1) == {BEYOND}
    assert list(server.bundles.rglob("ledgers/*.jsonl")) == [] or server.spends() == [0] * CLIENTS
    assert [server.round(number) for number in (2, 3)] == [{0}] * 2
    assert server.spends() == [2] * CLIENTS
