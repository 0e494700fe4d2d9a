"""The results of a finished run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from carefl_secure.rounding import html_table


@dataclass(frozen=True)
class StageSummary:
    """``mAP`` and ``macro_f1`` of one stage, at its start and at its end, with its own labels."""

    name: str  # its number and label space, as "2-compound"
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class RunSummary:
    """The results of a finished run."""

    folder: Path
    rows: Sequence[Mapping[str, float | int | str]]  # the figures of every round
    baselines: Mapping[str, float]  # the test mAP of the simple baselines, empty where switched off
    before: Mapping[str, float]  # mAP and macro_f1 of the untuned model on the test split, last stage's labels
    after: Mapping[str, float]  # the same of the tuned model
    promise: str  # the privacy sentence, for all stages together
    seconds: float  # wall time
    stages: Sequence[StageSummary] = ()  # empty for a run in one stage
    remarks: Sequence[str] = ()  # what must be said of the model besides, such as damage to its language

    @property
    def verdict(self) -> str:
        """Say in words whether the tuned model has a higher test mAP than the untuned one and every baseline."""
        mine, others = self.after.get("mAP", math.nan), {"the untuned model": self.before.get("mAP", math.nan)}
        others |= {f"the baseline {name.replace('_', ' ')}": value for name, value in self.baselines.items()}
        ahead = {name: value for name, value in others.items() if not value < mine}
        if not ahead:
            return f"the tuned model has a higher mAP than the untuned one and all {len(self.baselines)} baselines"
        each = ", ".join(f"{name} ({value:.3f})" for name, value in ahead.items())
        return f"the tuned model, mAP {mine:.3f}, does NOT beat {each}"

    def _repr_html_(self) -> str:
        """Show the scores and the privacy statement in a notebook."""
        names = list(self.after)
        rows = [("before", *(self.before.get(name, "") for name in names)), ("after", *self.after.values())]
        return html_table(("", *names), rows, f"{self.promise} Run folder: {self.folder}")
