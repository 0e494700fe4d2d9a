"""BFV through TenSEAL: exact, enough noise budget, and each known trap closed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal
import tenseal.sealapi
from hypothesis import given, settings
from hypothesis import strategies as st

from carefl_secure.errors import ProtocolError
from carefl_secure.secagg.encrypted.bfv import (
    COEFFICIENT_BITS,
    COEFFICIENT_PRIMES,
    DEGREE,
    PLAIN_MODULUS,
    PublicKey,
    SecretKey,
)


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return SecretKey()


@pytest.fixture(scope="module")
def public(secret: SecretKey) -> PublicKey:
    return PublicKey(secret.public())


def residues(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, PLAIN_MODULUS, count).astype(np.uint64)


def context(**changes: Any) -> Any:
    """A TenSEAL context as other code would make it."""
    fields = {"plain_modulus": PLAIN_MODULUS, "coeff_mod_bit_sizes": list(COEFFICIENT_BITS)}
    degree = changes.pop("degree", DEGREE)
    return tenseal.context(tenseal.SCHEME_TYPE.BFV, degree, **{**fields, **changes})


@pytest.mark.parametrize("count", [1, DEGREE - 1, DEGREE, DEGREE + 1, 3 * DEGREE])
def test_sums_are_exact(secret: SecretKey, public: PublicKey, count: int) -> None:
    total, expected = None, np.zeros(count, object)
    for seed in range(4):
        drawn = residues(count, seed)
        total = public.add(total, [public.load(c) for c in public.encrypt(drawn)])
        expected = (expected + drawn.astype(object)) % PLAIN_MODULUS
    assert total is not None
    opened = secret.decrypt(total)
    assert opened.size == -(-count // DEGREE) * DEGREE
    assert opened[:count].tolist() == expected.tolist()


def test_noise_budget_for_a_thousand_clients(secret: SecretKey, public: PublicKey) -> None:
    """1000 real ciphertexts of uniform residues: at least ten bits are left, and it is exact."""
    drawn = [residues(DEGREE, seed) for seed in range(10)]
    total = None
    for client in range(1000):
        total = public.add(total, [public.load(public.encrypt(drawn[client % 10])[0])])
    assert total is not None
    expected = 100 * sum(plain.astype(object) for plain in drawn) % PLAIN_MODULUS
    assert secret.noise_budget(total[0]) >= 10
    assert secret.decrypt(total).tolist() == expected.tolist()


def test_a_spent_noise_budget_is_refused(secret: SecretKey, public: PublicKey) -> None:
    vector = public.load(public.encrypt(residues(DEGREE))[0])
    for _ in range(13):
        vector.add_(vector)
    assert secret.noise_budget(vector) < 10
    with pytest.raises(ProtocolError, match=r"^noise budget: [0-9] bits are left"):
        secret.decrypt([vector])


def test_encryption_is_random(public: PublicKey) -> None:
    same = residues(DEGREE)
    assert public.encrypt(same) != public.encrypt(same)


# --- traps, in the order in which the facts of TenSEAL were found out ---


def test_trap_a_public_context_that_decrypts(secret: SecretKey, public: PublicKey) -> None:
    """make_context_public leaves a decryptor behind; what we publish has none."""
    careless = context(n_threads=1)
    encrypted = tenseal.bfv_vector(careless, [1, 2, 3])
    careless.make_context_public()
    assert not careless.has_secret_key()
    plain = tenseal.sealapi.Plaintext()
    careless.decryptor().data.decrypt(encrypted.ciphertext()[0], plain)  # still works

    published = tenseal.context_from(secret.public(), n_threads=1)
    assert not published.has_secret_key()
    assert not published.is_private()
    vector = public.load(public.encrypt(residues(DEGREE))[0])
    with pytest.raises(ValueError, match="secret_key"):
        vector.decrypt()
    with pytest.raises((ValueError, RuntimeError)):
        published.decryptor()


def test_trap_keys_that_should_not_travel(secret: SecretKey) -> None:
    """A secret key is refused by who gets it; relinearisation and Galois keys are left out."""
    whole = context(n_threads=1)
    private = whole.serialize(save_secret_key=True)
    with pytest.raises(ProtocolError, match=r"^public key: it holds a secret key"):
        PublicKey(private)
    lavish = whole.serialize(save_public_key=True, save_secret_key=False)
    raw = secret.public()
    assert len(raw) < 140_000 < len(lavish)
    loaded = tenseal.context_from(raw, n_threads=1)
    assert not loaded.has_relin_keys()
    assert not loaded.has_galois_keys()
    empty = whole.serialize(
        save_public_key=False, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
    )
    with pytest.raises(ProtocolError, match=r"^public key: there is none"):
        PublicKey(empty)


def test_trap_single_prime_contexts_do_not_exist() -> None:
    """So one of the three primes is spent on key switching: the ciphertext has two."""
    with pytest.raises((ValueError, RuntimeError), match="keyswitching is not supported"):
        context(coeff_mod_bit_sizes=[54], plain_modulus=1032193, n_threads=1)


def test_trap_symmetric_encryption_saves_nothing(public: PublicKey) -> None:
    """Which is why everyone encrypts under the public key."""
    symmetric = tenseal.context(
        tenseal.SCHEME_TYPE.BFV,
        DEGREE,
        plain_modulus=PLAIN_MODULUS,
        coeff_mod_bit_sizes=list(COEFFICIENT_BITS),
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    values = residues(DEGREE)
    ours = len(public.encrypt(values)[0])
    theirs = len(tenseal._ts_cpp.BFVVector(symmetric.data, values.tolist()).serialize())
    assert theirs > 0.95 * ours


def test_trap_long_vectors_print(public: PublicKey, capfd: pytest.CaptureFixture[str]) -> None:
    public.encrypt(residues(3 * DEGREE + 5))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    tenseal.bfv_vector(context(n_threads=1), [1] * (DEGREE + 1))
    assert "WARNING" in capfd.readouterr().out  # the test can see


def test_trap_nothing_is_authenticated(secret: SecretKey, public: PublicKey) -> None:
    """A flipped bit, or another key, may load and decrypt to junk: hence the signatures."""
    values = residues(DEGREE)
    honest = public.encrypt(values)[0]
    loaded = 0
    for place in range(2000, len(honest), len(honest) // 40):
        changed = bytearray(honest)
        changed[place] ^= 1
        try:
            vector = public.load(bytes(changed))
        except ProtocolError:
            continue
        loaded += 1
        assert secret.noise_budget(vector) < 10  # and the key holder sees that it is junk
    assert loaded
    foreign = PublicKey(SecretKey().public()).encrypt(values)[0]
    total = public.add([public.load(honest)], [public.load(foreign)])
    with pytest.raises(ProtocolError, match=r"^noise budget"):
        secret.decrypt(total)


def test_trap_overflow_wraps(secret: SecretKey, public: PublicKey) -> None:
    """Residues wrap without a word; fields are kept from it by ``value_bound``."""
    top = np.full(DEGREE, PLAIN_MODULUS - 1, np.uint64)
    total = public.add(None, [public.load(public.encrypt(top)[0])])
    public.add(total, [public.load(public.encrypt(top)[0])])
    assert set(secret.decrypt(total).tolist()) == {PLAIN_MODULUS - 2}


def test_trap_plain_modulus_among_the_coefficient_primes() -> None:
    clash = context(coeff_mod_bit_sizes=[54, 54], plain_modulus=1032193, n_threads=1)
    primes = clash.seal_context().data.key_context_data().parms().coeff_modulus()
    with pytest.raises((ValueError, RuntimeError), match="not set correctly"):
        context(coeff_mod_bit_sizes=[54, 54], plain_modulus=primes[0].value(), n_threads=1)


def test_trap_threads(secret: SecretKey, public: PublicKey) -> None:
    """Encryption uses one thread whatever is asked; a key starts at most one, not one per core."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("threads are counted where /proc is")
    before = len(os.listdir(tasks))
    kept = [PublicKey(secret.public()) for _ in range(4)]
    assert len(os.listdir(tasks)) - before <= len(kept)


def test_trap_short_vectors_are_filled_by_repetition(secret: SecretKey, public: PublicKey) -> None:
    short = tenseal.bfv_vector(context(n_threads=1), [7, 8])
    with pytest.raises(ProtocolError, match=r"^ciphertext form"):
        public.load(short.serialize())
    opened = secret.decrypt([public.load(c) for c in public.encrypt(residues(2))])
    assert opened[:2].tolist() == residues(2).tolist()
    assert not opened[2:].any()


# --- what is loaded is checked ---


@pytest.mark.parametrize(
    "changes",
    [
        {"degree": 8192, "coeff_mod_bit_sizes": [44, 43, 43, 60]},
        {"coeff_mod_bit_sizes": [43, 42, 24]},
        {"coeff_mod_bit_sizes": [54, 54], "plain_modulus": 1032193},
        {"plain_modulus": 1032193},
    ],
)
def test_other_parameters_are_refused(public: PublicKey, changes: dict[str, Any]) -> None:
    other = context(n_threads=1, **changes)
    raw = other.serialize(save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
    with pytest.raises(ProtocolError, match=r"^public key: it is of other parameters"):
        PublicKey(raw)
    degree = changes.get("degree", DEGREE)
    foreign = tenseal._ts_cpp.BFVVector(other.data, [1] * degree).serialize()
    if changes.get("coeff_mod_bit_sizes"):
        with pytest.raises(ProtocolError, match=r"^ciphertext form"):
            public.load(foreign)


def test_more_or_other_than_one_ciphertext(public: PublicKey) -> None:
    own = tenseal.context_from(SecretKey().public(), n_threads=1)
    two = tenseal._ts_cpp.BFVVector(own.data, [1] * (2 * DEGREE))
    assert len(two.ciphertext()) == 2
    with pytest.raises(ProtocolError, match=r"^ciphertext form: it is not one"):
        public.load(two.serialize())
    multiplying = context(n_threads=1)
    multiplying.auto_relin = False
    vector = tenseal.bfv_vector(multiplying, [1] * DEGREE)
    product = vector * vector
    assert product.ciphertext()[0].size() == 3
    with pytest.raises(ProtocolError, match=r"^ciphertext form: it is of other parameters, or was"):
        public.load(product.serialize())
    with pytest.raises(ProtocolError, match=r"^ciphertext form"):
        public.load(b"")
    ckks = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 60])
    ckks.global_scale = 2.0**40
    with pytest.raises(ProtocolError, match=r"^ciphertext form"):
        public.load(tenseal.ckks_vector(ckks, [1.0]).serialize())
    with pytest.raises(ProtocolError, match=r"^public key"):
        PublicKey(ckks.serialize(save_secret_key=False))


@settings(max_examples=150)
@given(junk=st.binary(max_size=400))
def test_junk(public: PublicKey, junk: bytes) -> None:
    for load in (public.load, PublicKey):
        with pytest.raises(ProtocolError, match=r"^(ciphertext form|public key)"):
            load(junk)


def test_the_constants_are_those_of_tenseal() -> None:
    inner = context(n_threads=1).seal_context().data.key_context_data().parms()
    assert tuple(p.value() for p in inner.coeff_modulus()) == COEFFICIENT_PRIMES
    assert inner.plain_modulus().value() == PLAIN_MODULUS
