"""The package as a library: what ``import carefl_secure`` offers to scripts and notebooks.

Each function is one command of the command line, and imports what it needs when it is called. The audit and the report
of a run are `audit_run` and `report_run`, as ``carefl_secure.audit`` and ``carefl_secure.report`` are packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from carefl_secure.cli.app import prepare_environment
from carefl_secure.cli.console import require_corpus, require_run
from carefl_secure.cli.reporter import running
from carefl_secure.config import Config, load_config

if TYPE_CHECKING:
    from carefl_secure.audit.run import AuditResult
    from carefl_secure.evaluation.assess import Evaluation
    from carefl_secure.privacy.accounting.budget import Budget
    from carefl_secure.report.schema import Report
    from carefl_secure.runs.saved_model.predict import TrainedModel
    from carefl_secure.runs.summary import RunSummary

__all__ = ["audit_run", "budget", "evaluate", "load", "load_config", "report_run", "resume", "train"]

Engine = Literal["inprocess", "ray", "superlink"]

prepare_environment()


def train(config: Config | None = None, *, engine: Engine = "inprocess", quiet: bool = False) -> RunSummary:
    """Train one federated run, and keep it in a folder.

    Without ``config`` it is a run on the embedded corpus; ``engine`` is where the clients run. Progress goes to
    standard error unless ``quiet``. The summary holds scores, privacy statement and ``folder``; a notebook shows it as
    a table. What stops the run is a CareflError; `carefl_secure.errors` lists the kinds.

    Guarantees
    ----------
    Those of `carefl_secure.runs.train.train`.
    """
    return _run(config or load_config(), None, engine, quiet)


def resume(run: str | Path, *, engine: Engine = "inprocess", quiet: bool = False) -> RunSummary:
    """Go on with an interrupted run under its own settings; see `train`. RunError: no run there, or a finished one."""
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
    """Score a run with intervals, next to the untuned model; written to ``RUN/evaluation`` with a page of pictures.

    ``split`` is one of the run's own, both without private records; ``data`` is another corpus in its place.
    """
    require_run(Path(run))
    from carefl_secure.report import write_evaluation_page
    from carefl_secure.runs.evaluation.evaluate import evaluate as score

    with running(quiet) as reporter:
        other = None if data is None else Path(data)
        found = score(Path(run), reporter, split=split, data=other)
    write_evaluation_page(found.file)
    return found.evaluation


def audit_run(run: str | Path, *, records: int = 1000, canaries: int = 1000, quiet: bool = False) -> AuditResult:
    """Attack a run as its adversaries could, and write ``RUN/audit``.

    It reads private records: keep its figures there. A falsified promise raises no error: read ``verdict``. The
    adapter is attacked with as many members as non-members, ``records`` of each; ``canaries`` are for the one-run
    bound.
    """
    require_run(Path(run))
    from carefl_secure.audit.run import audit_run as attack

    with running(quiet) as reporter:
        return attack(Path(run), reporter, records=records, canaries=canaries)


def report_run(run: str | Path, *, dpia: bool = False) -> Report:
    """Check a run, price it from its ledgers, and write ``RUN/report``, with ``dpia`` an impact assessment too.

    A void report raises no error here: read ``verdict``.
    """
    require_run(Path(run))
    from carefl_secure.report import write_report

    return write_report(Path(run), dpia=dpia)[0]


def budget(*, delta: float, **question: Any) -> Budget:
    """Solve for the one that is left out of epsilon, noise multiplier, rounds and sample rate.

    ``question`` are the fields of `carefl_secure.privacy.accounting.budget.BudgetQuestion`;
    ``mechanism`` is ``gaussian`` by default. Nothing is read or spent.
    """
    from carefl_secure.privacy.accounting.budget import BudgetQuestion, solve_budget

    return solve_budget(BudgetQuestion(**{"mechanism": "gaussian", **question, "delta": delta}))


def load(folder: str | Path) -> TrainedModel:
    """Load the tuned model in the folder of a finished run, or of its adapter, to label images.

    Neither the run's corpus nor any record is needed. ModelError is raised where the adapter is
    missing, damaged or of another base, ConfigError for a run with captions.
    """
    from carefl_secure.runs.saved_model.predict import TrainedModel

    return TrainedModel(Path(folder))
