"""The whole evaluation of one model on one split, and its JSON form ``carefl.evaluation/1``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from carefl_secure.evaluation.bootstrap import Interval
from carefl_secure.evaluation.calibration import Bin
from carefl_secure.evaluation.groups import Comparison
from carefl_secure.rounding import html_table, plain

FORMAT = "carefl.evaluation/1"


@dataclass(frozen=True)
class Cost:
    """What one answer costs on this machine: latency, memory, and tokens.

    ``images`` pictures were timed one at a time, from reading the file to all label scores; latencies are in
    milliseconds. ``peak_memory_bytes`` is the largest resident size of the whole process so far. ``prompt_tokens``
    include those of the picture; ``answer_tokens`` are of all answers together.
    """

    images: int
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_bytes: int
    prompt_tokens: int
    image_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Label:
    """Figures of one label; NaN where no record carries it."""

    name: str
    positives: int
    threshold: float | None
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Sampling:
    """How the intervals were made: ``unit`` is ``subject`` where persons were drawn whole."""

    unit: str
    units: int
    replicates: int
    level: float
    seed: int
    method: str = "basic bootstrap"


@dataclass(frozen=True)
class Slice:
    """The groups of one property of the pictures, and where its terciles end."""

    edges: tuple[float, float]
    comparison: Comparison


@dataclass(frozen=True)
class Evaluation:
    """All figures of one model on one split.

    Parameters
    ----------
    multi : bool
        Whether several labels may hold.
    unlabelled : int
        Those of the ``records`` without any label; sample averages leave them out.
    decided_by : str
        How scores became decisions, in words.
    figures, intervals : mapping
        Of the tuned model; names in :data:`carefl_secure.evaluation.figures.NAMES`.
    untuned, baselines : mapping
        The same figures of the base without the adapter, and of the label shares alone.
    gains, gain_intervals : mapping
        Tuned minus untuned, paired over the same resamples.
    confusion : tuple of tuple of int or None
        Row: true label, column: decided label; None where several labels may hold.
    remarks : tuple of str
        What a reader must know before quoting a figure.
    """

    run: str
    corpus: str
    split: str
    space: str
    multi: bool
    records: int
    unlabelled: int
    decided_by: str
    sampling: Sampling
    figures: Mapping[str, float]
    intervals: Mapping[str, Interval]
    untuned: Mapping[str, float]
    baselines: Mapping[str, float]
    gains: Mapping[str, float]
    gain_intervals: Mapping[str, Interval]
    labels: tuple[Label, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    reliability: tuple[Bin, ...]
    groups: tuple[Comparison, ...]
    slices: tuple[Slice, ...]
    cost: Cost | None = None
    remarks: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """Show the figures in a notebook."""
        rows = [
            (name, self.baselines[name], self.untuned[name], value, one.low, one.high)
            for name, value in self.figures.items()
            for one in (self.intervals[name],)
        ]
        head = ("", "baseline", "untuned", "tuned", "low", "high")
        return html_table(head, rows, " ".join(self.remarks))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; a figure that is not defined is null."""
        return {"format": FORMAT, **plain(self)}

    def as_json(self) -> str:
        """Return the JSON text: strict, without NaN, the same for the same result."""
        return json.dumps(self.to_json(), indent=2, sort_keys=True, allow_nan=False) + "\n"
