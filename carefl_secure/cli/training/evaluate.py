"""``carefl-secure evaluate``: how good a run's model is, for whom, and at what cost."""

from __future__ import annotations

import json as plain
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from carefl_secure.cli.console import Json, Quiet, Run, require_corpus, require_run, say
from carefl_secure.cli.options import unfold
from carefl_secure.cli.reporter import running
from carefl_secure.cli.training.evaluation_tables import show_evaluation, show_generated
from carefl_secure.errors import ConfigError

if TYPE_CHECKING:
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


@unfold
def evaluate(run: Run, options: EvaluateOptions, quiet: Quiet = False, json: Json = False) -> None:
    """Score a run with intervals, next to the untuned model and the label-share baseline.

    The result is written to RUN/evaluation.
    """
    require_run(run)
    if options.data is not None:
        require_corpus(str(options.data))
    if options.predictions is not None and (options.scorer == "generation" or options.videos):
        raise ConfigError("--predictions writes the scores of records; leave it out with generated text and C-EXPR-DB")
    if options.constrained and options.scorer != "generation":
        raise ConfigError("--constrained needs --scorer generation")
    if options.scorer == "generation":
        _generated(run, options, quiet, json)
        return
    videos = options.videos
    # Heavy imports wait until the options are checked.
    from carefl_secure.evaluation.groups import Settings

    groups = tuple(options.group) if options.group else None
    settings = Settings(replicates=options.bootstrap, groups=groups, minimum=options.minimum)
    if videos:
        from carefl_secure.runs.evaluation.zero_shot import evaluate_zero_shot

        with running(quiet) as reporter:
            seven = evaluate_zero_shot(
                run,
                reporter,
                data=options.data,
                rule=options.fuse,
                fold=options.fold,
                every=options.every,
                settings=settings,
            )
        _show_zero_shot(seven, json)
        return
    from carefl_secure.runs.evaluation.evaluate import evaluate as score

    with running(quiet) as reporter:
        found = score(
            run,
            reporter,
            split=options.split,
            data=options.data,
            labels=options.labels,
            view=options.view,
            settings=settings,
            predictions=options.predictions,
        )
    if json:
        typer.echo(found.evaluation.as_json(), nl=False)
    else:
        show_evaluation(found.evaluation, found.file)


def _generated(run: Path, options: EvaluateOptions, quiet: bool, json: bool) -> None:
    """Score what the model writes."""
    if options.data is not None or options.group or options.space:
        raise ConfigError("--scorer generation scores whole splits of the run; leave out --data, --group and --space")
    from carefl_secure.runs.evaluation.generated import evaluate_generated

    with running(quiet) as reporter:
        written = evaluate_generated(
            run, reporter, split=options.split, constrained=options.constrained, replicates=options.bootstrap
        )
    if json:
        typer.echo(written.as_json(), nl=False)
    else:
        show_generated(written)


def _show_zero_shot(found: ZeroShot, json: bool) -> None:
    """Show the figures, and where the predictions are."""
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
        say(f"predictions, {found.unlabelled:,} of them for videos without a label: {found.predictions}")
        say("note: the columns are specific to this package; the challenge published no format")
