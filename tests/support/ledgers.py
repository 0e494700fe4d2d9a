"""Ledgers with a few rounds in them, and the plan that those rounds are of."""

from __future__ import annotations

from pathlib import Path

from carefl_secure.privacy import Ledger, PrivacyPlan, SampledSkellam

EVENT = SampledSkellam(0.1, 1e4, 1e2, 1e4, 1, 1e-12)
PLAN = PrivacyPlan(
    unit="record",
    trust="secagg",
    mechanism="skellam",
    rounds=4,
    clients=3,
    min_survivors=3,
    max_colluders=1,
    public_records=100,
    delta=1e-6,
    sample_rate=0.1,
    clipping_norm=1.0,
    noise_multiplier=1.0,
    target_epsilon=8.0,
)


def spend(
    path: Path, event: SampledSkellam = EVENT, run: str = "a", rounds: int = 1, *, released: bool = True
) -> None:
    """Charge some rounds to the ledger at a path, which is made where it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = Ledger(path, {"client": path.parent.name})
    for number in range(1, rounds + 1):
        book.spend(event, 1e6, 1e-5, {"run": run, "round": number})
        if released:
            book.append("release", {"run": run, "round": number, "survivors": 3})
