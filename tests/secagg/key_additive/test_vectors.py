"""Known answers of the key-additive cipher, against the code and against definitions by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import DeterministicKeySource, KeyStream
from carefl_secure.secagg import AdditiveParameters, RoundParameters
from carefl_secure.secagg.key_additive.cipher import encrypt
from carefl_secure.secagg.key_additive.messages import AdditiveUpload
from carefl_secure.secagg.key_additive.rehearsal import AdditiveRehearsal
from carefl_secure.secagg.key_additive.ring import draw_small, public_blocks

CASE = json.loads((Path(__file__).parents[1] / "vectors" / "additive.json").read_text())
N, Q = 4096, 1 << 108
BEACON = bytes.fromhex(CASE["public"]["beacon"])


def digest(label: str, *fields: bytes) -> bytes:
    parts = (b"carefl-secagg-1/" + label.encode(), *fields)
    return hashlib.sha256(
        b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    ).digest()


def agreement(**changes: Any) -> AdditiveParameters:
    identities = [
        Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw))
        for raw in CASE["round"]["identities"]
    ]
    roster = tuple(i.public_key().public_bytes_raw() for i in identities)
    hashes = (b"m" * 32, b"b" * 32, b"p" * 32)
    base = RoundParameters(b"vectors", 1, 6, 32, 3, 3, *hashes, roster)
    fields = {**vars(base), "value_bound": CASE["value_bound"], **changes}
    return AdditiveParameters(**fields)


def by_hand(context: bytes, block: int) -> list[list[int]]:
    """Four limbs of N signed numbers from the extendable output function."""
    seed = digest("additive ring", context, BEACON, block.to_bytes(8, "little"))
    raw = hashlib.shake_128(seed).digest(16 * N)
    words = [
        int.from_bytes(raw[4 * i : 4 * i + 4], "little", signed=True) >> 5 for i in range(4 * N)
    ]
    return [words[limb * N : (limb + 1) * N] for limb in range(4)]


def numbers(limbs: list[list[int]]) -> list[int]:
    return [sum(limbs[limb][k] << 27 * limb for limb in range(4)) % Q for k in range(N)]


def test_the_context() -> None:
    inner = RoundParameters(
        **{n: getattr(agreement(), n) for n in RoundParameters.__dataclass_fields__}
    )
    settings = (1000, 20, 4096, 108, 28, 4, 42)
    packed = b"".join(value.to_bytes(8, "little") for value in settings)
    expected = digest("additive context", inner.context(), packed)
    assert CASE["context"] == expected.hex() == agreement().context().hex()


@pytest.mark.parametrize("block", ["0", "5"])
def test_the_public_element(block: str) -> None:
    case = CASE["public"]["blocks"][block]
    limbs = by_hand(bytes.fromhex(CASE["context"]), int(block))
    assert case["first"] == [limb[:4] for limb in limbs]
    made = public_blocks(bytes.fromhex(CASE["context"]), BEACON, [int(block)])[0]
    assert made.tolist() == limbs
    assert hashlib.sha256(made.astype("<i4").tobytes()).hexdigest() == case["sha256"]


def small_by_hand(key: bytes, count: int) -> list[int]:
    words = KeyStream(key).words(2 * count, np.uint64).tolist()
    coins = [(word & ((1 << 42) - 1)).bit_count() for word in words]
    return [coins[2 * i] - coins[2 * i + 1] for i in range(count)]


def test_small_elements() -> None:
    case = CASE["small"]
    key = bytes.fromhex(case["key"])
    drawn = small_by_hand(key, 2 * N)
    assert case["first"] == [drawn[:8], drawn[N : N + 8]]
    made = draw_small(KeyStream(key), 2)
    assert made.reshape(-1).tolist() == drawn
    assert hashlib.sha256(made.astype("<i8").tobytes()).hexdigest() == case["sha256"]


@pytest.mark.parametrize("field_bits", [20, 30])
def test_a_ciphertext(field_bits: int) -> None:
    """Four coefficients in whole numbers, and the hash of all of it."""
    case = CASE["packed"][str(field_bits)]
    parameters = agreement(dimension=3 * N, field_bits=field_bits)
    assert parameters.context().hex() == case["context"]
    integers = [i % 7 - 3 for i in range(3 * N)]
    noise, secret = bytes.fromhex(CASE["noise_key"]), bytes.fromhex(CASE["small"]["key"])
    public = numbers(by_hand(parameters.context(), 0))
    small, errors = small_by_hand(secret, N), small_by_hand(noise, N)
    fields = 80 // field_bits
    for k in range(4):
        product = sum(
            (public[(k - i) % N] if k >= i else -public[(k - i) % N]) * small[i] for i in range(N)
        )
        plain = sum(
            integers[j * N + k] << field_bits * j for j in range(fields) if j * N + k < 3 * N
        )
        value = (product + errors[k] + (plain << 28) + 8) % Q >> 4
        planes = (value >> 40, value >> 8 & 0xFFFFFFFF, value & 255)
        assert planes == (int(case["high"][k]), case["middle"][k], case["low"][k])
    sealed = encrypt(
        np.array(integers), draw_small(KeyStream(secret))[0], KeyStream(noise), parameters, BEACON
    )
    assert hashlib.sha256(sealed.encode()).hexdigest() == case["sha256"]


@pytest.fixture(scope="module")
def played() -> AdditiveRehearsal:
    """The round of the file, up to its uploads; client 0's is still to be taken in."""
    case = CASE["round"]
    identities = [
        Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw)) for raw in case["identities"]
    ]
    rehearsal = AdditiveRehearsal(
        agreement(),
        identities,
        lambda index: DeterministicKeySource(case["key_sources"][index].encode()),
    )
    rehearsal.advertise()
    rehearsal.share()
    inboxes = {i: rehearsal.server.inbox(i) for i in rehearsal.shares}
    for index in map(int, case["uploads"]):
        vector = np.array(case["vectors"][str(index)], np.uint32)
        rehearsal.uploads[index] = rehearsal.clients[index].mask(vector, inboxes[index])
    return rehearsal


@pytest.mark.parametrize("case", CASE["bad"], ids=lambda case: case["reason"])
def test_bad_messages(played: AdditiveRehearsal, case: dict[str, Any]) -> None:
    message = bytearray(played.uploads[0])
    if "cut" in case:
        message = bytearray((bytes(message) + bytes(9))[: case["cut"]])
    else:
        message[case["place"]] ^= case["xor"]
    with pytest.raises(ProtocolError, match=f"^{case['check']}"):
        played.server.uploaded(0, bytes(message))


def test_the_round(played: AdditiveRehearsal) -> None:
    case = CASE["round"]
    assert played.server._beacon.hex() == case["beacon"]
    for index, message in played.uploads.items():
        known = case["uploads"][str(index)]
        assert len(message) == known["bytes"]
        assert hashlib.sha256(message).hexdigest() == known["sha256"]
        upload = AdditiveUpload.parse(message, index, agreement())
        assert upload.key()[:4].tolist() == known["key"]
        assert upload.signature.hex() == known["signature"]
        played.server.uploaded(index, message)
    played.present.discard(case["dropped"])
    played.sign()
    played.unmask()
    assert played.finish().tolist() == case["sum"]
    expected = sum(np.array(case["vectors"][i], np.uint32) for i in case["uploads"])
    assert case["sum"] == np.asarray(expected, np.uint32).tolist()
    secrets = [
        small_by_hand(
            DeterministicKeySource(case["key_sources"][int(i)].encode()).key("additive key"), N
        )
        for i in case["uploads"]
    ]
    key_sum = np.sum(secrets, axis=0).astype("<i4")
    assert key_sum[:8].tolist() == case["key_sum"]
    assert hashlib.sha256(key_sum.tobytes()).hexdigest() == case["key_sum_sha256"]
