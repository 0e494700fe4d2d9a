"""Runs on toy clients that trackers follow, with no server and no service asked for."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carefl_secure.errors import CareflError
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.trackers.base import TrackedReporter
from tests.support.running import federate

CLIENTS = 6
CONFIG = "privacy:\n  epsilon: 8.0\n  ledgers: /home/somebody/secret\ndata:\n  source: /scans\n"


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of addresses that anything tries to reach."""
    reached: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        reached.append(address)
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return reached


@pytest.fixture
def rounds(plan_toy: Any, tasks_toy: Any, tmp_path: Path) -> Any:
    """Return a maker of runs: ``rounds(folder, trackers, reporter, ...)``."""
    plan = plan_toy(CLIENTS)
    runs = tmp_path / "runs"

    def run(
        names: Sequence[str], reporter: Any = None, folder: RunFolder | None = None, **more: Any
    ) -> tuple[RunFolder, FederationResult | CareflError]:
        folder = RunFolder.create(runs, CONFIG) if folder is None else folder
        try:
            return folder, federate(
                plan,
                tasks_toy(CLIENTS, 60, 30),
                np.zeros(60, np.float32),
                optimizer=FedAvg(1.0),
                folder=folder,
                base_hash=bytes(32),
                reporter=reporter,
                follow=partial(TrackedReporter, names=names),
                **more,
            )
        except CareflError as error:
            return folder, error

    return run
