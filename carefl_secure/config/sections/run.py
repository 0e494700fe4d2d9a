"""The sections that change no promise: ``evaluation``, ``run``, ``simulation``, ``performance``; and ``stages``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from carefl_secure.config.sections.base import Section, Seed, Share


class EvaluationConfig(Section):
    """What is measured during a run."""

    every: int = Field(default=1, ge=1, description="rounds between two evaluations; the last round is evaluated too")
    baselines: bool = Field(default=True, description="whether simple baselines are scored as well as the model")
    scorer: Literal["labels", "generation"] = Field(
        default="labels",
        description="what macro F1 is based on: label likelihoods, or generated text; mAP always ranks by likelihood",
    )
    constrained: bool = Field(default=False, description="with scorer=generation: generate labels and commas only")


class RunConfig(Section):
    """Where a run is stored."""

    dir: Path = Field(default=Path("runs"), description="folder that holds the run folders")
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="name of the run folder: letters, digits, dot, dash; null generates one",
    )
    seed: Seed = Field(default=0, description="seed of everything that does not have to be secret")
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        default=(),
        description="where the figures of every round go besides metrics.jsonl; MLflow's go to a "
        "file next to the runs, or to the server that MLFLOW_TRACKING_URI names; W&B's to the run folder, or to its "
        "service where WANDB_MODE=online",
    )


class SimulationConfig(Section):
    """Failures that a run on one machine imitates. A deployment has real ones, and takes none."""

    dropout: Share | Literal["auto"] = Field(
        default="auto",
        description="probability that a client drops out of a round; auto is 0.1, and 0 where the "
        "clients are too few to lose any",
    )
    stragglers: Share = Field(
        default=0.0, description="share of clients that complete only some of their local steps in a round"
    )


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
    evaluation_batch: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="images that are scored at once; null takes 64 for the embedded model and 16 for others",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute the activations of each text layer in the backward pass: a step takes less "
        "memory and more time; not with privacy.clipping=opacus",
    )
    workers: int = Field(default=1, ge=1, le=256, description="clients that work at the same time")
    timeout_s: float = Field(
        default=3600.0,
        ge=1.0,
        le=604_800.0,
        description="seconds that a client or helper on a network has to answer one message; one "
        "that takes longer counts as dropped out of the round",
    )


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
