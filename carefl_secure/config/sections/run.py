"""The sections ``evaluation`` and ``run``: what is measured, and where a run is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from carefl_secure.config.sections.base import Section, Seed

__all__ = ["EvaluationConfig", "RunConfig"]


class EvaluationConfig(Section):
    """What is measured during a run."""

    every: int = Field(
        default=1,
        ge=1,
        description="rounds between two evaluations; the last round is evaluated too",
    )
    baselines: bool = Field(
        default=True, description="whether simple baselines are scored as well as the model"
    )
    scorer: Literal["labels", "generation"] = Field(
        default="labels",
        description="what macro F1 is based on: label likelihoods, or generated text; mAP always "
        "ranks by likelihood",
    )
    constrained: bool = Field(
        default=False, description="with scorer=generation: generate labels and commas only"
    )


class RunConfig(Section):
    """Where a run is stored."""

    dir: Path = Field(default=Path("runs"), description="folder that holds the run folders")
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="name of the run folder: letters, digits, dot, dash; null generates one",
    )
    seed: Seed = Field(default=0, description="seed of everything that does not have to be secret")
    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        default=(),
        description="where the figures of every round go besides metrics.jsonl; MLflow's go to a "
        "file next to the runs, or to the server that MLFLOW_TRACKING_URI names",
    )
