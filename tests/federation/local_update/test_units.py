"""Whole runs of every unit and rule on a real, small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carefl_secure.config import Config, load_config
from carefl_secure.data.splits import subject_groups
from carefl_secure.errors import ConfigError
from carefl_secure.privacy import Ledger
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.privacy.sampling import sample_bound
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.build import label_scorer
from carefl_secure.runs.client_task import model_tasks
from carefl_secure.runs.evaluation.evaluator import Evaluator
from carefl_secure.runs.staged_corpora import load_corpora
from carefl_secure.runs.summary import RunSummary
from carefl_secure.runs.train import train

CLIENTS = 3


@pytest.fixture
def config(base: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = tmp_path_factory.getbasetemp() / "corpora"

    def make(*words: str) -> Config:
        fixed = [
            f"model.base={base}",
            f"data.cache_dir={cache}",
            f"run.dir={tmp_path / 'runs'}",
            "data.records=60",
            f"federation.clients={CLIENTS}",
            "simulation.dropout=0",
            "federation.rounds=2",
            "performance.micro_batch=32",
            "privacy.delta=0.001",
            "adapter.rank=1",
            "adapter.targets=[q]",
            "adapter.last_layers=1",
            "evaluation.baselines=false",
            "evaluation.every=100",
        ]
        chosen = {word.split("=")[0]: word for word in [*fixed, *words]}
        return load_config(None, list(chosen.values()))

    return make


RUNS = {
    "person": ("privacy.unit=person",),
    "one record each": ("privacy.unit=person", "privacy.records_per_person=1"),
    "client": ("privacy.unit=client", "federation.local_steps=2"),
    "own noise": ("privacy.trust=none", "federation.local_steps=2"),
    "own noise, turns": ("privacy.trust=none", "adapter.train=alternate"),
    "own noise, feddyn": ("privacy.trust=none", "federation.aggregator=feddyn"),
    "client, corrected": ("privacy.unit=client", "federation.noise_correction=true"),
    "free, fedprox": ("privacy.unit=none", "federation.aggregator=fedprox", "simulation.stragglers=0.4"),
    "free, feddyn": ("privacy.unit=none", "federation.aggregator=feddyn"),
}


QUICK = ("person", "client")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUNS]
)
def test_a_run_of_every_unit_keeps_its_papers(config: Any, name: str) -> None:
    settings = config(*RUNS[name], "data.partition=quantity", "data.alpha=20")
    summary: RunSummary = train(settings, SilentReporter())
    assert [row["survivors"] for row in summary.rows] == [CLIENTS] * 2
    plan = json.loads((summary.folder / "plan.json").read_text())
    unit, private = settings.privacy.unit, settings.privacy.unit != "none"
    assert plan["privacy"]["unit"] == unit
    assert plan["privacy"]["public_records"] == (30 if unit == "person" else 60)
    assert ("local" in plan) is settings.sums_updates
    if private:
        assert 7.9 < float(summary.rows[-1]["epsilon"]) <= 8.0
        for i in range(CLIENTS):
            ledger = Ledger(summary.folder / "clients" / str(i) / "ledger.jsonl")
            ledger.verify()
            assert len(ledger.events()) == 2
    else:
        assert "Nothing is protected" in summary.promise
    word = {"person": "any one person", "client": "any one client", "record": "any one record"}
    assert word.get(unit, "") in summary.promise
    if settings.privacy.trust == "none":
        assert "the server, whatever it works with" in summary.promise
    kept = list((summary.folder / "clients" / "0").glob("feddyn-*.bin"))
    assert bool(kept) is (settings.federation.aggregator == "feddyn")


@pytest.mark.parametrize("engine", ["native", "opacus"])
def test_a_real_models_person_is_one_clipped_gradient(config: Any, engine: str) -> None:
    settings = config("privacy.unit=person", f"privacy.clipping={engine}")
    corpora = load_corpora(settings, SilentReporter())
    owner = {i: c for c, share in enumerate(corpora.shares) for i in share.tolist()}
    for group in subject_groups(corpora.private.records):
        assert len({owner[i] for i in group.tolist()}) == 1
    scorer = label_scorer(settings, corpora.private.space)
    task = model_tasks(
        scorer,
        corpora,
        Clipping(0.5, False, engine=settings.privacy.clipping, micro_batch=3),
        SilentReporter(),
        by_person=True,
        pad_rate=0.5,
    )[0]
    adapter = scorer.adapter.vector()
    sizes = sorted(map(len, task.by_person), reverse=True)
    assert task.rows == sum(sizes[: sample_bound(len(sizes), 0.5)]) > 0
    assert not task.clipped_person_sum(adapter, np.arange(0), 1).any()
    assert task.most_records == 2
    total = task.clipped_person_sum(adapter, np.arange(4), 1)
    expected = np.zeros(task.dimension)
    for person in range(4):
        gradient = task.gradient(adapter, task.by_person[person], 1)
        expected += gradient * min(1.0, 0.5 / float(np.linalg.norm(gradient)))
    np.testing.assert_allclose(total, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_an_interrupted_feddyn_run_goes_on_as_if_nothing_had_happened(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "privacy.unit=none",
        "federation.aggregator=feddyn",
        "federation.local_steps=2",
        "privacy.sample_rate=1",
        "federation.rounds=3",
        "evaluation.every=1",
        "federation.local_lr=9",
    )
    whole = train(config(*words, "run.name=whole"), SilentReporter())

    class Stop(Exception):
        pass

    scored = Evaluator.__call__
    calls: list[int] = []

    def stop(self: Evaluator, adapter: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:  # before the run, round 1, round 2
            raise Stop
        return scored(self, adapter)

    monkeypatch.setattr(Evaluator, "__call__", stop)
    broken = config(*words, "run.name=broken")
    with pytest.raises(Stop):
        train(broken, SilentReporter())
    monkeypatch.undo()
    folder = broken.run.dir / "broken"
    train(broken, SilentReporter(), resume=folder)
    ends = [RunFolder.open(path).read_checkpoint() for path in (whole.folder, folder)]
    assert [end["round"] for end in ends] == [3, 3]
    first, second = (np.asarray(end["adapter"]) for end in ends)
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)
    moved = np.asarray(ends[0]["optimizer.correction"])
    np.testing.assert_allclose(moved, ends[1]["optimizer.correction"], rtol=1e-3, atol=1e-5)
    assert np.abs(moved).max() > 2e-4  # far above what the comparison lets pass


def test_both_matrices_cannot_move_on_their_own(config: Any) -> None:
    with pytest.raises(ConfigError, match="mean of their products"):
        config("privacy.unit=client", "adapter.train=both")
