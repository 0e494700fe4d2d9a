"""Figures of a run in MLflow: a file in the folder of the runs, or a server named by the user."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from carefl_secure.errors import RunError
from carefl_secure.run_folder import RunFolder, write_atomically
from carefl_secure.runs.trackers.base import MARK, Row, Tracker, figures_of, settings_of

# MLflow reports its own use unless told not to before it is imported. A server that is gone is
# given up after seconds, for the rounds wait meanwhile.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

EXPERIMENT = "carefl-secure"


@contextmanager
def _failing(where: str) -> Iterator[None]:
    """Turn whatever MLflow's stores raise into one error."""
    try:
        yield
    except (MlflowException, OSError) as error:
        text = _shown(str(error).partition("\n")[0])
        raise RunError(
            f"MLflow at {where} does not take it: {type(error).__name__}: {text}; check it, or "
            "leave mlflow out of run.trackers"
        ) from error


class _Runs:
    """One run of one experiment; its number is kept in the run folder, for resumptions."""

    def __init__(self, folder: RunFolder) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        runs = folder.path.parent.resolve()
        named = os.environ.get("MLFLOW_TRACKING_URI", "")
        self._place = _shown(named) if named else str(runs / "mlflow.db")
        self.where = (
            f"MLflow: the figures of every round and the settings without paths go to {self._place}"
            ", as MLFLOW_TRACKING_URI asks"
            if named
            else f"MLflow: {self._place}, on this machine; look at it with "
            f"mlflow ui --backend-store-uri sqlite:///{self._place}"
        )
        path = folder.path / "mlflow_run"
        with _failing(self._place):
            self._client = MlflowClient(tracking_uri=named or f"sqlite:///{self._place}")
            if path.is_file():
                self._run = path.read_text().strip()
                self._client.update_run(self._run, status="RUNNING")
                return
            found = self._client.get_experiment_by_name(EXPERIMENT)
            experiment: str = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(
                    EXPERIMENT, None if named else (runs / "mlflow_artifacts").as_uri()
                )
            )
            run = self._client.create_run(experiment, run_name=folder.name)
            self._run = str(run.info.run_id)
            self._client.log_batch(self._run, params=[Param(*pair) for pair in settings_of(folder).items()])
        write_atomically(path, self._run.encode() + b"\n")

    def rounds(self) -> set[int]:
        """Return the rounds that the run holds."""
        with _failing(self._place):
            return {int(m.step) for m in self._client.get_metric_history(self._run, MARK)}

    def record(self, row: Row) -> None:
        """Send every number of a row in one request."""
        now, step = int(time.time() * 1000), int(row["round"])
        metrics = [Metric(name, value, now, step) for name, value in figures_of(row).items()]
        with _failing(self._place):
            self._client.log_batch(self._run, metrics=metrics)

    def close(self, finished: bool) -> None:
        """Say how the run ended."""
        with _failing(self._place):
            self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")


def _shown(text: str) -> str:
    """Return a text whose addresses name no user, no password and no query."""
    return re.sub(r"\?[^\s'\")]*", "", re.sub(r"//[^/\s@]*@", "//", text))


def open_tracker(folder: RunFolder) -> Tracker:
    """Open the run in MLflow."""
    return _Runs(folder)
