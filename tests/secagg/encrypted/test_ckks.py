"""Rounds under CKKS: exact after rounding for 1000 clients, nothing approximate leaves, attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tenseal
import tenseal.sealapi
from scipy import stats

from carefl_secure.errors import ProtocolError
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg import (
    CkksClient,
    CkksKeyHolder,
    CkksParameters,
    CkksServer,
    EncryptedParameters,
    KeyHolder,
    RoundParameters,
)
from carefl_secure.secagg.encrypted.bfv import PublicKey, SecretKey
from carefl_secure.secagg.encrypted.ckks import (
    CAPACITY,
    CKKS_SLOTS,
    MOST_CLIENTS,
    SCALE_BITS,
    CkksPublicKey,
    CkksSecretKey,
)
from carefl_secure.secagg.encrypted.ckks_round import join, split
from carefl_secure.secagg.encrypted.key_holder import OPENED, opened_fields
from carefl_secure.secagg.encrypted.messages import EncryptedSum, EncryptedUpload, OpenedSum
from carefl_secure.secagg.pairwise.parameters import MAX_CLIENTS
from carefl_secure.secagg.primitives.crypto import sign
from tests.support.keyed import HOLDER, KeyedRound, Vectors

Make = Callable[..., RoundParameters]


@pytest.fixture(scope="module")
def secret() -> CkksSecretKey:
    return CkksSecretKey()


@pytest.fixture(scope="module")
def public(secret: CkksSecretKey) -> CkksPublicKey:
    return CkksPublicKey(secret.public())


class Round(KeyedRound):
    """All parties of one round under CKKS."""

    scheme = (CkksKeyHolder, CkksParameters, CkksServer, CkksClient)

    def vectors(self, seed: int = 0) -> Vectors:
        random, agreed = np.random.default_rng(seed), self.parameters
        shape = agreed.dimension
        return {
            i: random.integers(0, 1 << agreed.bits, shape).astype(agreed.dtype)
            for i in self.clients
        }


@pytest.fixture
def play(parameters: Make, identities: list[Any]) -> Callable[..., Round]:
    def make(clients: int = 4, dimension: int = 40, bits: int = 32, **changes: Any) -> Round:
        base = parameters(clients, dimension=dimension, bits=bits, **changes)
        return Round(base, identities)

    return make


Play = Callable[..., Round]


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("dimension", [1, 3000])
def test_exact_with_dropouts(play: Play, bits: int, dimension: int) -> None:
    """Words over the whole group; sums wrap as those of the peers do."""
    played = play(4, dimension, bits)
    vectors = played.vectors()
    played.masked(vectors, gone=(2,))
    played.unmask()
    played.open()
    opened = played.server.finish()
    expected = vectors[0] + vectors[1] + vectors[3]
    assert opened.dtype == expected.dtype and np.array_equal(opened, expected)
    with pytest.raises(ProtocolError, match=r"^step order"):
        played.server.finish()


def test_a_client_is_restored(play: Play) -> None:
    played = play()
    vectors = played.vectors()
    played.agree()
    played.restore(1, vectors[1])
    played.upload(vectors)
    played.open()
    played.unmask()
    assert np.array_equal(played.server.finish(), sum(vectors.values()))


def test_halves_of_any_word() -> None:
    random = np.random.default_rng(0)
    edges = [0, 1, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 2**15, 2**32 - 1]
    words = np.array([*edges, *random.integers(0, 2**32, 500)], np.uint64).astype(np.uint32)
    assert np.array_equal(join(split(words).astype(np.int64), 32), words)
    many = sum(split(words + np.uint32(k)).astype(np.int64) for k in range(50))
    expected = sum(words + np.uint32(k) for k in range(50))
    assert np.array_equal(join(np.asarray(many), 32), expected)
    short = words.astype(np.uint16)
    assert np.array_equal(join(split(short).astype(np.int64), 16), short)


@pytest.mark.slow
def test_a_thousand_clients_round_exactly(secret: CkksSecretKey, public: CkksPublicKey) -> None:
    """1000 real ciphertexts, the lowest value of all among them: far from half an integer."""
    random, total, expected = np.random.default_rng(0), None, np.zeros(CKKS_SLOTS, np.int64)
    for _ in range(1000):
        drawn = random.integers(-(2**15), 2**15, CKKS_SLOTS).astype(np.int16)
        drawn[:3] = -(2**15)
        expected += drawn
        total = public.add(total, [public.load(public.encrypt(drawn)[0])])
    assert total is not None
    assert np.array_equal(secret.decrypt(total).view(np.int64), expected)
    plain = tenseal.sealapi.Plaintext()
    secret._decryptor.decrypt(total[0].ciphertext()[0], plain)
    error = np.abs(np.array(secret._encoder.decode_double(plain)) - expected).max()
    assert 0 < error < 0.02  # 0.5 is where it would go wrong, 0.125 where it is refused


def test_the_room_of_a_slot() -> None:
    assert MAX_CLIENTS <= MOST_CLIENTS and MOST_CLIENTS << 15 < CAPACITY
    assert CAPACITY << SCALE_BITS + 1 <= 1 << 54


def test_the_largest_sums(secret: CkksSecretKey, public: CkksPublicKey) -> None:
    """The lowest word 1024 times over, by doubling, which adds the errors up at their worst."""
    vector = public.load(public.encrypt(np.full(CKKS_SLOTS, -(2**15), np.int16))[0])
    for _ in range(10):
        vector.add_(vector.copy())
    assert (secret.decrypt([vector]).view(np.int64) == -(2**25)).all()


# --- what leaves the key holder ---


def test_the_decryption_error_does_not_leave(play: Play) -> None:
    """Li and Micciancio need the error of a decryption: the key holder's answer is integers."""
    played = play(4, 3000, 16)
    vectors = played.vectors()
    played.masked(vectors)
    request = played.server.encrypted_sum()
    chunks = EncryptedSum.parse(request, played.parameters).chunks
    held = played.holder._secret
    assert isinstance(held, CkksSecretKey)
    plain = tenseal.sealapi.Plaintext()
    vector = CkksPublicKey(played.holder.public_key).load(chunks[0])
    held._decryptor.decrypt(vector.ciphertext()[0], plain)
    raw = np.array(held._encoder.decode_double(plain))
    assert (raw != np.rint(raw)).mean() > 0.99  # there is an error to be hidden
    answer = OpenedSum.parse(played.holder.open(played.parameters, request), played.parameters)
    sums = answer.numbers().view(np.int64)
    assert np.array_equal(sums[:CKKS_SLOTS], np.rint(raw).astype(np.int64))
    with pytest.raises(ProtocolError, match=r"^step order: this key has opened"):
        played.holder.open(played.parameters, request)


def test_the_key_holder_sees_masks_only(play: Play) -> None:
    """Vectors of zeros: what a single upload decrypts to is uniform all the same."""
    played = play(4, 8192, 16)
    played.masked(dict.fromkeys(range(4), np.zeros(8192, np.uint16)))
    chunks = EncryptedUpload.parse(played.uploads[0], 0, played.parameters).chunks
    key = CkksPublicKey(played.holder.public_key)
    assert played.holder._secret is not None
    seen = played.holder._secret.decrypt([key.load(c) for c in chunks]).view(np.int64)
    counts = np.bincount(seen + 2**15 >> 8, minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6
    with pytest.raises(ValueError, match="secret_key"):
        key.load(chunks[0]).decrypt()


def test_what_is_not_near_integers_is_refused(secret: CkksSecretKey, public: CkksPublicKey) -> None:
    foreign = CkksPublicKey(CkksSecretKey().public()).encrypt(np.ones(9, np.int16))[0]
    with pytest.raises(ProtocolError, match=r"^rounding"):
        secret.decrypt([public.load(foreign)])
    data, scale = public._context.data, 2.0**SCALE_BITS
    halves = tenseal._ts_cpp.CKKSVector(data, [0.5] * CKKS_SLOTS, scale).serialize()
    with pytest.raises(ProtocolError, match=r"^rounding"):
        secret.decrypt([public.load(halves)])
    large = public.load(public.encrypt(np.full(CKKS_SLOTS, 2**15 - 1, np.int16))[0])
    for _ in range(12):
        large.add_(large.copy())
    with pytest.raises(ProtocolError, match=r"^rounding"):
        secret.decrypt([large])


# --- refused ---


def test_other_parameters_and_schemes(public: CkksPublicKey) -> None:
    with pytest.raises(ProtocolError, match=r"^public key"):
        CkksPublicKey(SecretKey().public())
    with pytest.raises(ProtocolError, match=r"^public key"):
        PublicKey(CkksSecretKey().public())
    whole = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[54, 54], n_threads=1
    )
    with pytest.raises(ProtocolError, match=r"^public key: it holds a secret key"):
        CkksPublicKey(whole.serialize(save_secret_key=True))
    other = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 60], n_threads=1
    )
    raw = other.serialize(
        save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
    )
    with pytest.raises(ProtocolError, match=r"^public key: it is of other parameters"):
        CkksPublicKey(raw)
    other.global_scale = 2.0**40
    for ciphertext in (
        tenseal._ts_cpp.CKKSVector(other.data, [1.0] * 4096, 2.0**40).serialize(),
        tenseal._ts_cpp.CKKSVector(public._context.data, [1.0] * CKKS_SLOTS, 2.0**20).serialize(),
        tenseal._ts_cpp.CKKSVector(public._context.data, [1.0, 2.0], 2.0**26).serialize(),
        b"",
    ):
        with pytest.raises(ProtocolError, match=r"^ciphertext form"):
            public.load(ciphertext)


def test_messages_of_another_round(play: Play) -> None:
    new, old = play(), play(round=6)
    new.refuses_uploads_of(old)
    request = old.server.encrypted_sum()
    with pytest.raises(ProtocolError, match=r"^public key: the round names another"):
        new.holder.open(old.parameters, request)
    with pytest.raises(ProtocolError, match=r"^public key: it is not the one"):
        new.clients[0].load_key(old.holder.public_key)


def test_answers_out_of_range(play: Play) -> None:
    played = play()
    played.masked(played.vectors())
    request = played.server.encrypted_sum()
    context = played.parameters.context()
    sums = np.full(played.parameters.slots, CAPACITY, np.int64).tobytes()
    signature = sign(HOLDER, OPENED, *opened_fields(context, request, sums))
    with pytest.raises(ProtocolError, match=r"^opened sum: a number is no residue"):
        played.server.opened(OpenedSum(sums, signature).encode(context))


def test_a_signed_foreign_ciphertext_is_seen_by_the_key_holder(play: Play) -> None:
    played = play(4, 100)
    vectors = played.vectors()
    played.masked(vectors, gone=(3,))
    played.clients[3].mask(vectors[3], played.server.inbox(3))
    foreign = tuple(CkksPublicKey(CkksSecretKey().public()).encrypt(np.zeros(200, np.int16)))
    played.server.uploaded(3, played.signed_as(3, foreign))
    with pytest.raises(ProtocolError, match=r"^rounding"):
        played.open()


def test_the_schemes_do_not_mix(play: Play, parameters: Make, identities: list[Any]) -> None:
    """Another scheme is another context, and machines refuse the other's parameters."""
    played = play()
    fields = {name: getattr(played.parameters, name) for name in vars(played.parameters)}
    bfv = EncryptedParameters(**fields, value_bound=9)
    assert bfv.context() != played.parameters.context()
    with pytest.raises(ProtocolError, match=r"^public key"):
        KeyHolder(HOLDER).open(played.parameters, b"")
    client = CkksClient(bfv, 0, identities[0], DeterministicKeySource(b"x"))
    with pytest.raises(ProtocolError, match=r"^parameters: a round under CKKS needs"):
        client.load_key(played.holder.public_key)


def test_ten_thousand_damaged_ciphertexts_and_keys(
    secret: CkksSecretKey, public: CkksPublicKey
) -> None:
    """Loading raises ProtocolError and nothing else, whatever was cut or flipped."""
    random = np.random.default_rng(0)
    good, key = public.encrypt(np.ones(9, np.int16))[0], secret.public()
    refused = 0
    for turn in range(10_000):
        source, load = (good, public.load) if turn % 2 else (key, CkksPublicKey)
        long = turn % 400 == 1
        changed = bytearray(source if long else source[: int(random.integers(0, 400))])
        for _ in range(int(random.integers(1, 5))):
            if changed:
                changed[int(random.integers(0, len(changed)))] ^= 1 << int(random.integers(0, 8))
        try:
            load(bytes(changed))
        except ProtocolError as error:
            assert str(error).startswith(("ciphertext form", "public key"))
            refused += 1
    assert refused > 9_900
