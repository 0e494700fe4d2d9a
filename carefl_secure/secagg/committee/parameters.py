"""What all parties of a committee round agree on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from carefl_secure.errors import CohortError, ConfigError
from carefl_secure.secagg.primitives.agreement import Agreement, check_keys

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
    def quorum(self) -> int:
        """Members that open a round, and shares that rebuild a seed: all but those tolerated."""
        return self.size - self.dropout_tolerance

    @property
    def max_corrupt_members(self) -> int:
        """How many members may side with the server: ``size - 2 * dropout_tolerance - 1``.

        Two sets of ``quorum`` members then share an honest one, which says only once who is lost, so at most
        ``dropout_tolerance`` honest members' seeds are ever opened, and one honest member is left.
        """
        return self.size - 2 * self.dropout_tolerance - 1

    @property
    def shares_per_envelope(self) -> int:
        """Shares of other members' seeds that an envelope holds; 0 if none may be lost."""
        return self.size - 1 if self.dropout_tolerance else 0

    def tolerates(self, lost: int) -> bool:
        """Tell whether the round can go on without so many members."""
        return lost <= self.dropout_tolerance

    def lost_members(self, lost: Collection[int], *, all_needed: bool = False) -> CohortError:
        """Return the error for a round that cannot go on without its lost members."""
        named = ", ".join(str(member) for member in sorted(lost))
        tolerance = 0 if all_needed else self.dropout_tolerance
        return CohortError(
            f"lost members: nothing valid came from committee members {named}, and the round tolerates the loss of "
            f"{tolerance}; no sum can be opened and nothing was released: bring them back, or start a new round with "
            "another committee or a larger dropout tolerance"
        )

    def keys_of(self, party: str) -> tuple[bytes, ...]:
        """Return the Ed25519 public keys of clients or members."""
        return self.members if party == "member" else super().keys_of(party)

    def numbers(self) -> tuple[int, ...]:
        """Return all numbers, in the order in which they are hashed."""
        common = (self.round, self.dimension, self.bits, self.min_survivors, self.clients)
        return (*common, self.size, self.dropout_tolerance)

    def parties(self) -> tuple[bytes, ...]:
        """Return the keys of clients and members."""
        return (*self.roster, *self.members)
