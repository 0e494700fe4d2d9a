"""Errors of the secure sums: every refusal names the check that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from carefl_secure.errors import CohortError, ProtocolError


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
    """Return who explains the most of pairs of parties of which at least one lied, with counts.

    Greedy: whoever is in most of the pairs that are left, until none is left. A party named with more pairs than there
    can be colluders is proven to lie; of a pair that stands alone both are named.
    """
    left, named = set(pairs), dict[str, int]()
    while left:
        counts = Counter(party for pair in left for party in pair)
        most = max(counts.values())
        worst = {party: most for party, count in counts.items() if count == most}
        named |= worst
        left = {pair for pair in left if not worst.keys() & set(pair)}
    return named
