"""The section ``privacy``: what is protected, against whom, and for how much."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from carefl_secure.config.sections.base import Section

__all__ = ["PrivacyConfig"]


class PrivacyConfig(Section):
    """What is protected, against whom, and how much may be spent."""

    unit: Literal["record", "person", "client", "none"] = Field(
        default="record",
        description="what the guarantee protects: one record, all records of one person, all that "
        "a client holds; none switches privacy off",
    )
    trust: Literal["secagg", "none"] = Field(
        default="secagg",
        description="who makes the noise: all clients together, hidden by secure aggregation, or "
        "with none every client for itself, so that its update is private whoever sees it",
    )
    records_per_person: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="of unit=person: keep so many records of each person and clip each on its own; "
        "null keeps all and clips their mean once",
    )
    epsilon: float = Field(
        default=8.0, gt=0, le=1000, description="the most that all rounds may spend"
    )
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="the chance left aside; below one over the record count",
    )
    sample_rate: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="chance of each record, or person, to take part in a round or a local step; "
        "under unit=client, where nobody is drawn, the share of a client's records in a local step",
    )
    clipping_norm: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="largest l2 norm of one record's or person's gradient, or of one client's move",
    )
    normalise: bool = Field(
        default=True,
        description="scale every gradient, or client's move, to the clipping norm, instead of only "
        "cutting",
    )
    clipping: Literal["native", "opacus"] = Field(
        default="native", description="the engine of the per-record gradients"
    )
    ledgers: Path | None = Field(
        default=None,
        description="folder of client ledgers that outlive a run, so that runs on the same records "
        "add up; null keeps them in the run folder",
    )
    max_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="the most a client lets its own ledger reach over all runs; null takes epsilon",
    )
    tuning_runs: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="how many earlier runs on these records chose the settings, so that the report "
        "can price them; null says in the report that nobody counted them",
    )
    max_colluders: int = Field(
        default=1, ge=0, le=10_000, description="clients that may side with the server without harm"
    )
