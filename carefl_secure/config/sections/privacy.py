"""The section ``privacy``: what is protected, against whom, and the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from carefl_secure.config.sections.base import Section


class PrivacyConfig(Section):
    """What is protected, against whom, and how much may be spent."""

    unit: Literal["record", "person", "client", "none"] = Field(
        default="record",
        description="what the guarantee protects: one record, all records of one person, or all "
        "that a client holds; none switches privacy off",
    )
    trust: Literal["secagg", "none"] = Field(
        default="secagg",
        description="who adds the noise: with secagg all clients together, under secure "
        "aggregation; with none each client alone, so that its update is private to everybody",
    )
    records_per_person: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="with unit=person: keep this many records of each person and clip each on its "
        "own; null keeps all and clips their mean",
    )
    epsilon: float = Field(default=8.0, gt=0, le=1000, description="privacy budget of all rounds together")
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="probability that the epsilon bound may fail; below one over the record count",
    )
    sample_rate: Annotated[float, Field(ge=1e-9, le=1)] | Literal["auto"] = Field(
        default="auto",
        description="Poisson sampling rate of records, or persons, in a round or local step; with unit=client, which "
        "samples nothing, the share of a client's records in a local step. auto is 0.2, and more for fewer than 8,000 "
        "records where a label head is trained alone",
    )
    mechanism: Literal["independent", "banded", "auto"] = Field(
        default="independent",
        description="noise of the rounds under secure aggregation: independent, or banded, so that later rounds take "
        "back part of the noise of earlier ones and each record has one round in so many; auto takes what is "
        "predicted to leave less noise in the trained adapter, with dropouts down to federation.min_survivors too",
    )
    bands: Annotated[int, Field(ge=2, le=64)] | Literal["auto"] = Field(
        default="auto",
        description="with mechanism=banded: rounds whose noise is correlated, at most 1 / sample_rate; auto takes the "
        "number of least predicted error",
    )
    clipping_norm: float = Field(
        default=1.0,
        ge=1e-12,
        le=1e6,
        description="largest l2 norm of one record's or person's gradient, or of one client's update",
    )
    normalise: bool = Field(
        default=True,
        description="scale every gradient, or client's update, to the clipping norm, instead of only clipping it",
    )
    target_unclipped_quantile: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="with normalise=false: share of records (persons, clients) that clipping is to leave as they are; "
        "the norm begins with clipping_norm and follows this quantile of their norms, at no cost in epsilon; null "
        "keeps the norm",
    )
    clipping: Literal["native", "opacus"] = Field(
        default="native", description="implementation of the per-record gradients"
    )
    pad_rounds: bool | None = Field(
        default=None,
        description="compute every round's sum with as many records as the largest sample has, so "
        "that the time a client takes tells little of how many were drawn; about twice the work; "
        "null pads at sites and not in a simulation. It changes no result",
    )
    ledgers: Path | None = Field(
        default=None,
        description="folder of client ledgers that several runs share, so that runs on the same "
        "records add up; null keeps them in the run folder",
    )
    max_epsilon: float | None = Field(
        default=None, gt=0, description="limit of a client's own ledger over all runs; null takes epsilon"
    )
    tuning_runs: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="how many earlier runs on these records chose the settings, so that the "
        "report can price them; null states in the report that they are uncounted",
    )
    max_colluders: int = Field(
        default=1,
        ge=0,
        le=10_000,
        description="clients that may collude with the server without weakening the guarantee",
    )

    @field_validator("ledgers")
    @classmethod
    def _in_full(cls, path: Path | None) -> Path | None:
        """Name the folder in full: resumed from another folder, a run must find what it spent."""
        return path and path.absolute()
