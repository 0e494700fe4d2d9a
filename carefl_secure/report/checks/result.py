"""The outcome of one check, and helpers that all checks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["held", "failed", "not checked"]
Finding: TypeAlias = tuple[Outcome, str]

HELD: Outcome = "held"
FAILED: Outcome = "failed"
UNCHECKED: Outcome = "not checked"


def owner(name: str) -> str:
    """Name the owner of a ledger."""
    return "the server" if name == "server" else f"client {name}"


def some(numbers: Sequence[int]) -> str:
    """List the first few numbers."""
    shown = ", ".join(str(number) for number in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
