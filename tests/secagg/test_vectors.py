"""Known answers: the files against the code, and against definitions written out by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import DeterministicKeySource, KeyStream, SkellamSampler
from carefl_secure.secagg import (
    CommitteeMember,
    CommitteeParameters,
    CommitteeServer,
    PairwiseServer,
    RoundParameters,
    decode,
    encode,
    plan_clients,
    plan_plain,
    plan_records,
    wrap,
)
from carefl_secure.secagg.encrypted.bfv import PLAIN_MODULUS
from carefl_secure.secagg.encrypted.packing import draw_residues, pack_fields
from carefl_secure.secagg.pairwise.graph_planner import neighbours, ring
from carefl_secure.secagg.primitives import crypto, shamir
from tests.support.played_pairwise import Rehearsal

FOLDER = Path(__file__).parent / "vectors"


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def digest(label: str, *fields: bytes) -> bytes:
    """The hash of a list of fields, by hand."""
    parts = (b"carefl-secagg-2/" + label.encode(), *fields)
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


@pytest.mark.parametrize("case", load("keystream.json"))
def test_keystream(case: dict[str, Any]) -> None:
    key = bytes.fromhex(case["key"])
    blocks = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    by_hand = blocks.update(b"".join((2 + i).to_bytes(16, "big") for i in range(4)))
    assert case["bytes"] == by_hand.hex() == KeyStream(key).take(64).hex()
    assert case["uint16"] == KeyStream(key).words(4, np.uint16).tolist()
    assert case["uint32"] == KeyStream(key).words(4, np.uint32).tolist()
    for variance, samples in case["skellam"].items():
        drawn = SkellamSampler(float(variance)).sample(KeyStream(key), len(samples))
        assert drawn.tolist() == samples


@pytest.mark.parametrize("case", load("kdf.json"))
def test_kdf(case: dict[str, Any]) -> None:
    secret = bytes.fromhex(case["secret"])
    fields = [bytes.fromhex(field) for field in case["fields"]]
    info = digest(case["label"], *fields)
    assert case["digest"] == info.hex()
    assert case["digest"] == crypto.digest(case["label"].encode(), *fields).hex()
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    derived = hmac.new(extracted, info + b"\x01", hashlib.sha256).hexdigest()
    assert case["derived"] == derived
    assert case["derived"] == crypto.derive(secret, case["label"].encode(), *fields).hex()


@pytest.mark.parametrize("case", load("shamir.json"))
def test_shares(case: dict[str, Any]) -> None:
    secret, threshold, points = int(case["secret"], 16), case["threshold"], case["points"]
    stream = KeyStream(bytes.fromhex(case["stream_key"]))
    made = shamir.split(secret, threshold, points, stream)
    assert [hex(share) for share in made] == case["shares"]
    raw = KeyStream(bytes.fromhex(case["stream_key"])).take(48 * (threshold - 1))
    high_first = [int.from_bytes(raw[i : i + 48], "little") % shamir.PRIME for i in range(0, len(raw), 48)]
    for point, share in zip(points, made, strict=True):
        powers = (c * pow(point, k, shamir.PRIME) for k, c in enumerate(reversed(high_first), 1))
        assert (secret + sum(powers)) % shamir.PRIME == share


@pytest.mark.parametrize("case", load("encoding.json"))
def test_encoding(case: dict[str, Any]) -> None:
    kind = case["kind"]
    plan = {
        "records": plan_records(5, 1.0, 1.0, 10, 3, 2),
        "plain": plan_plain(5, 1.0, 3),
        "clients": plan_clients(5, 1.0, 1.0, 3, 2),
    }[kind.split()[0]]
    if kind == "clients redrawn":
        assert case["l2"] < plan.l2_sensitivity
        plan = dataclasses.replace(plan, l2_sensitivity=case["l2"])
    assert plan.scale == pytest.approx(case["scale"], rel=1e-12)
    assert plan.l1_sensitivity == pytest.approx(case["l1"], rel=1e-12)
    assert plan.l2_sensitivity == pytest.approx(case["l2"], rel=1e-12)
    key, dither = bytes.fromhex(case["rotation_key"]), bytes.fromhex(case["dither_key"])
    integers = encode(np.array(case["vector"]), plan, key, KeyStream(dither))
    assert integers.tolist() == case["integers"]
    words = wrap(integers, plan.bits)
    assert words.tolist() == case["words"]
    assert np.allclose(decode(words, plan, key), case["decoded"], rtol=1e-12)
    if plan.rotated:  # by hand: signs, the 8 x 8 matrix, scale, dither, floor
        first = KeyStream(key).take(1)[0]
        signs = [1 - 2 * (first >> i & 1) for i in range(8)]
        flipped = [s * v for s, v in zip(signs, case["vector"], strict=False)]
        stream, draws, by_hand = KeyStream(dither), 0, [10**9]
        while not draws or (plan.conditional and sum(v * v for v in by_hand) > case["l2"] ** 2):
            draws += 1
            raw, by_hand = stream.words(8, np.uint64).tolist(), []
            for row in range(8):
                entries = ((-1) ** bin(row & i).count("1") * v for i, v in enumerate(flipped))
                turned = sum(entries) / 8**0.5 * case["scale"]
                by_hand.append(int(np.floor(turned + (raw[row] >> 11) / 2**53)))
        assert by_hand == case["integers"]
        assert (draws > 1) == (kind == "clients redrawn")


ROUND = load("round.json")
MODEL = b"m" * 32


def agreement() -> RoundParameters:
    keys = [Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw)) for raw in ROUND["identities"]]
    roster = tuple(key.public_key().public_bytes_raw() for key in keys)
    return RoundParameters(
        task=b"vectors",
        round=1,
        dimension=6,
        bits=32,
        threshold=3,
        min_survivors=3,
        base_hash=b"b" * 32,
        plan_hash=b"p" * 32,
        roster=roster,
    )


def messages(name: str) -> dict[int, bytes]:
    return {int(i): bytes.fromhex(m) for i, m in ROUND[name].items()}


def shares() -> dict[int, dict[int, bytes]]:
    return {int(i): {int(j): bytes.fromhex(m) for j, m in box.items()} for i, box in ROUND["shares"].items()}


def test_context_and_signatures_by_hand() -> None:
    parameters = agreement()
    early = digest(
        "pairwise key context", b"vectors", numbers(1, 6, 32, 3, 3, 4), b"b" * 32, b"p" * 32, *parameters.roster
    )
    context = digest("bound context", early, MODEL)
    assert parameters.key_context() == early == bytes.fromhex(ROUND["key_context"])
    assert parameters.bind(MODEL).context() == context == bytes.fromhex(ROUND["context"])
    assert bytes.fromhex(ROUND["model"]) == MODEL
    adverts = messages("adverts")
    transcript_hash = digest("transcript hash", early, *(numbers(i) + adverts[i] for i in range(4)))
    assert transcript_hash == bytes.fromhex(ROUND["transcript_hash"])
    for i, key in enumerate(parameters.roster):
        public = Ed25519PublicKey.from_public_bytes(key)
        body = adverts[i][16:]
        fields = (body[:32], body[32:64], body[64:96])
        assert {adverts[i][8:16], *(m[8:16] for m in shares()[i].values())} == {early[:8]}
        public.verify(body[96:], digest("advertisement", early, numbers(i), *fields))
        secret = DeterministicKeySource(b"vectors%d" % i).key("self mask")
        assert fields[2] == digest("commitment", early, numbers(i), secret)
        if i == ROUND["dropped"]:
            continue
        upload = messages("uploads")[i]
        assert upload[8:16] == context[:8]
        words = hashlib.blake2b(upload[16:-64], digest_size=32).digest()
        public.verify(upload[-64:], digest("upload", context, transcript_hash, numbers(i), words))
        sets = (numbers(0, 1, 2, 3), numbers(0, 1, 3))
        consent = messages("consents")[i][16:]
        public.verify(consent, digest("survivor set", context, transcript_hash, *sets))
        answer = messages("answers")[i]
        public.verify(answer[-64:], digest("answer", context, transcript_hash, numbers(i), answer[16:-64]))


def test_clients_write_the_same_round() -> None:
    parameters = agreement()
    identities = [Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw)) for raw in ROUND["identities"]]
    rehearsal = Rehearsal(parameters, identities, lambda index: DeterministicKeySource(b"vectors%d" % index))
    vectors = {int(i): np.array(v, np.uint32) for i, v in ROUND["vectors"].items()}
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.bind(MODEL)
    rehearsal.mask(vectors, gone=[ROUND["dropped"]])
    rehearsal.sign()
    rehearsal.unmask()
    assert rehearsal.finish().tolist() == ROUND["sum"]
    assert rehearsal.adverts == messages("adverts")
    assert rehearsal.shares == shares()
    assert rehearsal.uploads == messages("uploads")
    assert rehearsal.consents == messages("consents")
    assert rehearsal.answers == messages("answers")


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
    vectors = {int(i): np.array(v, np.uint32) for i, v in ROUND["vectors"].items()}
    expected = vectors[0] + vectors[1] + vectors[3]
    assert replay().finish().tolist() == ROUND["sum"] == expected.tolist()


@pytest.mark.parametrize("case", load("bad.json"), ids=lambda c: f"{c['step']}-{c['reason']}")
def test_bad_messages(case: dict[str, str]) -> None:
    server = replay(until=case["step"])
    with pytest.raises(ProtocolError, match=f"^{case['check']}: "):
        getattr(server, case["step"])(0, bytes.fromhex(case["message"]))


@pytest.mark.parametrize("case", load("graph.json"))
def test_graph(case: dict[str, Any]) -> None:
    context, transcript_hash = (bytes.fromhex(case["context"]), bytes.fromhex(case["transcript_hash"]))
    members, degree = tuple(case["members"]), case["degree"]
    assert list(ring(context, transcript_hash, members)[0]) == case["order"]
    for member in members:
        near = neighbours(context, transcript_hash, members, member, degree)
        assert list(near) == case["neighbours"][str(member)]
        place = case["order"].index(member)
        half = range(-(degree // 2), degree // 2 + 1)
        by_hand = {case["order"][(place + step) % len(members)] for step in half} - {member}
        assert set(near) == by_hand


@pytest.mark.parametrize("case", load("residues.json"))
def test_residues(case: dict[str, Any]) -> None:
    integers, width = case["integers"], case["field_bits"]
    assert pack_fields(np.array(integers), width).tolist() == case["numbers"]
    fields = 60 // width
    padded = integers + [0] * (-len(integers) % fields)
    count = len(padded) // fields
    for place, number in enumerate(case["numbers"]):
        assert number == sum(padded[j * count + place] << (width * j) for j in range(fields))
    key = bytes.fromhex(case["key"])
    words = KeyStream(key).words(4, np.uint64).tolist()
    assert case["mask"] == [word >> 4 for word in words]
    assert case["mask"] == draw_residues(KeyStream(key), 4, PLAIN_MODULUS).tolist()


COMMITTEE = load("committee.json")


def committee_agreement() -> CommitteeParameters:
    publics = [
        tuple(
            Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw)).public_key().public_bytes_raw()
            for raw in COMMITTEE[name]
        )
        for name in ("clients", "members")
    ]
    return CommitteeParameters(
        task=b"vectors",
        round=1,
        dimension=4,
        bits=32,
        min_survivors=3,
        base_hash=b"b" * 32,
        plan_hash=b"p" * 32,
        roster=publics[0],
        members=publics[1],
        dropout_tolerance=1,
    )


def of_committee(name: str) -> dict[int, bytes]:
    return {int(i): bytes.fromhex(m) for i, m in COMMITTEE[name].items()}


def test_members_open_the_recorded_envelopes() -> None:
    parameters = committee_agreement()
    openings = of_committee("openings")
    for index in range(3):
        member = CommitteeMember(
            parameters,
            index,
            Ed25519PrivateKey.from_private_bytes(bytes.fromhex(COMMITTEE["members"][index])),
            DeterministicKeySource(COMMITTEE["key_sources"][index].encode()),
        )
        assert member.announce() == of_committee("announcements")[index]
        member.bind(MODEL)
        opened = member.open(of_committee("announcements"), of_committee("listings")[index])
        assert opened == openings[index]
        if index in COMMITTEE["lost"]:
            continue
        assert member.answer(openings) == of_committee("answers")[index]
        assert member.consent(COMMITTEE["lost"]) == of_committee("consents")[index]
        assert member.recover(of_committee("consents")) == of_committee("shares")[index]


def test_the_server_opens_the_recorded_committee_round() -> None:
    server = CommitteeServer(committee_agreement())
    for index, message in of_committee("announcements").items():
        server.announced(index, message)
    server.bind(MODEL)
    for index, message in of_committee("submissions").items():
        server.submitted(index, message)
    for index, message in of_committee("listings").items():
        assert server.listing(index) == message
    for index, message in of_committee("openings").items():
        server.opened(index, message)
    server.openings()
    for index, message in of_committee("answers").items():
        server.answered(index, message)
    assert list(server.lost()) == COMMITTEE["lost"]
    for index, message in of_committee("consents").items():
        server.consented(index, message)
    server.consents()
    for index, message in of_committee("shares").items():
        server.recovered(index, message)
    vectors = [np.array(v, np.uint32) for v in COMMITTEE["vectors"].values()]
    assert server.finish().tolist() == COMMITTEE["sum"] == sum(vectors).tolist()  # type: ignore[union-attr]


def test_committee_context_and_signatures_by_hand() -> None:
    parameters = committee_agreement()
    early = digest(
        "committee key context",
        b"vectors",
        numbers(1, 4, 32, 3, 3, 3, 1),
        b"b" * 32,
        b"p" * 32,
        *parameters.roster,
        *parameters.members,
    )
    context = digest("bound context", early, MODEL)
    assert parameters.key_context() == early == bytes.fromhex(COMMITTEE["key_context"])
    assert parameters.bind(MODEL).context() == context == bytes.fromhex(COMMITTEE["context"])
    for name in ("submissions", "listings", "openings", "answers", "consents", "shares"):
        assert {message[8:16] for message in of_committee(name).values()} == {context[:8]}
    announced = of_committee("announcements")
    transcript_hash = digest("committee transcript hash", early, *(announced[i] for i in range(3)))
    assert transcript_hash == bytes.fromhex(COMMITTEE["transcript_hash"])
    listed, openings = [], of_committee("openings")
    for i, raw in enumerate(parameters.roster):
        message, public = of_committee("submissions")[i], Ed25519PublicKey.from_public_bytes(raw)
        words = hashlib.blake2b(message[16:32], digest_size=32).digest()
        envelopes = [message[128 + e * 1234 : 128 + (e + 1) * 1234] for e in range(3)]
        hashed = b"".join(hashlib.sha256(envelope).digest() for envelope in envelopes)
        fields = (context, transcript_hash, numbers(i), words, message[32:128], hashed)
        listed.append(digest("submission", *fields))
        public.verify(message[-64:], listed[-1])
    listing_hash = digest("client list", context, transcript_hash, *listed)
    settled = digest("outcome", context, transcript_hash, *(openings[i] for i in range(3)))
    for i, raw in enumerate(parameters.members):
        public = Ed25519PublicKey.from_public_bytes(raw)
        body = announced[i][16:]
        public.verify(body[-64:], digest("member key", early, numbers(i), body[:1216]))
        body = openings[i][16:]
        assert body[:34] == listing_hash + bytes(2)
        public.verify(body[-64:], digest("openable set", context, transcript_hash, numbers(i), listing_hash, b""))
        if i in COMMITTEE["lost"]:
            continue
        body = of_committee("answers")[i][16:]
        assert body[:32] == settled
        words = hashlib.blake2b(body[32:48], digest_size=32).digest()
        fields = (context, transcript_hash, numbers(i), settled, words)
        public.verify(body[-64:], digest("member answer", *fields))
        body = of_committee("consents")[i][16:]
        fields = (context, transcript_hash, numbers(i), settled, numbers(2))
        public.verify(body[-64:], digest("lost members", *fields))
        body = of_committee("shares")[i][16:]
        fields = (context, transcript_hash, numbers(i), settled, body[:-64])
        public.verify(body[-64:], digest("seed shares", *fields))
