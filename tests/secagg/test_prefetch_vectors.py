"""Known answers for keys made ahead: against the code, and against definitions by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg import (
    AheadCommitteeParameters,
    AheadParameters,
    CommitteeMember,
    CommitteeServer,
    PairwiseServer,
    Rehearsal,
)

FOLDER = Path(__file__).parent / "vectors"
AHEAD = json.loads((FOLDER / "ahead.json").read_text())
PLAIN = json.loads((FOLDER / "round.json").read_text())
COMMITTEE = json.loads((FOLDER / "ahead_committee.json").read_text())
MODEL, BASE, PLAN = b"m" * 32, b"b" * 32, b"p" * 32


def digest(label: str, *fields: bytes) -> bytes:
    """The hash of a list of fields, by hand."""
    parts = (b"carefl-secagg-1/" + label.encode(), *fields)
    return hashlib.sha256(
        b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    ).digest()


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


def private(raw: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw))


def publics(raws: list[str]) -> tuple[bytes, ...]:
    return tuple(private(raw).public_key().public_bytes_raw() for raw in raws)


def agreement() -> AheadParameters:
    roster = publics(AHEAD["identities"])
    shape = {"dimension": 6, "bits": 32, "threshold": 3, "min_survivors": 3}
    return AheadParameters(
        task=b"vectors", round=1, **shape, base_hash=BASE, plan_hash=PLAN, roster=roster
    )


def messages(name: str, source: dict[str, Any] = AHEAD) -> dict[int, bytes]:
    return {int(i): bytes.fromhex(m) for i, m in source[name].items()}


def shares() -> dict[int, dict[int, bytes]]:
    return {
        int(i): {int(j): bytes.fromhex(m) for j, m in box.items()}
        for i, box in AHEAD["shares"].items()
    }


def test_contexts_and_signatures_by_hand() -> None:
    roster = publics(AHEAD["identities"])
    early = digest("key context", b"vectors", numbers(1, 6, 32, 3, 3, 4), BASE, PLAN, *roster)
    context = digest("bound context", early, MODEL)
    assert agreement().key_context() == early == bytes.fromhex(AHEAD["key_context"])
    assert agreement().bind(MODEL).context() == context == bytes.fromhex(AHEAD["context"])
    assert bytes.fromhex(AHEAD["model"]) == MODEL
    adverts = messages("adverts")
    beacon = digest("beacon", early, *(numbers(i) + adverts[i] for i in range(4)))
    assert beacon == bytes.fromhex(AHEAD["beacon"])
    for i, key in enumerate(roster):
        public = Ed25519PublicKey.from_public_bytes(key)
        assert adverts[i][8:16] == early[:8]
        assert {m[8:16] for m in shares()[i].values()} == {early[:8]}
        body = adverts[i][16:]
        fields = (body[:32], body[32:64], body[64:96])
        public.verify(body[96:], digest("advertisement", early, numbers(i), *fields))
        secret = DeterministicKeySource(b"vectors%d" % i).key("self mask")
        assert fields[2] == digest("commitment", early, numbers(i), secret)
        if i == AHEAD["dropped"]:
            continue
        upload = messages("uploads")[i]
        words = hashlib.blake2b(upload[16:-64], digest_size=32).digest()
        assert upload[8:16] == context[:8]
        public.verify(upload[-64:], digest("upload", context, beacon, numbers(i), words))
        sets = (numbers(0, 1, 2, 3), numbers(0, 1, 3))
        consent = messages("consents")[i][16:]
        public.verify(consent, digest("survivor set", context, beacon, *sets))
        answer = messages("answers")[i]
        public.verify(answer[-64:], digest("answer", context, beacon, numbers(i), answer[16:-64]))


def test_clients_write_the_same_round() -> None:
    rehearsal = Rehearsal(
        agreement(),
        [private(raw) for raw in AHEAD["identities"]],
        lambda index: DeterministicKeySource(b"vectors%d" % index),
    )
    vectors = {int(i): np.array(v, np.uint32) for i, v in AHEAD["vectors"].items()}
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.bind(MODEL)
    rehearsal.mask(vectors, gone=[AHEAD["dropped"]])
    rehearsal.sign()
    rehearsal.unmask()
    assert rehearsal.finish().tolist() == AHEAD["sum"] == PLAIN["sum"]
    assert rehearsal.adverts == messages("adverts")
    assert rehearsal.shares == shares()
    assert rehearsal.uploads == messages("uploads")
    assert rehearsal.consents == messages("consents")
    assert rehearsal.answers == messages("answers")


def test_no_message_is_one_of_the_plain_form() -> None:
    for name in ("adverts", "uploads", "consents", "answers"):
        plain = messages(name, PLAIN)
        for index, message in messages(name).items():
            assert message[8:16] != plain[index][8:16]
            assert message[-64:] != plain[index][-64:]


STEPS = ("advertised", "shared", "uploaded", "signed", "answered")


def replay(until: str | None = None) -> PairwiseServer:
    """The server fed from the file, up to the first message of client 0 in a step."""
    server = PairwiseServer(agreement())

    def bind() -> None:
        server.bind(MODEL)
        server.inbox(0)

    taken: dict[str, tuple[Callable[[int, Any], None], dict[int, Any], Callable[[], object]]] = {
        "advertised": (server.advertised, messages("adverts"), server.advertisements),
        "shared": (server.shared, shares(), bind),
        "uploaded": (server.uploaded, messages("uploads"), server.survivors),
        "signed": (server.signed, messages("consents"), server.signatures),
        "answered": (server.answered, messages("answers"), lambda: None),
    }
    for step in STEPS:
        take, given, end = taken[step]
        if step == until:
            break
        for index, message in given.items():
            take(index, message)
        end()
    return server


def test_the_server_opens_the_recorded_round() -> None:
    vectors = {int(i): np.array(v, np.uint32) for i, v in AHEAD["vectors"].items()}
    expected = vectors[0] + vectors[1] + vectors[3]
    assert replay().finish().tolist() == AHEAD["sum"] == expected.tolist()


@pytest.mark.parametrize("case", AHEAD["bad"], ids=lambda c: f"{c['step']}-{c['reason']}")
def test_bad_messages(case: dict[str, str]) -> None:
    server = replay(until=case["step"])
    with pytest.raises(ProtocolError, match=f"^{case['check']}: "):
        getattr(server, case["step"])(0, bytes.fromhex(case["message"]))


# --- committee ---


def committee_agreement() -> AheadCommitteeParameters:
    return AheadCommitteeParameters(
        task=b"vectors",
        round=1,
        dimension=4,
        bits=32,
        min_survivors=3,
        base_hash=BASE,
        plan_hash=PLAN,
        roster=publics(COMMITTEE["clients"]),
        members=publics(COMMITTEE["members"]),
        spare=1,
    )


def of_committee(name: str) -> dict[int, bytes]:
    return messages(name, COMMITTEE)


def test_committee_contexts_by_hand() -> None:
    early = digest(
        "committee key context",
        b"vectors",
        numbers(1, 4, 32, 3, 3, 3, 1),
        BASE,
        PLAN,
        *publics(COMMITTEE["clients"]),
        *publics(COMMITTEE["members"]),
    )
    context = digest("bound context", early, MODEL)
    assert committee_agreement().key_context() == early == bytes.fromhex(COMMITTEE["key_context"])
    assert committee_agreement().bind(MODEL).context() == context
    assert context == bytes.fromhex(COMMITTEE["context"])
    announced = of_committee("announcements")
    beacon = digest("committee beacon", early, *(announced[i] for i in range(3)))
    assert beacon == bytes.fromhex(COMMITTEE["beacon"])
    for i, raw in enumerate(publics(COMMITTEE["members"])):
        body = announced[i][16:]
        signed = digest("member key", early, numbers(i), body[:-64])
        Ed25519PublicKey.from_public_bytes(raw).verify(body[-64:], signed)
        assert announced[i][8:16] == early[:8]
    for name in ("submissions", "listings", "openings", "answers", "consents", "shares"):
        assert {message[8:16] for message in of_committee(name).values()} == {context[:8]}


def test_members_and_server_open_the_recorded_committee_round() -> None:
    server = CommitteeServer(committee_agreement())
    for index, message in of_committee("announcements").items():
        server.announced(index, message)
    server.bind(MODEL)
    for index, message in of_committee("submissions").items():
        server.submitted(index, message)
    openings, members = of_committee("openings"), {}
    for index in range(3):
        members[index] = CommitteeMember(
            committee_agreement(),
            index,
            private(COMMITTEE["members"][index]),
            DeterministicKeySource(COMMITTEE["key_sources"][index].encode()),
        )
        assert members[index].announce() == of_committee("announcements")[index]
        members[index].bind(MODEL)
        assert server.listing(index) == of_committee("listings")[index]
        opened = members[index].open(of_committee("announcements"), server.listing(index))
        assert opened == openings[index]
        server.opened(index, opened)
    server.openings()
    for index in (0, 1):
        assert members[index].answer(openings) == of_committee("answers")[index]
        server.answered(index, of_committee("answers")[index])
    assert list(server.lost()) == COMMITTEE["lost"] == [2]
    for index in (0, 1):
        server.consented(index, members[index].consent([2]))
    for index in (0, 1):
        server.recovered(index, members[index].recover(server.consents()))
    vectors = [np.array(v, np.uint32) for v in COMMITTEE["vectors"].values()]
    assert server.finish().tolist() == COMMITTEE["sum"] == sum(vectors).tolist()  # type: ignore[union-attr]
