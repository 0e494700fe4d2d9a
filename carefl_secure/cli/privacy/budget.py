"""``carefl-secure budget``: what a privacy budget buys, before any run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from carefl_secure.cli.console import Json, result_table, unfold, write_json, write_line
from carefl_secure.rounding import round_up

if TYPE_CHECKING:
    from carefl_secure.privacy.accounting.budget import Budget

_CROSS_CHECK_LIMIT = 50.0  # far above any useful epsilon the second accountant needs minutes
_HEIGHT = 8
_LEVELS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """The options of ``budget``: a `BudgetQuestion`, without what it imports."""

    delta: Annotated[float, typer.Option(help="Probability with which the epsilon bound may fail.")]
    sample_rate: Annotated[float | None, typer.Option(metavar="Q", help="Probability of a record in one sum.")] = None
    noise_multiplier: Annotated[
        float | None, typer.Option(metavar="S", help="Noise deviation divided by the norm bound of one record.")
    ] = None
    rounds: Annotated[int | None, typer.Option(metavar="T", help="Number of sums.")] = None
    epsilon: Annotated[float | None, typer.Option(metavar="E", help="Upper limit over all rounds.")] = None
    mechanism: Annotated[
        Literal["gaussian", "skellam"],
        typer.Option(help="gaussian: noise of each client; skellam: shares of noise in a secure sum."),
    ] = "gaussian"
    unit: Annotated[Literal["record", "person", "client"], typer.Option(help="What is added or removed.")] = "record"
    records_per_person: Annotated[
        int | None, typer.Option(metavar="K", help="Records per person, each clipped on its own; with --unit person.")
    ] = None
    dimension: Annotated[
        int | None,
        typer.Option(metavar="D", help="Trained values, with skellam; by default the embedded model's 40960."),
    ] = None
    bands: Annotated[
        int, typer.Option(metavar="B", help="Rounds whose noise is correlated (banded noise), with skellam.")
    ] = 1


@unfold
def budget(
    question: BudgetOptions,
    crosscheck: Annotated[
        bool,
        typer.Option("--crosscheck", help="Compute Opacus' PRV epsilon too, for Gaussian noise; it imports torch."),
    ] = False,
    json: Json = False,
) -> None:
    """Solve for whichever of epsilon, noise multiplier, rounds and sample rate is left out.

    Nothing is read and nothing is spent.
    """
    from carefl_secure.privacy.accounting.budget import BudgetQuestion, solve_budget

    found = solve_budget(BudgetQuestion(**dataclasses.asdict(question)))
    second = _opacus_epsilon(found) if crosscheck else None
    if json:
        write_json({**dataclasses.asdict(found), "opacus_prv_epsilon": second})
    else:
        _show(found, second, crosscheck)


def _opacus_epsilon(found: Budget) -> float | None:
    """Return the second accountant's epsilon; None where it has none, as for k records a person."""
    gaussian = found.mechanism == "gaussian" and found.records_per_person is None
    if not gaussian or found.epsilon > _CROSS_CHECK_LIMIT:
        return None
    from carefl_secure.privacy.accounting.gaussian_losses import opacus_prv_epsilon

    return opacus_prv_epsilon(found.sample_rate, found.noise_multiplier, found.rounds, found.delta)


def _show(found: Budget, second: float | None, crosscheck: bool) -> None:
    from carefl_secure.privacy.accounting.budget import epsilon_by_rounds
    from carefl_secure.privacy.accounting.composition import conditions

    console = Console()

    def line(text: str = "", style: str = "") -> None:
        write_line(console, text, style)

    line(f"epsilon {round_up(found.epsilon)} at delta {found.delta:g}: {found.verdict}", style="bold")
    for name, value in (
        ("noise_multiplier", f"{found.noise_multiplier:.6g}"),
        ("rounds", str(found.rounds)),
        ("sample_rate", f"{found.sample_rate:.6g}"),
    ):
        mark = "   <- computed" if name == found.solved_for else ""
        line(f"  {name.replace('_', ' '):<18}{value}{mark}", style="bold" if mark else "")
    others = ", ".join(f"{round_up(cost)} at delta {delta:g}" for delta, cost in found.by_delta)
    line(f"  {'at other deltas':<18}{others}")
    line()
    for text in found.assumptions():
        line(f"  {text}")
    if second is not None:
        line(f"  cross-check: Opacus PRV {second:.4f} (an upper estimate, 0.01 wide)")
    elif crosscheck:
        line("  cross-check: none, as Opacus PRV has no figure for this budget")
    for text in conditions(found.unit, found.bands):
        line(f"  {text}")
    line()
    points = epsilon_by_rounds(found, 24)
    table = result_table("rounds", "epsilon")
    for count, cost in points[3::4] or points:
        table.add_row(str(count), round_up(cost), style="bold" if count == found.rounds else None)
    console.print(table)
    for text in _curve(points, found.rounds):
        line(text)


def _curve(points: Sequence[tuple[int, float]], rounds: int) -> list[str]:
    """Draw epsilon over rounds with block characters, two columns a point."""
    top = max(cost for _, cost in points)
    lines = []
    for row in range(_HEIGHT, 0, -1):
        cells = ""
        for _, cost in points:
            filled = cost / top * _HEIGHT - (row - 1)
            cells += 2 * _LEVELS[round(max(0.0, min(1.0, filled)) * 8)]
        label = f"{top:8.3g}" if row == _HEIGHT else " " * 8
        lines.append(f"{label} │{cells.rstrip()}")
    place = 2 * [count for count, _ in points].index(rounds)
    lines.append(f"{0:8d} └{'─' * 2 * len(points)}")
    lines.append(f"{'':10}{'':{place}}^ {rounds} rounds")
    return lines
