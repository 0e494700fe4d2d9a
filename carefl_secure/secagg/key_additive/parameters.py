"""What all parties of a key-additive round must agree on. EXPERIMENTAL."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from carefl_secure.secagg.key_additive.ring import (
    DROPPED_BITS,
    LIMB_BITS,
    LIMBS,
    PLAIN_BITS,
    RING_DEGREE,
    SCALE_BITS,
    SMALL_BOUND,
)
from carefl_secure.secagg.pairwise.parameters import RoundParameters
from carefl_secure.secagg.primitives.crypto import digest, pack
from carefl_secure.secagg.primitives.packing import check_fields

__all__ = ["AdditiveParameters"]


@dataclass(frozen=True, kw_only=True)
class AdditiveParameters(RoundParameters):
    """The agreement behind one key-additive round: that of the peers, and how integers are packed.

    EXPERIMENTAL. Words are read as signed integers. All fields of ``RoundParameters`` mean what
    they do there; ``bits`` is the size of the words that go in and come out.

    Parameters
    ----------
    value_bound
        Largest magnitude of one client's integer; ``clients * value_bound`` must fit a field.
    field_bits
        20 (four integers per coefficient) or 30 (two).

    Raises
    ------
    ConfigError
        If a value is out of range, or a sum could leave its field.

    Guarantees
    ----------
    No sum of vectors within ``value_bound`` overflows, and for up to 1000 clients more than 11 of
    the 27 bits between noise and plaintext are left. :meth:`context` binds every message to all of
    it, in words that no other mode uses.
    """

    value_bound: int
    field_bits: int = 20

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        check_fields(self.value_bound, self.field_bits, self.clients, self.bits)

    @property
    def fields(self) -> int:
        """Integers per coefficient."""
        return PLAIN_BITS // self.field_bits

    @property
    def blocks(self) -> int:
        """Ring elements per vector."""
        return -(-self.dimension // (self.fields * RING_DEGREE))

    def context(self) -> bytes:
        """Return the 32-byte hash of everything above."""
        return _context(self, super().context())


@functools.lru_cache(maxsize=64)
def _context(parameters: AdditiveParameters, inner: bytes) -> bytes:
    return digest(
        b"additive context",
        inner,
        pack(
            parameters.value_bound,
            parameters.field_bits,
            RING_DEGREE,
            LIMBS * LIMB_BITS,
            SCALE_BITS,
            DROPPED_BITS,
            SMALL_BOUND,
        ),
    )
