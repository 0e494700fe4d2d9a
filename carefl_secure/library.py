"""The package as a library: what ``import carefl_secure`` offers to scripts and notebooks.

Each function is one command of the command line, and imports what it needs when it is called. The
audit and the report of a run are `audit_run` and `report_run`, as ``carefl_secure.audit`` and
``carefl_secure.report`` are packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from carefl_secure.cli.app import prepare_environment
from carefl_secure.cli.console import require_corpus, require_run
from carefl_secure.cli.reporter import running
from carefl_secure.config import Config, load_config
from carefl_secure.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from carefl_secure.audit.run import AuditResult
    from carefl_secure.data.records import LabelSpace
    from carefl_secure.evaluation.summary import Evaluation
    from carefl_secure.privacy.accounting.budget import Budget
    from carefl_secure.report.schema import Report
    from carefl_secure.runs.summary import RunSummary

__all__ = ["TrainedModel", "audit_run", "budget", "evaluate", "load", "load_config", "report_run", "resume", "train"]

prepare_environment()


def train(
    config: Config | None = None,
    *,
    engine: Literal["inprocess", "ray", "superlink"] = "inprocess",
    quiet: bool = False,
) -> RunSummary:
    """Train one federated run, and keep it in a folder.

    Parameters
    ----------
    config : Config, optional
        What `load_config` returns; by default the settings of a run on the embedded corpus.
    engine : {"inprocess", "ray", "superlink"}
        Where the clients run.
    quiet : bool
        Whether to show no progress; otherwise it goes to standard error.

    Returns
    -------
    RunSummary
        Scores, privacy statement and ``folder``; a notebook shows it as a table.

    Raises
    ------
    CareflError
        What stops the run; `carefl_secure.errors` lists the kinds.

    Guarantees
    ----------
    Those of `carefl_secure.runs.train.train`.
    """
    return _run(config or load_config(), None, engine, quiet)


def resume(
    run: str | Path, *, engine: Literal["inprocess", "ray", "superlink"] = "inprocess", quiet: bool = False
) -> RunSummary:
    """Go on with the interrupted run in a folder, under its own settings; see `train`.

    RunError is raised where the folder holds no run, or a finished one.
    """
    require_run(Path(run))
    return _run(load_config(Path(run) / "config.yaml"), Path(run), engine, quiet)


def _run(config: Config, folder: Path | None, engine: str, quiet: bool) -> RunSummary:
    require_corpus(config.data.source)
    from carefl_secure.deployment.engines import choose_engine
    from carefl_secure.runs.train import train as run

    where = None if engine == "inprocess" else choose_engine(engine)
    with running(quiet) as reporter:
        return run(config, reporter, folder, where)


def evaluate(
    run: str | Path, *, split: Literal["test", "public"] = "test", data: str | Path | None = None, quiet: bool = False
) -> Evaluation:
    """Score a run with intervals, next to the untuned model; written to ``RUN/evaluation``.

    Parameters
    ----------
    split : {"test", "public"}
        Which of the run's own splits, both without private records.
    data : path, optional
        Another corpus in its place.
    """
    require_run(Path(run))
    from carefl_secure.runs.evaluation.evaluate import evaluate as score

    with running(quiet) as reporter:
        other = None if data is None else Path(data)
        return score(Path(run), reporter, split=split, data=other).evaluation


def audit_run(run: str | Path, *, records: int = 1000, canaries: int = 1000, quiet: bool = False) -> AuditResult:
    """Attack a run as its adversaries could, and write ``RUN/audit``.

    It reads private records, so its figures belong where the records are. A falsified promise does
    not raise an error here: read ``verdict``.

    Parameters
    ----------
    records : int
        Members, and as many non-members, that the adapter is attacked with.
    canaries : int
        Canaries of the one-run bound.
    """
    require_run(Path(run))
    from carefl_secure.audit.run import audit_run as attack

    with running(quiet) as reporter:
        return attack(Path(run), reporter, records=records, canaries=canaries)


def report_run(run: str | Path) -> Report:
    """Check a run, price it from its ledgers, and write ``RUN/report``.

    A void report raises no error here: read ``verdict``.
    """
    require_run(Path(run))
    from carefl_secure.report import write_report

    return write_report(Path(run))[0]


def budget(*, delta: float, **question: Any) -> Budget:
    """Solve for the one that is left out of epsilon, noise multiplier, rounds and sample rate.

    ``question`` are the fields of `carefl_secure.privacy.accounting.budget.BudgetQuestion`;
    ``mechanism`` is ``gaussian`` by default. Nothing is read or spent.
    """
    from carefl_secure.privacy.accounting.budget import BudgetQuestion, solve_budget

    return solve_budget(BudgetQuestion(**{"mechanism": "gaussian", **question, "delta": delta}))


def load(run: str | Path, *, quiet: bool = True) -> TrainedModel:
    """Load the model of a finished run, with its adapter; see `TrainedModel.predict`.

    The label names come from the run's corpus, which must still be where the settings say.
    ConfigError is raised for a run with captions, ModelError where the adapter is missing.
    """
    require_run(Path(run))
    return TrainedModel(Path(run), quiet)


class TrainedModel:
    """A run's model, ready to label images; made by `load`."""

    def __init__(self, run: Path, quiet: bool) -> None:
        from carefl_secure.model.saved import load_saved
        from carefl_secure.runs.evaluation.scored_run import ScoredRun

        with running(quiet) as reporter:
            opened = ScoredRun(run, reporter)
            if opened.config.model.context != "none":
                raise ConfigError(
                    "the model of this run reads captions too; use evaluate, or train with model.context=none"
                )
            self.space = opened.corpora.test.space
            self._scorer = opened.scorer(self.space)
            load_saved(self._scorer.adapter, opened.folder.adapter)
        self._batch = opened.batch

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, in the order of the scores' columns."""
        return self.space.labels

    def predict(self, images: Sequence[Image.Image | str | Path]) -> list[dict[str, float]]:
        """Score every label for each image, given as a picture or a path.

        Where the run's view crops to a person, crop first.

        Returns
        -------
        list of dict
            For each image its labels, the best first, each with the score by which they rank.
        """
        from carefl_secure.model.vision.encode import vision_features
        from carefl_secure.progress import SilentReporter

        if not images:
            return []
        corpus = _Images(self.space, images)
        features = vision_features(self._scorer.adapter.base, corpus, SilentReporter())
        return [
            dict(sorted(zip(self.labels, map(float, row), strict=True), key=lambda one: -one[1]))
            for row in self._scorer.all(features, self._batch)
        ]


class _Images:
    """Pictures without labels, as a corpus."""

    name = "images"

    def __init__(self, space: LabelSpace, images: Sequence[Image.Image | str | Path]) -> None:
        from carefl_secure.data.records import Record

        self.space, self._images = space, images
        self.records = [Record(str(place), ()) for place in range(len(images))]

    def image(self, index: int) -> Image.Image:
        """Return one as RGB."""
        from carefl_secure.data.readers.images import decode, to_rgb

        one = self._images[index]
        return decode(Path(one)) if isinstance(one, str | Path) else to_rgb(one)
