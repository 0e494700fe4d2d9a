"""The section ``stages``: one run in several stages, each on labels of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from carefl_secure.config.sections import Section

if TYPE_CHECKING:
    from carefl_secure.config.root import Config

__all__ = ["StagesConfig", "check_stages", "stage_config", "stage_rounds"]

Space = Literal["emotic", "basic", "compound"]
Handover = Literal["carry", "merge", "restart"]


class StagesConfig(Section):
    """Several stages under one promise."""

    spaces: tuple[Space, ...] = Field(
        default=(), description="the label spaces of the stages, in order; empty for one stage"
    )
    handover: Handover = Field(
        default="carry",
        description="what a stage begins with: the adapter of the one before (carry), a fresh one "
        "beside that one, which is frozen (merge), or a fresh one alone (restart, a control)",
    )
    rounds: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None,
        description="rounds of each stage, which sum to federation.rounds; null splits them "
        "evenly, the first stages taking what is left over",
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
                f"stages.rounds names {len(self.rounds)} numbers for {len(self.spaces)} stages; "
                "give one for each"
            )
        return self


def stage_rounds(config: Config) -> tuple[int, ...]:
    """Return the rounds of each stage; all rounds as one where there are no stages."""
    total, stages = config.federation.rounds, config.stages
    if not stages.spaces:
        return (total,)
    if stages.rounds is not None:
        return stages.rounds
    share, rest = divmod(total, len(stages.spaces))
    return tuple(share + (place < rest) for place in range(len(stages.spaces)))


def stage_config(config: Config, place: int) -> Config:
    """Return one stage's settings, as those of a run of its own."""
    space, rounds = config.stages.spaces[place], stage_rounds(config)[place]
    return config.model_copy(
        update={
            "stages": StagesConfig(),
            "data": config.data.model_copy(update={"labels": space}),
            "federation": config.federation.model_copy(update={"rounds": rounds}),
        }
    )


def check_stages(config: Config) -> None:
    """Refuse stages that contradict the rest of the settings.

    Raises
    ------
    ValueError
        With what to change; the configuration turns it into its own error.
    """
    stages, federation = config.stages, config.federation
    if not stages.spaces:
        return
    last = stages.spaces[-1]
    if config.data.labels not in ("auto", last):
        raise ValueError(
            f"data.labels={config.data.labels} contradicts stages.spaces: each stage has its own "
            f"labels and the last, {last}, decides the scores; leave data.labels out"
        )
    rounds = stage_rounds(config)
    if min(rounds) < 1:
        raise ValueError(
            f"federation.rounds={federation.rounds} leaves a stage of {len(rounds)} without a "
            "round; raise it"
        )
    if sum(rounds) != federation.rounds:
        raise ValueError(
            f"stages.rounds={','.join(map(str, rounds))} sums to {sum(rounds)} and "
            f"federation.rounds is {federation.rounds}; set federation.rounds={sum(rounds)}"
        )
    if federation.public_records is not None:
        raise ValueError(
            "federation.public_records declares one number and every stage has records of its own; "
            "leave it out: stages run in this process, which counts them"
        )
    begun = [sum(rounds[:place]) for place in range(len(rounds))]
    if (
        config.adapter.train == "alternate"
        and stages.handover != "carry"
        and any(number % 2 for number in begun)
    ):
        raise ValueError(
            "under adapter.train=alternate a fresh adapter must begin in an odd round, with B, as "
            "A learns nothing while B is zero; give every stage but the last an even number in "
            "stages.rounds"
        )
