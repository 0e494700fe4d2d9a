"""Charts of lines as inline SVG: scales and ticks are computed here, the shapes stand in a template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from carefl_secure.report.render.templates import environment

Style: TypeAlias = Literal["accent", "text", "faint"]
Range: TypeAlias = tuple[float, float]

_WIDTH, _HEIGHT = 440.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 14.0, 34.0, 42.0
_MARKED = 12  # at most as many points get a marker each


@dataclass(frozen=True)
class Line:
    """One line of a chart; ``label`` stands at its last point, ``name`` in the legend where it is not empty."""

    points: Sequence[tuple[float, float]]
    style: Style = "text"
    dash: str = ""
    name: str = ""
    label: str = ""


@dataclass(frozen=True)
class _Scale:
    """From values to places on the page; logarithmic with ``log``."""

    values: Range
    places: Range
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(v) for v in self.values) if self.log else self.values
        share = ((math.log10(value) if self.log else value) - low) / (high - low)
        return round(self.places[0] + share * (self.places[1] - self.places[0]), 2)

    def ticks(self, *, whole: bool = False) -> list[float]:
        """Return some four round values inside the range."""
        low, high = self.values
        if self.log:
            return [10.0**n for n in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
        rough = (high - low) / 5.0
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1.0, 2.0, 5.0, 10.0) if m * unit >= rough)
        step = max(1.0, round(step)) if whole else step
        return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def line_chart(
    title: str, lines: Sequence[Line], x: Range, y: Range, *, below: str, whole: bool = False, percent: bool = False
) -> str:
    """Draw lines as one ``<svg>``; ``whole``: integer x ticks; ``percent``: both axes are shares, x logarithmic."""
    across = _Scale(x, (_LEFT, _WIDTH - _RIGHT), percent)
    up = _Scale(y, (_HEIGHT - _BOTTOM, _TOP))
    drawn = [
        (one, [(across(a), up(min(max(b, y[0]), y[1]))) for a, b in one.points], len(one.points) <= _MARKED)
        for one in lines
        if one.points
    ]

    def written(value: float) -> str:
        return f"{100 * value:g} %" if percent else f"{value:g}"

    return (
        environment(html=True)
        .get_template("lines.svg.j2")
        .render(
            title=title,
            below=below,
            lines=drawn,
            x_ticks=[(across(value), written(value)) for value in across.ticks(whole=whole)],
            y_ticks=[(up(value), written(value)) for value in up.ticks()],
            edges=(_LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM),
            size=(_WIDTH, _HEIGHT),
        )
        .strip()
    )
