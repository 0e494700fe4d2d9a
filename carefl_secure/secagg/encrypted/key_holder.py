"""The key holder: makes a key for one round, opens one sum with it, sees nothing else."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.secagg.encrypted.bfv import PublicKey, SecretKey
from carefl_secure.secagg.encrypted.messages import EncryptedSum, OpenedSum
from carefl_secure.secagg.encrypted.parameters import EncryptedParameters
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import digest, public_bytes, sign, words_digest

__all__ = ["OPENED", "KeyHolder", "opened_fields"]

OPENED = b"opened sum"


def opened_fields(context: bytes, message: bytes, residues: bytes) -> tuple[bytes, ...]:
    """Return the fields the key holder signs: what it was given and what it gave."""
    return context, digest(b"encrypted sum", message), words_digest(residues)


class KeyHolder:
    """The one party that can decrypt, for one round and one sum; not the aggregator.

    It gets nothing that clients send, only the sum of their ciphertexts. Parties and messages::

        clients --(pairwise masking, uploads encrypted)--> aggregator --sum--> key holder
                                                           aggregator <--masked sum--

    Guarantees
    ----------
    The key holder cannot tell the sum from one client's ciphertext, and need not be trusted to:
    what it decrypts is still masked by the clients' pair and self masks. An aggregator without the
    key sees ciphertexts only. Even together they learn no more than a server of pairwise masking
    does. A lying key holder turns the sum into noise that its signature is under. One key opens one
    sum; a second request is refused, so there is no decryption oracle.
    """

    def __init__(self, identity: Ed25519PrivateKey) -> None:
        self._identity = identity
        self._secret: SecretKey | None = SecretKey()
        self._public = self._secret.public()

    @property
    def public_key(self) -> bytes:
        """The public key that clients and aggregator load."""
        return self._public

    @property
    def public_digest(self) -> bytes:
        """Its SHA-256, for ``EncryptedParameters.public_key``."""
        return hashlib.sha256(self._public).digest()

    def open(self, parameters: EncryptedParameters, message: bytes) -> bytes:
        """Decrypt the sum of one round (``EncryptedServer.encrypted_sum``), once, and sign it."""
        if self._secret is None:
            raise refuse("step order", "this key has opened its sum; make a new key per round")
        if parameters.key_holder != public_bytes(self._identity):
            raise refuse("key holder", "the round names another key holder than me")
        if parameters.public_key != self.public_digest:
            raise refuse("public key", "the round names another public key than mine")
        parsed = EncryptedSum.parse(message, 0, parameters)
        key = PublicKey(self._public)
        slots = self._secret.decrypt([key.load(chunk) for chunk in parsed.chunks])
        residues = slots[: parameters.slots].astype("<u8").tobytes()
        context = parameters.context()
        signature = sign(self._identity, OPENED, *opened_fields(context, message, residues))
        self._secret = None
        return OpenedSum(residues, signature).encode(0, context)
