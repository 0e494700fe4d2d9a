"""``carefl-secure evaluate``: how good a run's model is, for whom, and at what cost."""

from __future__ import annotations

import json as plain
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from carefl_secure.cli import console as cli
from carefl_secure.cli.reporter import figure, running
from carefl_secure.errors import ConfigError

if TYPE_CHECKING:
    from carefl_secure.evaluation.assess import Evaluation
    from carefl_secure.evaluation.bootstrap import Interval
    from carefl_secure.evaluation.groups import Comparison
    from carefl_secure.runs.evaluation.generated import Generated
    from carefl_secure.runs.evaluation.zero_shot import ZeroShot


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The options of ``evaluate``."""

    split: Annotated[Literal["test", "public"], typer.Option(help="Split of the run; both are public.")] = "test"
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="Another corpus: its test split, or all.")] = None
    labels: Annotated[str, typer.Option(help="Label space to read --data with.")] = "auto"
    view: Annotated[str, typer.Option(help="View to read --data with.")] = "auto"
    bootstrap: Annotated[int, typer.Option(min=1, metavar="N", help="Resamples behind each interval.")] = 1000
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ATTRIBUTE",
            help="Compare the groups of this attribute; repeatable. By default, all attributes with few values.",
        ),
    ] = None
    minimum: Annotated[int, typer.Option("--min-group", min=1, help="Records that a group needs to be scored.")] = 30
    scorer: Annotated[
        Literal["labels", "generation"],
        typer.Option(
            help="labels: by the likelihoods of the labels; generation: by what the model writes, "
            "which gives F1 and no mAP."
        ),
    ] = "labels"
    constrained: Annotated[bool, typer.Option(help="With --scorer generation: allow labels and commas only.")] = False
    space: Annotated[
        Literal["cexpr"] | None,
        typer.Option(
            help="Score a run trained on compound on C-EXPR-DB's seven classes, the other four "
            "masked; implied where --data is C-EXPR-DB."
        ),
    ] = None
    fuse: Annotated[
        Literal["mean_probability", "majority", "mean_logit"],
        typer.Option(help="From frames to videos, where --data is C-EXPR-DB."),
    ] = "mean_probability"
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Take every Nth frame of C-EXPR-DB's videos.")] = 1
    fold: Annotated[int, typer.Option(min=0, metavar="K", help="Fold of C-EXPR-DB's labelled clips.")] = 0
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write every record's scores, .csv or .jsonl. The file names records and is for this machine alone.",
        ),
    ] = None

    @property
    def videos(self) -> bool:
        """Whether C-EXPR-DB is scored, by videos; ConfigError where other options contradict it."""
        from carefl_secure.data.open_corpus import detect

        data, given = self.data, (self.fuse, self.every, self.fold)
        videos = self.space is not None or (data is not None and detect(data).kind == "cexpr")
        whole = (self.split, self.view) == ("test", "auto") and self.labels in ("auto", "cexpr")
        if videos and not whole:
            raise ConfigError(
                "C-EXPR-DB's seven classes have no other split, view or labels; leave out --split, --view and --labels"
            )
        if not videos and given != ("mean_probability", 1, 0):
            raise ConfigError("--fuse, --every and --fold are for C-EXPR-DB; leave them out")
        return videos


@cli.unfold
def evaluate(run: cli.Run, asked: EvaluateOptions, quiet: cli.Quiet = False, json: cli.Json = False) -> None:
    """Score a run with intervals, next to the untuned model and the label-share baseline.

    The result is written to RUN/evaluation.
    """
    cli.require_run(run)
    if asked.data is not None:
        cli.require_corpus(str(asked.data))
    if asked.predictions is not None and (asked.scorer == "generation" or asked.videos):
        raise ConfigError("--predictions writes the scores of records; leave it out with generated text and C-EXPR-DB")
    if asked.constrained and asked.scorer != "generation":
        raise ConfigError("--constrained needs --scorer generation")
    if asked.scorer == "generation":
        _generated(run, asked, quiet, json)
        return
    videos = asked.videos
    # Heavy imports wait until the options are checked.
    from carefl_secure.evaluation.groups import Settings

    groups = tuple(asked.group) if asked.group else None
    settings = Settings(replicates=asked.bootstrap, groups=groups, minimum=asked.minimum)
    if videos:
        from carefl_secure.runs.evaluation.zero_shot import evaluate_zero_shot

        with running(quiet) as reporter:
            seven = evaluate_zero_shot(
                run, reporter, data=asked.data, rule=asked.fuse, fold=asked.fold, every=asked.every, settings=settings
            )
        _show_zero_shot(seven, json)
        return
    from carefl_secure.runs.evaluation.evaluate import evaluate as score

    with running(quiet) as reporter:
        found = score(
            run,
            reporter,
            split=asked.split,
            data=asked.data,
            labels=asked.labels,
            view=asked.view,
            settings=settings,
            predictions=asked.predictions,
        )
    from carefl_secure.report import write_evaluation_page

    page = write_evaluation_page(found.file)
    if json:
        typer.echo(found.evaluation.as_json(), nl=False)
    else:
        show_evaluation(found.evaluation, found.file)
        cli.say(f"with pictures: {page}")


def _generated(run: Path, asked: EvaluateOptions, quiet: bool, json: bool) -> None:
    if asked.data is not None or asked.group or asked.space:
        raise ConfigError("--scorer generation scores whole splits of the run; leave out --data, --group and --space")
    from carefl_secure.runs.evaluation.generated import evaluate_generated

    with running(quiet) as reporter:
        written = evaluate_generated(
            run, reporter, split=asked.split, constrained=asked.constrained, replicates=asked.bootstrap
        )
    if json:
        typer.echo(written.as_json(), nl=False)
    else:
        show_generated(written)


def _show_zero_shot(found: ZeroShot, json: bool) -> None:
    if json:
        if found.evaluation is not None:
            typer.echo(found.evaluation.as_json(), nl=False)
        elif found.predictions is not None:
            about = {"run": found.run, "videos": found.unlabelled, "file": found.predictions.name}
            typer.echo(plain.dumps({"format": "carefl.predictions/1", **about}, sort_keys=True))
        return
    if found.evaluation is not None and found.file is not None:
        show_evaluation(found.evaluation, found.file)
    if found.predictions is not None:
        cli.say(f"predictions, {found.unlabelled:,} of them for videos without a label: {found.predictions}")
        cli.say("note: the columns are specific to this package; the challenge published no format")


_SHOWN = ("mAP", "macro_f1", "uar")


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:{sign}.3f}"


def _with_interval(name: str, values: Mapping[str, float], spread: Mapping[str, Interval], sign: str = "") -> str:
    between = spread[name]
    return f"{_number(values[name], sign)} [{_number(between.low)}, {_number(between.high)}]"


def _table(first: str, *columns: str) -> Table:
    table = cli.result_table(first, *columns, left=(first,))
    table.padding, table.show_edge, table.columns[0].no_wrap = (0, 1, 0, 0), False, False  # fits 80 columns
    return table


def show_evaluation(found: Evaluation, file: Path) -> None:
    """Show figures with intervals, groups, and what one image costs."""
    console = cli.result_console()
    cli.say(f"{found.run}: {found.records:,} records, {found.split} of {found.corpus} ({found.space})")
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
    cli.say(
        f"\nintervals: {100 * drawn.level:g} % over {drawn.replicates} resamples of "
        f"{drawn.units:,} {drawn.unit}s; decided by {found.decided_by}; mAP as scikit-learn defines it"
    )
    for one in (*found.groups, *(part.comparison for part in found.slices)):
        _groups(one, console)
    cost = found.cost
    if cost is not None:
        cli.say(
            f"\none image: {cost.latency_p50_ms:.1f} ms (p50), {cost.latency_p95_ms:.1f} ms (p95) "
            f"over {cost.images}; {cost.prompt_tokens} prompt tokens, {cost.image_tokens} of them the image's; "
            f"{cost.answer_tokens} answer tokens; peak memory {figure('bytes', cost.peak_memory_bytes)}"
        )
    for remark in found.remarks:
        cli.say(f"note: {remark}")
    cli.say(f"written to {file}")


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
        cli.say(
            f"{one.metric} gap {one.gap:.3f}: {one.worst} below {one.best}; chance alone stays "
            f"below {_number(one.gap_by_chance)}"
        )


def show_generated(found: Generated) -> None:
    """Show the figures of generated answers, untuned and tuned."""
    how = "labels only" if found.constrained else "free"
    cli.say(f"{found.run}: {found.records:,} records, {found.split} split ({found.space}), generated answers, {how}")
    table = _table("", "untuned", "tuned")
    for name, value in found.figures.items():
        low, high = found.intervals[name]["low"], found.intervals[name]["high"]
        spread = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
        table.add_row(name.replace("_", " "), f"{found.untuned[name]:.3f}", escape(f"{value:.3f}{spread}"))
    table.add_row("unparsable", str(found.untuned_unparsable), str(found.unparsable))
    Console().print(table)
    cli.say(f"note: {found.remark}")
