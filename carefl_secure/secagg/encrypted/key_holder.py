"""The key holder: makes a key for one round, adds the clients' uploads itself, opens one sum."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.secagg.encrypted.bfv import PublicKey, SecretKey
from carefl_secure.secagg.encrypted.messages import EncryptedParameters, EncryptedUpload, OpenedSum
from carefl_secure.secagg.pairwise.transcript import UPLOAD
from carefl_secure.secagg.primitives.crypto import digest, pack, public_bytes, refuse, sign, too_few
from carefl_secure.secagg.primitives.framing import words_digest

OPENED = b"opened sum"


def opened_fields(
    context: bytes, transcript_hash: bytes, uploads: Mapping[int, bytes], residues: bytes
) -> tuple[bytes, ...]:
    """Return the fields the key holder signs: whose uploads it added, and what they opened to.

    ``uploads`` holds the digest of each client's upload.
    """
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
        """Check signed uploads and add their ciphertexts; more may follow in the same round.

        ``parameters`` are the holder's own; ``transcript_hash`` is of all advertisements.
        """
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
                parts = [self._key.load(chunk) for chunk in upload.chunks]
                self._total = self._key.add(self._total, parts)
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
