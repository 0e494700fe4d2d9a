"""A run under predictable noise that is stopped and resumed is the run that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carefl_secure.config import load_config
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server.optimizers import FedAdam
from carefl_secure.federation.server.run import FederationResult
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.build import KeptKeys, key_source
from tests.support.running import federate


class Stop(SilentReporter):
    """Pulls the plug after so many rounds."""

    def __init__(self, after: int) -> None:
        self._left = after

    def round(self, row: Any) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


def test_no_process_hands_out_a_key_of_another(tmp_path: Path) -> None:
    whole = DeterministicKeySource(b"seed")
    wanted = [whole.key(label) for label in ("noise", "sample", "noise", "noise", "sample")]
    got = []
    for label in ("noise", "sample", "noise", "noise", "sample"):
        got.append(KeptKeys(DeterministicKeySource(b"seed"), tmp_path / "k" / "0.log").key(label))
    assert got == wanted and len(set(got)) == 5


def test_keys_that_nobody_can_predict_are_not_kept(tmp_path: Path) -> None:
    source = key_source(load_config(None, []), kept=tmp_path / "keys")
    assert source(0).key("noise") != source(0).key("noise")
    assert not (tmp_path / "keys").exists()


def test_a_stopped_run_goes_on_bit_for_bit(
    plan_toy: Callable[..., RunPlan], tasks_toy: Callable[..., list[Any]], tmp_path: Path
) -> None:
    plan = plan_toy(4)
    config = load_config(None, ["unsafe_deterministic_noise=true"])

    def run(folder: RunFolder, **options: Any) -> FederationResult:
        return federate(
            plan,
            tasks_toy(4),
            np.zeros(plan.encoding.dimension, np.float32),
            optimizer=FedAdam(0.1),
            folder=folder,
            base_hash=bytes(32),
            key_source=key_source(config, kept=folder.keys),
            **options,
        )

    whole = run(RunFolder.create(tmp_path, "", "whole"))
    folder = RunFolder.create(tmp_path, "", "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(folder, reporter=Stop(1))
    assert folder.read_checkpoint()["round"] == 1
    again = run(folder, resume=True)
    assert len(again.rows) == plan.privacy.rounds
    np.testing.assert_array_equal(whole.adapter, again.adapter)
