"""Hashes, keys, signatures and sealed boxes, each bound to a label and to the round."""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from carefl_secure.secagg.primitives.checks import refuse

__all__ = [
    "Buffer",
    "agree",
    "check_exchange_key",
    "check_place",
    "derive",
    "digest",
    "open_sealed",
    "pack",
    "public_bytes",
    "raw_identity",
    "same",
    "seal",
    "sign",
    "verify",
    "words_digest",
]

_DOMAIN = b"carefl-secagg-2/"

Buffer: TypeAlias = bytes | bytearray | memoryview


def pack(*numbers: int) -> bytes:
    """Write integers as consecutive little-endian 64-bit words."""
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def digest(label: bytes, *parts: Buffer) -> bytes:
    """Hash a label and a list of fields to 32 bytes.

    SHA-256 over ``"carefl-secagg-2/" + label`` and the fields, each preceded by its length as a
    64-bit little-endian integer. Two different lists never give the same input.
    """
    state = hashlib.sha256()
    for part in (_DOMAIN + label, *parts):
        state.update(pack(len(part)))
        state.update(part)
    return state.digest()


def words_digest(words: Buffer) -> bytes:
    """Hash a long vector to 32 bytes (BLAKE2b, quicker than SHA-256 on long input)."""
    return hashlib.blake2b(words, digest_size=32).digest()


def derive(secret: Buffer, label: bytes, *info: Buffer) -> bytes:
    """Derive a 32-byte key: HKDF-SHA256 without salt, ``info = digest(label, *info)``."""
    return HKDF(hashes.SHA256(), 32, salt=None, info=digest(label, *info)).derive(bytes(secret))


def same(left: bytes, right: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(left, right)


def public_bytes(private: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """Return the 32 raw bytes of the public half."""
    return private.public_key().public_bytes_raw()


def raw_identity(identity: Ed25519PrivateKey) -> bytes:
    """Return the 32 raw bytes of a signing key, only to derive a storage key from them."""
    return identity.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )


def check_place(
    identity: Ed25519PrivateKey, index: int, keys: tuple[bytes, ...], party: str = "client"
) -> None:
    """Refuse an identity that is not the one agreed for place ``index`` of a roster."""
    if not 0 <= index < len(keys):
        raise refuse("roster", f"{party} {index} is outside a roster of {len(keys)}")
    if public_bytes(identity) != keys[index]:
        raise refuse("roster", f"place {index} of the roster holds another key than this {party}'s")


def sign(identity: Ed25519PrivateKey, label: bytes, *parts: Buffer) -> bytes:
    """Sign ``digest(label, *parts)`` with Ed25519 (64 bytes)."""
    return identity.sign(digest(label, *parts))


def verify(
    public: bytes, signature: bytes, who: int, label: bytes, *parts: Buffer, party: str = "client"
) -> None:
    """Refuse what ``party`` number ``who`` did not sign with :func:`sign`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, digest(label, *parts))
    except (InvalidSignature, ValueError) as error:
        raise refuse(
            f"{label.decode()} signature",
            f"{party} {who} did not sign this message in this round; it was changed on the way,"
            " replayed, or made under other round parameters",
        ) from error


def agree(private: X25519PrivateKey, public: bytes, who: int) -> bytes:
    """Return the X25519 secret shared with client ``who``; refuse a degenerate public key."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise refuse("degenerate key", f"client {who} advertised a key of low order") from error


def check_exchange_key(public: bytes, who: int) -> None:
    """Refuse an X25519 public key with which no secret can be agreed."""
    agree(X25519PrivateKey.generate(), public, who)


def seal(key: bytes, message: bytes, header: bytes) -> bytes:
    """Encrypt with AES-256-GCM under a key that is used for this one message."""
    return AESGCM(key).encrypt(bytes(12), message, header)


def open_sealed(key: bytes, sealed: bytes, header: bytes, who: int) -> bytes:
    """Open what :func:`seal` made; refuse another key or header, or changed bytes."""
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, header)
    except (InvalidTag, ValueError) as error:
        raise refuse(
            "share seal",
            f"the shares from client {who} do not open; they were changed, or made for another"
            " client, another round or another list of advertisements",
        ) from error
