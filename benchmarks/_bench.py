"""What the benchmarks share: CPU time, a table, bars that hold or not, and the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}.items():
    os.environ.setdefault(_name, _value)


@dataclass(frozen=True)
class Bar:
    """One claim: a figure, the least or most it may be, and whether it holds."""

    name: str
    value: float
    limit: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        """Whether the figure is on the right side of the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Report:
    """Rows of figures, notes and bars of one benchmark."""

    title: str
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)


def cpu(work: Callable[[], T]) -> tuple[T, float]:
    """Run and return the result and the CPU seconds of this process, all threads together."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def arguments(description: str | None) -> argparse.Namespace:
    """Read ``--quick`` and ``--json``."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    return parser.parse_args()


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay rows with the same keys out in columns."""
    if not rows:
        return ""
    heads = list(rows[0])
    cells = [heads, *([_text(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(heads))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def say(text: str) -> None:
    """Tell on standard error how far the run is."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def finish(report: Report, as_json: bool) -> int:
    """Write the report and return the exit code: 1 where a bar is missed."""
    if as_json:
        bars = [{**asdict(bar), "holds": bar.holds} for bar in report.bars]
        sys.stdout.write(json.dumps({**asdict(report), "bars": bars}) + "\n")
    else:
        verdicts = [
            f"{'holds ' if bar.holds else 'MISSED'} {bar.name}: {_text(bar.value)}"
            f" ({'at least' if bar.at_least else 'at most'} {_text(bar.limit)})"
            for bar in report.bars
        ]
        parts = [report.title, "", table(report.rows), "", *report.notes, "", *verdicts]
        parts.append(f"{sum(bar.holds for bar in report.bars)} of {len(report.bars)} bars hold")
        sys.stdout.write("\n".join(parts) + "\n")
    return 0 if all(bar.holds for bar in report.bars) else 1
