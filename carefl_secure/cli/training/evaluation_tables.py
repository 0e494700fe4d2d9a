"""The tables of ``carefl-secure evaluate``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from carefl_secure.cli.console import result_console, say
from carefl_secure.cli.figures import figure

if TYPE_CHECKING:
    from carefl_secure.evaluation.assess import Evaluation
    from carefl_secure.evaluation.bootstrap import Interval
    from carefl_secure.evaluation.groups import Comparison
    from carefl_secure.runs.evaluation.generated import Generated

_SHOWN = ("mAP", "macro_f1", "uar")


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:{sign}.3f}"


def _with_interval(name: str, values: Mapping[str, float], spread: Mapping[str, Interval], sign: str = "") -> str:
    between = spread[name]
    return f"{_number(values[name], sign)} [{_number(between.low)}, {_number(between.high)}]"


def _table(first: str, *columns: str) -> Table:
    # Narrow enough for 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def show_evaluation(found: Evaluation, file: Path) -> None:
    """Show figures with intervals, groups, and what one image costs."""
    console = result_console()
    say(f"{found.run}: {found.records:,} records, {found.split} of {found.corpus} ({found.space})")
    table = _table("", "baseline", "untuned", "tuned", "gain")
    for name in found.figures:
        table.add_row(
            name.replace("_", " "),
            _number(found.baselines[name]),
            _number(found.untuned[name]),
            escape(_with_interval(name, found.figures, found.intervals)),
            escape(_with_interval(name, found.gains, found.gain_intervals, "+")),
        )
    console.print(table)
    drawn = found.sampling
    say(
        f"\nintervals: {100 * drawn.level:g} % over {drawn.replicates} resamples of "
        f"{drawn.units:,} {drawn.unit}s; decided by {found.decided_by}; mAP as scikit-learn defines it"
    )
    for one in (*found.groups, *(part.comparison for part in found.slices)):
        _groups(one, console)
    cost = found.cost
    if cost is not None:
        say(
            f"\none image: {cost.latency_p50_ms:.1f} ms (p50), {cost.latency_p95_ms:.1f} ms (p95) "
            f"over {cost.images}; {cost.prompt_tokens} prompt tokens, {cost.image_tokens} of them the image's; "
            f"{cost.answer_tokens} answer tokens; peak memory {figure('bytes', cost.peak_memory_bytes)}"
        )
    for remark in found.remarks:
        say(f"note: {remark}")
    say(f"written to {file}")


def _groups(one: Comparison, console: Console) -> None:
    rest = tuple(name for name in _SHOWN if name != one.metric)
    shown = (name.replace("_", " ") for name in (one.metric, *rest))
    table = _table(one.attribute.replace("_", " "), "records", "units", "baseline", *shown)
    for group in one.groups:
        cells = ["too small"]
        if not group.small:
            cells = [
                _with_interval(one.metric, group.figures, group.intervals),
                *(_number(group.figures[name]) for name in rest),
            ]
        counts = (f"{group.records:,}", f"{group.units:,}", _number(group.baseline))
        table.add_row(escape(group.value), *counts, *map(escape, cells))
    console.print()
    console.print(table)
    if one.gap is not None:
        say(
            f"{one.metric} gap {one.gap:.3f}: {one.worst} below {one.best}; chance alone stays "
            f"below {_number(one.gap_by_chance)}"
        )


def show_generated(found: Generated) -> None:
    """Show the figures of generated answers, untuned and tuned."""
    how = "labels only" if found.constrained else "free"
    say(f"{found.run}: {found.records:,} records, {found.split} split ({found.space}), generated answers, {how}")
    table = _table("", "untuned", "tuned")
    for name, value in found.figures.items():
        low, high = found.intervals[name]["low"], found.intervals[name]["high"]
        spread = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
        table.add_row(name.replace("_", " "), f"{found.untuned[name]:.3f}", escape(f"{value:.3f}{spread}"))
    table.add_row("unparsable", str(found.untuned_unparsable), str(found.unparsable))
    Console().print(table)
    say(f"note: {found.remark}")
