"""The section ``simulation``: events that only a run on one machine imitates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from carefl_secure.config.sections.base import Section, Share

__all__ = ["SimulationConfig"]


class SimulationConfig(Section):
    """Failures that a run on one machine imitates. A deployment has real ones, and takes none."""

    dropout: Share | Literal["auto"] = Field(
        default="auto",
        description="probability that a client drops out of a round; auto is 0.1, and 0 where the "
        "clients are too few to lose any",
    )
    stragglers: Share = Field(
        default=0.0,
        description="share of clients that complete only some of their local steps in a round",
    )
