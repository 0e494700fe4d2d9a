"""Where fresh keys come from: the operating system, or a seed in tests."""

from __future__ import annotations

import os
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from carefl_secure.errors import PrivacyError
from carefl_secure.noise.keystream import KEY_BYTES


class KeySource(Protocol):
    """Anything that gives fresh 32-byte keys."""

    def key(self, label: str) -> bytes:
        """Return 32 fresh bytes; ``label`` says what they are for."""
        ...


class SystemKeySource:
    """Keys from the entropy of the operating system; the label is ignored.

    Guarantees
    ----------
    Each key is 256 bits from ``os.urandom``, independent of every seed of the program and of every
    earlier key, if the operating system's generator is sound.
    """

    def key(self, label: str) -> bytes:
        """Return 32 bytes from ``os.urandom``."""
        return os.urandom(KEY_BYTES)


class DeterministicKeySource:
    """Keys from a nonempty seed. UNSAFE: for tests and known answers only.

    The ``c``-th key requested under one label is ``HKDF-SHA256(seed, info = "carefl-unsafe-deterministic-key/" + label
    + "/" + c)``. Whoever knows the seed knows every key, so nothing made with this source is private.
    """

    def __init__(self, seed: bytes) -> None:
        if not seed:
            raise PrivacyError("a deterministic key source needs a seed of at least one byte")
        self._seed = bytes(seed)
        self._counts: dict[str, int] = {}

    def key(self, label: str) -> bytes:
        """Return the next key under ``label``."""
        count = self._counts.get(label, 0)
        self._counts[label] = count + 1
        info = f"carefl-unsafe-deterministic-key/{label}/{count}".encode()
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(self._seed)
