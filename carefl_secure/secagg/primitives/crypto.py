"""Hashes, keys, signatures and sealed boxes, each bound to a label and to the round.

Boxes for a committee member are HPKE with X-Wing, which a quantum computer does not open.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import Counter
from collections.abc import Collection
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.noise import KeySource

_DOMAIN = b"carefl-secagg-2/"
_CURVE_PRIME = (1 << 255) - 19
_LATTICE_BYTES = 1184

CURVE_BYTES = 32
PUBLIC_BYTES = _LATTICE_BYTES + CURVE_BYTES
"""Length of a member's public key: ML-KEM-768, then X25519."""

OVERHEAD = 1088 + 32 + 16
"""Bytes an envelope is longer than its content: ML-KEM-768 ciphertext, X25519 key, AES-GCM tag."""

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)

Buffer: TypeAlias = bytes | bytearray | memoryview


class SenderError(ProtocolError):
    """What another party made for this one is invalid; ``sender`` is the index of that party."""

    def __init__(self, error: ProtocolError, sender: int) -> None:
        super().__init__(str(error))
        self.sender = sender


def refuse(check: str, reason: str) -> ProtocolError:
    """Return the error for a failed check, its name first."""
    return ProtocolError(f"{check}: {reason}")


def too_few(phase: str, present: int, needed: int) -> CohortError:
    """Return the error for a cohort that has become too small."""
    return CohortError(
        f"min_survivors: {present} clients after {phase}, at least {needed} are needed;"
        " nothing was released, start a new round with more clients"
    )


def culprits(pairs: Collection[tuple[str, str]]) -> dict[str, int]:
    """Return, with counts, who explains the most of pairs of parties of which at least one lied, greedily.

    A party named with more pairs than there can be colluders is proven to lie; of a pair that stands alone both are
    named.
    """
    left, named = set(pairs), dict[str, int]()
    while left:
        counts = Counter(party for pair in left for party in pair)
        most = max(counts.values())
        worst = {party: most for party, count in counts.items() if count == most}
        named |= worst
        left = {pair for pair in left if not worst.keys() & set(pair)}
    return named


def pack(*numbers: int) -> bytes:
    """Write integers as consecutive little-endian 64-bit words."""
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def digest(label: bytes, *parts: Buffer) -> bytes:
    """Hash a label and a list of fields to 32 bytes; two different lists never give the same input.

    SHA-256 over ``"carefl-secagg-2/" + label`` and the fields, each after its length, 64 bits little-endian.
    """
    state = hashlib.sha256()
    for part in (_DOMAIN + label, *parts):
        state.update(pack(len(part)))
        state.update(part)
    return state.digest()


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


def check_place(identity: Ed25519PrivateKey, index: int, keys: tuple[bytes, ...], party: str = "client") -> None:
    """Refuse an identity that is not the one agreed for place ``index`` of a roster."""
    if not 0 <= index < len(keys):
        raise refuse("roster", f"{party} {index} is outside a roster of {len(keys)}")
    if public_bytes(identity) != keys[index]:
        raise refuse("roster", f"place {index} of the roster holds another key than this {party}'s")


def statement(context: bytes, transcript_hash: bytes, index: int, *content: bytes) -> tuple[bytes, ...]:
    """Return the fields that party ``index`` signs once all keys of the round are known."""
    return context, transcript_hash, pack(index), *content


def sign(identity: Ed25519PrivateKey, label: bytes, *parts: Buffer) -> bytes:
    """Sign ``digest(label, *parts)`` with Ed25519 (64 bytes)."""
    return identity.sign(digest(label, *parts))


def verify(public: bytes, signature: bytes, who: int, label: bytes, *parts: Buffer, party: str = "client") -> None:
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


def check_encoding(public: bytes, who: int, party: str = "client") -> None:
    """Refuse an X25519 key that is not canonical, as the curve function would let a copied key look new."""
    if int.from_bytes(public, "little") >= _CURVE_PRIME:
        raise refuse("key encoding", f"{party} {who} sent a key that is not in canonical form")


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
        reason = (
            f"the shares from client {who} do not open; they were changed, or made for another"
            " client, another round or another list of advertisements"
        )
        raise SenderError(refuse("share seal", reason), who) from error


class EnvelopeKey:
    """A member's key pair for one round, from two secrets for ML-KEM-768 and one for X25519."""

    def __init__(self, keys: KeySource) -> None:
        lattice = MLKEM768PrivateKey.from_seed_bytes(keys.key("member ML-KEM d") + keys.key("member ML-KEM z"))
        curve = X25519PrivateKey.from_private_bytes(keys.key("member X25519"))
        self.public = lattice.public_key().public_bytes_raw() + public_bytes(curve)
        self.private = hpke.MLKEM768X25519PrivateKey(lattice, curve)


def seal_envelope(public: bytes, content: bytes, info: bytes, member: int) -> bytes:
    """Seal to a member, bound to ``info`` (RFC 9180, base mode, one message per key schedule)."""
    if len(public) != PUBLIC_BYTES:
        raise refuse("degenerate key", f"the key of member {member} has another length")
    try:
        key = hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:_LATTICE_BYTES]),
            X25519PublicKey.from_public_bytes(public[_LATTICE_BYTES:]),
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
