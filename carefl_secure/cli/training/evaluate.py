"""``carefl-secure evaluate``: how good a run's model is, for whom, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from carefl_secure.cli.figures import figure
from carefl_secure.cli.reporter import RichReporter
from carefl_secure.cli.training.generated import written
from carefl_secure.cli.training.zeroshot import zero_shot
from carefl_secure.errors import ConfigError
from carefl_secure.progress import SilentReporter

if TYPE_CHECKING:
    from carefl_secure.evaluation.bootstrap import Interval
    from carefl_secure.evaluation.groups import Comparison
    from carefl_secure.evaluation.summary import Evaluation
    from carefl_secure.runs.evaluation.evaluate import Evaluated

__all__ = ["evaluate"]

_WIDTH = 140  # a log has no width: there the tables take what they need
_SHOWN = ("mAP", "macro_f1", "uar")


class _Split(StrEnum):
    test = "test"
    public = "public"


class _Space(StrEnum):
    cexpr = "cexpr"


class _Fuse(StrEnum):
    mean_probability = "mean_probability"
    majority = "majority"
    mean_logit = "mean_logit"


class _Scorer(StrEnum):
    labels = "labels"
    generation = "generation"


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    split: Annotated[
        _Split, typer.Option(help="Which open split of the run; private records never.")
    ] = _Split.test,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Another corpus: its test split, or all.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Label space to read --data with.")] = "auto",
    view: Annotated[str, typer.Option(help="View to read --data with.")] = "auto",
    bootstrap: Annotated[
        int, typer.Option(min=1, metavar="N", help="Resamples behind each interval.")
    ] = 1000,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ATTRIBUTE",
            help="Compare its groups; may be given repeatedly. Without it, all with few values.",
        ),
    ] = None,
    minimum: Annotated[
        int, typer.Option("--min-group", min=1, help="Records that a group needs to be scored.")
    ] = 30,
    scorer: Annotated[
        _Scorer,
        typer.Option(
            help="labels: by the likelihoods of the labels; generation: by what the model writes, "
            "which gives F1 and no mAP."
        ),
    ] = _Scorer.labels,
    constrained: Annotated[
        bool, typer.Option(help="With --scorer generation: let it write labels and commas only.")
    ] = False,
    space: Annotated[
        _Space | None,
        typer.Option(
            help="Score a run trained on compound on C-EXPR-DB's seven classes, the other four "
            "masked; implied where --data is C-EXPR-DB."
        ),
    ] = None,
    fuse: Annotated[
        _Fuse, typer.Option(help="From frames to videos, where --data is C-EXPR-DB.")
    ] = _Fuse.mean_probability,
    every: Annotated[
        int, typer.Option(min=1, metavar="N", help="Take every Nth frame of C-EXPR-DB's videos.")
    ] = 1,
    fold: Annotated[
        int, typer.Option(min=0, metavar="K", help="Fold of C-EXPR-DB's labelled clips.")
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Write the result as JSON to standard output.")
    ] = False,
) -> None:
    """Score a run with intervals, beside the untuned model and the floor of the label shares.

    The result is kept in RUN/evaluation.
    """
    if scorer is _Scorer.generation:
        if data is not None or group or space:
            raise ConfigError(
                "--scorer generation scores the run's own splits as a whole; leave out --data, "
                "--group and --space"
            )
        written(run, split.value, constrained, bootstrap, quiet=quiet, json=json)
        return
    if constrained:
        raise ConfigError("--constrained needs --scorer generation")
    # Heavy imports wait until it is known what is asked.
    from carefl_secure.data.open_corpus import recognise
    from carefl_secure.evaluation.assess import Settings
    from carefl_secure.runs.evaluation.evaluate import evaluate as score

    settings = Settings(
        replicates=bootstrap, groups=tuple(group) if group else None, minimum=minimum
    )

    if space is not None or (data is not None and recognise(data).kind == "cexpr"):
        if split is not _Split.test or view != "auto" or labels not in ("auto", "cexpr"):
            raise ConfigError(
                "C-EXPR-DB's seven classes have no other split, view or labels; leave out "
                "--split, --view and --labels"
            )
        zero_shot(
            run, data, fuse.value, (fold, every), settings, show=_show, quiet=quiet, json=json
        )
        return
    if (fuse, every, fold) != (_Fuse.mean_probability, 1, 0):
        raise ConfigError("--fuse, --every and --fold are for C-EXPR-DB; leave them out")

    def scored(reporter: RichReporter | SilentReporter) -> Evaluated:
        return score(
            run,
            reporter,
            split=split.value,
            data=data,
            labels=labels,
            view=view,
            settings=settings,
        )

    if quiet:
        found = scored(SilentReporter())
    else:
        with RichReporter(Console(stderr=True)) as reporter:
            found = scored(reporter)
    if json:
        typer.echo(found.evaluation.as_json(), nl=False)
    else:
        _show(found.evaluation, found.file)


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:{sign}.3f}"


def _with_interval(
    name: str, values: Mapping[str, float], spread: Mapping[str, Interval], sign: str = ""
) -> str:
    between = spread[name]
    return f"{_number(values[name], sign)} [{_number(between.low)}, {_number(between.high)}]"


def _table(first: str, *columns: str) -> Table:
    # Narrow enough for 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _show(found: Evaluation, file: Path) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{found.run}: {found.records:,} records, {found.split} of {found.corpus} ({found.space})")
    table = _table("", "floor", "untuned", "tuned", "gain")
    for name in found.figures:
        table.add_row(
            name.replace("_", " "),
            _number(found.floors[name]),
            _number(found.untuned[name]),
            escape(_with_interval(name, found.figures, found.intervals)),
            escape(_with_interval(name, found.gains, found.gain_intervals, "+")),
        )
    console.print(table)
    say("")
    drawn = found.sampling
    say(
        f"intervals: {100 * drawn.level:g} % over {drawn.replicates} resamples of "
        f"{drawn.units:,} {drawn.unit}s; decided by {found.decided_by}; mAP as scikit-learn "
        "defines it"
    )
    for one in (*found.groups, *(part.comparison for part in found.slices)):
        _groups(one, console)
    cost = found.cost
    if cost is not None:
        say("")
        say(
            f"one image: {cost.latency_p50_ms:.1f} ms (p50), {cost.latency_p95_ms:.1f} ms (p95) "
            f"over {cost.images}; {cost.prompt_tokens} prompt tokens, {cost.image_tokens} of them "
            f"the image's; {cost.answer_tokens} answer tokens; peak memory "
            f"{figure('bytes', cost.peak_memory_bytes)}"
        )
    for remark in found.remarks:
        say(f"note: {remark}")
    say(f"written to {file}")


def _groups(one: Comparison, console: Console) -> None:
    rest = tuple(name for name in _SHOWN if name != one.metric)
    table = _table(
        one.attribute.replace("_", " "),
        "records",
        "units",
        "floor",
        *(name.replace("_", " ") for name in (one.metric, *rest)),
    )
    for group in one.groups:
        cells = (
            ["too small"]
            if group.small
            else [
                _with_interval(one.metric, group.figures, group.intervals),
                *(_number(group.figures[name]) for name in rest),
            ]
        )
        table.add_row(
            escape(group.value),
            f"{group.records:,}",
            f"{group.units:,}",
            _number(group.floor),
            *map(escape, cells),
        )
    console.print()
    console.print(table)
    if one.gap is not None:
        console.print(
            f"{one.metric} gap {one.gap:.3f}: {one.worst} below {one.best}; by chance below "
            f"{_number(one.gap_by_chance)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
