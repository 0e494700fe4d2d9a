"""The audit as a whole: what it writes, what it answers, and a real run under it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from carefl_secure.audit import run as run_module
from carefl_secure.audit.audited_run import read_plan
from carefl_secure.audit.run import ATTACKS, AuditResult, audit_run, refuse_falsified
from carefl_secure.audit.threat_models import ATTACK_NAMES
from carefl_secure.audit.views import Finding
from carefl_secure.cli.app import app
from carefl_secure.config import load_config
from carefl_secure.errors import ConfigError, PrivacyError, RunError
from carefl_secure.noise.skellam import SkellamSampler
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.train import train
from tests.audit.conftest import patch_everywhere

GOOD = Finding("conformance", "noise", "passed", "As planned.", {"p": 0.4})
BAD = Finding("server-view", "unmasked", "falsified", "Client 2 sent it bare.", {"found": 1})


def test_the_names_are_those_of_the_attacks() -> None:
    assert tuple(ATTACKS) == ATTACK_NAMES


def test_the_result_says_what_was_falsified() -> None:
    good, bad = AuditResult("r", (GOOD,), 1.0), AuditResult("r", (GOOD, BAD), 1.0)
    refuse_falsified(good)
    with pytest.raises(PrivacyError, match="server-view: unmasked"):
        refuse_falsified(bad)
    assert json.loads(good.as_json())["verdict"] == "not falsified"
    assert json.loads(bad.as_json())["verdict"] == "falsified"
    assert "proves no privacy" in good.summary()
    assert "| unmasked | falsified | Client 2 sent it bare. |" in bad.as_markdown()


def test_the_command_answers_with_22_where_a_promise_fell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fake(path: Path, reporter: object, **options: Any) -> AuditResult:
        asked.append(options)
        return AuditResult("r", (GOOD, BAD) if options["records"] == 60 else (GOOD,), 1.0)

    monkeypatch.setattr(run_module, "audit_run", fake)
    run = RunFolder.create(tmp_path, "", "r")
    call = ["audit", str(run.path), "-q", "--json"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0 and json.loads(result.output)["run"] == "r"
    result = CliRunner().invoke(app, [*call, "--records", "60"])
    assert result.exit_code == PrivacyError.exit_code
    CliRunner().invoke(app, [*call, "--threat-model", "adapter-user"])
    assert asked[0]["attacks"] is None and asked[0]["name"] == "audit"
    assert asked[-1]["name"] == "audit-adapter-user"
    assert set(asked[-1]["attacks"]) == {"membership", "canaries", "attributes", "exposure"}
    result = CliRunner().invoke(app, [*call, "--threat-model", "nobody"])
    assert result.exit_code == ConfigError.exit_code and len(asked) == 3
    CliRunner().invoke(app, [*call, "--threat-model", "key-holder"])
    assert set(asked[-1]["attacks"]) == {"server-view", "helper-view"}


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no attack dice"):
        audit_run(tmp_path, SilentReporter(), attacks=["dice"])
    with pytest.raises(RunError, match="not a run folder"):
        audit_run(tmp_path, SilentReporter())
    folder = RunFolder.create(tmp_path, "", "begun")
    with pytest.raises(RunError, match="did not finish"):
        audit_run(folder.path, SilentReporter())
    with pytest.raises(RunError, match="cannot read the plan"):
        read_plan(folder)
    folder.plan.write_text("[]")
    with pytest.raises(RunError, match="cannot read the plan"):
        read_plan(folder)


@pytest.mark.slow
def test_a_real_run_under_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(
        None,
        [
            "data.records=300",
            f"data.cache_dir={tmp_path / 'cache'}",
            "federation.clients=4",
            "federation.rounds=3",
            "simulation.dropout=0",
            "privacy.delta=0.001",
            "evaluation.baselines=false",
            f"run.dir={tmp_path}",
            "run.name=small",
        ],
    )
    train(config, SilentReporter())
    result = audit_run(tmp_path / "small", SilentReporter(), records=150, canaries=200)
    assert result.falsified == ()
    assert {f.attack for f in result.findings} == set(ATTACK_NAMES)
    stored = json.loads((tmp_path / "small/audit/audit.json").read_text())
    assert stored["format"] == "carefl.audit/1" and len(stored["findings"]) == len(result.findings)
    assert "# Audit of small" in (tmp_path / "small/audit/audit.md").read_text()

    class Thinner(SkellamSampler):
        def __init__(self, variance: float) -> None:
            super().__init__(variance / 4)

    patch_everywhere(monkeypatch, "SkellamSampler", Thinner)
    broken = audit_run(tmp_path / "small", SilentReporter(), attacks=["conformance"])
    assert {f.check for f in broken.falsified} <= {"noise", "released noise"}
    assert "noise" in {f.check for f in broken.falsified}
    before = (tmp_path / "small/audit/audit.json").read_text()
    audit_run(tmp_path / "small", SilentReporter(), attacks=["canaries"], name="audit-part")
    assert (tmp_path / "small/audit/audit.json").read_text() == before


@pytest.mark.slow
def test_a_run_without_privacy_memorises_and_the_audit_sees_it(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "data.records=60",
            f"data.cache_dir={tmp_path / 'cache'}",
            "federation.clients=3",
            "federation.rounds=60",
            "simulation.dropout=0",
            "federation.server_lr=0.03",
            "privacy.unit=none",
            "privacy.max_colluders=0",
            "privacy.sample_rate=1",
            "evaluation.baselines=false",
            "evaluation.every=60",
            f"run.dir={tmp_path}",
            "run.name=open",
        ],
    )
    train(config, SilentReporter())
    result = audit_run(tmp_path / "open", SilentReporter(), attacks=["membership", "server-view"], records=60)
    assert result.falsified == ()
    areas = {f.check: f.figures["AUC"] for f in result.findings if f.attack == "membership"}
    assert np.max(list(areas.values())) > 0.95  # type: ignore[arg-type]
