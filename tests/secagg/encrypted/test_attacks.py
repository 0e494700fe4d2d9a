"""An aggregator that wants more from the key holder than one sum; each request costs it the key."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tenseal
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.secagg import EncryptedClient, EncryptedParameters, EncryptedServer, KeyHolder
from carefl_secure.secagg.encrypted.bfv import COEFFICIENT_PRIMES, DEGREE, PLAIN_MODULUS
from carefl_secure.secagg.encrypted.messages import EncryptedUpload
from tests.support.keyed import KeyedRound, Vectors


class Round(KeyedRound):
    """An encrypted round whose uploads are in, and the survivors settled."""

    scheme = (KeyHolder, EncryptedParameters, EncryptedServer, EncryptedClient)

    def vectors(self, seed: int = 0) -> Vectors:
        random = np.random.default_rng(seed)
        return {i: random.integers(0, 9, self.parameters.dimension, "u4") for i in self.clients}

    def ask(self, uploads: dict[int, bytes], **changes: Any) -> None:
        """Hand uploads to the key holder, the agreement changed by name."""
        agreed = dataclasses.replace(self.parameters, **changes)
        self.holder.add(agreed, self.server.transcript_hash, uploads)


@pytest.fixture
def played(parameters: Callable[..., Any], identities: list[Any]) -> Round:
    made = Round(parameters(5, dimension=40), identities, value_bound=1000)
    made.masked(made.vectors())
    made.server.survivors()
    return made


def chosen_ciphertext(like: bytes) -> bytes:
    """c0 = 0 and c1 = round(Q / t): its plaintext is the secret polynomial itself."""
    q1, q2 = COEFFICIENT_PRIMES[:2]
    delta = (q1 * q2 + PLAIN_MODULUS // 2) // PLAIN_MODULUS
    data = np.zeros((2, 2, DEGREE), np.uint64)
    data[1, 0, 0], data[1, 1, 0] = delta % q1, delta % q2
    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV, DEGREE, plain_modulus=PLAIN_MODULUS, coeff_mod_bit_sizes=[32, 56, 21], n_threads=1
    )
    parms = context.seal_context().data.first_parms_id()
    fields = split(like)
    version = fields[2][3:5]

    def saved(content: bytes) -> bytes:
        """SEAL's header before what is not compressed."""
        return struct.pack("<HB2sBHQ", 0xA15E, 16, version, 0, 0, 16 + len(content)) + content

    body = struct.pack("<4Q?QQQdQ", *parms, False, 2, DEGREE, 2, 1.0, 1)
    raw = saved(body + saved(struct.pack("<Q", data.size) + data.astype("<u8").tobytes()))
    sizes = fields[1]
    return b"\x0a" + varint(len(sizes)) + sizes + b"\x12" + varint(len(raw)) + raw


def split(message: bytes) -> dict[int, bytes]:
    """The fields of TenSEAL's protobuf: sizes, and one SEAL ciphertext."""
    place, fields = 0, {}
    while place < len(message):
        tag, size, shift = message[place] >> 3, 0, 0
        while True:
            place += 1
            size |= (message[place] & 127) << shift
            shift += 7
            if message[place] < 128:
                break
        place += 1
        fields[tag], place = message[place : place + size], place + size
    return fields


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def destroyed(played: Round) -> None:
    """The key is gone: not even the honest request is answered any more."""
    for request in (played.holder.open, lambda: played.ask(played.uploads)):
        with pytest.raises(ProtocolError, match=r"^step order: this key is destroyed"):
            request()
    assert played.holder._secret is None


def test_a_chosen_ciphertext_is_not_opened(played: Round) -> None:
    """The aggregator puts its own ciphertext under a client's signature, or under none."""
    upload = EncryptedUpload.parse(played.uploads[0], 0, played.parameters)
    chosen = chosen_ciphertext(upload.chunks[0])
    played.server._key.load(chosen)  # it has the form of a ciphertext
    false = EncryptedUpload((chosen,), upload.signature)
    with pytest.raises(ProtocolError, match=r"^upload signature: client 0"):
        played.ask({0: false.encode(0, played.parameters.context())})
    destroyed(played)


def test_fewer_uploads_than_survivors_are_needed(played: Round) -> None:
    """Instead of the sum, the upload of one client, or of too few."""
    played.ask({i: played.uploads[i] for i in (0, 1, 2)})
    with pytest.raises(CohortError, match=r"^min_survivors: 3 clients after uploading"):
        played.holder.open()
    destroyed(played)


def test_the_same_client_twice(played: Round) -> None:
    """One client's upload, again and again, does not make a cohort."""
    played.ask({0: played.uploads[0]})
    with pytest.raises(ProtocolError, match=r"^duplicate upload: client 0"):
        played.ask({0: played.uploads[0]})
    destroyed(played)


def test_an_upload_in_anothers_place(played: Round) -> None:
    with pytest.raises(ProtocolError, match=r"^message sender"):
        played.ask({0: played.uploads[1]})
    destroyed(played)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"model_hash": b"x" * 32}, "message context"),
        ({"round": 8}, "message context"),
        ({"public_key": b"x" * 32}, "public key"),
        ({"key_holder": b"x" * 32}, "key holder"),
    ],
)
def test_uploads_of_another_agreement(played: Round, change: dict[str, Any], check: str) -> None:
    with pytest.raises(ProtocolError, match=f"^{check}"):
        played.ask(played.uploads, **change)
    destroyed(played)


def test_uploads_of_two_lists_of_keys(played: Round) -> None:
    played.ask({0: played.uploads[0]})
    with pytest.raises(ProtocolError, match=r"^round: uploads of another"):
        played.holder.add(played.parameters, bytes(32), {1: played.uploads[1]})
    destroyed(played)


def test_an_empty_request(played: Round) -> None:
    with pytest.raises(ProtocolError, match=r"^step order: no upload was added"):
        played.holder.open()
    destroyed(played)


def test_one_key_opens_one_sum(played: Round) -> None:
    """In portions as well as at once; the second request finds no key."""
    for index in range(5):
        played.ask({index: played.uploads[index]})
    answer = played.holder.open()
    destroyed(played)
    played.server.opened(answer)
    played.unmask()
    expected = sum(played.vectors().values())
    assert np.array_equal(played.server.finish(), expected)


def test_another_holder_opens_nothing(played: Round) -> None:
    other = KeyHolder(Ed25519PrivateKey.generate())
    with pytest.raises(ProtocolError, match=r"^key holder: the round names another"):
        other.add(played.parameters, played.server.transcript_hash, played.uploads)
    assert other._secret is None
