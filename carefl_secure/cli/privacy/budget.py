"""``carefl-secure budget``: what a privacy budget buys, before any run."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from carefl_secure.privacy.accounting.budget import Budget

__all__ = ["budget"]

_CROSS_CHECK_LIMIT = 50.0  # far above any useful epsilon the second accountant needs minutes
_HEIGHT = 8
_LEVELS = " ▁▂▃▄▅▆▇█"


def budget(
    delta: Annotated[float, typer.Option(help="Probability with which epsilon may fail.")],
    sample_rate: Annotated[
        float | None, typer.Option(metavar="Q", help="Chance of each record in one sum.")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(metavar="S", help="Noise over the norm bound of one record.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(metavar="T", help="Number of sums.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="The most that all rounds may cost.")
    ] = None,
    mechanism: Annotated[
        Literal["gaussian", "skellam"],
        typer.Option(help="gaussian: each client's own noise; skellam: shared in a secure sum."),
    ] = "gaussian",
    unit: Annotated[
        Literal["record", "person", "client"],
        typer.Option(help="What one more or less of must not show."),
    ] = "record",
    records_per_person: Annotated[
        int | None,
        typer.Option(metavar="K", help="Of unit person: records of each, clipped one by one."),
    ] = None,
    dimension: Annotated[
        int | None,
        typer.Option(
            metavar="D", help="Of skellam: trained values; by default the embedded model's 40960."
        ),
    ] = None,
    cross_check: Annotated[
        bool, typer.Option(help="Ask Opacus' PRV accountant too, where the noise is Gaussian.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Solve for the one of epsilon, noise multiplier, rounds and sample rate that is left out.

    Nothing is read and nothing is spent.
    """
    from carefl_secure.privacy.accounting.budget import BudgetQuestion, solve_budget

    found = solve_budget(
        BudgetQuestion(
            mechanism=mechanism,
            delta=delta,
            epsilon=epsilon,
            noise_multiplier=noise_multiplier,
            rounds=rounds,
            sample_rate=sample_rate,
            unit=unit,
            records_per_person=records_per_person,
            dimension=dimension,
        )
    )
    # of a person with k records the second accountant knows nothing
    second = _second_opinion(found) if cross_check and records_per_person is None else None
    if json:
        typer.echo(json_text.dumps(_as_json(found, second), indent=2, allow_nan=False))
    else:
        _show(found, second, Console())


def _second_opinion(found: Budget) -> float | None:
    if found.mechanism != "gaussian" or found.epsilon > _CROSS_CHECK_LIMIT:
        return None
    from carefl_secure.privacy.accounting.opacus_prv import opacus_prv_epsilon

    return opacus_prv_epsilon(found.sample_rate, found.noise_multiplier, found.rounds, found.delta)


def _as_json(found: Budget, second: float | None) -> dict[str, object]:
    return {
        "epsilon": found.epsilon,
        "noise_multiplier": found.noise_multiplier,
        "rounds": found.rounds,
        "sample_rate": found.sample_rate,
        "delta": found.delta,
        "adjacency": found.adjacency,
        "unit": found.unit,
        "accountant": found.accountant,
        "mechanism": found.mechanism,
        "dimension": found.dimension,
        "records_per_person": found.records_per_person,
        "verdict": found.verdict,
        "solved_for": found.solved_for,
        "opacus_prv_epsilon": second,
    }


def _show(found: Budget, second: float | None, console: Console) -> None:
    from carefl_secure.privacy.accounting.budget import epsilon_by_rounds
    from carefl_secure.privacy.accounting.composition import conditions

    def line(text: str = "", style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    line(f"epsilon {found.epsilon:.4f} at delta {found.delta:g}: {found.verdict}", style="bold")
    for name, value in (
        ("noise_multiplier", f"{found.noise_multiplier:.6g}"),
        ("rounds", str(found.rounds)),
        ("sample_rate", f"{found.sample_rate:.6g}"),
    ):
        mark = "   <- computed" if name == found.solved_for else ""
        line(f"  {name.replace('_', ' '):<18}{value}{mark}", style="bold" if mark else "")
    line()
    for text in found.assumptions():
        line(f"  {text}")
    if second is not None:
        line(f"  cross-check: Opacus PRV {second:.4f} (an upper estimate, 0.01 wide)")
    elif found.mechanism == "gaussian":
        line("  cross-check: none (switched off, or the second accountant gives no figure)")
    for text in conditions(found.unit):
        line(f"  {text}")
    line()
    points = epsilon_by_rounds(found, 24)
    console.print(_table(points[3::4] or points, found.rounds))
    for text in _curve(points, found.rounds):
        line(text)


def _table(points: Sequence[tuple[int, float]], rounds: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rounds", justify="right")
    table.add_column("epsilon", justify="right")
    for count, cost in points:
        table.add_row(str(count), f"{cost:.3f}", style="bold" if count == rounds else None)
    return table


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
