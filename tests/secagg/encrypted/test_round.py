"""Encrypted rounds: exact sums, three parties that see what they should, attacks by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from carefl_secure.errors import CohortError, ConfigError, ProtocolError
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg import (
    EncryptedClient,
    EncryptedParameters,
    EncryptedServer,
    KeyHolder,
    PairwiseClient,
    RoundParameters,
)
from carefl_secure.secagg.encrypted.bfv import PLAIN_MODULUS, PublicKey, SecretKey
from carefl_secure.secagg.encrypted.bfv_round import OPENED, opened_fields
from carefl_secure.secagg.encrypted.messages import EncryptedUpload, OpenedSum
from carefl_secure.secagg.primitives.crypto import sign
from tests.support.keyed import HOLDER, KeyedRound, Vectors

Make = Callable[..., RoundParameters]


class Round(KeyedRound):
    """All parties of one encrypted round."""

    scheme = (KeyHolder, EncryptedParameters, EncryptedServer, EncryptedClient)

    def __init__(self, base: RoundParameters, identities: list[Any], **changes: Any) -> None:
        bound = min(2**15 - 1, (2**19 - 2) // base.clients)
        super().__init__(base, identities, **{"value_bound": bound, **changes})

    def vectors(self, seed: int = 0) -> Vectors:
        random, bound = np.random.default_rng(seed), self.parameters.value_bound
        made = {i: random.integers(-bound, bound + 1, self.parameters.dimension) for i in self.clients}
        for vector in made.values():
            vector[0] = bound
        return {i: v.astype(self.parameters.dtype) for i, v in made.items()}


@pytest.fixture
def play(parameters: Make, identities: list[Any]) -> Callable[..., Round]:
    def make(clients: int, dimension: int = 40, bits: int = 32, **changes: Any) -> Round:
        return Round(parameters(clients, dimension=dimension, bits=bits), identities, **changes)

    return make


Play = Callable[..., Round]


def total(vectors: dict[int, npt.NDArray[Any]], members: set[int]) -> npt.NDArray[Any]:
    summed = np.zeros_like(vectors[0])
    for index in members:
        summed = summed + vectors[index]
    return summed


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("field_bits", [20, 30])
@pytest.mark.parametrize("dimension", [1, 40, 13_000])
def test_exact_with_dropouts(play: Play, bits: int, field_bits: int, dimension: int) -> None:
    """One client gone before its upload, one after; the sum of the words comes out, as words."""
    played = play(6, dimension, bits, field_bits=field_bits)
    vectors = played.vectors()
    before = {i: v.copy() for i, v in vectors.items()}
    played.masked(vectors, gone=(2,))
    played.unmask()
    played.open()
    opened = played.server.finish()
    assert opened.dtype == played.parameters.dtype
    assert np.array_equal(opened, total(vectors, {0, 1, 3, 4, 5}))
    assert all(np.array_equal(before[i], v) for i, v in vectors.items())
    with pytest.raises(ProtocolError, match=r"^step order"):
        played.server.finish()


def test_the_largest_sum_and_the_smallest(play: Play) -> None:
    for sign_of in (1, -1):
        played = play(6, 7)
        bound = played.parameters.value_bound
        vector = np.full(7, sign_of * bound).astype(np.uint32)
        played.masked(dict.fromkeys(range(6), vector))
        played.open()
        played.unmask()
        expected = [6 * sign_of * bound] * 7
        assert played.server.finish().view(np.int32).tolist() == expected


def test_on_a_sparse_graph(parameters: Make, identities: list[Any]) -> None:
    base = parameters(40, neighbours=12, share_threshold=9)
    played = Round(base, identities)
    vectors = played.vectors()
    played.masked(vectors, gone=(7,))
    played.unmask()
    played.open()
    assert np.array_equal(played.server.finish(), total(vectors, set(range(40)) - {7}))


def test_a_client_is_restored(play: Play) -> None:
    played = play(4)
    vectors = played.vectors()
    played.agree()
    played.restore(1, vectors[1])
    played.upload(vectors)
    played.unmask()
    played.open()
    assert np.array_equal(played.server.finish(), total(vectors, set(range(4))))


def test_too_few_are_left(play: Play) -> None:
    played = play(6)
    played.masked(played.vectors(), gone=(1, 2))
    with pytest.raises(CohortError, match=r"^min_survivors: 4 clients after uploading"):
        played.server.survivors()


# --- who sees what ---


def plain(holder: KeyHolder, chunks: tuple[bytes, ...]) -> npt.NDArray[np.uint64]:
    """What the key holder would see if it got these ciphertexts."""
    assert holder._secret is not None
    public = PublicKey(holder.public_key)
    return holder._secret.decrypt([public.load(chunk) for chunk in chunks])


def test_the_key_holder_sees_masks_only(play: Play) -> None:
    """Were it given one client's upload, or the sum: both look uniform, neither is the vector."""
    played = play(4, 36_864)
    zeros = dict.fromkeys(range(4), np.zeros(36_864, np.uint32))
    played.masked(zeros)
    seen = [
        plain(played.holder, EncryptedUpload.parse(m, i, played.parameters).chunks) for i, m in played.uploads.items()
    ]
    played.open()
    seen.append(played.server._slots)
    for slots in seen:
        for shift in (0, 20, 40, 52):
            counts = np.bincount((slots >> np.uint64(shift) & np.uint64(255)).astype(int))
            assert stats.chisquare(counts).pvalue > 1e-6
    played.unmask()
    assert not played.server.finish().any()


def test_the_aggregator_holds_no_secret(play: Play) -> None:
    played = play(4)
    played.masked(played.vectors())
    context = played.server._key._context
    assert not context.has_secret_key()
    chunk = EncryptedUpload.parse(played.uploads[0], 0, played.parameters).chunks[0]
    with pytest.raises(ValueError, match="secret_key"):
        played.server._key.load(chunk).decrypt()
    with pytest.raises((ValueError, RuntimeError)):
        context.decryptor()


def test_both_together_still_face_the_masks(play: Play) -> None:
    """Aggregator and key holder collude on one upload: what they open is not the vector."""
    played = play(4)
    vectors = played.vectors()
    played.masked(vectors)
    slots = plain(played.holder, EncryptedUpload.parse(played.uploads[0], 0, played.parameters).chunks)
    packed = slots[: played.parameters.slots].astype(object)
    low = [int(v) % (1 << 20) for v in packed]
    assert low != [int(v) % (1 << 20) for v in vectors[0][: len(low)]]


# --- refused ---


def test_sums_that_could_overflow_are_no_agreement(parameters: Make) -> None:
    def agree(clients: int, bits: int = 32, **changes: Any) -> EncryptedParameters:
        fields = {"key_holder": b"k" * 32, "public_key": b"p" * 32, "value_bound": 1}
        return EncryptedParameters(**{**vars(parameters(clients, bits=bits)), **fields, **changes})

    for clients, field_bits, most in ((6, 20, 87_381), (6, 30, 89_478_485), (40, 20, 13_107)):
        agree(clients, field_bits=field_bits, value_bound=most)
        with pytest.raises(ConfigError, match=r"value_bound .* the sum could overflow"):
            agree(clients, field_bits=field_bits, value_bound=most + 1)
    with pytest.raises(ConfigError, match="value_bound"):
        agree(3, bits=16, value_bound=1 << 15)
    with pytest.raises(ConfigError, match="value_bound"):
        agree(3, value_bound=0)
    with pytest.raises(ConfigError, match="20 or 30"):
        agree(3, field_bits=16)
    with pytest.raises(ConfigError, match="key_holder"):
        agree(3, key_holder=b"")


def test_a_value_out_of_range_is_cut_to_the_bound(play: Play) -> None:
    """A refusal would tell about the records of whoever sends it."""
    played = play(4)
    vectors, bound = played.vectors(), played.parameters.value_bound
    cut = {i: v.copy() for i, v in vectors.items()}
    for place, (wild, kept) in enumerate([(bound + 1, bound), (-bound - 1, -bound), (-(2**31), -bound)]):
        vectors[0][place], cut[0][place] = wild % (1 << 32), kept % (1 << 32)
    played.agree()
    with pytest.raises(ProtocolError, match=r"^vector shape"):
        played.clients[0].mask(np.zeros(40, np.int64), played.server.inbox(0))
    played.upload(vectors)
    played.unmask()
    played.open()
    assert np.array_equal(played.server.finish(), total(cut, set(range(4))))


_ROUND = [field.name for field in dataclasses.fields(RoundParameters)]


def test_wrong_public_keys(play: Play, identities: list[Any]) -> None:
    played = play(4)
    other = SecretKey().public()
    for load in (played.clients[0].load_key, lambda raw: EncryptedServer(played.parameters, raw)):
        with pytest.raises(ProtocolError, match=r"^public key: it is not the one"):
            load(other)
        with pytest.raises(ProtocolError, match=r"^public key: it cannot be read"):
            load(other[:-1])
    peer = PairwiseClient.__new__(EncryptedClient)
    with pytest.raises(ProtocolError, match=r"^parameters: an encrypted round needs"):
        base = RoundParameters(**{name: getattr(played.parameters, name) for name in _ROUND})
        peer.__init__(base, 0, identities[0], DeterministicKeySource(b"x"))  # type: ignore[misc, arg-type]
        peer.load_key(other)


def test_foreign_and_damaged_ciphertexts(play: Play) -> None:
    played = play(4, 13_000)
    vectors = played.vectors()
    played.masked(vectors, gone=(3,))
    good = played.clients[3].mask(vectors[3], played.server.inbox(3))
    chunks = EncryptedUpload.parse(good, 3, played.parameters).chunks
    assert len(chunks) == 2
    foreign = tuple(PublicKey(SecretKey().public()).encrypt(np.zeros(4334, np.uint64)))
    context = played.parameters.context()

    def refused(check: str, message: bytes) -> None:
        with pytest.raises(ProtocolError, match=f"^{check}"):
            played.server.uploaded(3, message)

    signature = good[-64:]
    refused("upload signature: client 3", EncryptedUpload(foreign, signature).encode(3, context))
    refused("upload signature", EncryptedUpload(chunks[::-1], signature).encode(3, context))
    # a ciphertext is compressed, so where a length field stands differs from run to run: a bit that
    # falls into one is refused for the length before the signature is looked at
    for place in (30, len(good) // 2, len(good) - 100, len(good) - 1):
        changed = bytearray(good)
        changed[place] ^= 1
        refused("(upload signature|message length)", bytes(changed))
    for place in (len(good) - 64, len(good) - 1):
        changed = bytearray(good)
        changed[place] ^= 1
        refused("upload signature", bytes(changed))
    refused("message length", good[:-1])
    refused("message length", good + b"\x00")
    refused("message length", good[:70])
    refused("message length", EncryptedUpload(chunks[:1], signature).encode(3, context))
    refused("message length", EncryptedUpload((*chunks, chunks[0]), signature).encode(3, context))
    refused("message kind", b"CFSA\x02\x02\x03\x00" + context[:8] + good[16:])
    refused("message sender", played.uploads[0])
    # a client may sign rubbish; what does not even have the form is refused before it is added
    refused("ciphertext form", played.signed_as(3, (chunks[0], b"")))
    refused("ciphertext form", played.signed_as(3, (chunks[0], chunks[1][:-1])))
    played.hand_in(3, good)
    refused("duplicate message", good)
    played.unmask()
    played.open()
    assert np.array_equal(played.server.finish(), total(vectors, set(range(4))))


def test_a_signed_foreign_ciphertext_is_seen_by_the_key_holder(play: Play) -> None:
    """A client that encrypts under another key spoils the round, and no more than that."""
    played = play(4, 100)
    vectors = played.vectors()
    played.masked(vectors, gone=(3,))
    played.clients[3].mask(vectors[3], played.server.inbox(3))
    foreign = tuple(PublicKey(SecretKey().public()).encrypt(np.zeros(34, np.uint64)))
    played.server.uploaded(3, played.signed_as(3, foreign))
    played.uploads[3] = played.signed_as(3, foreign)
    with pytest.raises(ProtocolError, match=r"^noise budget: 0 bits are left"):
        played.open()
    with pytest.raises(ProtocolError, match=r"^step order: this key is destroyed"):
        played.holder.open()


def test_messages_of_another_round(play: Play) -> None:
    """Same parties, another round number and key: nothing passes."""
    new, old = play(4), play(4, round=6)
    top = new.refuses_uploads_of(old)
    old.holder.add(old.parameters, old.server.transcript_hash, old.uploads)
    answer = old.holder.open()
    new.server.survivors()
    with pytest.raises(ProtocolError, match=r"^opened sum signature: key holder 0"):
        new.server.opened(answer[:8] + top + answer[16:])


def test_answers_of_the_key_holder(play: Play) -> None:
    played = play(4)
    played.masked(played.vectors())
    played.server.survivors()
    place = played.parameters, played.server.transcript_hash
    played.holder.add(*place, played.uploads)
    answer = played.holder.open()
    context = played.parameters.context()
    for place_in in range(0, len(answer), 11):
        changed = bytearray(answer)
        changed[place_in] ^= 1
        with pytest.raises(ProtocolError, match=r"^(message [a-z]+|opened sum signature)"):
            played.server.opened(bytes(changed))
    for cut in (answer[:-1], answer + b"\x00", answer[:20], b""):
        with pytest.raises(ProtocolError, match=r"^message length"):
            played.server.opened(cut)
    residues = PLAIN_MODULUS.to_bytes(8, "little") * played.parameters.slots
    with pytest.raises(ProtocolError, match=r"^opened sum: a number is no residue"):
        played.server.opened(falsely_opened(played, residues))
    with pytest.raises(ProtocolError, match=r"^step order: the key holder has not opened"):
        played.server.finish()
    played.server.opened(answer)
    with pytest.raises(ProtocolError, match=r"^duplicate message"):
        played.server.opened(answer)
    assert answer[8:16] == context[:8]


def falsely_opened(played: Round, residues: bytes) -> bytes:
    """What the key holder would sign over numbers of its own choice."""
    context, digests = played.parameters.context(), played.server._digests
    fields = opened_fields(context, played.server.transcript_hash, digests, residues)
    return OpenedSum(residues, sign(HOLDER, OPENED, *fields)).encode(0, context)


def test_a_lying_key_holder_gives_noise(play: Play) -> None:
    """Numbers of its own choice do not fit the fields, or give a sum under its signature."""
    played = play(4)
    vectors = played.vectors()
    played.masked(vectors)
    played.server.survivors()
    played.server.opened(falsely_opened(played, bytes(8 * played.parameters.slots)))
    played.unmask()
    try:
        opened = played.server.finish()
    except ProtocolError as error:
        assert str(error).startswith("field overflow")
    else:
        assert (opened != total(vectors, set(range(4)))).all()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_junk_messages(play: Play, parameters: Make, data: st.DataObject) -> None:
    """Parsers raise ProtocolError and nothing else."""
    base = parameters(3, dimension=4)
    agreed = EncryptedParameters(**{**vars(base), "key_holder": b"k" * 32, "public_key": b"p" * 32, "value_bound": 9})
    kind = data.draw(st.integers(30, 36))
    top = b"CFSA\x02" + bytes([kind]) + b"\x00\x00" + agreed.context()[:8]
    message = data.draw(st.sampled_from([b"", top])) + data.draw(st.binary(max_size=90))
    for parse in (lambda: EncryptedUpload.parse(message, 0, agreed), lambda: OpenedSum.parse(message, 0, agreed)):
        try:
            parse()
        except ProtocolError as error:
            assert str(error).startswith("message ")


@pytest.mark.parametrize(
    "change",
    [{"key_holder": b"x" * 32}, {"public_key": b"x" * 32}, {"value_bound": 5}, {"field_bits": 30}, {"round": 8}],
)
def test_context_depends_on_every_field(play: Play, change: dict[str, Any]) -> None:
    made = play(4).parameters
    changed = EncryptedParameters(**{**vars(made), **change})
    assert changed.context() != made.context()
    base = RoundParameters(**{name: getattr(made, name) for name in _ROUND})
    assert base.context() != made.context()
