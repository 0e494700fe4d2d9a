"""CKKS through TenSEAL, for sums that are integers: approximate inside, exact after rounding.

BFV (``bfv.py``) is the better choice for sums of integers: it is exact, has less than a third of
the bytes, and its decryption has no error that could tell about the key. CKKS is here for those who
must use it.

A CKKS decryption is ``m + e`` with a small ``e`` that depends on the secret key; who sees enough of
it computes the key (Li and Micciancio, "On the security of homomorphic encryption on approximate
numbers", EUROCRYPT 2021). So the key holder rounds to integers before anything leaves it, refuses
where an integer is not near, and one key opens one sum.

Parameters: ``N = 4096`` with primes of 54 and 54 bits, 108 in all, where the Homomorphic
Encryption Standard (2018) allows 109 for 128 bits of security; scale ``2**26``. A slot holds sums
below ``2**27``. Every addend is a signed integer of 16 bits, so that up to 4095 clients fit. An
encryption has an error of standard deviation below ``1.5e-5`` in a slot (measured), so a sum of
1000 lies within ``0.0005``; ``0.125`` is where it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    "CKKS_DEGREE",
    "CKKS_PRIMES",
    "CKKS_SLOTS",
    "HALF_BITS",
    "MOST_CLIENTS",
    "SCALE_BITS",
    "CkksPublicKey",
    "CkksSecretKey",
]

CKKS_DEGREE = 4096
"""Size of the ring (N)."""

CKKS_SLOTS = CKKS_DEGREE // 2
"""Real numbers per ciphertext."""

CKKS_BITS = (54, 54)
CKKS_PRIMES = (18014398509293569, 18014398509309953)
"""The modulus of ciphertexts and the special prime."""

SCALE_BITS = 26
"""Numbers are multiplied by 2**26 before they are rounded to polynomials."""

HALF_BITS = 16
"""Bits of one addend, signed."""

CAPACITY = 1 << CKKS_BITS[0] - 1 - SCALE_BITS
"""Sums stay below this magnitude: 2**27."""

MOST_CLIENTS = (CAPACITY - 1) >> HALF_BITS - 1
"""Clients whose sum fits a slot: 4095."""

_SURE = 0.125


_PARAMETERS = (CKKS_DEGREE, 0, CKKS_PRIMES)


def _vector(*arguments: Any) -> Any:
    return tenseal_module()._ts_cpp.CKKSVector(*arguments)


class CkksPublicKey(SealPublicKey):
    """What is needed to encrypt and to add, and nothing that decrypts.

    Parameters
    ----------
    raw
        What :meth:`CkksSecretKey.public` gave.

    Raises
    ------
    ProtocolError
        If the bytes are no public key of exactly these parameters, or hold a secret key.
    """

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw, _PARAMETERS)

    def encrypt(self, slots: npt.NDArray[np.int16]) -> list[bytes]:
        """Encrypt signed integers of 16 bits, the last ciphertext filled with zeros."""
        box = np.zeros(-(-slots.size // CKKS_SLOTS) * CKKS_SLOTS)
        box[: slots.size] = slots
        data, scale = self._context.data, 2.0**SCALE_BITS
        return [
            _vector(data, row.tolist(), scale).serialize() for row in box.reshape(-1, CKKS_SLOTS)
        ]

    def load(self, ciphertext: Buffer) -> Any:
        """Read one ciphertext.

        Raises
        ------
        ProtocolError
            If it is not one fresh or summed ciphertext of these parameters.
        """
        vector, part = self._read(_vector, ciphertext, CKKS_SLOTS)
        if not part.is_ntt_form() or part.scale != 2.0**SCALE_BITS:
            raise self._foreign()
        return vector


class CkksSecretKey:
    """A fresh key pair. SEAL draws it, and the noise of every encryption, from the system."""

    def __init__(self) -> None:
        tenseal = tenseal_module()
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            CKKS_DEGREE,
            coeff_mod_bit_sizes=list(CKKS_BITS),
            n_threads=1,
        )
        check_parameters(self._context, _PARAMETERS)
        seal = self._context.seal_context().data
        self._encoder = tenseal.sealapi.CKKSEncoder(seal)
        self._decryptor = tenseal.sealapi.Decryptor(seal, self._context.secret_key().data)

    def public(self) -> bytes:
        """Return the public key alone."""
        return public_bytes(self._context)

    def decrypt(self, vectors: Sequence[Any]) -> npt.NDArray[np.uint64]:
        """Decrypt loaded ciphertexts and round; the approximate numbers are never returned.

        Returns
        -------
        numpy.ndarray
            uint64, two's complement of the signed sums.

        Raises
        ------
        ProtocolError
            If a number is not within an eighth of an integer, or out of range: it is no sum of
            encryptions under this key.
        """
        slots = np.empty((len(vectors), CKKS_SLOTS))
        plain = tenseal_module().sealapi.Plaintext()
        for row, vector in zip(slots, vectors, strict=True):
            self._decryptor.decrypt(vector.ciphertext()[0], plain)
            row[:] = self._encoder.decode_double(plain)
        nearest = np.rint(slots)
        if not (np.abs(slots) < CAPACITY).all() or np.abs(slots - nearest).max() > _SURE:
            raise refuse(
                "rounding",
                "what was decrypted is not near integers in range, so it is not handed out; a"
                " ciphertext is no encryption under this key, or too many were added",
            )
        return nearest.astype(np.int64).view(np.uint64).reshape(-1)
