"""The section ``simulation``: events that only a run on one machine imitates."""

from __future__ import annotations

from pydantic import Field

from carefl_secure.config.sections.base import Section, Share

__all__ = ["SimulationConfig"]


class SimulationConfig(Section):
    """Failures that a run on one machine imitates. A deployment has real ones, and takes none."""

    dropout: Share = Field(
        default=0.1, description="probability that a client drops out of a round"
    )
    stragglers: Share = Field(
        default=0.0,
        description="share of clients that complete only some of their local steps in a round",
    )
