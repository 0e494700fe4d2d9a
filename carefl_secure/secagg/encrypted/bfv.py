"""Batched BFV through TenSEAL, with its traps closed: fixed parameters, own chunks, checked loads.

TenSEAL is imported on first use and nowhere else. What this file keeps it from doing:

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

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.secagg.encrypted.seal import (
    SealPublicKey,
    check_parameters,
    public_bytes,
    tenseal_module,
)
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import Buffer

__all__ = [
    "COEFFICIENT_BITS",
    "COEFFICIENT_PRIMES",
    "DEGREE",
    "MIN_NOISE_BUDGET",
    "PLAIN_MODULUS",
    "PublicKey",
    "SecretKey",
]

DEGREE = 4096
"""Size of the ring and number of slots (N)."""

COEFFICIENT_BITS = (32, 56, 21)
COEFFICIENT_PRIMES = (4294828033, 72057594037641217, 2056193)
"""The modulus of ciphertexts and the special prime; 109 bits, 128-bit security at N = 4096.

Residues are stored in words of 64 bits and compressed. Primes of 32 and 56 bits fill whole bytes,
so the rest of a word is zeros that compress at once: half the time and fewer bytes than with two
primes of 44 bits, and as the special prime gets only 21 bits, three more bits of noise budget than
with 42, 43 and 24.
"""

PLAIN_MODULUS = 1152921504606748673
"""The prime t that slots are taken modulo, a little below 2**60 and 1 modulo 2 N."""

MIN_NOISE_BUDGET = 10
"""Bits of noise budget below which a sum is not decrypted."""


_PARAMETERS = (DEGREE, PLAIN_MODULUS, COEFFICIENT_PRIMES)


def _chunks(slots: npt.NDArray[np.uint64]) -> Iterator[list[int]]:
    """Yield one list per ciphertext; never all of them at once, which only fills the memory."""
    box = np.zeros(-(-slots.size // DEGREE) * DEGREE, np.uint64)
    box[: slots.size] = slots
    for row in box.reshape(-1, DEGREE):
        yield row.tolist()


class PublicKey(SealPublicKey):
    """What is needed to encrypt and to add, and nothing that decrypts.

    Parameters
    ----------
    raw
        What :meth:`SecretKey.public` gave.

    Raises
    ------
    ProtocolError
        If the bytes are no public key of exactly these parameters, or hold a secret key.
    """

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw, _PARAMETERS)

    def encrypt(self, slots: npt.NDArray[np.uint64]) -> list[bytes]:
        """Encrypt residues modulo t, ``DEGREE`` per ciphertext, the last filled with zeros."""
        vector = tenseal_module()._ts_cpp.BFVVector
        return [vector(self._context.data, chunk).serialize() for chunk in _chunks(slots)]

    def load(self, ciphertext: Buffer) -> Any:
        """Read one ciphertext.

        Raises
        ------
        ProtocolError
            If it is not one fresh or summed ciphertext of these parameters.
        """
        kind = tenseal_module()._ts_cpp.BFVVector
        vector, part = self._read(kind, ciphertext, DEGREE)
        if part.is_ntt_form():
            raise self._foreign()
        return vector


class SecretKey:
    """A fresh key pair. SEAL draws it, and the noise of every encryption, from the system."""

    def __init__(self) -> None:
        tenseal = tenseal_module()
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.BFV,
            DEGREE,
            plain_modulus=PLAIN_MODULUS,
            coeff_mod_bit_sizes=list(COEFFICIENT_BITS),
            n_threads=1,
        )
        check_parameters(self._context, _PARAMETERS)
        seal = self._context.seal_context().data
        self._encoder = tenseal.sealapi.BatchEncoder(seal)
        self._decryptor = tenseal.sealapi.Decryptor(seal, self._context.secret_key().data)

    def public(self) -> bytes:
        """Return the public key alone."""
        return public_bytes(self._context)

    def noise_budget(self, vector: Any) -> int:
        """Return how many bits of noise a loaded ciphertext can still take."""
        return int(self._decryptor.invariant_noise_budget(vector.ciphertext()[0]))

    def decrypt(self, vectors: Sequence[Any]) -> npt.NDArray[np.uint64]:
        """Decrypt loaded ciphertexts to residues modulo t.

        Raises
        ------
        ProtocolError
            If a ciphertext has less than ``MIN_NOISE_BUDGET`` bits left: decryption might fail,
            and a failure would tell about the key.
        """
        slots = np.empty((len(vectors), DEGREE), np.uint64)
        plain = tenseal_module().sealapi.Plaintext()
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
