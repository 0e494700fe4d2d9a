"""The two plots of a report, as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from carefl_secure.report.schema import Report
from carefl_secure.rounding import round_up

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEXT, _FAINT, _LINE = "#1f2529", "#5c666e", "#d9dee2"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "carefl",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _FAINT,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "text.color": _TEXT,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def rounds_plot(report: Report, *, wide: bool, accent: str) -> str:
    """Draw epsilon (in ``accent``) and the scores per round, as an ``<svg>`` element.

    ``wide`` puts the two side by side for a desktop; otherwise they are stacked, for a phone. Empty
    where no round is finished.
    """
    if not report.rounds:
        return ""
    with matplotlib.rc_context(_STYLE):
        shape = (1, 2) if wide else (2, 1)
        figure = Figure(figsize=(8.6, 3.1) if wide else (3.6, 5.2), layout="constrained")
        left, right = figure.subplots(*shape).flat
        _epsilon(left, report, accent)
        _scores(right, report)
        last = report.rounds[-1].round
        for axes in (left, right):
            axes.set_xlim(min(0.5, 1.0 - 0.03 * last), last + max(0.5, 0.03 * last))
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return _svg(figure, "wide-rounds" if wide else "narrow-rounds")


def _epsilon(axes: Axes, report: Report, accent: str) -> None:
    axes.set_title("epsilon spent so far")
    known = [(line.round, line.epsilon) for line in report.rounds if line.epsilon is not None]
    if known:
        axes.plot(*zip(*known, strict=True), color=accent, linewidth=2.2, marker=_marker(known))
        number, price = known[-1]
        axes.annotate(
            round_up(price, 2),
            (number, price),
            xytext=(0, 7),
            textcoords="offset points",
            ha="right",
            color=accent,
            fontweight="bold",
        )
    else:
        axes.text(0.5, 0.5, "none holds", transform=axes.transAxes, ha="center", color=_FAINT)
    agreed = report.accounting.agreed_epsilon
    highest = max((price for _, price in known), default=1.0)
    if agreed is not None and agreed <= 3 * highest:
        axes.axhline(agreed, color=_FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.annotate(
            f"agreed limit {agreed:g}",
            (0.0, agreed),
            xycoords=("axes fraction", "data"),
            xytext=(4, 4),
            textcoords="offset points",
            color=_FAINT,
        )
        highest = max(highest, agreed)
    axes.set_ylim(0.0, highest * 1.18)


def _scores(axes: Axes, report: Report) -> None:
    axes.set_title("scores on public test images")
    names = list(dict.fromkeys(name for line in report.rounds for name in line.metrics))[:4]
    styles = ["-", (0, (5, 2)), (0, (2, 2)), "-."]
    for place, name in enumerate(names):
        known = [(e.round, e.metrics[name]) for e in report.rounds if name in e.metrics]
        axes.plot(
            *zip(*known, strict=True),
            color=_TEXT if place == 0 else _FAINT,
            linewidth=2.0,
            linestyle=styles[place],
            marker=_marker(known),
            markersize=4,
            label=_SHOWN.get(name, name),
        )
    if names:
        axes.legend(frameon=False, loc="lower right")
        axes.set_ylim(0.0, 1.0)
    else:
        axes.text(0.5, 0.5, "none measured", transform=axes.transAxes, ha="center", color=_FAINT)


_SHOWN = {"mAP": "mAP", "macro_f1": "F1 (macro)"}


def _marker(points: Sequence[object]) -> str:
    return "o" if len(points) <= 12 else ""


def attacker_plot(curve: Sequence[tuple[float, float]], *, wide: bool, accent: str) -> str:
    """Draw a curve of false- and true-positive rates as an ``<svg>`` element; ``wide`` is for a desktop."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.3) if wide else (3.6, 3.1), layout="constrained")
        axes = figure.subplots()
        false, true = zip(*curve, strict=True)
        axes.plot(false, true, color=accent, linewidth=2.2)
        axes.plot(false, false, color=_FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.fill_between(false, true, 1.0, color=accent, alpha=0.08, linewidth=0)
        axes.text(1.4e-4, 0.93, "not attainable", color=accent, va="top")
        axes.text(0.93, 0.025, "guessing", color=_FAINT, ha="right")
        axes.set_xscale("log")
        axes.set_xlim(1e-4, 1.0)
        axes.set_ylim(0.0, 1.0)
        percent = FuncFormatter(lambda value, _: f"{100 * value:g} %")
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)
        axes.minorticks_off()
        axes.set_title("members found, at most")
        axes.set_xlabel("false alarms")
        return _svg(figure, "wide-attacker" if wide else "narrow-attacker")


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as one element of the page: ids of its own, the page's font, no size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    head, end, body = text.partition(">")
    head = re.sub(r' (width|height|version|xmlns|xmlns:xlink)="[^"]*"', "", head)
    text = head + end + body
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    text = text.replace("xlink:href", "href").replace('id="', f'id="{name}-')
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    return text.strip()
