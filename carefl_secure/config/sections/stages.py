"""The section ``stages``: one run in several stages, each on labels of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from carefl_secure.config.sections.base import Section

Space = Literal["emotic", "basic", "compound"]
Handover = Literal["carry", "merge", "restart"]


class StagesConfig(Section):
    """Several stages under one privacy budget."""

    spaces: tuple[Space, ...] = Field(
        default=(), description="the label spaces of the stages, in order; empty for one stage"
    )
    handover: Handover = Field(
        default="carry",
        description="initial adapter of a stage: that of the stage before (carry), a fresh one "
        "next to that one, which is frozen (merge), or a fresh one alone (restart, a control)",
    )
    rounds: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None,
        description="rounds of each stage, which sum to federation.rounds; null splits them "
        "evenly, with the remainder to the first stages",
    )

    @model_validator(mode="after")
    def _agree(self) -> StagesConfig:
        if not self.spaces:
            if self.rounds is not None or self.handover != "carry":
                raise ValueError(
                    "stages.rounds and stages.handover have no effect without stages.spaces; set "
                    "stages.spaces to two label spaces or more, or leave them out"
                )
            return self
        if len(self.spaces) < 2 or len(set(self.spaces)) < len(self.spaces):
            raise ValueError(
                f"stages.spaces={','.join(self.spaces)} needs two different label spaces or more, "
                "such as basic,compound; for one stage set data.labels"
            )
        if self.rounds is not None and len(self.rounds) != len(self.spaces):
            raise ValueError(
                f"stages.rounds names {len(self.rounds)} numbers for {len(self.spaces)} stages; give one for each"
            )
        return self
