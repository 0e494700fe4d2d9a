"""From scores to an evaluation (JSON: ``carefl.evaluation/1``): figures, intervals, gains, groups and slices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.data.records import LabelSpace, Record
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.evaluation.bootstrap import Interval, bootstrap, difference, units_of
from carefl_secure.evaluation.decisions import Bin, choose_thresholds
from carefl_secure.evaluation.figures import BOUNDS, Figures, prevalence_scores
from carefl_secure.evaluation.groups import Comparison, Settings, compare, slice_images
from carefl_secure.rounding import html_table, plain

FORMAT = "carefl.evaluation/1"


@dataclass(frozen=True)
class Cost:
    """What one answer costs on this machine: latency, memory, and tokens."""

    images: int  # pictures timed one at a time, from reading the file to all label scores
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_bytes: int  # largest resident size of the whole process so far
    prompt_tokens: int  # those of the picture included
    image_tokens: int
    answer_tokens: int  # of all answers together


@dataclass(frozen=True)
class Example:
    """A public picture (a data URI), the labels it carries, and those given with their probabilities."""

    picture: str
    truth: tuple[str, ...]
    given: Mapping[str, float]


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
    """All figures of one model on one split."""

    run: str
    corpus: str
    split: str
    space: str
    multi: bool  # whether several labels may hold
    records: int
    unlabelled: int  # of the records, without any label; sample averages leave them out
    decided_by: str  # how scores became decisions, in words
    sampling: Sampling
    figures: Mapping[str, float]  # of the tuned model, by the names in carefl_secure.evaluation.figures.NAMES
    intervals: Mapping[str, Interval]
    untuned: Mapping[str, float]  # the same figures of the base without the adapter
    baselines: Mapping[str, float]  # and of the label shares alone
    gains: Mapping[str, float]  # tuned minus untuned, paired over the same resamples
    gain_intervals: Mapping[str, Interval]
    labels: tuple[Label, ...]
    confusion: (
        tuple[tuple[int, ...], ...] | None
    )  # row: true label, column: decided label; None where several may hold
    reliability: tuple[Bin, ...]
    groups: tuple[Comparison, ...]
    slices: tuple[Slice, ...]
    cost: Cost | None = None
    examples: tuple[Example, ...] = ()  # from the public split, whatever was scored
    remarks: tuple[str, ...] = ()  # what a reader must know before quoting a figure

    def _repr_html_(self) -> str:
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


Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[Any]

_MOST_VALUES = 12  # an attribute with more is no grouping unless it is asked for


@dataclass(frozen=True)
class Known:
    """Targets and scores of other records, which thresholds and label shares may come from."""

    targets: npt.NDArray[Any]  # 0/1 label matrix [M, K]
    tuned: npt.NDArray[Any] | None = None  # scores [M, K], needed where several labels may hold; so is untuned
    untuned: npt.NDArray[Any] | None = None
    same: bool = False  # these are the scored records themselves, which makes F1 too good


@dataclass(frozen=True)
class Scored:
    """The records that were scored, and what the result calls them."""

    run: str
    corpus: str
    split: str
    space: LabelSpace
    records: Sequence[Record]  # with subjects and attributes
    targets: npt.NDArray[Any]  # their 0/1 label matrix [N, K]
    images: Iterable[Image.Image]  # in the same order


def attributes_of(records: Sequence[Record], asked: tuple[str, ...] | None) -> dict[str, list[str | None]]:
    """Return each record's value of each attribute; one that no record has raises `ConfigError`."""
    values: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.attributes.items():
            values.setdefault(name, set()).add(value)
    lacking = [name for name in asked or () if name not in values]
    if lacking:
        raise ConfigError(
            f"no record has the attribute {lacking[0]!r}; choose of "
            f"{', '.join(sorted(values)) or 'none, this corpus has none'}"
        )
    if asked is None:
        asked = tuple(n for n in sorted(values) if 2 <= len(values[n]) <= _MOST_VALUES)
    return {name: [record.attributes.get(name) for record in records] for name in asked}


def assess(
    scored: Scored, tuned: Matrix, untuned: Matrix, known: Known | None, settings: Settings | None = None
) -> Evaluation:
    """Evaluate a tuned model, the untuned one, and the label shares alone; the cost is left out.

    ``tuned`` and ``untuned`` are scores ``[N, K]``: log-odds where several labels may hold, else log-probabilities.
    Thresholds and label shares come from ``known``. Without it decisions follow the sign of the log-odds, and the
    baseline takes the label shares of the scored records themselves.
    """
    chosen = settings or Settings()
    space, targets = scored.space, scored.targets
    multi = space.multi
    wanted = attributes_of(scored.records, chosen.groups)
    cuts = _thresholds(known, len(space.labels), multi)
    model = Figures(targets, tuned, multi=multi, thresholds=cuts[0])
    base = Figures(targets, untuned, multi=multi, thresholds=cuts[1])
    shares, share_cut = prevalence_scores(targets if known is None else known.targets, len(targets), multi=multi)
    units = units_of([record.subject for record in scored.records])
    sampling: Mapping[str, Any] = {"replicates": chosen.replicates, "level": chosen.level, "seed": chosen.seed}

    def compared(name: str, values: Sequence[str | None]) -> Comparison:
        return compare(name, values, model, units, chosen)

    gain = difference(model, base)
    one_each = not multi and bool((model.targets.sum(1) == 1).all())
    distinct = int(units.max()) + 1
    unit = "subject" if distinct < len(scored.records) else "record"
    return Evaluation(
        run=scored.run,
        corpus=scored.corpus,
        split=scored.split,
        space=space.name,
        multi=multi,
        records=len(scored.records),
        unlabelled=int((targets.sum(1) == 0).sum()),
        decided_by=_words(known, multi),
        sampling=Sampling(unit, distinct, **sampling),
        figures=model(),
        intervals=bootstrap(model, units, bounds=BOUNDS, **sampling),
        untuned=base(),
        baselines=Figures(targets, shares, multi=multi, thresholds=share_cut)(),
        gains=gain(None),
        gain_intervals=bootstrap(gain, units, **sampling),
        labels=_labels(space, model),
        confusion=tuple(map(tuple, model.decisions.confusion().tolist())) if one_each else None,
        reliability=model.calibration.bins(),
        groups=tuple(compared(name, values) for name, values in wanted.items()),
        slices=tuple(Slice(edges, compared(k, values)) for k, (values, edges) in slice_images(scored.images).items()),
        remarks=_remarks(known, multi),
    )


def _thresholds(known: Known | None, labels: int, multi: bool) -> tuple[Floats | None, Floats | None]:
    if not multi:
        return None, None
    if known is None:
        return np.zeros(labels), np.zeros(labels)
    if known.tuned is None or known.untuned is None:
        raise DataError("thresholds need the scores of the records that they are chosen on")
    return (choose_thresholds(known.targets, known.tuned), choose_thresholds(known.targets, known.untuned))


def _words(known: Known | None, multi: bool) -> str:
    if not multi:
        return "the label with the highest score"
    if known is None:
        return "log-odds above zero"
    return "one threshold per label, that of the highest F1 on the public split"


def _remarks(known: Known | None, multi: bool) -> tuple[str, ...]:
    if known is None:
        return ("the baseline takes the label shares of the scored records themselves",)
    if not known.same:
        return ()
    chosen = "baseline and thresholds were chosen on; F1 is too good" if multi else ("baseline was fitted on")
    return (f"the scored records are those that the {chosen}",)


def _labels(space: LabelSpace, model: Figures) -> tuple[Label, ...]:
    figures = model.per_label()
    positives = model.targets.sum(0)
    return tuple(
        Label(
            name=name,
            positives=int(positives[i]),
            threshold=None if model.thresholds is None else float(model.thresholds[i]),
            figures={figure: float(values[i]) for figure, values in figures.items()},
        )
        for i, name in enumerate(space.labels)
    )
