"""Sealing to a committee member: HPKE with X-Wing, which a quantum computer does not open."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from carefl_secure.noise import KeySource
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import Buffer

__all__ = ["OVERHEAD", "PUBLIC_BYTES", "EnvelopeKey", "open_envelope", "seal_envelope"]

PUBLIC_BYTES = 1184 + 32
"""Length of a public key: ML-KEM-768, then X25519."""

OVERHEAD = 1088 + 32 + 16
"""Bytes an envelope is longer than its content: ML-KEM-768 ciphertext, X25519 key, AES-GCM tag."""

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class EnvelopeKey:
    """A member's key pair for one round, from two secrets for ML-KEM-768 and one for X25519."""

    def __init__(self, keys: KeySource) -> None:
        lattice = MLKEM768PrivateKey.from_seed_bytes(
            keys.key("member ML-KEM d") + keys.key("member ML-KEM z")
        )
        curve = X25519PrivateKey.from_private_bytes(keys.key("member X25519"))
        self.public = (
            lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        )
        self.private = hpke.MLKEM768X25519PrivateKey(lattice, curve)


def seal_envelope(public: bytes, content: bytes, info: bytes, member: int) -> bytes:
    """Seal to a member, bound to ``info`` (RFC 9180, base mode, one message per key schedule)."""
    if len(public) != PUBLIC_BYTES:
        raise refuse("degenerate key", f"the key of member {member} has another length")
    try:
        key = hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:1184]),
            X25519PublicKey.from_public_bytes(public[1184:]),
        )
        return _SUITE.encrypt(content, key, info)
    except ValueError as error:
        raise refuse("degenerate key", f"member {member} announced a key of no use") from error


def open_envelope(key: EnvelopeKey, envelope: Buffer, info: bytes) -> bytes | None:
    """Open what :func:`seal_envelope` made, or return None if it does not open."""
    try:
        return _SUITE.decrypt(bytes(envelope), key.private, info)
    except (InvalidTag, ValueError):
        return None
