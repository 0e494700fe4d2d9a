"""Real deployments by the engine that the command line chooses: resumption, and all sums."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from carefl_secure.config import Config, load_config
from carefl_secure.deployment.engines import choose_engine
from carefl_secure.privacy import Ledger
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.train import train

pytestmark = pytest.mark.slow

SITES = 3
WORDS = (
    "data.records=300",
    f"federation.clients={SITES}",
    "simulation.dropout=0",
    "unsafe_deterministic_noise=true",
    "evaluation.baselines=false",
    "privacy.delta=1e-4",
)
ADAPTER = "adapter/adapter_model.safetensors"


class Stop(SilentReporter):
    """Interrupts this process, as Ctrl-C does, once a round is finished."""

    def round(self, row: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def settings(root: Path, name: str, *more: str) -> Config:
    return load_config(None, [*WORDS, f"run.name={name}", *more], run_dir=root)


def test_an_interrupted_deployment_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    rounds = "federation.rounds=3"
    engine = choose_engine("superlink")
    train(settings(tmp_path, "near", rounds), SilentReporter())
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path, "far", rounds), Stop(), engine=engine)
    far = RunFolder.open(tmp_path / "far")
    assert far.read_checkpoint()["round"] == 1
    assert not (far.path / ADAPTER).exists()
    summary = train(load_config(far.config, ()), SilentReporter(), far.path, engine)
    assert len(summary.rows) == 3
    assert (tmp_path / "near" / ADAPTER).read_bytes() == (far.path / ADAPTER).read_bytes()
    near = RunFolder.open(tmp_path / "near")
    for index in range(SITES):
        ledgers = [Ledger(one.client_ledger(index)) for one in (near, far)]
        assert [len(ledger.events()) for ledger in ledgers] == [3, 3]
        assert ledgers[0].epsilon(1e-4) == ledgers[1].epsilon(1e-4)
    assert not list(far.path.rglob("*.key"))


@pytest.mark.parametrize(
    "how",
    [("federation.aggregation=committee", "federation.committee_members=2"), ("federation.aggregation=encrypted",)],
    ids=["committee", "encrypted"],
)
def test_other_ways_of_summing_give_the_adapter_of_one_process(tmp_path: Path, how: tuple[str, ...]) -> None:
    more = ("federation.rounds=1", *how)
    train(settings(tmp_path, "near", *more), SilentReporter())
    engine = choose_engine("superlink")
    train(settings(tmp_path, "far", *more), SilentReporter(), engine=engine)
    for file in (ADAPTER, "plan.json"):
        assert (tmp_path / "near" / file).read_bytes() == (tmp_path / "far" / file).read_bytes()
