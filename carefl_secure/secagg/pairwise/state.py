"""What a client keeps between two messages, how it is stored, and how it is erased."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from carefl_secure.secagg.primitives.crypto import derive, raw_identity, refuse

_MAGIC = b"CFSS\x01"
_SALT = 32


Phase = IntEnum("Phase", "NEW ADVERTISED SHARED MASKED CONSENTED ANSWERED CLOSED", start=0)
"""The last step that a client has answered."""


@dataclass
class ClientState:
    """Everything a client must remember within a round.

    Parameters
    ----------
    transcript_hash, members
        Hash of all advertisements, and the clients that advertised.
    live, shared, survivors
        Clients whose masks are in the upload, this one included; and the two sets that this client signed.
    mask_keys, opening_keys
        Per neighbour, its public mask key, and the key that opens what it sealed for this client.
    encryption_secret, mask_secret, self_mask
        The three secrets of step 0, 32 bytes each; empty once they are not needed any more.
    own_share, held
        This client's share of its own self-mask secret; per neighbour, its two shares as sealed.
    """

    index: int
    phase: Phase = Phase.NEW
    advertisement: bytes = b""
    transcript_hash: bytes = b""
    members: tuple[int, ...] = ()
    live: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()
    survivors: tuple[int, ...] = ()
    mask_keys: dict[int, bytes] = field(default_factory=dict)
    encryption_secret: bytearray = field(default_factory=bytearray, repr=False)
    mask_secret: bytearray = field(default_factory=bytearray, repr=False)
    self_mask: bytearray = field(default_factory=bytearray, repr=False)
    opening_keys: dict[int, bytearray] = field(default_factory=dict, repr=False)
    own_share: bytearray = field(default_factory=bytearray, repr=False)
    held: dict[int, bytearray] = field(default_factory=dict, repr=False)

    def _secrets(self) -> Iterator[bytearray]:
        yield from (self.encryption_secret, self.mask_secret, self.self_mask, self.own_share)
        yield from self.opening_keys.values()
        yield from self.held.values()

    def erase_after_share(self) -> None:
        """Wipe what only the sealing needed."""
        _wipe(self.encryption_secret)

    def erase_after_mask(self) -> None:
        """Wipe what only the upload needed."""
        for secret in (self.mask_secret, self.self_mask, *self.opening_keys.values()):
            _wipe(secret)
        self.opening_keys.clear()
        self.mask_keys.clear()

    def erase_all(self) -> None:
        """Wipe every secret."""
        for secret in self._secrets():
            _wipe(secret)
        self.opening_keys.clear()
        self.held.clear()
        self.mask_keys.clear()

    def seal(self, identity: Ed25519PrivateKey, context: bytes, salt: bytes) -> bytes:
        """Return magic, version, 32 bytes of salt, and AES-256-GCM of a JSON object.

        The key is ``derive(identity, "state", context, salt)`` and is used once.
        """
        values = {name: _written(value) for name, value in vars(self).items()}
        plain = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
        key = derive(raw_identity(identity), b"state", context, salt)
        return _MAGIC + salt + AESGCM(key).encrypt(bytes(12), plain, _MAGIC + salt)

    @classmethod
    def open(cls, blob: bytes, identity: Ed25519PrivateKey, context: bytes) -> ClientState:
        """Read what :meth:`seal` wrote; refuse a blob changed or of another client or round."""
        if not isinstance(blob, bytes):
            raise refuse("saved state", f"it is bytes, not {type(blob).__name__}")
        start = len(_MAGIC)
        salt = blob[start : start + _SALT]
        if not blob.startswith(_MAGIC) or len(salt) != _SALT:
            raise refuse("saved state", "this is no saved client of this version")
        key = derive(raw_identity(identity), b"state", context, salt)
        try:
            plain = AESGCM(key).decrypt(bytes(12), blob[start + _SALT :], _MAGIC + salt)
        except (InvalidTag, ValueError) as error:
            raise refuse(
                "saved state", "it does not open; it was changed, or is of another client or round"
            ) from error
        try:
            return cls._from_plain(json.loads(plain))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise refuse("saved state", "it opens, but was written by another version of this program") from error

    @classmethod
    def _from_plain(cls, plain: Mapping[str, Any]) -> ClientState:
        values = dict[str, Any]()
        for name, blank in vars(cls(0)).items():
            kind, value = type(blank), plain[name]
            if isinstance(blank, bytes | bytearray):
                value = kind.fromhex(value)
            elif isinstance(blank, dict):
                piece = bytes if name == "mask_keys" else bytearray
                value = {int(key): piece.fromhex(one) for key, one in value.items()}
            values[name] = kind(value)
        return cls(**values)


def _wipe(secret: bytearray) -> None:
    secret[:] = bytes(len(secret))
    secret.clear()


def _written(value: Any) -> Any:
    """Return a field for JSON: bytes as hexadecimal text, everything else as it stands."""
    if isinstance(value, Mapping):
        return {str(key): one.hex() for key, one in value.items()}
    return value.hex() if isinstance(value, bytes | bytearray) else value
