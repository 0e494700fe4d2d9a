"""What a finished run says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunSummary", "StageSummary"]


@dataclass(frozen=True)
class StageSummary:
    """What one stage changed, both scored with the labels of the stage.

    Parameters
    ----------
    name : str
        Its number and label space: ``2-compound``.
    before, after : mapping
        ``mAP`` and ``macro_f1`` at its start, with what it was handed, and at its end.
    """

    name: str
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class RunSummary:
    """What a finished run tells.

    Parameters
    ----------
    folder : Path
        The run folder.
    rows : sequence of mapping
        Figures of every round.
    baselines : mapping
        Test mAP of the simple baselines; empty where switched off.
    before, after : mapping
        ``mAP`` and ``macro_f1`` of the untuned and the tuned model on the test split; of a run in
        stages, with the labels of the last.
    promise : str
        The privacy sentence, for all stages together.
    seconds : float
        Wall time.
    stages : sequence of StageSummary
        Empty for a run in one stage.
    """

    folder: Path
    rows: Sequence[Mapping[str, float | int | str]]
    baselines: Mapping[str, float]
    before: Mapping[str, float]
    after: Mapping[str, float]
    promise: str
    seconds: float
    stages: Sequence[StageSummary] = ()
