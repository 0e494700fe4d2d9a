"""The words of ``carefl-secure report``; what it finds is tested with the report itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from numpy.typing import NDArray
from typer.testing import CliRunner

from carefl_secure.cli import app
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.privacy import Ledger
from carefl_secure.rounding import round_up
from carefl_secure.run_folder import RunFolder
from tests.support.running import federate


class Task:
    dimension = 64
    records = 20

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int = 0
    ) -> NDArray[np.float64]:
        return np.full(64, len(indices) / 8.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    plan = plan_run(
        PlanRequest(
            unit="record",
            dimension=64,
            clients=3,
            rounds=2,
            public_records=60,
            sample_rate=0.2,
            clipping_norm=1.0,
            delta=1e-5,
            target_epsilon=8.0,
        )
    )
    folder = RunFolder.create(tmp_path, "toy: true\nunsafe_deterministic_noise: false\n", "toy")
    zeros = np.zeros(64, np.float32)
    federate(plan, [Task()] * 3, zeros, optimizer=FedAvg(0.1), folder=folder, base_hash=bytes(32))
    (folder.adapter / "adapter_model.safetensors").touch()  # what a run writes last
    return folder.path


def report(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def test_a_sound_run(run: Path) -> None:
    result = report(run)
    assert result.exit_code == 0, result.output
    assert "reasonable, not strong" in result.stdout
    names = [Path(line.strip()).name for line in result.stdout.splitlines()[1:]]
    assert names == ["report.html", "report.json", "card.md", "registry.yaml", "README.md"]
    found = json.loads(report(run, "--json").stdout)
    assert found["verdict"] == "accounted"
    assert found == json.loads((run / "report" / "report.json").read_text())


def test_a_run_without_its_weights_is_written_then_refused(run: Path) -> None:
    (run / "adapter" / "adapter_model.safetensors").unlink()
    result = report(run, "--json")
    assert result.exit_code == 40 and "holds no adapter weights" in result.stderr
    assert json.loads(result.stdout)["verdict"] == "accounted"


def test_a_void_run_is_written_then_refused(run: Path) -> None:
    (run / "clients" / "1" / "ledger.jsonl").unlink()
    result = report(run, "--json")
    assert result.exit_code == 22
    assert json.loads(result.stdout)["verdict"] == "void"
    assert "the report is void" in result.stderr
    assert '<p class="big">VOID</p>' in (run / "report" / "report.html").read_text()
    assert "VOID" in report(run).stdout


def test_no_run(tmp_path: Path) -> None:
    result = report(tmp_path)
    assert result.exit_code == 40
    assert "config.yaml" in result.stderr


def test_status_ledgers_and_report_show_one_figure(run: Path) -> None:
    """Also where a client's ledger holds more than the server's, as after an interruption."""
    mine = Ledger(run / "clients" / "1" / "ledger.jsonl")
    last = next(e for e in reversed(mine.entries()) if e.kind == "spend")
    for name, whole in (("as it was", 2), ("one round more", 3)):
        price = mine.epsilon(1e-5)
        text = round_up(price)
        state = CliRunner().invoke(app, ["status", str(run)]).stdout
        assert f"epsilon{'':21}{text}\n" in state, name
        assert f"rounds paid{'':17}{whole}\n" in state
        assert f"rounds paid but not opened  {whole - 2}\n" in state
        stated = json.loads(CliRunner().invoke(app, ["status", str(run), "--json"]).stdout)
        assert stated["epsilon"] == price and stated["state"] == "finished"
        shown = CliRunner().invoke(app, ["ledger", "show", str(run)]).stdout
        assert f"the largest epsilon of 4 ledgers counts: {text}\n" in shown
        found = json.loads(report(run, "--json").stdout)
        if found["verdict"] == "accounted":
            assert found["promise"]["epsilon"] == price
            assert f"epsilon {text}," in found["promise"]["sentence"]
        mine.append("spend", {**last.payload, "round": 3})
