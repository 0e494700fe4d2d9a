"""Run folders made by real toy federations, and ways of breaking them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from carefl_secure.config import dump_config, load_config
from carefl_secure.config.load import with_sha256
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.privacy import Entry, Ledger
from carefl_secure.privacy.ledger.entry import make_entry
from carefl_secure.report import Report, write_report
from carefl_secure.report.build import build_report
from carefl_secure.report.checks import check_run
from carefl_secure.report.run_record import read_run
from carefl_secure.report.spending import settle
from carefl_secure.run_folder import RunFolder
from tests.support import running

CLIENTS, ROUNDS, RECORDS, DIMENSION = 6, 4, 40, 300


class ToyTask:
    """Forty records whose gradients are fixed unit vectors."""

    def __init__(self, seed: int) -> None:
        rows = np.random.default_rng(seed).normal(size=(RECORDS, DIMENSION))
        self.gradients = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    dimension = DIMENSION
    records = RECORDS

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int = 0
    ) -> NDArray[np.float64]:
        total: NDArray[np.float64] = self.gradients[indices].sum(axis=0)
        return total


def federate(root: Path, name: str, *, unit: Any = "record", dropout: float = 0.0, target: float = 8.0) -> Path:
    """Run a toy federation and return its folder."""
    words = [f"federation.clients={CLIENTS}", f"federation.rounds={ROUNDS}"]
    words += [f"privacy.unit={unit}", "privacy.sample_rate=0.1", "simulation.dropout=0.1"]
    plan = plan_run(
        PlanRequest(
            unit=unit,
            dimension=DIMENSION,
            clients=CLIENTS,
            rounds=ROUNDS,
            public_records=RECORDS * CLIENTS,
            sample_rate=0.1,
            clipping_norm=1.0,
            delta=1e-5,
            target_epsilon=None if unit == "none" else target,
        )
    )
    folder = RunFolder.create(root, with_sha256(dump_config(load_config(None, words))), name)
    running.federate(
        plan,
        [ToyTask(seed) for seed in range(CLIENTS)],
        np.zeros(DIMENSION, np.float32),
        optimizer=FedAvg(0.1),
        folder=folder,
        base_hash=bytes(32),
        evaluate=lambda adapter: {"mAP": 0.5, "macro_f1": 0.25},
        evaluate_every=2,
        dropout=dropout,
    )
    return folder.path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs: ``toy`` and ``gaps`` are protected, ``open`` is not."""
    root = tmp_path_factory.mktemp("runs")
    federate(root, "toy")
    federate(root, "gaps", dropout=0.17)
    federate(root, "open", unit="none")
    return root


@pytest.fixture
def weak(tmp_path: Path) -> Path:
    """Return a run with next to no noise."""
    return federate(tmp_path, "weak", target=900.0)


@pytest.fixture
def copy_run(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a maker of copies that a test may break."""

    def copy(name: str = "toy") -> Path:
        shutil.copytree(made / name, tmp_path / name)
        return tmp_path / name

    return copy


@pytest.fixture
def toy(copy_run: Callable[[str], Path]) -> Path:
    return copy_run("toy")


@pytest.fixture(scope="session")
def written(made: Path) -> tuple[Report, Path]:
    """Return the report of the untouched run, and a copy of it that holds the files."""
    run = made / "written" / "toy"
    shutil.copytree(made / "toy", run)
    return write_report(run)[0], run


@pytest.fixture
def cheat() -> Cheat:
    """Return the ways of breaking a run."""
    return Cheat()


class Cheat:
    """Ways of breaking a run."""

    @staticmethod
    def failed(run: Path) -> set[str]:
        """Return the checks that failed; the report must then be void and promise nothing."""
        report, bounds = build_report(read_run(run))
        assert report.verdict == "void"
        assert report.reasons
        assert (report.promise.epsilon, report.promise.delta, bounds) == (None, None, None)
        assert report.attacker is None
        return {check.name for check in report.checks if check.outcome == "failed"}

    @staticmethod
    def passes(run: Path) -> bool:
        """Tell whether no check fails."""
        record = read_run(run)
        return all(c.outcome != "failed" for c in check_run(record, settle(record)))

    @staticmethod
    def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a JSON file in place."""
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    @staticmethod
    def edit_rows(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
        """Change every row of the figures."""
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            change(row)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    @staticmethod
    def forge(path: Path, change: Callable[[Entry], dict[str, Any] | None]) -> None:
        """Write a ledger anew with a chain that is whole: what a clever cheat would do.

        ``change`` returns the new payload of an entry, or None to drop it.
        """
        new: list[Entry] = []
        for entry in Ledger(path).entries():
            payload = change(entry)
            if payload is not None:
                new.append(make_entry(new, entry.kind, payload, entry.time))
        path.write_bytes(b"".join(entry.line() for entry in new))
