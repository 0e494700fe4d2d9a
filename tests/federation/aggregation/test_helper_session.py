"""Helpers say no: to other plans, other parties' steps, old rounds, and a server that lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict

from carefl_secure.errors import CohortError, ConfigError, ProtocolError
from carefl_secure.federation.aggregation.base import ClientSetup, Helper
from carefl_secure.federation.aggregation.committee_member import MemberSession
from carefl_secure.federation.aggregation.encrypted import HolderSession
from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.plan.cohort import AggregationConfig, Cohort
from carefl_secure.federation.transport.local_grid import FIRST_NODE, LocalGrid
from carefl_secure.federation.transport.messages import pack, pack_adapter, vector_hash, with_adapter
from carefl_secure.noise import SystemKeySource
from carefl_secure.secagg import CommitteeServer
from carefl_secure.secagg.encrypted.bfv import SecretKey
from tests.support.steps import take

MakeBench = Callable[..., Any]


class Hand:
    """A committee server played by hand."""

    def __init__(self, bench: Any, number: int = 1) -> None:
        self.bench, self.number = bench, number
        self.adapter = np.zeros(bench.plan.encoding.dimension, np.float32)
        self.model = vector_hash(self.adapter)
        self.plan = bench.plan.hash()
        self.members: list[MemberSession] = bench.clients.helpers

    def announce(self) -> dict[int, bytes]:
        header = {"round": self.number, "plan": self.plan}
        return {m.index: take(m, "committee_announce", **header) for m in self.members}

    def open(self, member: Helper, announced: dict[int, bytes], listing: bytes) -> bytes:
        header = {"round": self.number, "plan": self.plan, "model": self.model}
        shown = {"announcements": announced, "listing": listing}
        return take(member, "committee_open", **header, **shown)

    def submit(self, announced: dict[int, bytes], clients: range) -> dict[int, bytes]:
        sessions = self.bench.clients.sessions
        return {i: sessions[i].submit(self.number, self.plan, self.adapter, announced) for i in clients}

    def server(self, announced: dict[int, bytes], sent: dict[int, bytes]) -> CommitteeServer:
        parameters = self.bench.clients.cohort.committee_parameters(self.bench.plan, self.number, self.model)
        server = CommitteeServer(parameters)
        for member, message in announced.items():
            server.announced(member, message)
        server.announcements()
        for index, message in sent.items():
            server.submitted(index, message)
        return server


def test_members_that_are_shown_different_lists_refuse(make_bench: MakeBench) -> None:
    bench = make_bench(aggregation="committee")
    hand = Hand(bench)
    announced = hand.announce()
    sent = hand.submit(announced, range(6))
    fewer = {index: message for index, message in sent.items() if index != 3}
    whole, part = hand.server(announced, sent), hand.server(announced, fewer)
    openings = {
        member.index: hand.open(member, announced, (part if member.index == 2 else whole).listing(member.index))
        for member in hand.members
    }
    for member in hand.members:
        with pytest.raises(ProtocolError, match="another list"):
            take(member, "committee_answer", openings=openings)
    # and with fewer words than members nobody answers either
    with pytest.raises(CohortError):
        take(hand.members[0], "committee_answer", openings={0: openings[0], 1: openings[1]})


def test_a_member_refuses_a_list_of_too_few_clients(make_bench: MakeBench) -> None:
    bench = make_bench(aggregation="committee")
    hand = Hand(bench)
    announced = hand.announce()
    sent = hand.submit(announced, range(6))
    server = hand.server(announced, sent)
    for index in (4, 5):  # the server hides two submissions from the members: 5 are needed
        del server._entries[index], server._envelopes[index]
    server._phase = type(server._phase).OPENING
    with pytest.raises(CohortError, match="4 clients"):
        hand.open(hand.members[0], announced, server.listing(0))


def test_a_client_answers_a_committee_once_and_only_the_agreed_one(make_bench: MakeBench) -> None:
    bench = make_bench(aggregation="committee")
    hand = Hand(bench)
    announced = hand.announce()
    session = bench.clients.sessions[0]
    stranger = Ed25519PrivateKey.generate()
    cohort = bench.clients.cohort
    false_key = stranger.public_key().public_bytes_raw()
    other = dataclasses.replace(cohort, helpers=(*cohort.members[:2], false_key))
    false = MemberSession(ClientSetup(bench.plan, other, 2, stranger, SystemKeySource()))
    forged = {**announced, 2: take(false, "committee_announce", round=1, plan=hand.plan)}
    with pytest.raises(ProtocolError):
        session.submit(1, hand.plan, hand.adapter, forged)
    with pytest.raises(ProtocolError, match="never repeated"):
        session.submit(1, hand.plan, hand.adapter, announced)
    with pytest.raises(ProtocolError, match="plan"):
        session.submit(2, bytes(32), hand.adapter, announced)
    with pytest.raises(ProtocolError, match="no open round"):
        session.sign([], [])


def test_a_key_that_is_not_the_key_holders_is_refused(make_bench: MakeBench) -> None:
    bench = make_bench(aggregation="encrypted", rounds=5)
    holder: HolderSession = bench.clients.helpers[0]
    plan = bench.plan.hash()
    message = take(holder, "holder_key", round=4, plan=plan)
    session = bench.clients.sessions[0]
    own = SecretKey().public()  # the server makes a key that it can decrypt with
    flipped = message[:-1] + bytes([message[-1] ^ 1])
    for bad in (message[:64] + own, bytes(64) + message[64:], flipped, b"", message[:40]):
        with pytest.raises(ProtocolError, match="round key signature"):
            session.advertise(4, plan, bad)
    with pytest.raises(ProtocolError, match="round key signature"):
        session.advertise(5, plan, message)  # of another round
    assert session.advertise(4, plan, message)
    assert bench.client_spends() == [0] * 6


def test_the_key_holder_opens_one_sum_of_one_round(make_bench: MakeBench) -> None:
    bench = make_bench(aggregation="encrypted")
    bench.start()
    requests = [
        m.content
        for _, m in bench.seen
        if m.metadata.message_type == "query.open_sum" and not m.metadata.reply_to_message_id
    ]
    assert len(requests) == 1
    holder: HolderSession = bench.clients.helpers[0]
    with pytest.raises(ProtocolError, match="no open round"):
        holder.answer("query.open_sum", requests[0])
    take(holder, "holder_key", round=2, plan=bench.plan.hash())
    with pytest.raises(ProtocolError, match="message context"):
        holder.answer("query.open_sum", requests[0])  # the uploads of the round before
    with pytest.raises(ProtocolError, match="no open round"):  # which cost it the key
        holder.answer("query.open_sum", requests[0])


@pytest.mark.parametrize("mode", ["committee", "encrypted"])
def test_helpers_follow_their_own_plan_and_never_go_back(make_bench: MakeBench, mode: str) -> None:
    bench = make_bench(aggregation=mode)
    helper = bench.clients.helpers[0]
    action = "committee_announce" if mode == "committee" else "holder_key"

    def begin(number: int, plan_hash: bytes) -> bytes:
        return take(helper, action, round=number, plan=plan_hash)

    with pytest.raises(ProtocolError, match="plan"):
        begin(3, bytes(32))
    begin(3, bench.plan.hash())
    for number in (3, 2):  # which leaves the round in progress as it is
        with pytest.raises(ProtocolError, match="never repeated"):
            begin(number, bench.plan.hash())
    assert (helper._member if mode == "committee" else helper._key) is not None
    with pytest.raises(ProtocolError, match="does not hold the key"):
        stranger = Ed25519PrivateKey.generate()
        HolderSession(ClientSetup(bench.plan, bench.clients.cohort, 0, stranger, SystemKeySource()))


def ask(bench: Any, node: int, action: str, content: RecordDict) -> Message:
    app = build_client_app(bench.clients.session, helpers=bench.clients.helper)
    grid = LocalGrid(app, bench.clients.nodes)
    (reply,) = grid.send_and_receive([Message(content, FIRST_NODE + node, action)])
    return reply


def test_nobody_takes_another_partys_steps(make_bench: MakeBench) -> None:
    adapter = pack_adapter(np.zeros(60, np.float32))
    for mode in ("pairwise", "committee", "encrypted"):
        bench = make_bench(aggregation=mode)
        hello = pack(round=1, plan=bench.plan.hash())
        invitation = with_adapter(pack(round=1, plan=bench.plan.hash(), announcements={}), adapter)
        wrong = [(0, name, hello) for name in ("query.committee_announce", "query.holder_key")]
        wrong.append((0, "query.open_sum", pack(sum=b"x")))
        if mode != "committee":
            wrong.append((0, "train.submit", invitation))
        if mode != "pairwise":
            wrong += [(0, "query.advertise", hello), (6, "query.advertise", hello)]
            wrong += [(6, "train.submit", invitation), (6, "query.sign", hello)]
        if mode == "committee":
            wrong += [(6, "query.holder_key", hello), (6, "query.open_sum", pack(last=1))]
        if mode == "encrypted":
            wrong += [(6, "query.committee_announce", hello)]
            wrong += [(6, "query.committee_answer", pack(openings={0: b""}))]
        for node, action, content in wrong:
            reply = ask(bench, node, action, content)
            assert reply.has_error(), (mode, node, action)
            base = 1000 if node < 6 else {"committee": 2000, "encrypted": 3000}[mode]
            assert reply.error.code == base + ProtocolError.exit_code
        assert bench.client_spends() == [0] * 6
        assert all(task.calls == [] for task in bench.tasks)


def test_two_nodes_that_claim_one_place(make_bench: MakeBench) -> None:
    """Whoever has the key of the place speaks for it; a place nobody speaks for is missing."""
    bench = make_bench(aggregation="committee")
    bench.clients.helpers[1] = bench.clients.helpers[0]
    with pytest.raises(ProtocolError, match="committee member refused"):
        bench.start()
    bench.clients.helpers[0].index = 9
    with pytest.raises(ProtocolError, match="does not have"):
        bench.start()


def test_a_helpers_refusal_stops_the_run_and_is_kept_in_its_own_folder(make_bench: MakeBench) -> None:
    bench = make_bench(aggregation="committee")
    bench.clients.helpers[1]._round = 5
    with pytest.raises(ProtocolError, match="node 1007: the committee member refused"):
        bench.start()
    text = (bench.folder.helper(1) / "refusals.log").read_text()
    assert "never repeated" in text
    assert not (bench.folder.path / "clients" / "7").exists()


def test_a_cohort_has_one_protocol_and_separate_parties() -> None:
    keys = [bytes([i]) * 32 for i in range(6)]
    clients = tuple(keys[:4])
    encrypted = AggregationConfig(protocol="encrypted")
    pair = AggregationConfig(protocol="committee", members=2)
    with pytest.raises(ConfigError, match="needs 1 helpers, not 2"):
        Cohort(b"run", clients, bytes(32), tuple(keys[4:]), encrypted)
    for helpers, config in (((keys[3], keys[5]), pair), ((keys[0],), encrypted)):
        with pytest.raises(ConfigError, match="its own helper"):
            Cohort(b"run", clients, bytes(32), helpers, config)


def test_every_rosters_key_is_in_every_context(make_bench: MakeBench) -> None:
    contexts = set()
    for mode in ("committee", "encrypted", "pairwise"):
        bench = make_bench(aggregation=mode)
        cohort, plan = bench.clients.cohort, bench.plan
        pair = [bytes([i]) * 32 for i in (1, 2)]
        variants = [cohort]
        if mode == "committee":
            config = dataclasses.replace(cohort.config, members=2)
            variants.append(dataclasses.replace(cohort, helpers=tuple(pair), config=config))
            made = [c.committee_parameters(plan, 1, bytes(32)) for c in variants]
        elif mode == "encrypted":
            variants.append(dataclasses.replace(cohort, helpers=(pair[0],)))
            made = [c.encrypted_parameters(plan, 1, bytes(32), bytes(32)) for c in variants]
        else:
            made = [c.round_parameters(plan, 1, bytes(32)) for c in variants]
            with pytest.raises(ConfigError, match="key holder"):
                cohort.encrypted_parameters(plan, 1, bytes(32), bytes(32))
        contexts |= {parameters.context() for parameters in made}
    assert len(contexts) == 5
