"""Batched BFV through TenSEAL: fixed parameters, own chunks, checked loads.

TenSEAL is imported on first use and nowhere else. This file works around these traps:

* ``make_context_public`` keeps a working decryptor: a public key is made by serialising without
  the secret and is loaded afresh;
* serialising adds relinearisation and Galois keys: they are left out;
* long vectors print a warning and short ones are filled by repetition: every vector has exactly
  as many slots as the ring;
* almost any bytes load as a ciphertext, of any parameters: the form is checked after loading.

It does not authenticate. A ciphertext with a flipped bit, or under another key, may load; what
comes from outside must be signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.secagg.primitives.crypto import Buffer, refuse

DEGREE = 4096
"""Size of the ring and number of slots (N)."""

COEFFICIENT_BITS = (32, 56, 21)
COEFFICIENT_PRIMES = (4294828033, 72057594037641217, 2056193)
"""The modulus of ciphertexts and the special prime; 109 bits, 128-bit security at N = 4096.

Residues are stored in 64-bit words and compressed. Primes of 32 and 56 bits fill whole bytes and
leave zeros, which halves time and saves bytes against two primes of 44 bits; a special prime of
only 21 bits gives three more bits of noise budget than 42, 43 and 24."""

PLAIN_MODULUS = 1152921504606748673
"""The prime t that slots are taken modulo, a little below 2**60 and 1 modulo 2 N."""

MIN_NOISE_BUDGET = 10
"""Bits of noise budget below which a sum is not decrypted."""


def _tenseal() -> Any:
    """Import TenSEAL, late: it takes a while and most runs need none of it."""
    import tenseal
    import tenseal.sealapi  # registers the types that tenseal itself returns

    return tenseal


def _chunks(slots: npt.NDArray[np.uint64]) -> Iterator[list[int]]:
    """Yield one list per ciphertext; never all of them at once, which only fills the memory."""
    box = np.zeros(-(-slots.size // DEGREE) * DEGREE, np.uint64)
    box[: slots.size] = slots
    for row in box.reshape(-1, DEGREE):
        yield row.tolist()


class PublicKey:
    """What encrypts and adds; refuses bytes with a secret key or other parameters."""

    def __init__(self, raw: bytes) -> None:
        try:
            context = _tenseal().context_from(raw, n_threads=1)
        except (ValueError, RuntimeError, TypeError) as error:
            raise refuse("public key", "it cannot be read") from error
        if context.has_secret_key():
            raise refuse("public key", "it holds a secret key; never send that")
        if not context.has_public_key():
            raise refuse("public key", "there is none in it")
        _check_parameters(context)
        self.digest = hashlib.sha256(raw).digest()
        self._context = context
        self._first = context.seal_context().data.first_parms_id()

    def encrypt(self, slots: npt.NDArray[np.uint64]) -> list[bytes]:
        """Encrypt residues modulo t, ``DEGREE`` per ciphertext, the last filled with zeros."""
        vector = _tenseal()._ts_cpp.BFVVector
        return [vector(self._context.data, chunk).serialize() for chunk in _chunks(slots)]

    def load(self, ciphertext: Buffer) -> Any:
        """Read one ciphertext, fresh or summed; refuse other forms and parameters."""
        try:
            vector = _tenseal()._ts_cpp.BFVVector(self._context.data, bytes(ciphertext))
            parts = vector.ciphertext()
        except (ValueError, RuntimeError, TypeError) as error:
            raise refuse("ciphertext form", "it cannot be read") from error
        if len(parts) != 1 or vector.size() != DEGREE:
            raise refuse("ciphertext form", f"it is not one ciphertext of {DEGREE} slots")
        part = parts[0]
        if part.size() != 2 or part.parms_id() != self._first or part.is_ntt_form():
            raise refuse("ciphertext form", "it is of other parameters, or was computed with")
        return vector

    def add(self, total: list[Any] | None, parts: Sequence[Any]) -> list[Any]:
        """Add loaded ciphertexts to a running sum, in place, and return it."""
        if total is None:
            return list(parts)
        for left, right in zip(total, parts, strict=True):
            left.add_(right)
        return total


class SecretKey:
    """A fresh key pair. SEAL draws it, and the noise of every encryption, from the system."""

    def __init__(self) -> None:
        tenseal = _tenseal()
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.BFV,
            DEGREE,
            plain_modulus=PLAIN_MODULUS,
            coeff_mod_bit_sizes=list(COEFFICIENT_BITS),
            n_threads=1,
        )
        _check_parameters(self._context)
        seal = self._context.seal_context().data
        self._encoder = tenseal.sealapi.BatchEncoder(seal)
        self._decryptor = tenseal.sealapi.Decryptor(seal, self._context.secret_key().data)

    def public(self) -> bytes:
        """Return the public key, without the secret and without keys that are not needed."""
        raw: bytes = self._context.serialize(
            save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
        )
        return raw

    def noise_budget(self, vector: Any) -> int:
        """Return how many bits of noise a loaded ciphertext can still take."""
        return int(self._decryptor.invariant_noise_budget(vector.ciphertext()[0]))

    def decrypt(self, vectors: Sequence[Any]) -> npt.NDArray[np.uint64]:
        """Decrypt to residues modulo t; refuse too little noise budget, as a failure could leak the key."""
        slots = np.empty((len(vectors), DEGREE), np.uint64)
        plain = _tenseal().sealapi.Plaintext()
        for row, vector in zip(slots, vectors, strict=True):
            budget = self.noise_budget(vector)
            if budget < MIN_NOISE_BUDGET:
                raise refuse(
                    "noise budget",
                    f"{budget} bits are left, {MIN_NOISE_BUDGET} are needed; too many were added,"
                    " or it is under another key",
                )
            self._decryptor.decrypt(vector.ciphertext()[0], plain)
            row[:] = np.fromiter(self._encoder.decode_uint64(plain), np.uint64, DEGREE)
        return slots.reshape(-1)


def _check_parameters(context: Any) -> None:
    """Refuse a context of other parameters."""
    inner = context.seal_context().data.key_context_data().parms()
    found = (
        inner.poly_modulus_degree(),
        inner.plain_modulus().value(),
        tuple(prime.value() for prime in inner.coeff_modulus()),
    )
    if found != (DEGREE, PLAIN_MODULUS, COEFFICIENT_PRIMES):
        raise refuse("public key", "it is of other parameters than those agreed on")
