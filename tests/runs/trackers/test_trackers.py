"""Figures of rounds in TensorBoard and MLflow: what was written is read back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from carefl_secure.config import load_config
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.build import run_options
from carefl_secure.runs.trackers import base as trackers
from carefl_secure.runs.trackers import mlflow as track_mlflow
from carefl_secure.runs.trackers import tensorboard as track_tensorboard
from carefl_secure.runs.train import train
from tests.support.tracking import Crashing, Stopped, Watching, agree, expected

ROUNDS = 3
BOTH = ("tensorboard", "mlflow")


def in_tensorboard(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def in_mlflow(folder: RunFolder) -> tuple[Run, dict[str, list[tuple[int, float]]]]:
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path.parent / 'mlflow.db'}")
    run = client.get_run((folder.path / "mlflow_run").read_text().strip())
    history = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return run, history


def test_both_hold_the_figures_of_every_round_and_nothing_else(rounds: Any, offline: list[Any]) -> None:
    reporter = Watching()
    folder, result = rounds(BOTH, reporter, evaluate=lambda adapter: {"mAP": 0.25})
    assert isinstance(result, FederationResult)
    kept = expected(folder)
    assert {"epsilon", "survivors", "gradient_norm", "mAP"} <= set(kept)
    assert len(kept["epsilon"]) == ROUNDS
    assert agree(in_tensorboard(folder), kept, 1e-6)  # TensorBoard holds float32
    run, history = in_mlflow(folder)
    assert agree(history, kept, 1e-12)
    assert run.info.run_name == folder.name
    assert run.info.status == "FINISHED"
    assert run.data.params == {"privacy.epsilon": "8.0"}  # no path, neither ledgers nor data
    assert set(run.data.tags) <= {"mlflow.runName"}
    assert [row["round"] for row in reporter.rows] == [1, 2, 3]
    assert any(note.startswith("TensorBoard:") for note in reporter.notes)
    assert any("on this machine" in note for note in reporter.notes)
    assert offline == []


def test_mlflow_reports_to_nobody() -> None:
    code = (
        "import os, carefl_secure.runs.trackers.mlflow;"
        "from mlflow.telemetry.client import get_telemetry_client;"
        "assert os.environ['MLFLOW_DISABLE_TELEMETRY'] == 'true';"
        "assert get_telemetry_client() is None"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_DISABLE_TELEMETRY", "CI")}
    clean.pop("PYTEST_CURRENT_TEST", None)
    subprocess.run([sys.executable, "-c", code], env=clean, check=True)


def test_nothing_is_written_unless_asked(rounds: Any) -> None:
    folder, result = rounds(())
    assert isinstance(result, FederationResult)
    assert not (folder.path / "tensorboard").exists()
    assert not (folder.path / "mlflow_run").exists()
    assert not (folder.path.parent / "mlflow.db").exists()
    code = (
        "import sys, carefl_secure.federation.server.run;"
        "sys.exit(any(m.split('.')[0] in ('mlflow', 'tensorboard') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_resumed_run_goes_on_in_the_same_place_without_a_step_twice(rounds: Any) -> None:
    folder, error = rounds(BOTH, Crashing())
    assert isinstance(error, Stopped)
    assert len(expected(folder)["epsilon"]) == 2
    before, history = in_mlflow(folder)
    assert before.info.status == "FAILED"
    assert [step for step, _ in history["epsilon"]] == [1]
    folder, result = rounds(BOTH, None, folder, resume=True)
    assert isinstance(result, FederationResult)
    kept = expected(folder)
    assert [step for step, _ in kept["epsilon"]] == [1, 2, 3]
    assert agree(in_tensorboard(folder), kept, 1e-6)
    after, history = in_mlflow(folder)
    assert agree(history, kept, 1e-12)
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    # Once more, with nothing left to do: still no step twice.
    folder, result = rounds(BOTH, None, folder, resume=True)
    assert agree(in_tensorboard(folder), kept, 1e-6)
    assert agree(in_mlflow(folder)[1], kept, 1e-12)


@pytest.mark.parametrize("name", BOTH)
def test_a_tracker_that_fails_in_the_middle_is_named_once_and_costs_no_figure(
    rounds: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*words: Any, **more: Any) -> None:
        if words[2] == 2 if name == "tensorboard" else more["metrics"][0].step == 2:
            raise full

    reporter = Watching()
    if name == "tensorboard":
        real: Any = track_tensorboard.Writer.add_scalar

        def add(self: Any, tag: str, value: float, step: int) -> None:
            fail(tag, value, step)
            real(self, tag, value, step)

        monkeypatch.setattr(track_tensorboard.Writer, "add_scalar", add)
    else:
        send: Any = track_mlflow.MlflowClient.log_batch

        def log(self: Any, run: str, **more: Any) -> None:
            if "metrics" in more:
                fail(**more)
            send(self, run, **more)

        monkeypatch.setattr(track_mlflow.MlflowClient, "log_batch", log)
    folder, result = rounds(BOTH, reporter)
    assert isinstance(result, FederationResult)
    loud = [note for note in reporter.notes if "FAILED" in note]
    assert len(loud) == 1
    assert name in loud[0] and "No space left" in loud[0] and str(folder.metrics) in loud[0]
    kept = expected(folder)
    assert [step for step, _ in kept["epsilon"]] == [1, 2, 3]
    stated = {"tensorboard": in_tensorboard(folder), "mlflow": in_mlflow(folder)[1]}
    assert [step for step, _ in stated.pop(name)["epsilon"]] == [1]
    (other,) = stated.values()
    assert [step for step, _ in other["epsilon"]] == [1, 2, 3]
    # A resumed run brings it up to date.
    monkeypatch.undo()
    folder, result = rounds(BOTH, None, folder, resume=True)
    assert agree(in_tensorboard(folder), kept, 1e-6)
    assert agree(in_mlflow(folder)[1], kept, 1e-12)


def test_a_named_server_is_used_said_aloud_and_given_up_before_the_first_round(
    rounds: Any, offline: list[Any], monkeypatch: pytest.MonkeyPatch, tasks_toy: Any
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:word@127.0.0.1:9/mlflow?token=word")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    reporter = Watching()
    folder, error = rounds(("mlflow",), reporter)
    assert isinstance(error, RunError)
    assert "http://127.0.0.1:9/mlflow" in str(error)
    assert "word" not in str(error)
    assert offline  # it did try
    assert not folder.ledger.exists() and not folder.checkpoint.exists()


def test_a_missing_package_is_refused_before_anything_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, [], run_dir=tmp_path / "runs", track=["tensorboard", "mlflow"])
    assert config.run.trackers == BOTH
    assert run_options(config, lambda _: {}, SilentReporter())["monitoring"].follow.keywords == {"names": BOTH}
    real: Any = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda n: None if n == "mlflow" else real(n))
    with pytest.raises(ConfigError, match=r"asks for mlflow.*carefl-secure\[tracking\]"):
        train(config, SilentReporter())
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match=r"run\.trackers"):
        load_config(None, [], track=["neptune"])
