"""How an evaluation is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How an evaluation is made.

    Parameters
    ----------
    replicates : int
        Bootstrap resamples.
    level : float
        Level of the intervals.
    groups : tuple of str or None
        Attributes to compare groups by; None takes all with 2 to 12 values.
    minimum : int
        Records that a group needs; one with fewer, or with fewer than ten persons, is too small.
    shuffles : int
        Shuffles of the group names behind the gap that chance gives.
    """

    replicates: int = 1000
    level: float = 0.95
    seed: int = 0
    groups: tuple[str, ...] | None = None
    minimum: int = 30
    shuffles: int = 200
