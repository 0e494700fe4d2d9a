"""Whole runs whose clipping norm follows a quantile: what is saved, reported, resumed and audited."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from carefl_secure.audit.audited_run import AuditedRun
from carefl_secure.audit.run import audit_run
from carefl_secure.cli import app
from carefl_secure.config import load_config
from carefl_secure.progress import SilentReporter
from carefl_secure.report.build import build_report, write_report
from carefl_secure.report.run_record import read_run
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.train import train

ADAPTED = {"privacy__normalise": "false", "privacy__target_unclipped_quantile": 0.5}


@pytest.fixture(scope="module")
def adapted(train_small: Callable[..., Path]) -> Path:
    return train_small(**ADAPTED, privacy__clipping_norm=0.01, federation__rounds=3)


def test_the_saved_adapter_has_no_entry_for_the_norm(adapted: Path) -> None:
    run = AuditedRun(adapted, SilentReporter())
    values = run.scorer.adapter.dimension
    assert run.tuned.shape == (values,) and run.plan.encoding.dimension == values + 1
    held = np.asarray(RunFolder.open(adapted).read_checkpoint()["adapter"])
    np.testing.assert_array_equal(held[:-1], run.tuned)
    rows = RunFolder.open(adapted).read_metrics()
    assert rows[0]["clipping_norm"] == pytest.approx(0.01)
    assert len({row["clipping_norm"] for row in rows}) == 3
    assert run.opening[-1] == np.float32(np.log(0.01))


def test_the_report_shows_the_norm_of_every_round(adapted: Path) -> None:
    report, _ = build_report(read_run(adapted))
    rows = RunFolder.open(adapted).read_metrics()
    assert [line.clipping_norm for line in report.rounds] == [row["clipping_norm"] for row in rows]
    assert report.mechanism.clipped.endswith("then at a noised quantile 0.5 of the norms")
    assert all(set(line.metrics) == {"mAP", "macro_f1"} for line in report.rounds)
    page = next(path for path in write_report(adapted)[1] if path.suffix == ".html")
    assert "clipping norm" in page.read_text().split('id="rounds"')[1]


@pytest.mark.slow
def test_an_audit_finds_the_bound_of_records_kept(adapted: Path) -> None:
    result = audit_run(adapted, SilentReporter(), attacks=["conformance"], records=24)
    found = {f.check: f for f in result.findings if f.attack == "conformance"}
    assert all(finding.verdict != "falsified" for finding in result.findings), result.summary()
    assert found["clipping"].verdict == found["remove one"].verdict == "passed"
    # With the entry for the norm a record of any length has the plan's norm, but for what it is short of C_t.
    assert 0 < float(found["clipping"].figures["largest"]) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{"privacy__unit": "person"}, {"privacy__unit": "client", "federation__aggregator": "fedprox"}]
)
def test_persons_and_clients(train_small: Callable[..., Path], more: Mapping[str, str]) -> None:
    folder = RunFolder.open(train_small(**ADAPTED, **more, federation__rounds=2))
    first, second = (float(row["clipping_norm"]) for row in folder.read_metrics())
    assert first == pytest.approx(1.0) and 0.3 < second != first < 3


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bytes(base: Path, tmp_path: Path) -> None:
    class Impatient(SilentReporter):
        def round(self, row: Mapping[str, float | int | str]) -> None:
            if row["round"] == 2:
                raise KeyboardInterrupt

    def settings(name: str) -> list[str]:
        words = [f"{key.replace('__', '.')}={value}" for key, value in ADAPTED.items()]
        return [
            *words, f"model.base={base}", "model.quantization=none", f"data.cache_dir={tmp_path / 'cache'}",
            "data.records=160", f"run.dir={tmp_path / 'runs'}", "federation.rounds=3", "federation.clients=4",
            "privacy.delta=0.001", "adapter.rank=2", "evaluation.baselines=false", "simulation.dropout=0",
            "unsafe_deterministic_noise=true", f"run.name={name}",
        ]  # fmt: skip

    train(load_config(None, settings("whole")), SilentReporter())
    with pytest.raises(KeyboardInterrupt):
        train(load_config(None, settings("stopped")), Impatient())
    stopped = tmp_path / "runs" / "stopped"
    result = CliRunner().invoke(app, ["train", "--quiet", "--json", "--resume", str(stopped)])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["rounds"]) == 3
    states = [
        np.asarray(RunFolder.open(tmp_path / "runs" / n).read_checkpoint()["adapter"]) for n in ("whole", "stopped")
    ]
    assert states[0].tobytes() == states[1].tobytes()
    weights = [
        (tmp_path / "runs" / n / "adapter" / "adapter_model.safetensors").read_bytes() for n in ("whole", "stopped")
    ]
    assert weights[0] == weights[1]
