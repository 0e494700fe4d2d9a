"""What all parties of a committee round agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from carefl_secure.errors import ConfigError
from carefl_secure.secagg.primitives.agreement import Agreement, check_keys

__all__ = ["MAX_MEMBERS", "MIN_MEMBERS", "CommitteeParameters"]

MIN_MEMBERS = 2
MAX_MEMBERS = 5


@dataclass(frozen=True, kw_only=True)
class CommitteeParameters(Agreement):
    """The agreement behind one committee round.

    Parameters
    ----------
    members
        The Ed25519 public keys of the 2 to 5 committee members; a member's index is its place.
    dropout_tolerance
        How many members may be lost without losing the round. Each costs trust: at least ``2 *
        dropout_tolerance + 1`` members must be honest. 0 needs one honest member and all present.
    """

    members: tuple[bytes, ...]
    dropout_tolerance: int = 0

    LABEL: ClassVar[bytes] = b"committee"
    MAX_CLIENTS: ClassVar[int] = (1 << 16) - 1

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        size = self.size
        if not MIN_MEMBERS <= size <= MAX_MEMBERS:
            raise ConfigError(f"a committee has {MIN_MEMBERS} to {MAX_MEMBERS} members, not {size}")
        check_keys(self.members, "members of the committee")
        if not 0 <= self.dropout_tolerance <= (size - 1) // 2:
            raise ConfigError(
                f"dropout_tolerance for {size} members must lie in 0 .. {(size - 1) // 2},"
                f" not {self.dropout_tolerance}"
            )

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.members)

    @property
    def floor(self) -> int:
        """The smallest list of clients that a member answers for."""
        return self.min_survivors

    @property
    def quorum(self) -> int:
        """Members that open a round, and shares that rebuild a seed: all but those tolerated."""
        return self.size - self.dropout_tolerance

    @property
    def max_corrupt_members(self) -> int:
        """How many members may side with the server: ``size - 2 * dropout_tolerance - 1``.

        Two sets of ``quorum`` members then share an honest one, which says only once who is lost,
        so at most ``dropout_tolerance`` honest members' seeds are ever opened, and one honest
        member is left.
        """
        return self.size - 2 * self.dropout_tolerance - 1

    def numbers(self) -> tuple[int, ...]:
        """Return all numbers, in the order in which they are hashed."""
        return (
            self.round,
            self.dimension,
            self.bits,
            self.min_survivors,
            self.clients,
            self.size,
            self.dropout_tolerance,
        )

    def parties(self) -> tuple[bytes, ...]:
        """Return the keys of clients and members."""
        return (*self.roster, *self.members)
