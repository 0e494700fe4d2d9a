"""Pairwise masking with encrypted uploads: the server adds what it cannot read."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from carefl_secure.secagg.encoding.quantize import wrap
from carefl_secure.secagg.encrypted.bfv import PLAIN_MODULUS, PublicKey
from carefl_secure.secagg.encrypted.key_holder import OPENED, opened_fields
from carefl_secure.secagg.encrypted.messages import EncryptedParameters, EncryptedUpload, OpenedSum
from carefl_secure.secagg.pairwise.client import PairwiseClient
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.pairwise.server import PairwiseServer
from carefl_secure.secagg.primitives.crypto import refuse
from carefl_secure.secagg.primitives.framing import Message
from carefl_secure.secagg.primitives.packing import (
    add_residue_masks,
    from_residues,
    pack_fields,
    to_residues,
    unpack_fields,
)


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
    """A client of an encrypted round: ``PairwiseClient`` with another upload.

    The upload is ``Enc(pack(x) + PRG(b_i) + sum_j +-PRG(k_ij) mod t)`` with the pair keys and the
    self mask of pairwise masking: the masks are inside the plaintext. Call :meth:`load_key` before
    :meth:`mask`, also after ``restore``.

    Guarantees
    ----------
    Those of ``PairwiseClient`` against the aggregator and the key holder together, whatever becomes
    of the encryption; and from the aggregator alone the encryption hides even the masked vector, if
    ring learning with errors is hard at 128 bits.
    """

    _key: PublicKey | None = None

    def load_key(self, public: bytes) -> None:
        """Load the key holder's public key; refuse any but the one of the agreement."""
        self._key = _checked_key(public, _encrypted(self._parameters))

    def hide(self, vector: npt.NDArray[Any], keys: list[bytes], signs: list[int]) -> EncryptedUpload:
        """Pack, mask and encrypt signed integers, each brought into ``+-value_bound``.

        A refusal would tell about the records; a plan that leaves room makes a cut improbable.
        """
        parameters, key = _encrypted(self._parameters), self._key
        if key is None:
            raise refuse("public key", "none was loaded; call load_key() first")
        signed = vector.view(f"i{vector.dtype.itemsize}").astype(np.int64)
        signed = signed.clip(-parameters.value_bound, parameters.value_bound)
        slots = to_residues(pack_fields(signed, parameters.field_bits), PLAIN_MODULUS)
        add_residue_masks(slots, keys, signs, PLAIN_MODULUS)
        return EncryptedUpload(tuple(key.encrypt(slots)))


class EncryptedServer(PairwiseServer):
    """The aggregator of an encrypted round: ``PairwiseServer`` that passes ciphertexts on.

    After ``survivors()``, send the survivors' uploads to the key holder, who adds them, and hand
    its answer to :meth:`opened`; consent and answers go on as in pairwise masking, in any order
    with that; ``finish()`` then returns the sum as words.

    Guarantees
    ----------
    As ``PairwiseServer``. It holds no key that decrypts, and keeps no ciphertext.
    """

    UPLOAD: ClassVar[type[Message]] = EncryptedUpload

    def __init__(self, parameters: EncryptedParameters, public: bytes) -> None:
        super().__init__(parameters)
        self._key = _checked_key(public, parameters)
        self._digests: dict[int, bytes] = {}
        self._slots: npt.NDArray[np.uint64] | None = None

    @property
    def transcript_hash(self) -> bytes:
        """The hash of all advertisements, which the key holder needs."""
        return self._transcript_hash

    def add(self, index: int, upload: Any) -> None:
        """Check the form of the ciphertexts, so that their sender is known; keep their digest."""
        for chunk in upload.chunks:
            self._key.load(chunk)
        self._digests[index] = upload.digest()

    def opened(self, message: bytes) -> None:
        """Take in the key holder's answer."""
        self.survivors()
        if self._slots is not None:
            raise refuse("duplicate message", "the key holder has answered before")
        parameters = _encrypted(self._parameters)
        parsed = OpenedSum.parse(message, 0, parameters)
        place = self._context, self._transcript_hash
        fields = opened_fields(*place, self._digests, parsed.residues)
        parameters.check_signature(0, parsed.signature, OPENED, fields, party="key holder")
        numbers = parsed.numbers()
        if (numbers >= PLAIN_MODULUS).any():
            raise refuse("opened sum", "a number is no residue")
        self._slots = numbers

    def finish(self) -> npt.NDArray[Any]:
        """Take the masks off and return the sum, shape ``[dimension]``, as words; once."""
        if self._slots is None:
            raise refuse("step order", "the key holder has not opened the sum, or it was handed out")
        return super().finish()

    def unmasked(self, keys: list[bytes], signs: list[int]) -> npt.NDArray[Any]:
        """Take masks off what the key holder opened and return it as words."""
        if self._slots is None:
            raise refuse("step order", "the sum was handed out before")
        slots, self._slots = self._slots, None
        add_residue_masks(slots, keys, signs, PLAIN_MODULUS)
        numbers, parameters = from_residues(slots, PLAIN_MODULUS), _encrypted(self._parameters)
        integers = unpack_fields(numbers, parameters.dimension, parameters.field_bits)
        return wrap(integers, parameters.bits)
