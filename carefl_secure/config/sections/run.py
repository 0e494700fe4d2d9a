"""The sections ``evaluation`` and ``run``: what is measured, and where a run is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from carefl_secure.config.sections.base import Section, Seed

__all__ = ["EvaluationConfig", "RunConfig"]


class EvaluationConfig(Section):
    """What is measured along the way."""

    every: int = Field(
        default=1, ge=1, description="rounds between two scorings; the last is scored too"
    )
    baselines: bool = Field(
        default=True, description="whether simple baselines are scored as well as the model"
    )
    scorer: Literal["labels", "generation"] = Field(
        default="labels",
        description="what macro F1 is decided by: the likelihoods of the labels, or the text that "
        "the model writes; mAP always ranks by likelihood",
    )
    constrained: bool = Field(
        default=False,
        description="under scorer=generation: let the model write labels and commas only",
    )


class RunConfig(Section):
    """Where a run is kept."""

    dir: Path = Field(default=Path("runs"), description="folder that holds the run folders")
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="name of the run folder: letters, digits, dot, dash; null makes one up",
    )
    seed: Seed = Field(default=0, description="seed of everything that need not be secret")
    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        default=(),
        description="where else the figures of every round are shown, beside metrics.jsonl; "
        "MLflow's go to a file beside the runs, or to the server that MLFLOW_TRACKING_URI names",
    )
