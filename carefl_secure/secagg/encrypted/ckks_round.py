"""The peer protocol with uploads under CKKS: what is encrypted are the masked words themselves.

Choose BFV (``encrypted.py``) wherever you can; ``ckks.py`` says why. This mode is for integer
vectors that were rounded and noised before: its sums are rounded back to integers by the key holder
before anyone else sees them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ConfigError
from carefl_secure.noise import add_masks
from carefl_secure.secagg.encrypted.bfv_round import (
    EncryptedServer,
    Encrypter,
    checked_key,
    encrypt_upload,
)
from carefl_secure.secagg.encrypted.ckks import (
    CAPACITY,
    CKKS_DEGREE,
    CKKS_PRIMES,
    CKKS_SLOTS,
    HALF_BITS,
    MOST_CLIENTS,
    SCALE_BITS,
    CkksPublicKey,
    CkksSecretKey,
)
from carefl_secure.secagg.encrypted.key_holder import KeyHolder, Opener
from carefl_secure.secagg.encrypted.parameters import KeyedParameters
from carefl_secure.secagg.pairwise.client import PairwiseClient
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.pairwise.state import Phase
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import digest, pack

__all__ = ["CkksClient", "CkksKeyHolder", "CkksParameters", "CkksServer", "join", "split"]


@dataclass(frozen=True, kw_only=True)
class CkksParameters(KeyedParameters):
    """The agreement behind one round under CKKS: that of the peers, and the key holder's.

    Raises
    ------
    ConfigError
        If a value is out of range, or the sums of so many clients would not round exactly.

    Guarantees
    ----------
    :meth:`context` binds every message to all of it, in words that no other mode uses.
    """

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        if self.clients > MOST_CLIENTS:
            raise ConfigError(
                f"sums under CKKS round exactly for at most {MOST_CLIENTS} clients, not"
                f" {self.clients}; set federation.encryption=bfv"
            )

    @property
    def slots(self) -> int:
        """Numbers per vector: one for every 16 bits of a word."""
        return self.dimension * (self.bits // HALF_BITS)

    @property
    def chunks(self) -> int:
        """Ciphertexts per vector."""
        return -(-self.slots // CKKS_SLOTS)

    def context(self) -> bytes:
        """Return the 32-byte hash of everything above."""
        return _context(self, super().context())


@functools.lru_cache(maxsize=64)
def _context(parameters: CkksParameters, inner: bytes) -> bytes:
    return digest(
        b"ckks context",
        inner,
        parameters.key_holder,
        parameters.public_key,
        pack(HALF_BITS, CKKS_DEGREE, SCALE_BITS, *CKKS_PRIMES),
    )


def _ckks(parameters: RoundParameters) -> CkksParameters:
    if not isinstance(parameters, CkksParameters):
        raise refuse("parameters", "a round under CKKS needs CkksParameters")
    return parameters


def split(words: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Write words as signed halves: ``word = low + 2**16 high`` modulo the word, lows first."""
    if words.dtype.itemsize == 2:
        return words.view(np.int16)
    low = words.astype(np.uint16).view(np.int16)
    high = ((words - low.astype(np.uint32)) >> np.uint32(HALF_BITS)).astype(np.uint16)
    return np.concatenate([low, high.view(np.int16)])


def join(sums: npt.NDArray[np.int64], bits: int) -> npt.NDArray[Any]:
    """Put sums of halves together again, modulo the word."""
    if bits == HALF_BITS:
        return (sums & 0xFFFF).astype(np.uint16)
    low, high = sums.reshape(2, -1)
    return (low + (high << HALF_BITS) & 0xFFFFFFFF).astype(np.uint32)


class CkksClient(PairwiseClient):
    """A client of a round under CKKS: ``PairwiseClient`` whose masked words are encrypted.

    Call :meth:`load_key` before :meth:`mask`, also after ``restore``.

    Guarantees
    ----------
    Those of ``PairwiseClient`` against the aggregator and the key holder together, whatever
    becomes of the encryption: what is encrypted is what ``PairwiseClient`` would send in the clear.
    The decryption error, which depends on the key holder's secret, is rounded away before anyone
    else sees it.
    """

    _key: CkksPublicKey | None = None

    def load_key(self, public: bytes) -> None:
        """Take in the key holder's public key.

        Raises
        ------
        ProtocolError
            If it is not the one of the agreement, or no public key.
        """
        self._key = checked_key(CkksPublicKey(public), _ckks(self._parameters))

    def mask(self, vector: npt.NDArray[Any], shares: Mapping[int, bytes]) -> bytes:
        """Step 2: as ``PairwiseClient.mask``, encrypted.

        Parameters
        ----------
        vector
            Shape ``[dimension]``, uint16 or uint32 as agreed; not changed.
        shares
            The message of every neighbour that shared, by index.
        """
        self._due(Phase.SHARED, "mask")
        key = self._key
        if key is None:
            raise refuse("public key", "none was loaded; call load_key() first")
        self._check_vector(vector)
        held, masks, signs = self._open_shares(shares)
        masked = vector.copy()
        add_masks(masked, masks, signs)
        return encrypt_upload(self, tuple(key.encrypt(split(masked))), held)


class CkksServer(EncryptedServer):
    """The aggregator of a round under CKKS; see ``EncryptedServer``.

    Guarantees
    ----------
    As ``EncryptedServer``: it holds no key that decrypts, and sees integers only.
    """

    def _read(self, public: bytes) -> Encrypter:
        return CkksPublicKey(public)

    def _in_range(self, numbers: npt.NDArray[np.uint64]) -> bool:
        signed = numbers.view(np.int64)
        return bool(signed.min() > -CAPACITY and signed.max() < CAPACITY)

    def finish(self) -> npt.NDArray[Any]:
        """Take the masks off and return the sum, shape ``[dimension]``, as words; once."""
        slots, keys, signs = self._left()
        total = join(slots.view(np.int64), self._parameters.bits)
        add_masks(total, keys, signs)
        return total


class CkksKeyHolder(KeyHolder):
    """The key holder of a round under CKKS; see ``KeyHolder``.

    Guarantees
    ----------
    As ``KeyHolder``; and nothing but integers leaves it: a decryption that is not near integers is
    refused, and one key opens one sum.
    """

    def _make(self) -> Opener:
        return CkksSecretKey()

    def _load(self, chunks: Any) -> list[Any]:
        key = CkksPublicKey(self._public)
        return [key.load(chunk) for chunk in chunks]
