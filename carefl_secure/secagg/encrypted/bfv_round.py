"""Pairwise masking with encrypted uploads: key holder, client, and a server that adds what it cannot read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.secagg.encoding.quantize import wrap
from carefl_secure.secagg.encrypted import packing
from carefl_secure.secagg.encrypted.bfv import PLAIN_MODULUS, PublicKey, SecretKey
from carefl_secure.secagg.encrypted.messages import EncryptedParameters, EncryptedUpload, OpenedSum
from carefl_secure.secagg.pairwise.client import PairwiseClient
from carefl_secure.secagg.pairwise.messages import RoundParameters
from carefl_secure.secagg.pairwise.server import PairwiseServer
from carefl_secure.secagg.pairwise.transcript import UPLOAD
from carefl_secure.secagg.primitives.crypto import digest, pack, public_bytes, refuse, sign, too_few
from carefl_secure.secagg.primitives.framing import Message, words_digest

OPENED = b"opened sum"


def opened_fields(
    context: bytes, transcript_hash: bytes, uploads: Mapping[int, bytes], residues: bytes
) -> tuple[bytes, ...]:
    """Return what the key holder signs: the digests of the uploads it added, and what they opened to."""
    added = (pack(index) + uploads[index] for index in sorted(uploads))
    return (context, digest(b"encrypted sum", transcript_hash, *added), words_digest(residues))


class KeyHolder:
    """The one party that can decrypt, for one round and one sum; not the aggregator.

    Parties and messages::

        clients --(pairwise masking, uploads encrypted)--> aggregator --signed uploads--> key holder
                                                           aggregator <----masked sum----

    Guarantees
    ----------
    It decrypts nothing but one sum: of the ciphertexts that at least ``parameters.required_survivors`` different
    clients of the roster signed for this very round, model and list of keys, added by itself. The first request that
    is anything else destroys the key, as the opening does; so nobody who holds no client's identity gets a chosen
    ciphertext opened, nor one client's upload alone. What it opens is still masked by the clients' pair and self
    masks, so the key holder need not be trusted with it, and together with the aggregator it learns no more than a
    server of pairwise masking does. A lying key holder turns the sum into noise that its signature is under.

    What remains: a client of the roster that works with the aggregator can sign a ciphertext of its own making. Once
    the masks are off, the sum may then tell the two about the key of this one round, and with it they see uploads as a
    server of pairwise masking sees them: masked. No proof of a well-formed ciphertext is asked for.

    No noise is flooded in before opening. An exact BFV decryption gives residues only, nothing of the ciphertext's
    noise, unless decryption fails, and `SecretKey.decrypt` refuses what comes near that (`MIN_NOISE_BUDGET`). Flooding
    that hides the noise to within ``2**-40`` takes 40 bits of budget, and these parameters leave 12 to 14 after a sum.
    """

    def __init__(self, identity: Ed25519PrivateKey) -> None:
        self._identity = identity
        self._secret: SecretKey | None = SecretKey()
        self.public_key = self._secret.public()  # which clients and aggregator load
        self._key = PublicKey(self.public_key)
        self.public_digest = self._key.digest  # its SHA-256, for ``EncryptedParameters.public_key``
        self._round: tuple[EncryptedParameters, bytes] | None = None
        self._total: list[Any] | None = None
        self._added: dict[int, bytes] = {}

    def destroy(self) -> None:
        """Forget the secret key and the sum."""
        self._secret = self._total = None

    @contextlib.contextmanager
    def _or_destroy(self) -> Iterator[SecretKey]:
        """Give the key; whatever is refused destroys it."""
        if self._secret is None:
            raise refuse("step order", "this key is destroyed; it opens one sum, make a new one")
        done = False
        try:
            yield self._secret
            done = True
        finally:
            if not done:
                self.destroy()

    def add(self, parameters: EncryptedParameters, transcript_hash: bytes, uploads: Mapping[int, bytes]) -> None:
        """Check signed uploads against its own agreement and add them; more may follow in the same round."""
        with self._or_destroy():
            if parameters.key_holder != public_bytes(self._identity):
                raise refuse("key holder", "the round names another key holder than me")
            if parameters.public_key != self.public_digest:
                raise refuse("public key", "the round names another public key than mine")
            self._round = self._round or (parameters, transcript_hash)
            if self._round != (parameters, transcript_hash):
                raise refuse("round", "uploads of another round, model or list of keys came before")
            for index, message in uploads.items():
                if index in self._added:
                    raise refuse("duplicate upload", f"client {index} is in the sum already")
                upload = EncryptedUpload.parse(message, index, parameters)
                found = upload.digest()
                parameters.check_statement(index, upload.signature, UPLOAD, transcript_hash, found)
                self._total = self._key.add(self._total, [self._key.load(chunk) for chunk in upload.chunks])
                self._added[index] = found

    def open(self) -> bytes:
        """Decrypt the sum of what was added, sign it, and destroy the key."""
        with self._or_destroy() as secret:
            present = len(self._added)
            if self._round is None or self._total is None:
                raise refuse("step order", "no upload was added, so there is no sum")
            parameters, transcript_hash = self._round
            if present < parameters.required_survivors:
                raise too_few("uploading", present, parameters.required_survivors)
            slots = secret.decrypt(self._total)
        residues = slots[: parameters.slots].astype("<u8").tobytes()
        context = parameters.context()
        fields = opened_fields(context, transcript_hash, self._added, residues)
        self.destroy()
        return OpenedSum(residues, sign(self._identity, OPENED, *fields)).encode(0, context)


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

    The upload is ``Enc(pack(x) + PRG(b_i) + sum_j +-PRG(k_ij) mod t)``: the masks of pairwise masking are inside the
    plaintext. Call :meth:`load_key` before :meth:`mask`, also after ``restore``.

    Guarantees
    ----------
    Those of ``PairwiseClient`` against the aggregator and the key holder together, whatever becomes of the encryption;
    and from the aggregator alone the encryption hides even the masked vector, if ring learning with errors is hard at
    128 bits.
    """

    _key: PublicKey | None = None

    def load_key(self, public: bytes) -> None:
        """Load the key holder's public key; refuse any but the one of the agreement."""
        self._key = _checked_key(public, _encrypted(self._parameters))

    def hide(self, vector: npt.NDArray[Any], keys: list[bytes], signs: list[int]) -> EncryptedUpload:
        """Pack, mask and encrypt integers, each cut to ``+-value_bound``, as a refusal would tell about records."""
        parameters, key = _encrypted(self._parameters), self._key
        if key is None:
            raise refuse("public key", "none was loaded; call load_key() first")
        signed = vector.view(f"i{vector.dtype.itemsize}").astype(np.int64)
        signed = signed.clip(-parameters.value_bound, parameters.value_bound)
        slots = packing.to_residues(packing.pack_fields(signed, parameters.field_bits), PLAIN_MODULUS)
        packing.add_residue_masks(slots, keys, signs, PLAIN_MODULUS)
        return EncryptedUpload(tuple(key.encrypt(slots)))


class EncryptedServer(PairwiseServer):
    """The aggregator of an encrypted round: ``PairwiseServer`` that passes ciphertexts on.

    After ``survivors()``, the survivors' uploads go to the key holder, who adds them, and its answer to
    :meth:`opened`, before or after consent and answers; ``finish()`` then returns the sum as words.

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
        packing.add_residue_masks(slots, keys, signs, PLAIN_MODULUS)
        numbers, parameters = packing.from_residues(slots, PLAIN_MODULUS), _encrypted(self._parameters)
        integers = packing.unpack_fields(numbers, parameters.dimension, parameters.field_bits)
        return wrap(integers, parameters.bits)
