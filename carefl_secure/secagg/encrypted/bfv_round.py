"""The peer protocol with encrypted uploads: the server adds what it cannot read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.noise import KeySource
from carefl_secure.secagg.encoding.quantize import wrap
from carefl_secure.secagg.encrypted.bfv import PLAIN_MODULUS, PublicKey
from carefl_secure.secagg.encrypted.key_holder import OPENED, opened_fields
from carefl_secure.secagg.encrypted.messages import EncryptedSum, EncryptedUpload, OpenedSum
from carefl_secure.secagg.encrypted.parameters import EncryptedParameters
from carefl_secure.secagg.pairwise.client import PairwiseClient
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.pairwise.server import PairwiseServer
from carefl_secure.secagg.pairwise.state import Phase
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import verify
from carefl_secure.secagg.primitives.packing import pack_fields, unpack_fields
from carefl_secure.secagg.primitives.residues import (
    add_residue_masks,
    from_residues,
    to_residues,
)

__all__ = ["EncryptedClient", "EncryptedServer"]


def _encrypted(parameters: RoundParameters) -> EncryptedParameters:
    if not isinstance(parameters, EncryptedParameters):
        raise refuse("parameters", "an encrypted round needs EncryptedParameters")
    return parameters


def _checked_key(public: bytes, parameters: EncryptedParameters) -> PublicKey:
    """Return a key if it is the one that the round was agreed on."""
    key = PublicKey(public)
    if key.digest != parameters.public_key:
        raise refuse("public key", "it is not the one this round was agreed on")
    return key


class EncryptedClient(PairwiseClient):
    """A client of an encrypted round: ``PairwiseClient`` with another upload, otherwise the same.

    The upload is ``Enc(pack(x) + PRG(b_i) + sum_j +-PRG(k_ij) mod t)`` with the pair keys and the
    self mask of the peer protocol: the masks are inside the plaintext. Call :meth:`load_key`
    before :meth:`mask`, also after ``restore``.

    Guarantees
    ----------
    Those of ``PairwiseClient`` against the aggregator and the key holder together, whatever becomes
    of the encryption; and from the aggregator alone the encryption hides even the masked vector,
    if ring learning with errors is hard at 128 bits.
    """

    _key: PublicKey | None = None

    def __init__(
        self,
        parameters: EncryptedParameters,
        index: int,
        identity: Ed25519PrivateKey,
        keys: KeySource,
    ) -> None:
        super().__init__(parameters, index, identity, keys)

    def load_key(self, public: bytes) -> None:
        """Take in the key holder's public key.

        Raises
        ------
        ProtocolError
            If it is not the one of the agreement, or no public key.
        """
        self._key = _checked_key(public, _encrypted(self._parameters))

    def mask(self, vector: npt.NDArray[Any], shares: Mapping[int, bytes]) -> bytes:
        """Step 2: as ``PairwiseClient.mask``, packed and encrypted.

        Parameters
        ----------
        vector
            Shape ``[dimension]``, uint16 or uint32 as agreed, read as signed; no magnitude above
            ``value_bound``.
        shares
            The message of every neighbour that shared, by index.
        """
        self._due(Phase.SHARED, "mask")
        parameters = _encrypted(self._parameters)
        key = self._key
        if key is None:
            raise refuse("public key", "none was loaded; call load_key() first")
        self._check_vector(vector)
        signed = vector.view(f"i{vector.dtype.itemsize}").astype(np.int64)
        if int(np.abs(signed).max()) > parameters.value_bound:
            raise refuse(
                "value bound",
                f"an integer is larger than the agreed {parameters.value_bound}; sums could"
                " overflow, so nothing was sent",
            )
        held, masks, signs = self._open_shares(shares)
        packed = pack_fields(signed, parameters.field_bits)
        slots = to_residues(packed, PLAIN_MODULUS)
        add_residue_masks(slots, masks, signs, PLAIN_MODULUS)
        chunks = tuple(key.encrypt(slots))
        signature = self._sign_upload(EncryptedUpload(chunks, b"").digest())
        self._uploaded(held)
        return EncryptedUpload(chunks, signature).encode(self.index, self._context)


class EncryptedServer(PairwiseServer):
    """The aggregator of an encrypted round: ``PairwiseServer`` that adds ciphertexts.

    After ``survivors()``, send :meth:`encrypted_sum` to the key holder and hand its answer to
    :meth:`opened`; consent and answers go on as in the peer protocol, in any order with that;
    ``finish()`` then returns the sum as words.

    Parameters
    ----------
    parameters
        What the round was agreed to be.
    public
        The key holder's public key.

    Guarantees
    ----------
    As ``PairwiseServer``. It holds no key that decrypts; one encrypted vector is kept at any time.
    """

    def __init__(self, parameters: EncryptedParameters, public: bytes) -> None:
        super().__init__(parameters)
        self._agreed = parameters
        self._key = _checked_key(public, parameters)
        self._encrypted: list[Any] | None = None
        self._request = b""
        self._slots: npt.NDArray[np.uint64] | None = None

    def uploaded(self, index: int, message: bytes) -> None:
        """Check a client's ciphertexts and add them to the sum; the message is not kept."""
        self._accepts_upload(index)
        upload = EncryptedUpload.parse(message, index, self._agreed)
        self._verify_upload(index, upload.digest(), upload.signature)
        parts = [self._key.load(chunk) for chunk in upload.chunks]
        self._encrypted = self._key.add(self._encrypted, parts)
        self._uploaded.add(index)

    def encrypted_sum(self) -> bytes:
        """End the upload phase and return the message to the key holder."""
        self.survivors()
        if not self._request and self._encrypted is not None:
            chunks = tuple(part.serialize() for part in self._encrypted)
            self._request = EncryptedSum(chunks).encode(self._context)
            self._encrypted = None
        return self._request

    def opened(self, message: bytes) -> None:
        """Take in the key holder's answer."""
        if not self._request:
            raise refuse("step order", "nothing was sent to the key holder yet")
        if self._slots is not None:
            raise refuse("duplicate message", "the key holder has been heard")
        parsed = OpenedSum.parse(message, self._agreed)
        fields = opened_fields(self._context, self._request, parsed.residues)
        verify(self._agreed.key_holder, parsed.signature, 0, OPENED, *fields, party="key holder")
        numbers = parsed.numbers()
        if (numbers >= PLAIN_MODULUS).any():
            raise refuse("opened sum", "a number is no residue")
        self._slots = numbers

    def finish(self) -> npt.NDArray[Any]:
        """Take the masks off and return the sum, shape ``[dimension]``, as words; once."""
        if self._slots is None:
            raise refuse(
                "step order", "the key holder has not opened the sum, or it was handed out"
            )
        keys, signs = self._masks()
        slots, self._slots = self._slots, None
        parameters = _encrypted(self._parameters)
        add_residue_masks(slots, keys, signs, PLAIN_MODULUS)
        numbers = from_residues(slots, PLAIN_MODULUS)
        integers = unpack_fields(numbers, parameters.dimension, parameters.field_bits)
        return wrap(integers, parameters.bits)
