"""What every protocol agrees on before a round, and the checks of it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from carefl_secure.errors import ConfigError

__all__ = ["MIN_CLIENTS", "check_agreement", "check_hash", "check_keys", "word_type"]

MIN_CLIENTS = 3
"""A sum over two tells each the other's vector."""


_DIMENSION_LIMIT = 1 << 31


_COUNTER_LIMIT = 1 << 63


class Agreement(Protocol):
    """What the parameters of every mode have."""

    @property
    def round(self) -> int:
        """Number of the round."""
        ...

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        ...

    @property
    def bits(self) -> int:
        """Size of one word."""
        ...

    @property
    def min_survivors(self) -> int:
        """Smallest cohort."""
        ...

    @property
    def roster(self) -> tuple[bytes, ...]:
        """Public keys of the clients."""
        ...


def check_agreement(agreement: Agreement, most: int) -> None:
    """Check what all modes have in common, for at most ``most`` clients.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """
    count = len(agreement.roster)
    if not MIN_CLIENTS <= count <= most:
        raise ConfigError(f"a secure sum takes {MIN_CLIENTS} to {most} clients, not {count}")
    check_keys(agreement.roster, "clients of the roster")
    if agreement.bits not in (16, 32):
        raise ConfigError(f"a word has 16 or 32 bits, not {agreement.bits}")
    if not 1 <= agreement.dimension < _DIMENSION_LIMIT:
        raise ConfigError(f"the dimension must lie in 1 .. 2**31 - 1, not {agreement.dimension}")
    if not 0 <= agreement.round < _COUNTER_LIMIT:
        raise ConfigError(f"the round number must lie in 0 .. 2**63 - 1, not {agreement.round}")
    if not MIN_CLIENTS <= agreement.min_survivors <= count:
        raise ConfigError(
            f"min_survivors must lie in {MIN_CLIENTS} .. {count}, not {agreement.min_survivors}"
        )
    for name in ("base_hash", "plan_hash"):
        check_hash(getattr(agreement, name), name)


def check_keys(keys: tuple[bytes, ...], whose: str) -> None:
    """Refuse keys that are not 32 bytes each and all different."""
    if not all(_is_32_bytes(key) for key in keys):
        raise ConfigError("every roster entry is an Ed25519 public key of 32 bytes")
    if len(set(keys)) != len(keys):
        raise ConfigError(f"two {whose} have the same key; one party, one key")


def check_hash(value: object, name: str) -> None:
    """Refuse what is not 32 bytes."""
    if not _is_32_bytes(value):
        raise ConfigError(f"{name} is a hash of 32 bytes")


def word_type(bits: int) -> np.dtype[Any]:
    """Return the numpy type of a word of 16 or 32 bits."""
    return np.dtype(np.uint16 if bits == 16 else np.uint32)


def _is_32_bytes(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == 32
