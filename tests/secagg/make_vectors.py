"""Write the known answers anew: ``python -m tests.secagg.make_vectors``.

Only after a deliberate change of the wire format, with a new version number in it. The tests
hold the files against the code and, where that is possible, against definitions written out by
hand.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.noise import DeterministicKeySource, KeyStream, SkellamSampler
from carefl_secure.secagg import (
    CommitteeParameters,
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
from tests.support.played_committee import CommitteeRehearsal
from tests.support.played_pairwise import Rehearsal

FOLDER = Path(__file__).parent / "vectors"
CLIENTS, DIMENSION, DROPPED = 4, 6, 2
MODEL = b"m" * 32
REDRAWN_L2 = 248.83  # below three of the first four draws


def write(name: str, content: Any) -> None:
    """Write one file."""
    (FOLDER / name).write_text(json.dumps(content, indent=1) + "\n")


def agreement() -> tuple[RoundParameters, list[Ed25519PrivateKey]]:
    """Return the parameters that all files share."""
    identities = [Ed25519PrivateKey.from_private_bytes(bytes([i + 65]) * 32) for i in range(CLIENTS)]
    roster = tuple(i.public_key().public_bytes_raw() for i in identities)
    return RoundParameters(
        task=b"vectors",
        round=1,
        dimension=DIMENSION,
        bits=32,
        threshold=3,
        min_survivors=3,
        base_hash=b"b" * 32,
        plan_hash=b"p" * 32,
        roster=roster,
    ), identities


def keystream() -> None:
    """Key stream, as bytes and as words, and Skellam noise drawn from it."""
    key = bytes(range(32))
    cases = [
        {
            "key": key.hex(),
            "bytes": KeyStream(key).take(64).hex(),
            "uint16": KeyStream(key).words(4, np.uint16).tolist(),
            "uint32": KeyStream(key).words(4, np.uint32).tolist(),
            "skellam": {str(v): SkellamSampler(v).sample(KeyStream(key), 12).tolist() for v in (1.0, 2500.0, 3e6)},
        }
        for key in (key, bytes(32), b"\xff" * 32)
    ]
    write("keystream.json", cases)


def kdf() -> None:
    """Digest and key derivation."""
    cases = []
    for secret, label, fields in (
        (b"s" * 32, b"label", []),
        (b"s" * 32, b"label", [b""]),
        (bytes(range(32)), b"pair mask", [b"c" * 32, b"b" * 32, crypto.pack(1, 2)]),
    ):
        cases.append(
            {
                "secret": secret.hex(),
                "label": label.decode(),
                "fields": [field.hex() for field in fields],
                "digest": crypto.digest(label, *fields).hex(),
                "derived": crypto.derive(secret, label, *fields).hex(),
            }
        )
    write("kdf.json", cases)


def shares() -> None:
    """Shamir shares."""
    cases = []
    for secret, threshold, points in (
        (1, 1, [1, 2]),
        (shamir.PRIME - 1, 3, [1, 2, 3, 4]),
        (int.from_bytes(bytes(range(32)), "little"), 4, [9, 1, 1000, 5, 2]),
    ):
        key = bytes([threshold]) * 32
        made = shamir.split(secret, threshold, points, KeyStream(key))
        cases.append(
            {
                "secret": hex(secret),
                "threshold": threshold,
                "points": points,
                "stream_key": key.hex(),
                "shares": [hex(share) for share in made],
            }
        )
    write("shamir.json", cases)


def encoding() -> None:
    """Encoding with and without rotation; conditional, without and with redraws."""
    cases = []
    real = [0.5, -0.25, 0.125, 0.0, -0.75]
    clients = plan_clients(5, 1.0, 1.0, 3, 2)
    short = dataclasses.replace(clients, l2_sensitivity=REDRAWN_L2)
    for kind, plan in (
        ("records", plan_records(5, 1.0, 1.0, 10, 3, 2)),
        ("plain", plan_plain(5, 1.0, 3)),
        ("clients", clients),
        ("clients redrawn", short),
    ):
        integers = encode(np.array(real), plan, b"r" * 32, KeyStream(b"d" * 32))
        words = wrap(integers, plan.bits)
        cases.append(
            {
                "kind": kind,
                "vector": real,
                "scale": plan.scale,
                "l1": plan.l1_sensitivity,
                "l2": plan.l2_sensitivity,
                "rotation_key": (b"r" * 32).hex(),
                "dither_key": (b"d" * 32).hex(),
                "integers": integers.tolist(),
                "words": words.tolist(),
                "decoded": decode(words, plan, b"r" * 32).tolist(),
            }
        )
    write("encoding.json", cases)


def play(
    parameters: RoundParameters, identities: list[Ed25519PrivateKey], model: bytes = MODEL
) -> tuple[Rehearsal, dict[str, Any]]:
    """Play a round of four clients of which one drops out before its upload."""
    rehearsal = Rehearsal(parameters, identities, lambda index: DeterministicKeySource(b"vectors%d" % index))
    vectors = {i: np.array([i, 10 * i, 2**32 - 1 - i, 2**31, 0, 7], np.uint32) for i in range(CLIENTS)}
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.bind(model)
    rehearsal.mask(vectors, gone=[DROPPED])
    rehearsal.sign()
    rehearsal.unmask()
    total = rehearsal.finish()
    messages = {
        "adverts": rehearsal.adverts,
        "uploads": rehearsal.uploads,
        "consents": rehearsal.consents,
        "answers": rehearsal.answers,
    }
    content = {
        "model": model.hex(),
        "key_context": parameters.key_context().hex(),
        "context": rehearsal.server.parameters.context().hex(),
        "transcript_hash": rehearsal.server._transcript_hash.hex(),
        "identities": [(bytes([i + 65]) * 32).hex() for i in range(CLIENTS)],
        "vectors": {i: v.tolist() for i, v in vectors.items()},
        "dropped": DROPPED,
        "shares": {i: {j: m.hex() for j, m in box.items()} for i, box in rehearsal.shares.items()},
        **{name: {i: m.hex() for i, m in part.items()} for name, part in messages.items()},
        "sum": total.tolist(),
    }
    return rehearsal, content


def whole_round() -> Rehearsal:
    """One round."""
    rehearsal, content = play(*agreement())
    write("round.json", content)
    return rehearsal


def foreign(played: Rehearsal) -> list[tuple[str, str, str, str]]:
    """Messages of another round or for another model, as they are and with the right header."""
    agreed, identities = agreement()
    other_round, _ = play(dataclasses.replace(agreed, round=2), identities)
    other_model, _ = play(agreed, identities, b"n" * 32)
    key_prefix, prefix = agreed.key_context()[:8], agreed.bind(MODEL).context()[:8]
    cases = []
    for step, name, check in (
        ("advertised", "adverts", "advertisement signature"),
        ("uploaded", "uploads", "upload signature"),
        ("signed", "consents", "survivor set signature"),
        ("answered", "answers", "answer signature"),
    ):
        strangers = [("of another round", other_round)]
        if step != "advertised":
            strangers.append(("for another model", other_model))
        right, wrong = (key_prefix, prefix) if step == "advertised" else (prefix, key_prefix)
        for reason, other in strangers:
            message = getattr(other, name)[0]
            dressed = (message[:8] + right + message[16:]).hex()
            cases.append((step, reason, message.hex(), "message context"))
            cases.append((step, f"{reason}, with the right prefix", dressed, check))
        mine = getattr(played, name)[0]
        changed = (mine[:8] + wrong + mine[16:]).hex()
        cases.append((step, "prefix of the other context", changed, "message context"))
    return cases


def flip(message: bytes, place: int, bit: int = 1) -> str:
    """Return the message with one bit changed, in hex."""
    changed = bytearray(message)
    changed[place] ^= bit
    return bytes(changed).hex()


def bad(played: Rehearsal) -> None:
    """Messages that the server must refuse while it replays the round, each with the check."""
    cases = []
    for step, message in (
        ("advertised", played.adverts[0]),
        ("uploaded", played.uploads[0]),
        ("signed", played.consents[0]),
        ("answered", played.answers[0]),
    ):
        words = {"advertised": "advertisement", "uploaded": "upload"}
        words |= {"signed": "survivor set", "answered": "answer"}
        for reason, changed, check in (
            ("empty", "", "message length"),
            ("header cut short", message[:15].hex(), "message length"),
            ("last byte missing", message[:-1].hex(), "message length"),
            ("one byte too many", message.hex() + "00", "message length"),
            ("other magic", flip(message, 0), "message magic"),
            ("version 0", flip(message, 4), "message version"),
            ("type of no message", flip(message, 5, 8), "message kind"),
            ("names another client", flip(message, 6), "message sender"),
            ("of another round", flip(message, 8), "message context"),
            ("signature changed", flip(message, len(message) - 1), f"{words[step]} signature"),
        ):
            cases.append({"step": step, "reason": reason, "message": changed, "check": check})
    upload, answer, advert = played.uploads[0], played.answers[0], played.adverts[0]
    extra = [
        ("advertised", "mask key changed", flip(advert, 48), "advertisement signature"),
        ("advertised", "commitment changed", flip(advert, 80), "advertisement signature"),
        ("uploaded", "one bit of a word changed", flip(upload, 16), "upload signature"),
        ("answered", "share changed", flip(answer, 30), "answer signature"),
        ("answered", "no such secret", flip(answer, 20, 2), "answer kind"),
        ("answered", "share outside the field", flip(answer, 53, 2), "share range"),
        ("answered", "peers out of order", flip(answer, 18, 2), "answer entries"),
        ("answered", "count too large", flip(answer, 16), "message length"),
    ]
    for step, reason, changed, check in [*extra, *foreign(played)]:
        cases.append({"step": step, "reason": reason, "message": changed, "check": check})
    write("bad.json", cases)


def graph() -> None:
    """Rings drawn from a transcript hash."""
    cases = []
    for context, transcript_hash, members, degree in (
        (b"c" * 32, b"b" * 32, tuple(range(10)), 4),
        (bytes(32), bytes(range(32)), tuple(range(3, 60, 3)), 6),
    ):
        cases.append(
            {
                "context": context.hex(),
                "transcript_hash": transcript_hash.hex(),
                "members": members,
                "order": ring(context, transcript_hash, members)[0],
                "degree": degree,
                "neighbours": {m: neighbours(context, transcript_hash, members, m, degree) for m in members},
            }
        )
    write("graph.json", cases)


def residues() -> None:
    """Packing into fields, and masks modulo the plain modulus."""
    integers = [1, -2, 3, -4, 524_286 // 3, -524_286 // 3, 7]
    cases = [
        {
            "field_bits": field_bits,
            "integers": integers,
            "numbers": pack_fields(np.array(integers), field_bits).tolist(),
            "key": bytes(range(32)).hex(),
            "mask": draw_residues(KeyStream(bytes(range(32))), 4, PLAIN_MODULUS).tolist(),
        }
        for field_bits in (20, 30)
    ]
    write("residues.json", cases)


def committee() -> None:
    """A committee round that tolerates one loss, of member 2 before it answers.

    Envelopes hold fresh randomness, so submissions differ from run to run; all else follows.
    """
    people = [Ed25519PrivateKey.from_private_bytes(bytes([i + 65]) * 32) for i in range(3)]
    members = [Ed25519PrivateKey.from_private_bytes(bytes([i + 97]) * 32) for i in range(3)]
    publics = [tuple(k.public_key().public_bytes_raw() for k in ks) for ks in (people, members)]
    parameters = CommitteeParameters(
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
    played = CommitteeRehearsal(parameters, people, members, lambda name: DeterministicKeySource(name.encode()))
    vectors = {i: np.array([i, 2**32 - 1 - i, 2**31, 5], np.uint32) for i in range(3)}
    played.announce()
    played.bind(MODEL)
    played.submit(vectors)
    listings = {m: played.server.listing(m).hex() for m in range(3)}
    played.open()
    played.answer(gone=[2])
    played.recover()
    content = {
        "model": MODEL.hex(),
        "key_context": parameters.key_context().hex(),
        "context": played.server.parameters.context().hex(),
        "transcript_hash": played.server._transcript_hash.hex(),
        "clients": [(bytes([i + 65]) * 32).hex() for i in range(3)],
        "members": [(bytes([i + 97]) * 32).hex() for i in range(3)],
        "key_sources": [f"member {i}" for i in range(3)],
        "vectors": {i: v.tolist() for i, v in vectors.items()},
        "lost": played.server.lost(),
        "announcements": {i: m.hex() for i, m in played.announcements.items()},
        "submissions": {i: m.hex() for i, m in played.submissions.items()},
        "listings": listings,
        "openings": {i: m.hex() for i, m in played.openings.items()},
        "answers": {i: m.hex() for i, m in played.answers.items()},
        "consents": {i: m.hex() for i, m in played.consents.items()},
        "shares": {i: m.hex() for i, m in played.shares.items()},
        "sum": played.finish().tolist(),
    }
    write("committee.json", content)


if __name__ == "__main__":
    keystream()
    kdf()
    shares()
    encoding()
    bad(whole_round())
    graph()
    residues()
    committee()
