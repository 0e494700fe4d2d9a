"""Errors of the secure sums: every refusal names the check that failed."""

from __future__ import annotations

from collections.abc import Collection

from carefl_secure.errors import CohortError, ProtocolError

__all__ = ["below_floor", "lost_members", "refuse"]


def refuse(check: str, reason: str) -> ProtocolError:
    """Return the error for a failed check, its name first."""
    return ProtocolError(f"{check}: {reason}")


def below_floor(phase: str, present: int, floor: int) -> CohortError:
    """Return the error for a cohort that has become too small."""
    return CohortError(
        f"cohort floor: {present} clients after {phase}, at least {floor} are needed;"
        " nothing was released, start a new round with more clients"
    )


def lost_members(lost: Collection[int], tolerance: int) -> CohortError:
    """Return the error for a committee round that cannot go on without its lost members."""
    named = ", ".join(str(member) for member in sorted(lost))
    return CohortError(
        f"lost members: nothing came from committee members {named}, and the round tolerates the"
        f" loss of {tolerance}; no sum can be opened and nothing was released: bring them back, or"
        " start a new round with another committee or a larger dropout tolerance"
    )
