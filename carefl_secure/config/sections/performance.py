"""The section ``performance``: time and memory."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from carefl_secure.config.sections.base import Section

__all__ = ["PerformanceConfig"]


class PerformanceConfig(Section):
    """Time and memory. No setting here changes what is computed, up to floating-point rounding."""

    micro_batch: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="records that go through the model at once in training; null takes 64 for the "
        "embedded model and 4 for any other",
    )
    parallel_batches: Annotated[int, Field(ge=1, le=256)] | None = Field(
        default=None,
        description="micro-batches that go through the model in parallel, each on one core; null "
        "takes one per core, at most four, for the embedded model, and 1 for any other, which "
        "uses all cores by itself",
    )
    evaluation_batch: int = Field(
        default=64, ge=1, le=4096, description="images that are scored at once"
    )
    workers: int = Field(default=1, ge=1, le=256, description="clients that work at the same time")
    timeout_s: float = Field(
        default=3600.0,
        ge=1.0,
        le=604_800.0,
        description="seconds that a client or helper on a network has to answer one message; one "
        "that takes longer counts as dropped out of the round",
    )
